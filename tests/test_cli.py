"""Every command as a shell calls it: what it prints, what it leaves, and one line for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_training import write_tree
from transformers import ViTConfig, ViTImageProcessor
from transformers.utils import logging

from mer_hf import (
    CMEConfig,
    CMEForEmotionClassification,
    FilterbankConfig,
    LearnedAlignmentConfig,
    LearnedAlignmentForEmotionClassification,
    MerProcessor,
    SpectrogramConfig,
    WordTableConfig,
    word_tokenizer,
)
from mer_hf.cli import main
from mer_hf.corpora import align_rows
from mer_hf.data.ravdess import scan
from mer_hf.hub import save_checkpoint

KIDS = "kids are talking by the door"
LABELS = {0: "neutral", 1: "happy", 2: "sad", 3: "angry"}
WORDS = [{"word": word, "start": 0.05 * i, "end": 0.05 * (i + 1)} for i, word in enumerate(KIDS.split())]


@pytest.fixture(autouse=True)
def _verbosity():
    """The command line quietens transformers for its process, which here is everybody's."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints: CME and learned alignment over all three modalities, and CME over faces alone."""
    torch.manual_seed(0)
    table = WordTableConfig(vocab_size=8, embedding_dim=6)
    face = ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    models = {
        "cme": CMEForEmotionClassification(
            CMEConfig(
                audio_config=FilterbankConfig(conv_dims=(8, 8, 8), normalization="utterance"),
                text_config=table,
                vision_config=face,
                hidden_size=8,
                id2label=LABELS,
            )
        ),
        "alignment": LearnedAlignmentForEmotionClassification(
            LearnedAlignmentConfig(
                audio_config=SpectrogramConfig(hidden_size=8, normalization="utterance"),
                text_config=table,
                vision_config=face,
                hidden_size=4,
                id2label=LABELS,
            )
        ),
        "face": CMEForEmotionClassification(CMEConfig(vision_config=face, hidden_size=8, id2label=LABELS)),
    }
    images = ViTImageProcessor(size={"height": 8, "width": 8})
    processor = MerProcessor.default(tokenizer=word_tokenizer([KIDS]), image_processor=images, num_frames=3)
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: save_checkpoint(model.eval(), processor, root / name) for name, model in models.items()}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A wav, an mp4 with pictures and no sound, and what is no clip."""
    root = tmp_path_factory.mktemp("clips")
    sound = np.random.default_rng(0).standard_normal(8_000) * 0.1
    soundfile.write(root / "clip.wav", sound, 16_000)
    with av.open(str(root / "silent.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for shade in range(0, 240, 40):
            picture = np.full((64, 64, 3), shade, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    (root / "empty.wav").touch()
    (root / "text.wav").write_text("this is no sound\n" * 20)
    (root / "cut.mp4").write_bytes((root / "silent.mp4").read_bytes()[:400])
    return root


def run(capsys, *arguments):
    """Exit status, what was printed, lines on standard error."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err.splitlines()


# predict


def test_predict_prints_every_label_best_first(capsys, folders, clips):
    status, printed, errors = run(
        capsys, "predict", clips / "silent.mp4", "--model", folders["alignment"], "--text", KIDS
    )
    assert (status, errors) == (0, [])
    *scores, source = printed.splitlines()
    assert source == "from text, vision"
    names, values = zip(*(line.split() for line in scores), strict=True)
    assert set(names) == set(LABELS.values())
    assert sum(map(float, values)) == pytest.approx(1, abs=2e-3)
    assert sorted(values, reverse=True) == list(values)


def test_predict_as_json_with_words_and_picture(capsys, folders, clips, tmp_path):
    words = tmp_path / "words.json"
    words.write_text(json.dumps(WORDS))
    command = ["predict", clips / "clip.wav", "--model", folders["alignment"], "--words", words, "--json"]
    status, printed, errors = run(capsys, *command, "--top_k", "2", "--plot", tmp_path / "new" / "out.png")
    found = json.loads(printed)
    assert (status, errors) == (0, [])
    assert found["words"] == WORDS and found["modalities"] == ["audio", "text"] and len(found["scores"]) == 2
    weights = np.array(found["alignment"]["weights"])
    assert weights.shape == (6, len(found["alignment"]["frame_times"]))
    with Image.open(tmp_path / "new" / "out.png") as picture:
        assert picture.size[1] > 500, "six words make a taller picture than two scores"


