"""Examples of single clips or dialogues -> padded batches with masks. The one place where masks are made.

An example is a dict with any of the fields below, each for one clip and without a batch axis; a field that is missing
or None means the clip does not have it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Field(NamedTuple):
    """How one field of an example becomes a tensor of the batch."""

    dims: int
    """Of one example; the first is the one that is padded."""
    dtype: torch.dtype
    padding: float
    mask: str | None
    """Name of the bool mask made with it, True = real."""


FIELDS = {
    "input_values": Field(1, torch.float32, 0.0, "input_values_mask"),  # (samples,)
    "audio_embeds": Field(2, torch.float32, 0.0, "audio_mask"),  # (time, dim)
    "audio_speaker": Field(2, torch.float32, 0.0, None),  # (2, dim): mean, deviation; deviation 0 = not enrolled
    "input_ids": Field(1, torch.long, 0, "attention_mask"),  # (tokens,)
    "word_ids": Field(1, torch.long, -1, None),  # (tokens,), -1 = belongs to no word
    "text_embeds": Field(2, torch.float32, 0.0, "text_mask"),  # (words, dim)
    "word_times": Field(2, torch.float32, 0.0, None),  # (words, 2), seconds
    "pixel_values": Field(4, torch.float32, 0.0, "pixel_values_mask"),  # (frames, channels, height, width)
    "vision_embeds": Field(2, torch.float32, 0.0, "vision_mask"),  # (frames, dim)
    "vision_times": Field(1, torch.float32, 0.0, None),  # (frames,), seconds
    "vision_speaker": Field(2, torch.float32, 0.0, None),  # (2, dim), as audio_speaker
}
IGNORED_LABEL = -100


def pad_examples(examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Examples of single clips -> {field: (batch, longest, ...)} with masks, and `labels` (batch,) where any example
    has the key `label`.

    A label that is missing or None becomes -100, which no loss counts.

    Raises:
        ValueError: no example, or a field whose dimensions or widths do not fit, naming it.
    """
    if not examples:
        raise ValueError("no example to make a batch of")
    batch = {}
    for name, field in FIELDS.items():
        values = [example.get(name) for example in examples]
        if any(value is not None for value in values):
            batch |= _pad(name, field, values)
    if "word_times" in batch and "word_ids" in batch:
        # A clip without times may have more words than any clip with: zeros are words without a time.
        missing = int(batch["word_ids"].max()) + 1 - batch["word_times"].shape[1]
        batch["word_times"] = torch.nn.functional.pad(batch["word_times"], (0, 0, 0, max(missing, 0)))
    if any("label" in example for example in examples):
        labels = [example.get("label") for example in examples]
        batch["labels"] = torch.tensor([IGNORED_LABEL if label is None else label for label in labels])
    return batch


def pad_dialogues(dialogues: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Tensor]:
    """Dialogues, each a list of its turns' examples -> {field: (batch, turns, ...)}, labels and `turn_mask`.

    Raises:
        ValueError: as `pad_examples`, or a dialogue without a turn.
    """
    empty = [index for index, dialogue in enumerate(dialogues) if not dialogue]
    if empty or not dialogues:
        raise ValueError(f"dialogues {empty} have no turn" if dialogues else "no dialogue to make a batch of")
    turns = max(map(len, dialogues))
    flat = [turn for dialogue in dialogues for turn in [*dialogue, *[{}] * (turns - len(dialogue))]]
    batch = {name: value.unflatten(0, (len(dialogues), turns)) for name, value in pad_examples(flat).items()}
    lengths = torch.tensor([len(dialogue) for dialogue in dialogues])
    return batch | {"turn_mask": torch.arange(turns) < lengths.unsqueeze(-1)}


def _pad(name: str, field: Field, values: list[Any]) -> dict[str, Tensor]:
    tensors = [None if value is None else torch.as_tensor(value, dtype=field.dtype) for value in values]
    shapes = {tuple(tensor.shape[1:]) for tensor in tensors if tensor is not None}
    if any(tensor is not None and tensor.dim() != field.dims for tensor in tensors) or len(shapes) != 1:
        found = [None if tensor is None else tuple(tensor.shape) for tensor in tensors]
        raise ValueError(f"{name} of one example has {field.dims} dimensions, all but the first alike; found {found}")
    longest = max(len(tensor) for tensor in tensors if tensor is not None)
    padded = torch.full((len(tensors), max(longest, 1), *shapes.pop()), field.padding, dtype=field.dtype)
    mask = torch.zeros(padded.shape[:2], dtype=torch.bool)
    for row, tensor in enumerate(tensors):
        if tensor is not None:
            padded[row, : len(tensor)] = tensor
            mask[row, : len(tensor)] = True
    return {name: padded} | ({field.mask: mask} if field.mask else {})
