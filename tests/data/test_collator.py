"""Rows -> examples -> batches: literal tensors, dialogues in order, labels the model does not have."""

import numpy as np
import pytest
import soundfile
import torch

from mer_hf import MerProcessor, word_tokenizer
from mer_hf.data.collator import ClipDataset, DialogueDataset, EmotionCollator, ExampleDataset, move_to
from mer_hf.data.schema import make_row

LABEL2ID = {"neutral": 0, "angry": 1}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    made = []
    for index, (text, label) in enumerate([("go away", "angry"), ("no", None), (None, "neutral")]):
        path = folder / f"{index}.wav"
        soundfile.write(path, np.full(160 * (index + 1), 0.1 * (index + 1)), 16_000, subtype="FLOAT")
        made.append(make_row(id=str(index), corpus="own", audio=str(path), text=text, label=label))
    words = [{"word": "go", "start": 0.0, "end": 0.004}, {"word": "away", "start": 0.004, "end": 0.01}]
    return [made[0] | {"words": words}, *made[1:]]


@pytest.fixture(scope="module")
def processor():
    return MerProcessor.default(tokenizer=word_tokenizer(["go away", "go no"]))


def test_batch_of_rows(rows, processor):
    batch = EmotionCollator()([*ClipDataset(rows, processor, LABEL2ID)])
    assert batch["input_values"].shape == (3, 480)
    assert batch["input_values_mask"].sum(1).tolist() == [160, 320, 480]
    torch.testing.assert_close(batch["input_values"][1, 318:322], torch.tensor([0.2, 0.2, 0.0, 0.0]))
    assert batch["input_ids"].tolist() == [[2, 3], [4, 0], [0, 0]]
    assert batch["attention_mask"].tolist() == [[True, True], [True, False], [False, False]]
    assert batch["word_ids"].tolist() == [[0, 1], [0, -1], [-1, -1]]
    torch.testing.assert_close(batch["word_times"][0], torch.tensor([[0.0, 0.004], [0.004, 0.01]]))
    assert batch["labels"].tolist() == [1, -100, 0]
    assert "pixel_values" not in batch and "turn_mask" not in batch


def test_only_the_modalities_asked_for_are_decoded(rows, processor):
    assert set(ClipDataset(rows, processor, modalities=("text",))[0]) == {"input_ids", "word_ids", "word_times"}
    unreadable = [rows[0] | {"audio": "nowhere.wav"}]
    assert "input_ids" in ClipDataset(unreadable, processor, modalities=("text", "vision"))[0]
    assert set(ClipDataset(rows, processor, modalities=("audio",))[0]) == {"input_values"}


def test_a_label_the_model_does_not_have_is_named_at_once(rows, processor):
    with pytest.raises(ValueError, match=r"\['angry'\] are none of the model's \(neutral, happy\)"):
        ClipDataset(rows, processor, {"neutral": 0, "happy": 1})


def test_kept_examples_are_decoded_once(rows, processor):
    calls = []

    def transform(row, example):
        calls.append(row["id"])
        return example | {"vision_embeds": torch.ones(1, 2)}

    kept = ClipDataset(rows, processor, LABEL2ID, keep=True, transform=transform)
    assert kept[1] is kept[1] and calls == ["1"]
    fresh = ClipDataset(rows, processor, LABEL2ID, transform=transform)
    assert fresh[1] is not fresh[1] and calls == ["1"] * 3
    assert "vision_embeds" in fresh[0] and len(fresh) == 3


def test_dialogues_keep_the_order_of_their_turns():
    clips = ExampleDataset([{"audio_embeds": torch.full((1, 1), float(i)), "label": i % 2} for i in range(5)])
    dialogues = DialogueDataset(clips, ["b", "a", "b", None, "b"], [3, 1, 1, None, 2])
    assert dialogues.dialogues == [[2, 4, 0], [1], [3]] and len(dialogues) == 3
    batch = EmotionCollator()([dialogues[0], dialogues[1]])
    assert batch["audio_embeds"].squeeze().tolist() == [[2.0, 4.0, 0.0], [1.0, 0.0, 0.0]]
    assert batch["turn_mask"].tolist() == [[True] * 3, [True, False, False]]
    assert batch["labels"].tolist() == [[0, 0, 0], [1, -100, -100]]


def test_long_dialogues_are_cut():
    clips = ExampleDataset([{} for _ in range(6)])
    dialogues = DialogueDataset(clips, ["a"] * 5 + ["b"], [0, 1, 2, 3, 4, 0], max_turns=2)
    assert dialogues.dialogues == [[0, 1], [2, 3], [4], [5]]
    with pytest.raises(ValueError, match="6 clips, 1 dialogue_ids and 6 turns"):
        DialogueDataset(clips, ["a"], [0] * 6)
    assert len(DialogueDataset(ExampleDataset([]), [], [])) == 0


@pytest.mark.parametrize("mixed", [[{}, [{}]], [[{}], {}]])
def test_clips_and_dialogues_do_not_mix(mixed):
    with pytest.raises(ValueError, match="either clips or dialogues"):
        EmotionCollator()(mixed)


def test_a_batch_moves_as_a_whole():
    moved = move_to({"labels": torch.zeros(2), "audio_mask": torch.ones(2, 1)}, torch.device("meta"))
    assert {name: value.device.type for name, value in moved.items()} == {"labels": "meta", "audio_mask": "meta"}
