"""A kept checkpoint is tested on the fold it was kept for, and on no clip it may have been trained on."""

import json
import subprocess
import sys

import pytest
from transformers import AutoModel

from mer_hf.calibration import calibration_report
from mer_hf.checkpoints import evaluate_checkpoint
from mer_hf.corpora import Corpus
from mer_hf.data.protocols import FoldSplit
from mer_hf.data.schema import make_row
from mer_hf.experiment import run_experiment
from mer_hf.recipes import RECIPES, majority
from mer_hf.reporting import logits_of

WORDS = {"happy": "what a lovely day", "sad": "nothing is left"}


def tellable(speakers=4, clips=80):
    rows = [
        make_row(id=f"{s}-{c}", corpus="own", speaker=f"s{s}", label=label, text=WORDS[label])
        for s in range(speakers)
        for c, label in enumerate(["happy", "sad", "sad", "sad"] * (clips // 4))
    ]
    ids = [tuple(row["id"] for row in rows if row["speaker"] == f"s{s}") for s in range(speakers)]
    splits = [
        FoldSplit("own", k + 1, ids[k - 2] + ids[k - 1], ids[(k + 1) % speakers], ids[k]) for k in range(speakers)
    ]
    return Corpus("own", rows, splits, ["happy", "sad"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    corpus, folder = tellable(), tmp_path_factory.mktemp("run")
    models = ["late_fusion", "majority"]
    return corpus, folder, run_experiment(corpus, models, folder, folds=[1, 2], save_fold=2, paper=True)


def record(folder, name):
    return json.loads((folder / "folds" / f"{name}.json").read_text())


def test_words_that_tell_are_learned(run):
    _, folder, results = run
    assert list(results["models"]) == ["text", "late_fusion", "majority"], "the fusion brings what it fuses"
    assert results["models"]["text"]["mean"]["wa"] == 1.0
    assert results["models"]["majority"]["mean"] == {
        "wa": 0.75,
        "ua": 0.5,
        "macro_f1": pytest.approx(3 / 7),
        "weighted_f1": pytest.approx(0.75 * 6 / 7),
    }
    assert (folder / "results.png").is_file() and (folder / "results.md").is_file()


def test_the_fusion_of_one_branch_is_that_branch_calibrated(run):
    folder = run[1]
    branch, fused = record(folder, "text-seed0-fold1"), record(folder, "late_fusion-seed0-fold1")
    shares = logits_of(branch) / branch["temperature"]
    difference = logits_of(fused) - shares
    assert abs(difference - difference[:, :1]).max() < 1e-3 and fused["chosen"]["branches"] == ["text"]


def test_the_papers_way_trains_on_validation_too_and_is_named_so(run):
    folder, results = run[1:]
    honest, optimistic = (record(folder, f"majority-seed0-fold1{end}") for end in ("", "-paper"))
    assert honest["origin"]["chosen_on"] == "validation" and optimistic["origin"]["chosen_on"] == "test"
    assert len(record(folder, "text-seed0-fold1-paper")["validation"]["labels"]) == 80
    assert results["models"]["text"]["chosen on test"]["mean"]["wa"] == 1.0
    assert results["protocol"]["selected_on"] == "validation"


def test_the_checkpoint_knows_its_fold_and_its_temperature(run):
    corpus, folder, results = run
    report = evaluate_checkpoint(corpus, folder / "text")
    assert (report["fold"], report["sha256"], report["wa"]) == (2, corpus.splits[1].sha256, 1.0)
    config = json.loads((folder / "text" / "config.json").read_text())
    assert config["calibration_temperature"] == record(folder, "text-seed0-fold2")["temperature"] != 1.0
    assert report["calibration"]["temperature"] == config["calibration_temperature"]
    assert report["calibration"]["after"]["ece"] < report["calibration"]["before"]["ece"]
    assert results["models"]["text"]["folds"][1]["temperature"] == config["calibration_temperature"]


def test_the_kept_fusion_answers_as_its_record(run):
    corpus, folder, results = run
    model = AutoModel.from_pretrained(folder / "late_fusion")
    assert type(model).__name__ == "LateFusionForEmotionClassification" and list(model.branches) == ["text"]
    report = evaluate_checkpoint(corpus, folder / "late_fusion")
    assert report["wa"] == results["models"]["late_fusion"]["folds"][1]["wa"]
    fused = record(folder, "late_fusion-seed0-fold2")
    assert report["calibration"]["after"]["nll"] == pytest.approx(
        calibration_report(logits_of(fused), fused["labels"], fused["temperature"])["after"]["nll"], abs=1e-3
    )


def test_another_fold_of_the_same_corpus_is_refused(run):
    corpus, folder, _ = run
    with pytest.raises(ValueError, match=r"trained for fold 2 of own .* this is fold 1 .* on these test clips"):
        evaluate_checkpoint(corpus, folder / "text", fold=1)
    larger = tellable(speakers=5)
    with pytest.raises(ValueError, match="may have been trained on"):
        evaluate_checkpoint(larger, folder / "text")


def test_another_corpus_needs_a_fold_and_is_then_tested(run):
    corpus, folder, _ = run
    elsewhere = Corpus("other", corpus.rows, corpus.splits, corpus.labels)
    with pytest.raises(ValueError, match=r"does not say what it was trained on; name one of the folds \[1, 2, 3, 4\]"):
        evaluate_checkpoint(elsewhere, folder / "text")
    assert evaluate_checkpoint(elsewhere, folder / "text", fold=1)["wa"] == 1.0


def test_majority_counts_the_training_side_only():
    corpus = tellable()
    split = corpus.splits[0]._replace(train=("0-0", "1-0", "2-1"))
    validation, test, chosen = majority(corpus, split)
    assert chosen == {"answer": "happy"} and (test.argmax(-1) == 0).all() and len(validation) == len(split.validation)


@pytest.mark.parametrize("name", ["audio_frames", "face", "mman", "cme", "learned_alignment", "cme_max"])
def test_a_recipe_says_what_the_corpus_lacks(name):
    corpus = tellable()
    with pytest.raises(ValueError, match=f"{name}: corpus 'own' has no"):
        run_experiment(corpus, [name], "never-made")
    assert name in RECIPES


@pytest.mark.long
def test_a_killed_run_goes_on_fold_by_fold_and_ends_as_an_unbroken_one(tmp_path):
    """A process is killed outright between two folds; nothing that was finished is trained again."""
    rows = [[f"{s}-{c}", WORDS[e], e, f"s{s}"] for s in range(4) for c, e in enumerate(["happy", "sad"] * 3)]
    lines = ["id,text,emotion,speaker", *(",".join(row) for row in rows)]
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mer_hf.cli", "evaluate", "--corpus", "folder", "--models", "text,majority"]
    command += ["--data_dir", str(tmp_path / "clips.csv"), "--protocol", "speakers-5fold", "--epochs", "5"]

    def output(name):
        return [*command, "--output_dir", str(tmp_path / name)]

    with subprocess.Popen(output("broken"), stdout=subprocess.PIPE, text=True) as process:
        printed = [process.stdout.readline() for _ in range(2)]
        process.kill()
    assert [line.split(":")[0] for line in printed] == ["text-seed0-fold1", "text-seed0-fold2"]
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "broken" / "folds").iterdir()}
    assert not (tmp_path / "broken" / "results.json").exists() and len(before) < 8

    again = subprocess.run(output("broken"), stdout=subprocess.PIPE, text=True, check=True).stdout
    assert again.count("(done before)") == len(before) >= 2
    assert all((tmp_path / "broken" / "folds" / name).stat().st_mtime_ns == time for name, time in before.items())
    subprocess.run(output("whole"), stdout=subprocess.PIPE, check=True)
    broken, whole = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("broken", "whole"))
    assert untimed(broken) == untimed(whole)
    assert not (tmp_path / "broken" / "unfinished").exists()


def untimed(value):
    if isinstance(value, dict):
        return {name: untimed(v) for name, v in value.items() if name not in ("seconds", "cpu_seconds")}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def test_labels_go_by_name_not_by_place(run):
    """A corpus whose labels are others, in another order, than those the model was trained with."""
    corpus, folder, _ = run
    rows = [row for row in corpus.rows if row["label"] == "sad"]
    ids = {row["id"] for row in rows}
    splits = [
        FoldSplit("own", split.fold, *(tuple(i for i in side if i in ids) for side in split.sides.values()))
        for split in corpus.splits
    ]
    report = evaluate_checkpoint(Corpus("other", rows, splits, ["sad"]), folder / "text", fold=1)
    assert report["wa"] == 1.0 and report["support"] == {"happy": 0, "sad": 60} and report["corpus"] == "other"
    other = [{**row, "label": "surprised"} for row in rows]
    with pytest.raises(ValueError, match="surprised"):
        evaluate_checkpoint(Corpus("other", other, splits, ["surprised"]), folder / "text", fold=1)


def test_what_was_not_kept_is_neither_fused_nor_named_so(tmp_path):
    corpus = tellable()
    run_experiment(corpus, ["text"], tmp_path, folds=[1, 2], epochs=1, save_fold=2)
    kept = (tmp_path / "text" / "model.safetensors").read_bytes()
    for models in (["late_fusion"], ["text"]):
        with pytest.raises(ValueError, match=r"of fold 1 of own is asked for, but that in .*text is of fold 2"):
            run_experiment(corpus, models, tmp_path, folds=[1], epochs=1, save_fold=1)
    assert not (tmp_path / "late_fusion").exists()
    with pytest.raises(ValueError, match="name another output_dir"):  # fold 1 alone: it is the one to keep
        run_experiment(corpus, ["late_fusion"], tmp_path, folds=[1], epochs=1)
    run_experiment(corpus, ["late_fusion"], tmp_path, folds=[1, 2], epochs=1)
    assert json.loads((tmp_path / "late_fusion" / "trained_on.json").read_text())["fold"] == 2
    assert (tmp_path / "text" / "model.safetensors").read_bytes() == kept


def test_one_tested_speaker_leaves_out_intervals_and_comparisons(tmp_path):
    results = run_experiment(tellable(), ["majority", "text"], tmp_path, folds=[1], epochs=1)
    assert results["models"]["text"]["wa_minus"] == {}
    assert "| majority |" in (tmp_path / "results.md").read_text()


def test_clips_without_words_are_answered_whoever_says_them(tmp_path):
    """One speaker without a transcript: batches of theirs have nothing a model of words reads."""
    corpus = tellable()
    rows = [{**row, "text": None} if row["speaker"] == "s0" else row for row in corpus.rows]
    corpus = Corpus("own", rows, corpus.splits, corpus.labels)
    results = run_experiment(corpus, ["text"], tmp_path, folds=[1, 2, 4], epochs=2)
    answers = record(tmp_path, "text-seed0-fold1")
    assert len(set(answers["predictions"])) == 1 and results["models"]["text"]["mean"]["wa"] > 0.7