@pytest.mark.parametrize("clip", ["clip.wav", "silent.mp4"])
def test_scores_are_drawn_where_nothing_was_aligned(capsys, folders, clips, tmp_path, clip):
    model = folders["cme" if clip == "clip.wav" else "alignment"]
    words = ["--text", ""] if clip == "clip.wav" else ["--text", KIDS]
    command = ["predict", clips / clip, "--model", model, *words, "--plot", tmp_path / "scores.png"]
    status, _, errors = run(capsys, *command)
    assert (status, errors) == (0, [])
    assert (tmp_path / "scores.png").stat().st_size > 1000


def test_without_words_none_are_guessed_when_told_so(capsys, folders, clips):
    command = ["predict", clips / "clip.wav", "--model", folders["cme"], "--no-recognize"]
    assert run(capsys, *command)[1].splitlines()[-1] == "from audio"


@pytest.mark.filterwarnings("default")
def test_a_guessed_transcript_is_a_warning_of_one_line(capsys, folders, clips):
    status, _, errors = run(capsys, "predict", clips / "clip.wav", "--model", folders["cme"])
    assert status == 0
    assert len(errors) == 1 and errors[0].startswith("mer-hf: warning: no transcript")


def test_predict_on_a_real_video(capsys, folders, ravdess_dir, tmp_path):
    clip = ravdess_dir / "Actor_01" / "01-01-01-01-01-01-01.mp4"
    command = ["predict", clip, "--model", folders["cme"], "--text", KIDS]
    status, printed, errors = run(capsys, *command)
    assert (status, errors) == (0, []) and printed.endswith("from audio, text, vision\n")
    found = json.loads(run(capsys, *command, "--json")[1])
    assert [word["word"] for word in found["words"]] == KIDS.split()
    assert 0.5 < found["words"][0]["start"] < found["words"][-1]["end"] < 3.3
    best = max(found["scores"], key=lambda item: item["score"])
    assert printed.startswith(f"{best['label']} ") and found["modalities"] == ["audio", "text", "vision"]

    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:200_000])
    status, printed, errors = run(capsys, "predict", tmp_path / "cut.mp4", *command[2:])
    assert status == 1 and not printed and len(errors) == 1 and "cut.mp4" in errors[0]


# Mistakes


def one_line(capsys, *arguments):
    """The one line that a mistake leaves on standard error."""
    status, printed, errors = run(capsys, *arguments)
    assert status == 1 and printed == "" and len(errors) == 1, (status, printed, errors)
    assert errors[0].startswith(f"mer-hf {arguments[0]}: error: ")
    return errors[0]


@pytest.mark.parametrize("name", ["nowhere.wav", "empty.wav", "text.wav", "cut.mp4"])
def test_a_clip_that_cannot_be_read(capsys, folders, clips, name):
    assert name in one_line(capsys, "predict", clips / name, "--model", folders["cme"], "--text", KIDS)
    assert name in one_line(capsys, "align", clips / name, "--text", KIDS)


def test_a_clip_with_nothing_for_the_model(capsys, folders, clips):
    line = one_line(capsys, "predict", clips / "clip.wav", "--model", folders["face"], "--text", KIDS)
    assert "clip.wav" in line and "video=" in line


def test_words_that_are_not_said(capsys, folders, clips):
    line = one_line(capsys, "predict", clips / "clip.wav", "--model", folders["cme"], "--text", KIDS * 30)
    assert "clip.wav" in line and "words=" in line


def test_a_model_that_is_not_there(capsys, clips, tmp_path):
    command = ["predict", clips / "clip.wav", "--text", KIDS, "--model"]
    assert "no such folder" in one_line(capsys, *command, tmp_path / "nothing")
    assert str(tmp_path) in one_line(capsys, *command, tmp_path)
    assert "huggingface.co" in one_line(capsys, *command, "no-such-user/no-such-model")
    assert "no such folder" in one_line(capsys, *command, "no-such-folder")


