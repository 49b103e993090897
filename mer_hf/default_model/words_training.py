"""Training the words branch on MELD, by a recipe chosen on its validation side (see `text_fine_tuning.FineTuning`)."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, set_seed

from ..calibration import fit_temperature
from ..data.meld import scan
from ..data.whole_files import write_whole
from ..evaluation import emotion_metrics
from ..models.modeling_mman import MMANForEmotionClassification
from ..text_fine_tuning import FineTuning, fine_tune, make_text_model, text_forms, text_logits, turn_logits
from .frequencies import LABELS, assume_equal_frequencies, label_ids
from .words import changes, encoder_sha256, encoder_weights, find_encoder, restored

logger = logging.getLogger(__name__)

METRIC = "weighted_f1"


@dataclass(frozen=True)
class WordsBranch:
    """A finished branch and how it came about."""

    model: MMANForEmotionClassification
    """Assumes equally likely emotions; its `calibration_temperature` is fitted. Its weights are those it is saved
    with."""
    frequency_logits: Tensor
    """(labels,), T * log frequency: added to the logits they give those of the training side's frequencies"""
    seed: int
    settings: FineTuning
    history: list[dict[str, Any]] = field(default_factory=list)
    """An entry an epoch: loss, and by form the scores on validation at the training side's frequencies"""
    cpu_seconds: float = 0.0
    """Of the training, without the states of the frozen layers"""


def train_words(
    data_dir: str | PathLike,
    encoder_dir: str | PathLike | None = None,
    seed: int = 0,
    settings: FineTuning | None = None,
    checkpoint: str | PathLike | None = None,
) -> WordsBranch:
    """Train on MELD's train side, fit the temperature on its validation side, give up the train side's frequencies.

    data_dir: a copy of MELD's tables; encoder_dir: None = MiniLM's package; settings: None = the defaults;
    checkpoint: a file for the trained parameters, from which a later call with it goes on.

    Raises:
        ImportError: no encoder_dir, and the package is not installed. ValueError: what `data.meld.scan` refuses, a
            copy without train or validation side, an encoder_dir without an encoder, a checkpoint of another training.
    """
    settings = FineTuning() if settings is None else settings
    encoder_dir = find_encoder() if encoder_dir is None else encoder_dir
    sides = meld_sides(data_dir, ("train", "validation"))
    labels = {side: label_ids(row["label"] for row in rows) for side, rows in sides.items()}
    texts = {side: [row["text"] for row in rows] for side, rows in sides.items()}
    origin = {"seed": seed, "settings": asdict(settings), "encoder": encoder_sha256(encoder_dir)}
    set_seed(seed)
    model = make_text_model(encoder_dir, LABELS, settings)
    known = None if checkpoint is None else _read_checkpoint(checkpoint, origin)
    if known is None:
        validation = text_forms(texts["validation"], encoder_dir, model, settings)
        turns = text_forms(texts["train"], encoder_dir, model, settings)
        history: list[dict[str, Any]] = []

        def watch(epoch: int, loss: float) -> None:
            answers = {form: turn_logits(model, own, settings).argmax(-1) for form, own in validation.items()}
            scores = {form: emotion_metrics(labels["validation"], own, len(LABELS)) for form, own in answers.items()}
            history.append({"epoch": epoch, "loss": loss} | scores)
            logger.info("seed %d, epoch %d: loss %.3f", seed, epoch, loss)

        start = time.process_time()
        fine_tune(model, turns, labels["train"], settings, seed, watch)
        record = {"history": history, "cpu_seconds": round(time.process_time() - start, 1)}
        if checkpoint is not None:
            _write_checkpoint(checkpoint, model, origin, record)
    else:
        trained, record = known
        model.load_state_dict(trained, strict=False)
    _round(model, encoder_dir)
    logits = text_logits(model, AutoTokenizer.from_pretrained(encoder_dir), texts["validation"])
    model.config.calibration_temperature = fit_temperature(logits.numpy(), np.array(labels["validation"]))
    counts = np.bincount(labels["train"], minlength=len(LABELS))
    frequency_logits = assume_equal_frequencies(
        model.network.classifier, counts.tolist(), model.config.calibration_temperature
    )
    return WordsBranch(model.eval(), frequency_logits, seed, settings, record["history"], record["cpu_seconds"])


def meld_sides(data_dir: str | PathLike, sides: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """MELD's rows with a text, by side.

    Raises:
        ValueError: what `data.meld.scan` refuses, and a side without rows.
    """
    rows = [row for row in scan(data_dir).rows if row["text"]]
    found = {side: [row for row in rows if row["split"] == side] for side in sides}
    missing = [side for side, own in found.items() if not own]
    if missing:
        raise ValueError(f"data_dir {str(data_dir)!r} has no rows of {', '.join(missing)}; it must hold those tables")
    return found


def _round(model: MMANForEmotionClassification, encoder_dir: str | PathLike) -> None:
    """Make the weights those that are left when they are stored, before anything is fitted to them or measured."""
    state = model.state_dict()
    model.load_state_dict(restored(encoder_weights(state, encoder_dir), changes(model, encoder_dir), state))


def _write_checkpoint(
    checkpoint: str | PathLike,
    model: MMANForEmotionClassification,
    origin: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    trained = {n: parameter.detach() for n, parameter in model.named_parameters() if parameter.requires_grad}
    Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
    metadata = {"origin": json.dumps(origin), "record": json.dumps(record)}
    write_whole(Path(checkpoint), lambda unfinished: save_file(trained, unfinished, metadata))


def _read_checkpoint(
    checkpoint: str | PathLike, origin: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    if not Path(checkpoint).is_file():
        return None
    with safe_open(checkpoint, "pt") as file:
        metadata = file.metadata()
    if json.loads(metadata["origin"]) != origin:
        raise ValueError(f"{checkpoint} was made with another seed, settings or encoder; name another checkpoint")
    return load_file(checkpoint), json.loads(metadata["record"])
