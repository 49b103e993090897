"""Test a saved model on the fold it was kept for."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModel, AutoProcessor

from .calibration import calibration_report
from .corpora import Corpus
from .data.collator import ClipDataset, DialogueDataset
from .data.protocols import FoldSplit
from .evaluation import evaluation_report
from .experiment import TRAINED_ON, chosen_splits, logits_by_row, trained_on
from .recipes import only_timed_words


def evaluate_checkpoint(corpus: Corpus, model: str | PathLike, fold: int | None = None) -> dict[str, Any]:
    """A saved model's scores on the test side of one fold, with intervals, calibration and the fold's hash.

    model: a folder or Hub id with its processor. fold: None = the one that the checkpoint says it was trained for. Of
    a checkpoint that does not say (`trained_on.json`), whether it has seen these clips is for the caller to know.

    Raises:
        ValueError: a fold the corpus does not have, or another than the checkpoint was trained for, which would test
            it on clips it was trained on; labels that are not the model's, a checkpoint with untrained weights, or
            face features of another width.
    """
    split = _own_split(corpus, model, fold)
    network = AutoModel.from_pretrained(model).eval()
    if getattr(network, "untrained_keys", ()):
        raise ValueError(f"model: {model} lacks {len(network.untrained_keys)} weights; fine-tune it first")
    processor = AutoProcessor.from_pretrained(model)
    config = network.config
    prepare = only_timed_words if _needs_word_times(config) else dict  # as such a model is trained
    rows = [prepare(corpus.by_id[i]) for i in split.test]
    raw = tuple(modality for modality in config.modalities if config.reads_raw(modality))
    extras = vision_extras(corpus, config.vision_embed_dim)

    def complete(row: Any, example: dict[str, Any]) -> dict[str, Any]:
        return example | dict(extras.get(row["id"], {}))

    clips: Any = ClipDataset(rows, processor, config.label2id, raw, transform=complete)
    if config.uses_context:
        clips = DialogueDataset(clips, [row["dialogue_id"] for row in rows], [row["turn"] for row in rows])
    logits = logits_by_row(network, clips)
    labels = np.array([config.label2id[row["label"]] for row in rows])
    groups = np.array([row[corpus.cluster] for row in rows])
    return {
        "model": str(model),
        "corpus": corpus.name,
        "split": split.name,
        "fold": split.fold,
        "sha256": split.sha256,
        **corpus.protocol_notes,
        **evaluation_report(labels, logits.argmax(-1), groups, config.id2label),
        "calibration": calibration_report(logits, labels, config.calibration_temperature),
    }


def _own_split(corpus: Corpus, model: str | PathLike, fold: int | None) -> FoldSplit:
    """The split to test on, checked against what stands beside the checkpoint."""
    file = Path(model) / TRAINED_ON
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    if known is None or known["corpus"] != corpus.name:
        if fold is None:
            folds = [split.fold for split in corpus.splits]
            raise ValueError(f"fold: {model} does not say what it was trained on; name one of the folds {folds}")
        return chosen_splits(corpus, [fold])[0]
    split = chosen_splits(corpus, [known["fold"] if fold is None else fold])[0]
    if trained_on(corpus, split) != known:
        raise ValueError(
            f"fold: {model} was trained for fold {known['fold']} of {known['protocol']} "
            f"({known['sha256'][:12]}), this is fold {split.fold} of {split.name} ({split.sha256[:12]}): it may have "
            "been trained on these test clips"
        )
    return split


def _needs_word_times(config: Any) -> bool:
    """Whether the model, or a branch of it, must know of words beside frames when they are said."""
    branches = getattr(config, "branches", None)
    if branches is not None:
        return any(_needs_word_times(branch) for branch in branches)
    return config.uses_word_times and "text" in config.modalities and len(config.modalities) > 1


def vision_extras(corpus: Corpus, width: int | None) -> dict[str, Any]:
    """What a model without a vision backbone reads of the corpus's faces: their frames, or one vector a clip.

    Raises:
        ValueError: the corpus has neither of this width.
    """
    if width is None:
        return {}
    if width == corpus.vision_width:
        return dict(corpus.extras)
    if corpus.vision_width is not None and width == 3 * corpus.vision_width:
        return {i: {"vision_embeds": vector} for i, vector in corpus.vision_vectors.items()}
    raise ValueError(
        f"the model reads face features of width {width}, the corpus has {corpus.vision_width or 'none'}; "
        "give the face_scores it was trained with"
    )