def test_a_folder_of_this_directory_is_no_name_on_the_hub(capsys, clips, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "no such folder" in one_line(capsys, "predict", clips / "clip.wav", "--model", "runs/x")


def test_words_that_are_no_json_are_refused_by_their_file(capsys, folders, clips, tmp_path):
    (tmp_path / "words.json").write_text("kids", encoding="utf-8")
    command = ["predict", clips / "clip.wav", "--model", folders["cme"], "--words", tmp_path / "words.json"]
    line = one_line(capsys, *command)
    assert "words.json" in line and "JSON" in line


def test_options_of_training_are_refused_beside_a_model(capsys, folders, tmp_path):
    command = ["evaluate", "--corpus", "controlled", "--data_dir", tmp_path, "--model", folders["cme"]]
    assert "--test_folds, --epochs" in one_line(capsys, *command, "--test_folds", "1", "--epochs", "9")


def test_a_misspelt_model_is_refused_before_the_corpus_is_read(capsys, tmp_path):
    command = ["train", "--corpus", "ravdess", "--data_dir", tmp_path / "none", "--output_dir", tmp_path / "out"]
    assert "models must be among" in one_line(capsys, *command, "--models", "cmee")
    assert not (tmp_path / "out").exists()


def test_a_head_that_was_never_trained(capsys, folders, clips, tmp_path):
    folder = tmp_path / "headless"
    folder.mkdir()
    for file in folders["cme"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    line = one_line(capsys, "predict", clips / "clip.wav", "--model", folder, "--text", KIDS)
    assert "classifier" in line and "fine-tuned" in line
    (folder / "model.safetensors").write_bytes(b"torn")
    assert "cannot be read" in one_line(capsys, "predict", clips / "clip.wav", "--model", folder, "--text", KIDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", KIDS, "--words", "words.json"], "--text and --words"),
        (["--words", "nowhere.json"], "nowhere.json"),
        (["--words", "no-list.json"], "must hold a list of {word, start, end}"),
        (["--words", "no-json.json"], "Expecting value"),
        (["--text", KIDS, "--top_k", "0"], "top_k is 0"),
        (["--text", KIDS, "--device", "abacus"], "--device abacus"),
    ],
)
def test_options_that_make_no_sense(capsys, folders, clips, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no-list.json").write_text('{"word": "no"}')
    (tmp_path / "no-json.json").write_text("kids are talking")
    assert message in one_line(capsys, "predict", clips / "clip.wav", "--model", folders["cme"], *options)


def test_a_missing_extra(capsys, folders, clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    command = ["predict", clips / "clip.wav", "--model", folders["cme"], "--text", "", "--plot", "x.png"]
    assert 'pip install "mer-hf[plot]"' in one_line(capsys, *command)


def test_an_interrupt_is_one_line(capsys, folders, clips, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mer_hf.doctor.diagnose", interrupt)
    assert run(capsys, "doctor") == (130, "", ["mer-hf doctor: interrupted"])


@pytest.mark.parametrize("arguments", [[], ["guess"], ["predict"], ["train", "--corpus", "iemocap"]])
def test_a_wrong_command_line_shows_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "usage: mer-hf" in capsys.readouterr().err


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0
    for command in ("predict", "train", "evaluate", "align", "demo", "doctor"):
        assert f"\n    {command} " in printed
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0 and "options:" in capsys.readouterr().out


# align, doctor, demo


def test_align_gives_what_predict_takes(capsys, ravdess_dir, folders, tmp_path):
    clip = ravdess_dir / "Actor_01" / "03-01-01-01-01-01-01.wav"
    status, printed, errors = run(capsys, "align", clip, "--text", "Kids are talking by the door.")
    assert (status, errors) == (0, [])
    assert [line.split()[2] for line in printed.splitlines()] == KIDS.split()
    placed = run(capsys, "align", clip, "--text", KIDS, "--json")[1]
    assert [f"{word['start']:8.2f} {word['end']:8.2f}  {word['word']}" for word in json.loads(placed)] == (
        printed.splitlines()
    )
    (tmp_path / "words.json").write_text(placed)
    command = ["predict", clip, "--model", folders["cme"], "--words", tmp_path / "words.json", "--json"]
    assert json.loads(run(capsys, *command)[1])["words"] == json.loads(placed)
    unknown = run(capsys, "align", clip, "--text", "kids are talking by the doorx")
    assert unknown[0] == 0 and unknown[2] == ["pronounced by spelling, not in the dictionary: doorx"]


def test_doctor_reports(capsys):
    status, printed, _ = run(capsys, "doctor", "--json")
    checks = json.loads(printed)
    assert status == 0 and {"wav", "mp4", "alignment"} <= {check["name"] for check in checks["checks"]}


def test_demo_gets_its_options(capsys, monkeypatch):
    called = []
    monkeypatch.setattr("mer_hf.demo.run_demo", lambda *arguments: called.append(arguments))
    assert run(capsys, "demo", "--output_dir", "x", "--seeds", "1", "2", "--threads", "1")[0] == 0
    assert [(str(folder), seeds, threads) for folder, seeds, threads in called] == [("x", [1, 2], 1)]


# train, evaluate


@pytest.mark.slow
def test_train_then_evaluate_its_checkpoint(capsys, tmp_path):
    tree, run_dir = write_tree(tmp_path / "ravdess"), tmp_path / "run"
    words = [{"word": "kids", "start": 0.1, "end": 0.3}]
    rows = scan(tree).rows
    align_rows(rows, run_dir / "cache" / "words.json", FixedAligner(words))
    data = ["--corpus", "ravdess", "--data_dir", tree]
    command = ["train", *data, "--output_dir", run_dir, "--models", "lr_audio,mman", "--test_folds", "2"]
    status, printed, errors = run(capsys, *command, "--epochs", "1")
    assert status == 0 and not [line for line in errors if "error" in line]
    results = json.loads((run_dir / "results.json").read_text())
    assert printed.splitlines()[0].startswith("lr_audio-seed0-fold2: WA 100.0, UA 100.0 (")
    assert "| mman" in printed and list(results["models"]) == ["lr_audio", "mman"]

    command = ["evaluate", *data, "--cache_dir", run_dir / "cache", "--model", run_dir / "mman"]
    status, printed, _ = run(capsys, *command, "--fold", "2", "--output", tmp_path / "new" / "report.json")
    report = json.loads(printed)
    assert status == 0 and json.loads((tmp_path / "new" / "report.json").read_text()) == report
    assert report["wa"] == results["models"]["mman"]["mean"]["wa"] and report["fold"] == 2
    assert report["sha256"] == results["protocol"]["folds"][0]["sha256"]
    assert "folds [9]" in one_line(capsys, *command, "--fold", "9")
    line = one_line(capsys, "train", *data, "--output_dir", run_dir, "--models", "bert")
    assert "['bert']" in line


class FixedAligner:
    """The same words everywhere."""

    def __init__(self, words):
        self.words = words

    def align(self, audio, text):
        return self


def test_a_corpus_that_is_not_there(capsys, tmp_path):
    command = ["--corpus", "ravdess", "--data_dir", tmp_path / "nowhere"]
    assert "nowhere" in one_line(capsys, "train", *command, "--output_dir", tmp_path / "run")
    command = ["--corpus", "controlled", "--data_dir", tmp_path, "--cache_dir", tmp_path]
    assert "no finished controlled corpus" in one_line(capsys, "evaluate", *command, "--model", "a/x", "--fold", "1")


def test_the_command_as_it_is_installed_predicts(clips):
    """`mer-hf` loads the package's names when they are asked for, unlike Python that imports it."""
    command = [Path(sys.executable).with_name("mer-hf"), "predict", clips / "clip.wav", "--json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["modalities"] == ["audio"]


def test_options_that_would_have_no_effect_are_refused(capsys, folders, tmp_path):
    data = ["--corpus", "controlled", "--data_dir", tmp_path]
    model = ["evaluate", *data, "--model", folders["cme"]]
    assert "--seeds: of no use to --model" in one_line(capsys, *model, "--seeds", "3")
    assert "--protocol paper: of no use to --model" in one_line(capsys, *model, "--protocol", "paper")
    train = ["evaluate", *data, "--output_dir", tmp_path / "run"]
    assert "--fold, --output: of a saved --model alone" in one_line(
        capsys, *train, "--fold", "1", "--output", "r.json"
    )
    enrol = [*train, "--enrol", "1"]
    line = one_line(capsys, *enrol, "--test_folds", "1", "--epochs", "2", "--protocol", "paper")
    assert "--test_folds, --epochs, --protocol paper: of no use to --enrol" in line
    assert not (tmp_path / "run").exists()


def test_a_manifest_in_another_encoding_with_a_column_too_many(capsys, tmp_path):
    manifest = tmp_path / "clips.csv"
    lines = ["text;emotion;speaker", *(f"na schön {n};happy;Ödön {n % 6}" for n in range(12))]
    manifest.write_bytes("\n".join(lines).encode("cp1252"))
    command = ["train", "--corpus", "folder", "--data_dir", manifest, "--models", "majority"]
    command += ["--output_dir", tmp_path / "run", "--protocol", "speakers-5fold"]
    assert "such as cp1252" in one_line(capsys, *command)
    assert run(capsys, *command, "--encoding", "cp1252")[0] == 0
    assert "speaker" in one_line(
        capsys,
        *command[:-4],
        "--output_dir",
        tmp_path / "two",
        "--protocol",
        "speakers-5fold",
        "--encoding",
        "cp1252",
        "--columns",
        "speaker=",
    )
    assert "--encoding is not an option of --corpus ravdess" in one_line(
        capsys, "train", "--corpus", "ravdess", "--data_dir", tmp_path, "--output_dir", tmp_path, "--encoding", "x"
    )
