"""The default checkpoint's card: each number from the results files, each branch's data and licence named."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from card_numbers import measured_in, numbers, section
from huggingface_hub import ModelCard

from mer_hf import (
    LateFusionForEmotionClassification,
    MerProcessor,
    MMANConfig,
    MMANForEmotionClassification,
    word_tokenizer,
)
from mer_hf.calibration import calibration_report
from mer_hf.default_model import DEFAULT_CHECKPOINT
from mer_hf.default_model.card import write_card
from mer_hf.default_model.frequencies import LABELS
from mer_hf.evaluation import SCORES, evaluation_report
from mer_hf.publishing import publish_model

RESULTS = Path(__file__).resolve().parents[1] / "hub_cards" / "results"
WORDS = json.loads((RESULTS / "default-words.json").read_text())
VOICES = ("speech_frames", "speech_vector")
ARITHMETIC = {"95", "15", "1.000", "2", "7"}
"""In the card's own words: level, bins, a label's number, folds and labels."""


def scored(seed):
    """A report and its calibration on 70 answers of which about half are right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, 70)
    logits = rng.normal(size=(70, 7)) + 2 * np.eye(7)[labels]
    report = evaluation_report(labels, logits, np.arange(70) % 9, dict(enumerate(LABELS)))
    return report | {"calibration": calibration_report(logits, labels, 1.5)}


def speech_results():
    models = {}
    for seed, name in enumerate((*VOICES, "speech", "speech_equal", "lr_audio")):
        report = scored(seed)
        models[name] = {
            "parameters": 1200 + seed,
            "calibration": report.pop("calibration"),
            "by": {"gender": {"female": {"n": 35, "wa": 0.25, "ua": 0.375}}},
            "pooled": report | {"clusters": "speaker"},
        }
    del models["speech_equal"]["calibration"]
    return {
        "corpus": {"name": "ravdess", "labels": list(LABELS), "sha256": "a" * 64},
        "protocol": {"split": "ravdess-emobox", "unit": "speaker", "source": "EmoBox", "folds": [{"fold": 1}] * 2},
        "models": models,
        "licence": "CC BY-NC-SA 4.0 (RAVDESS: Livingstone and Russo 2018)",
        "shipped": {"trained_on": "all 20 actors", "temperatures": dict(zip(VOICES, (1.25, 1.5), strict=True))},
        "notes": ["RAVDESS is acted."],
    }


def face_results():
    return {
        "corpus": {"name": "fer2013", "labels": list(LABELS), "sides": {"test": {"sha256": "b" * 64}}},
        "training": {"parameters": 3456},
        "temperature": 0.75,
        "operating_points": {
            point: {"test": scored(seed) | {"clusters": "picture"}}
            for seed, point in enumerate(("equal_frequencies", "training_frequencies"), 20)
        },
        "notes": ["The copy used states no licence."],
    }


@pytest.fixture
def results(tmp_path):
    """A folder with the three files: words as measured, voice and face made up."""
    folder = tmp_path / "results"
    folder.mkdir()
    for name, found in {"speech": speech_results(), "face": face_results(), "words": WORDS}.items():
        (folder / f"default-{name}.json").write_text(json.dumps(found))
    return folder


def change(folder, name, edit):
    """The results file of a branch, edited in place."""
    file = folder / f"default-{name}.json"
    found = json.loads(file.read_text())
    edit(found)
    file.write_text(json.dumps(found))


def branch(temperature):
    torch.manual_seed(0)
    sizes = {"hidden_size": 4, "projection_size": 4, "classifier_size": 4, "audio_embed_dim": 3}
    config = MMANConfig(network="unimodal", **sizes, id2label=dict(enumerate(LABELS)))
    config.calibration_temperature = temperature
    return MMANForEmotionClassification(config)


@pytest.fixture
def checkpoint(tmp_path):
    """A folder as `assemble` makes it, with the branches' temperatures."""
    folder = tmp_path / "checkpoint"
    temperatures = dict(zip((*VOICES, "face"), (1.25, 1.5, 0.75), strict=True))
    branches = {name: branch(temperature) for name, temperature in temperatures.items()}
    LateFusionForEmotionClassification.from_branches(branches).save_pretrained(folder)
    shipped = next(own for own in WORDS["seeds"] if own["seed"] == WORDS["shipped"]["seed"])
    branch(shipped["temperature"]).config.save_pretrained(folder / "words")
    MerProcessor.default(tokenizer=word_tokenizer(["hello"])).save_pretrained(folder)
    return folder


