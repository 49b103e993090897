"""The main job on a corpus of one dialogue a session, its encoders, and the claims on records worked out by hand."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mer_hf import TASK, MMANForEmotionClassification, pipeline
from mer_hf.compact_encoders import PROSODY_SIZE, _at_times, _prosody, train_face_encoder, train_speech_encoder
from mer_hf.data.controlled import load_controlled
from mer_hf.data.controlled_dialogues import LABELS
from mer_hf.demo import (
    ALIGNING_MODEL,
    CONTEXT_MODEL,
    LABELS_ALONE,
    WORD_ABLATION,
    WORD_MODEL,
    Split,
    plans,
    results_table,
    run_demo,
    summarize,
    with_epochs,
)
from mer_hf.models.batching import pad_examples

SEED = 2  # its tiny test sessions have every kind of clip that a claim is about


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder, results and what was said of the whole demo in its smallest size."""
    folder, said = tmp_path_factory.mktemp("demo"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        results = run_demo(folder / "run", [SEED], 1, said.append, dialogues_per_session=1, epochs=1)
    return folder / "run", results, said


@pytest.fixture(scope="module")
def test_rows(finished):
    return list(load_controlled(finished[0] / f"corpus-{SEED}", finished[0].parent / "datasets")["test"])


def record_of(folder):
    return json.loads((folder / f"seed-{SEED}.json").read_text())


@pytest.mark.slow
def test_results_are_written_as_returned(finished, test_rows):
    folder, results, said = finished
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert set(results) == {"seeds", "clips", "speakers", "selected_on", "models", "claims", "seconds"}
    assert list(results["models"]) == list(plans())
    assert (results["clips"], results["speakers"]) == (len(test_rows), 4)
    record = record_of(folder)
    assert record["labels"] == [LABELS.index(row["label"]) for row in test_rows]
    for name, model in results["models"].items():
        hits = np.equal(record["models"][name]["predictions"], record["labels"])
        assert model["wa"] == pytest.approx(hits.mean()) and model["by_seed"] == [pytest.approx(hits.mean())]
    table = results_table(results)
    assert (folder / "results.md").read_text() == table + "\n" and table in said


@pytest.mark.slow
def test_saved_models_answer_on_files_as_they_did_in_the_run(finished, test_rows):
    folder, _, _ = finished
    predictions = {name: model["predictions"] for name, model in record_of(folder)["models"].items()}
    clips = [{"path": row["video"]["path"], "audio": row["audio"]["path"], "words": row["words"]} for row in test_rows]
    ids = {label: index for index, label in enumerate(LABELS)}
    for name, model in (("CME", "cme"), ("learned alignment", "learned_alignment")):
        found = pipeline(TASK, model=str(folder / "models" / model), device="cpu")(clips, top_k=1)
        assert [ids[best["label"]] for (best,) in found] == predictions[name], name
    classify, found = pipeline(TASK, model=str(folder / "models" / "mman"), device="cpu"), []
    for dialogue in dict.fromkeys(row["dialogue_id"] for row in test_rows):
        turns = [clip for clip, row in zip(clips, test_rows, strict=True) if row["dialogue_id"] == dialogue]
        found += [ids[best["label"]] for (best,) in classify(dialogue=turns, top_k=1)]
    assert found == predictions["MMAN"]


@pytest.mark.slow
def test_a_picture_is_drawn_and_next_steps_are_named(finished):
    folder, _, said = finished
    with Image.open(folder / "alignment.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    assert any("MMAN from its mp4 (audio, text, vision)" in line for line in said)
    assert any("CME from its wav (audio, text)" in line for line in said)
    assert any(f"--model {folder}/models/cme" in line for line in said)


@pytest.mark.slow
def test_a_seed_of_another_size_is_not_taken_for_finished(finished):
    with pytest.raises(ValueError, match=rf"seed-{SEED}\.json is of a run of another size"):
        run_demo(finished[0], [SEED, 3], 1, str, dialogues_per_session=1)


def test_without_matplotlib_it_stops_at_once(monkeypatch, tmp_path):
    def missing():
        raise ImportError("mer-hf[plot]")

    monkeypatch.setattr("mer_hf.demo.check_plotting", missing)
    with pytest.raises(ImportError, match="plot"):
        run_demo(tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Parts


def test_a_small_run_shortens_and_never_lengthens():
    plan = plans()["learned alignment"]
    small = with_epochs(plan, 2)
    assert small.settings == replace(plan.settings, epochs=2) and small.values == plan.values
    assert with_epochs(plan, None) is plan
    assert with_epochs(plan, 10_000) == plan


def test_a_split_gives_a_model_its_fields_and_knows_its_order():
    rows = [{"dialogue_id": d, "turn": t} for d, t in (("a", 2), ("b", 1), ("a", 1))]
    clips = [
        {"audio_embeds": i, "text_embeds": i, "input_ids": i, "vision_times": i, "word_times": i, "label": i}
        for i in range(3)
    ]
    split = Split(rows, [], clips)
    alone = plans()["audio"]
    context = replace(alone, kind=MMANForEmotionClassification)
    assert set(split.dataset(alone)[0]) == {"audio_embeds", "word_times", "label"}
    assert split.order(alone) == [0, 1, 2]
    assert split.order(context) == [2, 0, 1]
    assert [[turn["label"] for turn in dialogue] for dialogue in split.dataset(context)] == [[2, 0], [1]]
    assert set(split.dataset(plans()["CME"])[1]) == set(clips[1])


def test_every_claim_has_its_models():
    named = plans()
    assert {CONTEXT_MODEL, WORD_MODEL, WORD_ABLATION, ALIGNING_MODEL, LABELS_ALONE, "audio", "vision"} <= set(named)
    assert named[CONTEXT_MODEL].uses_context and not named[WORD_MODEL].uses_context
    words, whole = named["CME"], named["CME, whole clip"]
    assert {**words.values, "word_level": False} == whole.values
    assert (words.settings, words.kind, words.modalities) == (whole.settings, whole.kind, whole.modalities)


# Claims


def hand_made_record(seed=0):
    """Eight clips, two speakers; every true label is 0, so a prediction of 0 is a hit."""

    def model(hits, validation):
        return {
            "predictions": [0 if hit == "+" else 1 for hit in hits],
            "validation_wa": validation,
            "parameters": 10,
            "seconds": 1.0,
        }

    attention = [{"inside": 0.5, "uniform": 0.25}, {"inside": 0.25, "uniform": 0.125}]
    return {
        "seed": seed,
        "labels": [0] * 8,
        "speakers": [f"{seed}-{name}" for name in "AABBAABB"],
        "items": ["consistent"] * 4 + ["stressed_word", "cueless", "stressed_word", "cueless"],
        "models": {
            "audio": model("++++++++", 0.3),  # best on test, which must not count
            "text": model("++------", 0.5),
            "CME": model("----+-+-", 0.7),
            "CME, whole clip": model("++++-++-", 0.8),
            "learned alignment": model("++++----", 0.6) | {"attention": attention},
            "alignment from labels": model("++++----", 0.6) | {"attention": attention[:1]},
            "MMAN": model("++++-+-+", 0.75),
        },
        "seconds": 1.0,
    }


def test_models_of_a_claim_are_chosen_on_validation():
    claims = summarize([hand_made_record()])["claims"]
    fusion = claims["fusion_over_single"]
    assert (fusion["model"], fusion["against"]) == ("CME, whole clip", "text")
    assert (fusion["items"], fusion["clips"], fusion["estimate"]) == ("all", 8, (6 - 2) / 8)
    # the baseline that turned out strongest on the test, beside it
    hard = claims["fusion_over_strongest_single"]
    assert (hard["model"], hard["against"], hard["estimate"]) == ("CME, whole clip", "audio", (6 - 8) / 8)


def test_claims_are_about_their_own_clips():
    claims = summarize([hand_made_record()])["claims"]
    words = claims["word_times_over_whole_clip"]
    assert (words["model"], words["against"], words["items"]) == ("CME", "CME, whole clip", "stressed_word")
    # Clips 4 and 6: CME has both right, the whole-clip model the second alone, which is speaker B's.
    assert (words["clips"], words["estimate"], words["low"], words["high"]) == (2, 0.5, 0.0, 1.0)
    context = claims["context_over_context_free"]
    assert (context["model"], context["against"], context["items"]) == ("MMAN", "CME, whole clip", "cueless")
    # Clips 5 and 7: MMAN has both right, the other the first alone.
    assert (context["clips"], context["estimate"]) == (2, 0.5)
    assert claims["attention_inside_word"] == {"inside": 0.375, "uniform": 0.1875, "ratio": 2.0}
    assert claims["attention_inside_word_from_labels_alone"] == {"inside": 0.5, "uniform": 0.25, "ratio": 2.0}


def test_seeds_are_pooled():
    second = hand_made_record(seed=1)
    second["models"]["text"] |= {"predictions": [0] * 8, "validation_wa": 0.0}
    results = summarize([hand_made_record(), second])
    text = results["models"]["text"]
    assert (text["by_seed"], text["wa"], text["validation_wa"]) == ([0.25, 1.0], 0.625, 0.25)
    assert text["by_item"] == {"consistent": 6 / 8, "cueless": 0.5, "stressed_word": 0.5}
    assert (results["clips"], results["speakers"], results["seeds"]) == (16, 4, [0, 1])
    # Mean validation accuracy: audio 0.3, text 0.25.
    assert results["claims"]["fusion_over_single"]["against"] == "audio"


def test_table_has_a_line_a_model_and_a_line_a_claim():
    lines = results_table(summarize([hand_made_record()])).splitlines()
    assert lines[0] == "| model | WA | 95 % | UA | consistent | cueless | stressed_word |"
    assert lines[4] == "| CME | 0.250 | 0.250-0.250 | 0.250 | 0.00 | 0.00 | 1.00 |"
    assert lines[10] == (
        "- fusion_over_single (all, 8 clips): CME, whole clip minus text +50.0 points WA (+25.0 to +75.0)"
    )
    assert lines[14] == (
        "- attention_inside_word: 0.375 of a word's attention inside its true span, "
        "2.00 times the uniform share (0.188)"
    )
    assert len(lines) == 2 + 7 + 1 + 6


# Encoders


def test_prosody_is_asked_of_the_speaker_and_of_the_clip():
    rows = [
        {"word_prosody": [{"pitch": 1.0, "energy": 2.0, "rate": 0.0}, {"pitch": 3.0, "energy": 6.0, "rate": 2.0}]},
        {"word_prosody": [{"pitch": 9.0, "energy": 0.0, "rate": 1.0}]},
    ]
    # energy, rate; then pitch, energy, rate without the clip's mean
    plain = torch.tensor([[2.0, 0, -1, -2, -1], [6, 2, 1, 2, 1], [0, 1, 0, 0, 0]])
    found = _prosody(rows)
    assert [part.shape for part in found] == [(2, PROSODY_SIZE), (1, PROSODY_SIZE)]
    torch.testing.assert_close(torch.cat(found), plain / plain.std(0))


def test_a_sampled_frame_has_the_nearest_drawn_face():
    row = {"face_times": [0.0, 0.125, 0.25], "face_parameters": [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5]]}
    assert _at_times(row, torch.tensor([0.05, 0.2, 0.9]))[:, 0].tolist() == [0.0, 2.0, 2.0]


def test_the_speech_encoder_hears_what_is_loud():
    torch.manual_seed(0)
    rows, examples = [], []
    for _ in range(32):
        levels = torch.rand(()) + 0.05 * torch.rand(4)
        sound = torch.randn(4, 3_200) * (0.01 * 10 ** (1.5 * levels))[:, None]
        words = torch.randint(0, 5, (4,))
        edges = torch.arange(5) * 0.2
        prosody = [{"pitch": float(torch.rand(())), "energy": float(e), "rate": float(torch.rand(()))} for e in levels]
        rows.append({"word_prosody": prosody})
        times = torch.stack([edges[:-1], edges[1:]], -1)
        examples.append({"input_values": sound.flatten(), "input_ids": words, "word_times": times})
    seen = []
    encoder = train_speech_encoder(rows, examples, 5, epochs=12, progress=lambda *done: seen.append(done))
    assert seen == [(i, 12) for i in range(1, 13)] and not encoder.training
    with torch.no_grad():
        batch = pad_examples([{"input_values": example["input_values"]} for example in examples])
        states = encoder(batch["input_values"], batch["input_values_mask"]).last_hidden_state
    asked = torch.stack([words[:, 0].mean() for words in _prosody(rows)])
    assert np.corrcoef(states[:, :, 0].mean(1), asked)[0, 1] > 0.8


def test_the_same_seed_gives_the_same_face_encoder_ready_for_use():
    torch.manual_seed(0)
    rows, examples = [], []
    for _ in range(32):
        bright = torch.rand(3)
        rows.append({"face_times": [0.0, 0.1, 0.2], "face_parameters": [[float(b), 0.0] for b in bright]})
        pictures = bright[:, None, None, None].expand(3, 3, 32, 32) * 2 - 1
        examples.append({"pixel_values": pictures.clone(), "vision_times": torch.tensor([0.0, 0.1, 0.2])})
    encoder = train_face_encoder(rows, examples, epochs=2)
    assert not encoder.training
    states = encoder(torch.cat([example["pixel_values"] for example in examples])).last_hidden_state
    assert states.shape[:2] == (96, 32) and torch.isfinite(states).all()
    again = train_face_encoder(rows, examples, epochs=2)
    weights = zip(encoder.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in weights), "the same seed gave another encoder"
