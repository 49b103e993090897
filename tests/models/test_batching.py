"""Examples to padded batches: literal examples, literal tensors."""

import numpy as np
import pytest
import torch

from mer_hf.models.batching import FIELDS, pad_dialogues, pad_examples


def test_fields_are_padded_and_masked():
    batch = pad_examples(
        [
            {"input_values": [0.5, -0.5], "input_ids": [7], "word_ids": [0], "word_times": [[0.0, 0.25]], "label": 2},
            {"input_values": np.array([1.0]), "input_ids": [8, 9], "word_ids": [-1, 0], "word_times": [[0.5, 1.0]]},
        ]
    )
    expected = {
        "input_values": torch.tensor([[0.5, -0.5], [1.0, 0.0]]),
        "input_values_mask": torch.tensor([[True, True], [True, False]]),
        "input_ids": torch.tensor([[7, 0], [8, 9]]),
        "attention_mask": torch.tensor([[True, False], [True, True]]),
        "word_ids": torch.tensor([[0, -1], [-1, 0]]),
        "word_times": torch.tensor([[[0.0, 0.25]], [[0.5, 1.0]]]),
        "labels": torch.tensor([2, -100]),
    }
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        assert batch[name].dtype == value.dtype, name
        assert torch.equal(batch[name], value), name


def test_an_absent_field_is_all_padding():
    batch = pad_examples([{"audio_embeds": [[1.0, 2.0]]}, {"audio_embeds": None}, {}])
    assert batch["audio_embeds"].tolist() == [[[1.0, 2.0]], [[0.0, 0.0]], [[0.0, 0.0]]]
    assert batch["audio_mask"].tolist() == [[True], [False], [False]]
    assert "labels" not in batch


def test_an_empty_sequence_is_absent():
    batch = pad_examples([{"input_values": np.zeros(0)}])
    assert batch["input_values"].shape == (1, 1)
    assert batch["input_values_mask"].tolist() == [[False]]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_padded_along_its_first_dimension(name):
    field = FIELDS[name]
    rest = (2,) * (field.dims - 1)
    batch = pad_examples([{name: torch.ones(3, *rest)}, {name: torch.ones(1, *rest)}])
    assert batch[name].shape == (2, 3, *rest)
    assert batch[name].dtype == field.dtype
    assert (batch[name][1, 1:] == field.padding).all()
    assert (batch[name][0] == 1).all()
    assert set(batch) == {name} | ({field.mask} - {None})
    if field.mask:
        assert batch[field.mask].tolist() == [[True] * 3, [True, False, False]]


def test_label_zero_is_a_label():
    assert pad_examples([{"label": 0}, {"label": None}])["labels"].tolist() == [0, -100]


def test_dialogues_get_a_turns_axis():
    turn = [{"text_embeds": [[float(number)]], "label": number} for number in range(3)]
    batch = pad_dialogues([[turn[0]], [turn[1], turn[2]]])
    assert batch["text_embeds"].tolist() == [[[[0.0]], [[0.0]]], [[[1.0]], [[2.0]]]]
    assert batch["text_mask"].tolist() == [[[True], [False]], [[True], [True]]]
    assert batch["turn_mask"].tolist() == [[True, False], [True, True]]
    assert batch["labels"].tolist() == [[0, -100], [1, 2]]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no example"),
        ([{"input_values": [[0.0]]}], r"input_values of one example has 1 dimensions.*\(1, 1\)"),
        ([{"text_embeds": [[0.0]]}, {"text_embeds": [[0.0, 1.0]]}], r"text_embeds .*\(1, 1\), \(1, 2\)"),
        ([{"pixel_values": np.zeros((1, 3, 4, 4))}, {"pixel_values": np.zeros((1, 3, 5, 4))}], "pixel_values"),
    ],
)
def test_what_does_not_fit_is_named(examples, message):
    with pytest.raises(ValueError, match=message):
        pad_examples(examples)


def test_dialogues_without_turns_are_named():
    with pytest.raises(ValueError, match=r"dialogues \[1\] have no turn"):
        pad_dialogues([[{"input_values": [0.0]}], []])
    with pytest.raises(ValueError, match="no dialogue"):
        pad_dialogues([])
