"""MELD's transcripts with a fixed vector a turn, grouped into dialogues: what `text_recipes` trains on."""

import hashlib
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from . import MMANForEmotionClassification
from .corpora import Corpus
from .data.collator import DialogueDataset, ExampleDataset
from .data.feature_keys import sha256_of
from .data.feature_shards import FeatureShards
from .data.features import cache_embeds
from .data.meld import scan
from .data.named_protocols import PROTOCOLS
from .data.protocols import SIDES
from .data.schema import EMOTIONS
from .recipes import Example

MAX_TOKENS = 128
"""Of an utterance; the longest published one has fewer."""


def load_meld_text(data_dir: str | PathLike, encoder_dir: str | PathLike, cache_dir: str | PathLike) -> Corpus:
    """MELD with a fixed vector a turn: extras `text_embeds` (1, 2 * width), mean and maximum over the token states.

    encoder_dir: a folder with an encoder and its tokenizer. cache_dir: where vectors are kept, by content.

    Raises:
        ValueError: what `data.meld.scan` and the protocol refuse, a copy that lacks a table, or an encoder_dir without
            an encoder.
    """
    chosen = PROTOCOLS["meld-official"]
    silent = {"audio": None, "video": None}
    found = [row | silent for row in scan(data_dir).rows if row["text"]]
    labels = {side: {row["label"] for row in found if row["split"] == side} for side in SIDES}
    if not labels["train"] >= labels["validation"] | labels["test"] or not all(labels.values()):
        raise ValueError(f"data_dir {str(data_dir)!r} must hold all three tables, and train every label of the others")
    rows, splits, _ = chosen.apply(found)
    vectors, encoder = text_vectors(rows, encoder_dir, cache_dir)
    notes = {"clips": len(rows), "speakers": len({row["speaker"] for row in rows}), "encoder": encoder}
    extras = {row["id"]: {"text_embeds": vector[None]} for row, vector in zip(rows, vectors, strict=True)}
    return Corpus(
        "meld", rows, splits, [label for label in EMOTIONS if label in labels["train"]], extras, notes, chosen
    )


def text_vectors(
    rows: Sequence[Mapping[str, Any]], encoder_dir: str | PathLike, cache_dir: str | PathLike, chunk: int = 256
) -> tuple[Tensor, dict[str, str]]:
    """Mean and maximum of the frozen encoder's token states, [CLS] and [SEP] among them: (rows, 2 * width); and which
    encoder it is."""
    weights = Path(encoder_dir) / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"encoder_dir {str(encoder_dir)!r} has no model.safetensors; name a folder with an encoder")
    encoder = {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    config = AutoConfig.from_pretrained(encoder_dir)
    encoder |= {name: getattr(config, name) for name in ("model_type", "hidden_size", "num_hidden_layers")}
    shards = FeatureShards(Path(cache_dir) / "text-vectors")
    keys = [sha256_of([encoder, MAX_TOKENS, row["text"]]) for row in rows]
    missing = {key: row for key, row in zip(keys, rows, strict=True) if not shards.intact(key)}
    if missing:
        model = MMANForEmotionClassification.from_backbones(text=encoder_dir, network="unimodal")
        examples = token_examples(list(missing.values()), encoder_dir)
        for start in range(0, len(examples), chunk):
            states = [e["text_embeds"] for e in cache_embeds(model, examples[start : start + chunk], ("text",))]
            vectors = [{"vector": torch.cat([state.mean(0), state.amax(0)])} for state in states]
            found = dict(zip(list(missing)[start : start + chunk], vectors, strict=True))
            shards.write(found, {key: {"encoder": encoder["sha256"]} for key in found})
    return torch.stack([shards.read(key)["vector"] for key in keys]), encoder


def token_examples(rows: Sequence[Mapping[str, Any]], encoder_dir: str | PathLike) -> list[Example]:
    """The transcripts as the encoder's tokens, punctuation included."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_dir)
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return [{"input_ids": torch.tensor(tokens)} for tokens in ids]


def dialogues(
    corpus: Corpus, ids: Sequence[str], examples: Mapping[str, Example], noise: float = 0
) -> DialogueDataset:
    """The examples of these rows, with their labels, grouped by dialogue; noise: see `NoisyTurns`."""
    rows = [corpus.by_id[i] for i in ids]
    labelled = [examples[row["id"]] | {"label": corpus.label2id[row["label"]]} for row in rows]
    turns = NoisyTurns(labelled, noise) if noise else ExampleDataset(labelled)
    return DialogueDataset(turns, [row["dialogue_id"] for row in rows], [row["turn"] for row in rows])


class NoisyTurns(ExampleDataset):
    """Their `text_embeds` get new Gaussian noise at every look, `noise` times their deviation over the set."""

    def __init__(self, examples: Sequence[Example], noise: float):
        super().__init__(examples)
        self.scale = noise * torch.cat([example["text_embeds"] for example in examples]).std(0, correction=0)

    def __getitem__(self, index: int) -> Example:
        values = self.examples[index]["text_embeds"]
        return self.examples[index] | {"text_embeds": values + self.scale * torch.randn_like(values)}