def read(results, name):
    return json.loads((results / f"default-{name}.json").read_text())


def test_every_number_of_the_results_comes_from_the_files(checkpoint, results):
    card = write_card(checkpoint, results)
    files = [read(results, name) for name in ("speech", "face", "words")]
    floors = {f"{value:.3f}" for report in reports(files) for value in constant_answer(report)}
    assert numbers(section(card.text, "Results")) <= set().union(*map(measured_in, files)) | ARITHMETIC | floors


def reports(files):
    speech, face, words = files
    yield speech["models"]["speech_equal"]["pooled"]
    yield face["operating_points"]["equal_frequencies"]["test"]
    yield words["operating_points"]["equal_frequencies"]["written"]["test"]["pooled"]


def constant_answer(report):
    """The scores of one answer to everything, from the confusion matrix that it would have."""
    support = np.array(list(report["support"].values()))
    confusion = np.zeros((7, 7))
    confusion[:, support.argmax()] = support
    return [float(score(confusion)) for score in SCORES.values()]


def test_each_score_has_its_interval_and_the_floor_stands_below(checkpoint, results):
    text = section(write_card(checkpoint, results).text, "Results")
    speech, face, words = (read(results, name) for name in ("speech", "face", "words"))
    for report in reports((speech, face, words)):
        low_high = report["intervals"]
        cells = [f"{report[s]:.3f} ({low_high[s][0]:.3f} to {low_high[s][1]:.3f})" for s in SCORES]
        assert f"| equally likely (shipped) | {' | '.join(cells)} | – |" in text
    for report in reports((speech, face, words)):
        cells = [f"{value:.3f}" for value in constant_answer(report)]
        assert f"| always the commonest emotion | {' | '.join(cells)} | – |" in text
    known = face["operating_points"]["training_frequencies"]["test"]
    row = next(line for line in text.splitlines() if line.startswith(f"| as in the corpus | {known['wa']:.3f} "))
    assert row.endswith(f"| {known['calibration']['after']['ece']:.3f} |")
    recalls = [report["recall"]["sad"] for report in reports((speech, face, words))]
    assert f"| sad | {' | '.join(f'{recall:.3f}' for recall in recalls)} |\n" in text
    floor = speech["models"]["lr_audio"]["pooled"]
    assert f"| as in the corpus, logistic regression | {floor['wa']:.3f} (" in text


def test_another_measurement_gives_another_card(checkpoint, results):
    def edit(found):
        report = found["operating_points"]["equal_frequencies"]["test"]
        report["wa"], report["intervals"]["wa"], report["recall"]["angry"] = 0.123, [0.111, 0.134], None

    change(results, "face", edit)
    card = write_card(checkpoint, results)
    assert "| equally likely (shipped) | 0.123 (0.111 to 0.134) |" in card.text
    assert re.search(r"\| angry \| 0\.\d{3} \| not measured \| 0\.\d{3} \|", card.text)
    assert 0.123 in {one.metric_value for one in card.data.eval_results}


def test_metadata_hold_each_branchs_scores_and_the_licence(checkpoint, results):
    write_card(checkpoint, results)
    card = ModelCard.load(checkpoint / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["license_link"]) == ("other", "LICENSE")
    assert data["license_name"] == "ravdess-cc-by-nc-sa-4.0-meld-gpl-3.0-fer2013-not-stated"
    assert data["datasets"] == ["ravdess", "fer2013", "meld"] and data["library_name"] == "transformers"
    found = {(one.dataset_type, one.metric_name): one for one in card.data.eval_results}
    speech, _, words = reports([read(results, name) for name in ("speech", "face", "words")])
    assert found["meld", "weighted F1"].metric_value == words["weighted_f1"]
    assert found["ravdess", "UA"].metric_value == speech["ua"]
    assert found["ravdess", "UA"].metric_args == {"interval": speech["intervals"]["ua"]}
    assert found["fer2013", "WA"].dataset_args == {"sha256": "b" * 64} and len(found) == 12


