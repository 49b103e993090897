"""Rows of a corpus -> examples -> padded batches, for the stock `transformers.Trainer`.

    dataset = ClipDataset(rows, processor, label2id=model.config.label2id)
    collator = EmotionCollator(model.config)
    Trainer(model, args, train_dataset=dataset, data_collator=collator, compute_metrics=compute_metrics)

with `remove_unused_columns=False` in the arguments.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.utils.data import Dataset

from ..models.batching import FIELDS, pad_dialogues, pad_examples

MODALITIES = ("audio", "text", "vision")
INPUTS = frozenset(name for name, field in FIELDS.items() if field.mask)


class EmotionCollator:
    """Pads examples of clips, or of whole dialogues, into one batch with masks and labels.

    config: the model's. A batch in which no clip has anything then holds an empty sequence, so that the model answers
    it as it does such a clip among others; None = the model refuses a batch of nothing.
    """

    def __init__(self, config: Any = None):
        self.config = config

    def __call__(
        self, examples: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]]
    ) -> dict[str, Any]:
        """A list of examples, or a list of dialogues (lists of examples), never both."""
        dialogues = [not isinstance(example, Mapping) for example in examples]
        if any(dialogues) != all(dialogues):
            raise ValueError("a batch holds either clips or dialogues; found both")
        batch = pad_dialogues(examples) if all(dialogues) else pad_examples(examples)
        return batch | (self._nothing(batch, examples) if INPUTS.isdisjoint(batch) else {})

    def _nothing(self, batch: Mapping[str, torch.Tensor], examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        rows = batch["turn_mask"].shape if "turn_mask" in batch else (len(examples),)
        for modality in () if self.config is None else self.config.modalities:
            with suppress(ValueError):  # a late fusion whose branches want different features
                return {f"{modality}_embeds": torch.zeros(*rows, 0, self.config.width(modality))}
        return {}


class ClipDataset(Dataset):
    """Rows of the common schema as examples, decoded when they are asked for.

    rows: a `datasets.Dataset` or list of rows; processor: a MerProcessor; label2id: classes of the model, None = no
    labels; modalities: those to decode; keep: hold decoded examples in memory (audio 64 kB a second, a 224-pixel face
    frame 600 kB); transform: called with (row, example), returns the example to use (to add precomputed embeds, say).

    Raises:
        ValueError: a row whose label the model does not have.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        processor: Any,
        label2id: Mapping[str, int] | None = None,
        modalities: Iterable[str] = MODALITIES,
        keep: bool = False,
        transform: Callable[[Mapping[str, Any], dict[str, Any]], dict[str, Any]] | None = None,
    ):
        self.rows, self.processor, self.transform = rows, processor, transform
        self.label2id, self.modalities = label2id, frozenset(modalities)
        self._kept: dict[int, dict[str, Any]] | None = {} if keep else None
        labels = [] if label2id is None else [row["label"] for row in rows]
        unknown = sorted({label for label in labels if label is not None and label not in label2id})
        if unknown:
            raise ValueError(
                f"labels {unknown} are none of the model's ({', '.join(label2id)}); map or drop those rows"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._kept is None:
            return self._make(self.rows[index])
        if index not in self._kept:
            self._kept[index] = self._make(self.rows[index])
        return self._kept[index]

    def _make(self, row: Mapping[str, Any]) -> dict[str, Any]:
        decoded = self.processor.load(
            audio=row["audio"] if "audio" in self.modalities else None,
            video=row["video"] if "vision" in self.modalities else None,
        )
        words, text = (row["words"], row["text"]) if "text" in self.modalities else (None, None)
        example = self.processor.example(words=words, text=text, **decoded)
        if self.label2id is not None:
            example["label"] = None if row["label"] is None else self.label2id[row["label"]]
        return example if self.transform is None else self.transform(row, example)


class ExampleDataset(Dataset):
    """Ready examples, such as cached embeds; `dialogues` groups them."""

    def __init__(self, examples: Sequence[Any]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        return self.examples[index]


class DialogueDataset(Dataset):
    """The same examples grouped by dialogue, turns in order: what a model with context is trained on.

    dialogue_ids and turns: of each example of `clips`; a clip without a dialogue is one of its own. Dialogues longer
    than max_turns are cut into pieces.
    """

    def __init__(
        self,
        clips: Dataset,
        dialogue_ids: Sequence[str | None],
        turns: Sequence[int | None],
        max_turns: int | None = None,
    ):
        if not len(clips) == len(dialogue_ids) == len(turns):
            raise ValueError(f"{len(clips)} clips, {len(dialogue_ids)} dialogue_ids and {len(turns)} turns")
        self.clips = clips
        groups: dict[Any, list[int]] = {}
        for index, dialogue in enumerate(dialogue_ids):
            groups.setdefault(("clip", index) if dialogue is None else dialogue, []).append(index)
        ordered = [sorted(group, key=lambda index: turns[index] or 0) for group in groups.values()]
        step = max_turns or max(map(len, ordered), default=1)
        self.dialogues = [group[start : start + step] for group in ordered for start in range(0, len(group), step)]

    def __len__(self) -> int:
        return len(self.dialogues)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        return [self.clips[clip] for clip in self.dialogues[index]]


def move_to(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors on a device."""
    return {name: value.to(device) for name, value in batch.items()}
