"""The cross-fold runner on a generated tree in RAVDESS's form: loud clips are angry, quiet ones neutral."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModel, AutoProcessor

from mer_hf import (
    AlignmentError,
    FilterbankStatisticsConfig,
    FilterbankStatisticsModel,
    SpectrogramConfig,
    SpectrogramModel,
    WordAlignment,
    split_words,
)
from mer_hf import experiment as experiment_module
from mer_hf.corpora import Corpus, align_rows, load_corpus
from mer_hf.data.collator import ClipDataset, EmotionCollator
from mer_hf.data.named_protocols import PROTOCOLS
from mer_hf.data.protocols import FoldSplit
from mer_hf.data.ravdess import ravdess_splits, scan
from mer_hf.experiment import expand_models, run_experiment
from mer_hf.recipes import RECIPES, cut_to_words, logistic_regression
from mer_hf.reporting import results_table

ACTORS = (1, 11, 20, 21, 4, 10, 12, 14, 8, 9, 19, 23)  # EmoBox's folds 1 to 3
LOUDNESS = {"01": 0.005, "05": 0.5}  # neutral, angry
UNALIGNABLE = "01-05-01-02-01-23"
ROOT = Path(__file__).resolve().parents[1]


class EvenAligner:
    """Words of equal length from 0.1 to 0.3 s; refuses the clip of 0.65 s."""

    def __init__(self):
        self.calls = 0

    def align(self, audio, text):
        self.calls += 1
        if len(audio) > 10_000:
            raise AlignmentError("too long")
        words = split_words(text)
        step = 0.2 / len(words)
        times = [{"word": w, "start": 0.1 + i * step, "end": 0.1 + (i + 1) * step} for i, w in enumerate(words)]
        return WordAlignment(tuple(times), 1, -1.0, ())


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ravdess")
    rng = np.random.default_rng(0)
    for actor in ACTORS:
        for emotion, loudness in LOUDNESS.items():
            for statement in ("01", "02"):
                name = f"01-{emotion}-01-{statement}-01-{actor:02}"
                size = 10_400 if name == UNALIGNABLE else 9_600
                audio = loudness * rng.standard_normal(size).clip(-2, 2) / 2
                soundfile.write(folder / f"03-{name}.wav", audio, 16_000, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def corpus(tree, tmp_path_factory):
    rows, unaligned = align_rows(scan(tree).rows, tmp_path_factory.mktemp("cache") / "words.json", EvenAligner())
    generator = torch.Generator().manual_seed(0)
    tracks = {  # a face for all but one
        row["id"]: {
            "vision_embeds": torch.rand(6, 7, generator=generator),
            "vision_times": torch.arange(6) / 10,
        }
        for row in rows[1:]
    }
    return Corpus(
        "tiny",
        rows,
        ravdess_splits(rows),
        ["neutral", "angry"],
        tracks,
        {"unaligned": unaligned},
        PROTOCOLS["ravdess-emobox"],
    )


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run_experiment(corpus, ["lr_audio", "mman", "text"], folder, epochs=2)


def records(folder):
    return {file.stem: json.loads(file.read_text()) for file in (folder / "folds").glob("*.json")}


def test_results_are_those_of_the_fold_files(finished):
    folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    found = records(folder)
    assert len(found) == 9
    for name, model in results["models"].items():
        hits = {
            fold: np.equal(*(found[f"{name}-seed0-fold{fold}"][part] for part in ("labels", "predictions")))
            for fold in (1, 2, 3)
        }
        assert [fold["wa"] for fold in model["folds"]] == [hit.mean() for hit in hits.values()]
        assert model["mean"]["wa"] == pytest.approx(np.mean([hit.mean() for hit in hits.values()]))
        assert model["pooled"]["wa"] == pytest.approx(np.concatenate(list(hits.values())).mean())
        assert model["pooled"]["speakers"] == 12


def test_what_can_be_heard_is_learned_and_what_words_do_not_tell_is_not(finished):
    models = finished[1]["models"]
    assert [fold["wa"] for fold in models["lr_audio"]["folds"]] == [1.0, 1.0, 1.0]
    assert [fold["ua"] for fold in models["text"]["folds"]] == [0.5, 0.5, 0.5]
    assert models["text"]["wa_minus"]["lr_audio"] == {"estimate": -0.5, "low": -0.5, "high": -0.5}
    assert models["lr_audio"]["wa_minus"]["text"]["estimate"] == 0.5 and "text" not in models["text"]["wa_minus"]


def test_results_name_split_settings_and_versions(finished, corpus):
    _, results = finished
    assert [fold["sha256"] for fold in results["protocol"]["folds"]] == [split.sha256 for split in corpus.splits]
    assert [(fold["train"], fold["validation"], fold["test"]) for fold in results["protocol"]["folds"]] == [
        (16, 16, 16)
    ] * 3
    assert results["models"]["mman"]["settings"]["epochs"] == 2
    assert results["models"]["mman"]["config"]["model_type"] == "mman"
    assert results["corpus"]["unaligned"] == {UNALIGNABLE: "too long"}
    assert results["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "tmp" not in json.dumps(results), "paths of this machine"


def test_table_has_a_line_a_model_and_the_difference_to_the_floor(finished):
    lines = results_table(finished[1]).splitlines()
    assert results_table(finished[1]) in (finished[0] / "results.md").read_text()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["lr_audio", "mman", "text"]
    assert "-0.500 (-0.500 to -0.500)" in lines[4]


def test_checkpoint_of_the_last_fold_answers_as_the_run_did(finished, corpus):
    folder, _ = finished
    model = AutoModel.from_pretrained(folder / "mman").eval()
    assert model.config.id2label == {0: "neutral", 1: "angry"}
    vectors = [corpus.audio_vectors[i] for i in corpus.splits[2].test]
    faces = [corpus.vision_vectors.get(i) for i in corpus.splits[2].test]
    mask = torch.tensor([[face is not None] for face in faces])
    faces = torch.stack([torch.zeros(1, 21) if face is None else face for face in faces])
    with torch.no_grad():
        logits = model(audio_embeds=torch.stack(vectors), vision_embeds=faces, vision_mask=mask).logits
    assert logits.argmax(-1).tolist() == records(folder)["mman-seed0-fold3"]["predictions"]
    assert sorted(AutoProcessor.from_pretrained(folder / "text").tokenizer.get_vocab()) == sorted(
        {"[PAD]", "[UNK]", *split_words("kids are talking by the door dogs sitting")}
    )
    assert not (folder / "unfinished").exists()


def test_finished_jobs_are_not_run_again(finished, corpus, monkeypatch):
    folder, results = finished
    trained = []
    fit = experiment_module.fit
    monkeypatch.setattr(
        experiment_module, "fit", lambda model, *rest, **kw: trained.append(1) or fit(model, *rest, **kw)
    )
    lines = []
    again = run_experiment(corpus, ["lr_audio", "mman", "text"], folder, epochs=2, progress=lines.append)
    assert json.dumps(again) == json.dumps(results) and trained == []
    assert len(lines) == 9 and all("done before" in line for line in lines)

    before = records(folder)["text-seed0-fold2"]
    (folder / "folds" / "text-seed0-fold2.json").unlink()
    run_experiment(corpus, ["text"], folder, epochs=2)
    assert trained == [1]
    after = records(folder)["text-seed0-fold2"]
    assert after["predictions"] == before["predictions"]


def test_a_file_made_otherwise_is_refused(finished, corpus):
    with pytest.raises(ValueError, match=r"text-seed0-fold1\.json was made with another settings"):
        run_experiment(corpus, ["text"], finished[0], epochs=3)
    other = Corpus("tiny", corpus.rows, corpus.splits, corpus.labels, {}, {})
    with pytest.raises(ValueError, match="corpus_sha256"):
        run_experiment(other, ["text"], finished[0], epochs=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": ["cme", "bert"]}, r"\['bert'\]"),
        ({"models": []}, "none"),
        ({"models": ["text"], "folds": [1, 6]}, r"folds \[6\] are not among the corpus's: \[1, 2, 3\]"),
        ({"models": ["text"], "save_fold": 4}, "save_fold 4"),
        ({"models": ["text"], "seeds": []}, r"seeds \[\]"),
        ({"models": ["text"], "epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_bad_calls_are_refused_before_anything_is_written(corpus, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_experiment(corpus, output_dir=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_lr_stands_for_the_floors_the_corpus_has_vectors_for(corpus):
    assert expand_models(corpus, ["text", "lr", "lr_face"]) == ["text", "lr_audio", "lr_face", "lr_both"]
    deaf = Corpus("tiny", corpus.rows, corpus.splits, corpus.labels)
    assert expand_models(deaf, ["lr"]) == ["lr_audio"]
    with pytest.raises(ValueError, match="lr_face: corpus 'tiny' has no vision"):
        logistic_regression(deaf, deaf.splits[0], "lr_face")


@pytest.mark.parametrize("name", ["cme", "learned_alignment"])
def test_word_models_train_from_sound_words_and_faces(corpus, tmp_path, name):
    results = run_experiment(corpus, [name], tmp_path, seeds=[3], folds=[2], epochs=1)
    model = results["models"][name]
    assert [(fold["fold"], fold["seed"]) for fold in model["folds"]] == [(2, 3)]
    assert AutoModel.from_pretrained(tmp_path / name).config.modalities == ("audio", "text", "vision")


def test_plans_take_words_and_statistics_from_the_training_side_only(corpus):
    split = corpus.splits[0]
    rows = [row | {"text": "unheard words", "words": None} if row["id"] in split.test else row for row in corpus.rows]
    plan = RECIPES["cme"](Corpus("tiny", rows, corpus.splits, corpus.labels), split, 0)
    assert "unheard" not in plan.processor.tokenizer.get_vocab()
    assert "input_ids" not in plan.test[0], "without times a clip is one unit"
    assert "vision_embeds" not in plan.train[0], "this corpus has no faces"
    aligned = RECIPES["learned_alignment"](corpus, split, 0)
    assert len(aligned.train[0]["input_values"]) < 9_600 == len(aligned.validation[0]["input_values"])
    untimed = RECIPES["text"](corpus, split, 0).train[0]
    assert sorted(untimed) == ["input_ids", "label", "word_ids"]


def test_cut_clips_have_the_logits_of_whole_ones_in_cme(corpus):
    plan = RECIPES["cme"](corpus, corpus.splits[0], 0)
    model, label2id = plan.model.eval(), corpus.label2id
    whole = ClipDataset(corpus.rows, plan.processor, label2id, ("audio", "text"))
    for index, row in enumerate(corpus.rows[20:24], start=20):
        example = whole[index] | dict(corpus.extras[row["id"]])
        cut = cut_to_words(example, row["words"], 0.1)
        assert len(cut["input_values"]) < len(example["input_values"])
        with torch.no_grad():
            logits = [model(**EmotionCollator()([clip])).logits for clip in (example, cut)]
        torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_fixed_vectors_are_computed_once_a_clip(tree, tmp_path, monkeypatch):
    first, again = (load_corpus("ravdess", tree, tmp_path, "ravdess-emobox", aligner=EvenAligner()) for _ in range(2))
    vectors = first.audio_vectors
    assert {vector.shape for vector in vectors.values()} == {(1, 240)} and len(vectors) == len(first.rows)
    monkeypatch.setattr("mer_hf.data.feature_store.cache_embeds", None)
    assert all(torch.equal(again.audio_vectors[i], vector) for i, vector in vectors.items())
    unkept = replace(first, vectors_dir=None).audio_vectors
    for i, vector in vectors.items():
        torch.testing.assert_close(unkept[i], vector)


def test_vectors_move_at_every_look_and_on_the_training_side_only(corpus):
    plan = RECIPES["mman"](corpus, corpus.splits[0], 0)
    i = corpus.splits[0].train[0]
    clean = corpus.audio_vectors[i]
    first, second = (plan.train[0]["audio_embeds"] for _ in range(2))
    assert not torch.equal(first, second) and torch.equal(plan.statistics[0]["audio_embeds"], clean)
    assert plan.train[0]["label"] == label_of(corpus, i)
    for side, dataset in (("validation", plan.validation), ("test", plan.test)):
        assert torch.equal(dataset[0]["audio_embeds"], corpus.audio_vectors[corpus.splits[0].sides[side][0]])
    speakers = {corpus.by_id[i]["speaker"] for i in corpus.splits[0].train}
    assert set(plan.train.means["audio_embeds"]) == speakers, "means of training speakers alone"


def label_of(corpus, row_id):
    return corpus.label2id[corpus.by_id[row_id]["label"]]


def test_floor_chooses_on_validation_and_never_answers_an_unseen_class(corpus):
    split = corpus.splits[0]
    rows = [row | {"label": "happy"} if row["id"] in split.test else row for row in corpus.rows]
    validation, logits, chosen = logistic_regression(
        Corpus("tiny", rows, corpus.splits, ["neutral", "happy", "angry"]), split, "lr_audio"
    )
    assert np.isneginf(logits[:, 1]).all() and np.isfinite(logits[:, [0, 2]]).all()
    assert np.isneginf(validation[:, 1]).all() and len(validation) == len(split.validation)
    assert chosen == {"C": 0.001, "inputs": 240}


def test_cut_keeps_the_words_and_moves_their_times():
    example = {
        "input_values": torch.arange(32_000.0),
        "word_times": torch.tensor([[0.5, 0.7], [0.7, 1.0]]),
        "vision_times": torch.tensor([0.1, 0.6, 1.4]),
        "vision_embeds": torch.tensor([[1.0], [2.0], [3.0]]),
        "label": 1,
    }
    cut = cut_to_words(example, [{"start": 0.5, "end": 0.7}, {"start": 0.7, "end": 1.0}], margin=0.1)
    # 0.4 s is sample 6400, down to a multiple of 960: 5760 = 0.36 s; the end is 1.1 s
    assert cut["input_values"][[0, -1]].tolist() == [5760.0, 17_599.0]
    torch.testing.assert_close(cut["word_times"], torch.tensor([[0.14, 0.34], [0.34, 0.64]]))
    torch.testing.assert_close(cut["vision_times"], torch.tensor([0.24]))
    assert cut["vision_embeds"].tolist() == [[2.0]] and cut["label"] == 1
    far = cut_to_words(example, [{"start": 1.7, "end": 1.9}], margin=0.0)
    assert "vision_embeds" not in far and "vision_times" not in far, "no face is absent, not an empty track"


def test_word_times_are_cached_by_content(tree, tmp_path):
    rows = [row for row in scan(tree).rows if row["speaker"] == "ravdess-23"]
    aligner, cache = EvenAligner(), tmp_path / "words.json"
    first, refused = align_rows(rows, cache, aligner)
    assert refused == {UNALIGNABLE: "too long"}
    assert [row["id"] for row in first if row["words"] is None] == [UNALIGNABLE]
    assert align_rows(rows, cache, aligner) == (first, refused) and aligner.calls == 4
    changed = [rows[0] | {"text": "other words"}, *rows[1:]]
    assert [word["word"] for word in align_rows(changed, cache, aligner)[0][0]["words"]] == ["other", "words"]
    assert aligner.calls == 5
    given = [rows[0] | {"words": [{"word": "mine", "start": 0.0, "end": 0.1}]}]
    assert align_rows(given, cache, aligner)[0] == given and aligner.calls == 5


def test_loading_names_what_is_wrong(tree, tmp_path):
    with pytest.raises(ValueError, match=r"corpus must be one of .*controlled, found 'emodb'"):
        load_corpus("emodb", tree, tmp_path)
    with pytest.raises(ValueError, match="face_scores are RAVDESS's"):
        load_corpus("controlled", tree, tmp_path, face_scores="x.parquet")


def test_official_splits_run_too(corpus, tmp_path):
    sides = [[row["id"] for row in corpus.rows if row["speaker"] in speakers] for speakers in SIDES]
    sides[2].reverse()  # or validation's labels would pass for the test's
    official = Corpus("other", corpus.rows, [FoldSplit("official", 1, *map(tuple, sides))], corpus.labels)
    results = run_experiment(official, ["lr"], tmp_path)
    assert results["protocol"]["split"] == "official" and list(results["models"]) == ["lr_audio"]
    assert results["models"]["lr_audio"]["pooled"]["n"] == len(sides[2])
    record = records(tmp_path)["lr_audio-seed0-fold1"]
    assert record["labels"] == record["predictions"] == [label_of(official, i) for i in sides[2]]


SIDES = [{"ravdess-01", "ravdess-11", "ravdess-20"}, {"ravdess-04", "ravdess-10"}, {"ravdess-08", "ravdess-09"}]


def test_script_trains_on_a_tree(tree, tmp_path, monkeypatch, capsys):
    align_rows(scan(tree).rows, tmp_path / "run" / "cache" / "words.json", EvenAligner())
    arguments = ["--corpus", "ravdess", "--data_dir", tree, "--output_dir", tmp_path / "run", "--models", "lr,text"]
    arguments += ["--epochs", "1", "--test_folds", "2"]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert printed.startswith("lr_audio-seed0-fold2: WA 100.0, UA 100.0")
    assert printed.endswith(results_table(results) + "\n")
    assert list(results["models"]) == ["lr_audio", "text"] and results["corpus"]["clips"] == 48
    assert results["corpus"]["clips_without_word_times"] == {UNALIGNABLE: "too long"}, "the cache was not used"


def test_real_clips_are_aligned_once(ravdess_dir, tmp_path):
    rows = [row for row in scan(ravdess_dir).rows if row["speaker"] == "ravdess-01"][:2]
    aligned, refused = align_rows(rows, tmp_path / "words.json")
    assert refused == {}
    assert [[word["word"] for word in row["words"]] for row in aligned] == [split_words(row["text"]) for row in rows]
    assert align_rows(rows, tmp_path / "words.json", aligner=object())[0] == aligned


# Options of the front ends that the recipes use


def test_vector_without_silent_ends_is_that_of_the_loud_part():
    sound = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    silent_ends = torch.cat([sound[:, :8_000] * 1e-4, sound, sound[:, :4_000] * 1e-4], dim=1)
    trimmed = FilterbankStatisticsModel(FilterbankStatisticsConfig(trim_db=30.0)).eval()
    mask = torch.ones(2, silent_ends.shape[1], dtype=torch.bool)
    mask[0, 16_000:] = False
    batch = torch.cat([torch.nn.functional.pad(sound, (0, 12_000), value=0.9), silent_ends])
    with torch.no_grad():
        plain, padded = trimmed(batch, attention_mask=mask).last_hidden_state
        whole = FilterbankStatisticsModel(FilterbankStatisticsConfig()).eval()(silent_ends).last_hidden_state[0]
    # Frames across the two edges, and their deltas, are all that may differ.
    difference = (plain - padded).abs()[0, :40].max()
    assert difference < 0.5 < (plain - whole).abs()[0, :40].max()
    with pytest.raises(ValueError, match="trim_db"):
        FilterbankStatisticsConfig(trim_db=0.0)


def test_spectrogram_averages_real_frames_only():
    torch.manual_seed(0)
    config = SpectrogramConfig(normalization="none", hidden_size=3, dropout=0.0, frames_averaged=4)
    model = SpectrogramModel(config).eval()
    clip = torch.randn(1, 400 + 5 * 160) * 0.1  # six frames: one of four, one of two
    with torch.no_grad():
        frames = model.spectrum(clip).clamp(min=torch.finfo(torch.float32).eps).log()
        expected = model.dense(torch.stack([frames[0, :4].mean(0), frames[0, 4:].mean(0)])).relu()
        mask = torch.zeros(1, 4_200)
        mask[:, :1_200] = 1
        padded = model(torch.nn.functional.pad(clip, (0, 3_000), value=0.5), mask).last_hidden_state
    torch.testing.assert_close(padded[0, :2], expected, rtol=1e-4, atol=1e-4)
    assert model._get_feat_extract_output_lengths(torch.tensor([1_200, 399, 400])).tolist() == [2, 0, 1]
    assert config.inputs_to_logits_ratio == 640