def test_it_says_what_was_not_measured_and_what_each_branch_is_made_from(checkpoint, results):
    text = write_card(checkpoint, results).text
    for said in (
        "**The fusion was not measured.**",
        "**The face branch was measured on FER2013's pictures only**, not on video and not on RAVDESS's faces.",
        "**The voice that is shipped was tested on nobody**: it is trained on all 20 actors.",
        "**Not for decisions about people**",
        "from mer_hf import load_default",
        "- RAVDESS is acted.",
    ):
        assert said in text
    voices = sum(read(results, "speech")["models"][name]["parameters"] for name in VOICES)
    assert re.search(rf"\| speech \|.* \| RAVDESS \| CC BY-NC-SA 4\.0 .* \| {voices:,} \|", text)
    assert re.search(r"\| face \|.* \| FER2013 \| none stated in the copy used \| .* \| 3,456 \|", text)
    assert re.search(r"\| words \|.* \| MELD \| GPL-3\.0 ", text)
    licence = (checkpoint / "LICENSE").read_text()
    for branch_of in ("by-nc-sa/4.0", "branches.speech_frames, branches.speech_vector", "gpl-3.0", "the folder words"):
        assert branch_of in licence
    assert "{" not in licence and "{{" not in text and "{%" not in text


def test_published_the_checkpoint_keeps_card_and_licence(checkpoint, results):
    write_card(checkpoint, results)
    plan = publish_model(checkpoint, "ann/default")
    assert plan.card == (checkpoint / "README.md").read_text()
    code = {"modeling_late_fusion.py", "modeling_mman.py", "processing_mer.py", "pipeline_mer.py"}
    assert {"LICENSE", "config.json", "model.safetensors", "words/config.json", *code} <= set(plan.files)
    assert not plan.left_out


def test_files_that_are_missing_or_of_another_kind_are_named(checkpoint, results, tmp_path):
    for name, writer in {"speech": "train_speech", "face": "write_face_branch", "words": "write_words"}.items():
        file = results / f"default-{name}.json"
        kept = file.read_text()
        file.unlink()
        with pytest.raises(ValueError, match=rf"default-{name}\.json is missing; .*{writer} writes it"):
            write_card(checkpoint, results)
        file.write_text("{")
        with pytest.raises(ValueError, match=rf"default-{name}\.json cannot be read as JSON"):
            write_card(checkpoint, results)
        file.write_text(json.dumps({"models": {}, "protocol": {"folds": []}, "corpus": {}}))
        with pytest.raises(ValueError, match=rf"default-{name}\.json lacks .*; .*{writer} writes it anew"):
            write_card(checkpoint, results)
        file.write_text(kept)
    assert not (checkpoint / "README.md").exists() and not (checkpoint / "LICENSE").exists()
    with pytest.raises(ValueError, match=r"folder: .*config\.json is missing; .*assemble writes it"):
        write_card(tmp_path, results)


def test_results_of_other_branches_are_refused(checkpoint, results):
    def warmer(found):
        found["temperature"] = 0.8

    change(results, "face", warmer)
    with pytest.raises(
        ValueError, match=r"branch 'face' in .* has the temperature 0\.75, its results file states 0\.8"
    ):
        write_card(checkpoint, results)

    def renamed(found):
        found["shipped"]["temperatures"] = {"speech_frames": 1.25}

    change(results, "speech", renamed)
    with pytest.raises(ValueError, match=r"has the branches \['face', 'speech_frames', 'speech_vector', 'words'\]"):
        write_card(checkpoint, results)


def test_the_shipped_card_is_the_one_that_the_results_make(tmp_path):
    for part in (".", "words"):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "config.json").write_text((DEFAULT_CHECKPOINT / part / "config.json").read_text())
    card = write_card(tmp_path, RESULTS)
    for name in ("README.md", "LICENSE"):
        assert (DEFAULT_CHECKPOINT / name).read_text() == (tmp_path / name).read_text(), f"{name}: call write_card"
    files = [json.loads((RESULTS / f"default-{name}.json").read_text()) for name in ("speech", "face", "words")]
    floors = {f"{value:.3f}" for report in reports(files) for value in constant_answer(report)}
    counted = ARITHMETIC | {str(len(files[0]["protocol"]["folds"]))}
    assert numbers(section(card.text, "Results")) <= set().union(*map(measured_in, files)) | counted | floors
