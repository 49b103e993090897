"""Training the words branch on MELD, and the results file that says what it can do.

The recipe was chosen on MELD's validation side (see `text_fine_tuning.FineTuning`); the test side is read by
`write_words`, once all seeds are trained. Scores are given for both operating points of the same weights:
`training_frequencies`, as trained, for talk that is as often neutral as MELD's, and `equal_frequencies`, as the branch
is shipped (see `frequencies`).
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, set_seed

from ..calibration import calibration_report, fit_temperature
from ..data.meld import scan
from ..data.whole_files import write_whole
from ..evaluation import SCORES, emotion_metrics, evaluation_report
from ..models.modeling_mman import MMANForEmotionClassification
from ..reporting import installed_versions
from ..text_fine_tuning import FORMS, FineTuning, fine_tune, make_text_model, text_forms, text_logits, turn_logits
from .frequencies import LABELS, assume_equal_frequencies, label_ids
from .sentences import SENTENCES
from .words import (
    ENCODER_PACKAGE,
    WEIGHTS,
    changes,
    encoder_sha256,
    encoder_weights,
    find_encoder,
    restored,
    save_words,
)

logger = logging.getLogger(__name__)

METRIC = "weighted_f1"
NOTES = (
    "Trained on MELD's transcripts and labels (Poria et al. 2019, GPL-3): talk of one television series.",
    "No turn sees another: a single text and a turn of a dialogue are read alike, and nobody's name is read.",
    "The recipe was chosen on the validation side. The test side was read once for this model, at the end and for all "
    "seeds together; the test scores of four other models over the same frozen encoder were known before.",
    "written: the transcript as it is; spoken: its bare words, as speech recognisers give them. Trained on both.",
    "The 21 sentences were written down before training and looked at once, after the seed was chosen on validation.",
)


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


# The results file


def write_words(
    data_dir: str | PathLike,
    folder: str | PathLike,
    results: str | PathLike,
    work_dir: str | PathLike,
    seeds: Sequence[int] = (0, 1, 2),
    encoder_dir: str | PathLike | None = None,
    settings: FineTuning | None = None,
    progress: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Train a branch a seed, save the one that is best on validation to folder, read the test side, write results.

    work_dir: where the seeds' checkpoints are kept; encoder_dir and settings: as `train_words`. Returns what the
    results file holds.

    Raises:
        ValueError: no seed. ImportError and ValueError: as `train_words`.
    """
    if not seeds:
        raise ValueError("seeds is empty; give at least one")
    encoder_dir = find_encoder() if encoder_dir is None else encoder_dir
    branches = []
    for seed in seeds:
        checkpoint = Path(work_dir) / f"words-seed{seed}.safetensors"
        branches.append(train_words(data_dir, encoder_dir, seed, settings, checkpoint))
        progress(f"seed {seed}: validation {METRIC} {branches[-1].history[-1]['written'][METRIC]:.3f}")
    chosen = max(branches, key=lambda branch: branch.history[-1]["written"][METRIC])
    save_words(chosen.model, folder, encoder_dir)
    found = measure_words(branches, chosen, data_dir, encoder_dir)
    found["shipped"]["file_bytes"] = (Path(folder) / WEIGHTS).stat().st_size
    Path(results).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def measure_words(
    branches: Sequence[WordsBranch], chosen: WordsBranch, data_dir: str | PathLike, encoder_dir: str | PathLike
) -> dict[str, Any]:
    """Everything the results file holds but the file's size. Reads the test side.

    Raises:
        ValueError: what `meld_sides` refuses.
    """
    tokenizer = AutoTokenizer.from_pretrained(encoder_dir)
    sides = meld_sides(data_dir, ("validation", "test"))
    answers = {
        form: {
            side: [text_logits(b.model, tokenizer, [row["text"] for row in rows], form) for b in branches]
            for side, rows in sides.items()
        }
        for form in FORMS
    }
    points = {
        "training_frequencies": [b.frequency_logits for b in branches],
        "equal_frequencies": [0.0] * len(branches),
    }
    scored = {
        point: {
            form: {
                side: _scores(
                    rows, [own + more for own, more in zip(answers[form][side], added, strict=True)], branches
                )
                for side, rows in sides.items()
            }
            for form in FORMS
        }
        for point, added in points.items()
    }
    return {
        "branch": "words",
        "corpus": {
            "name": "meld",
            "labels": list(LABELS),
            "licence": "GPL-3.0 (Poria et al. 2019, arXiv:1810.02508)",
            "sides": {
                side: _side(rows) for side, rows in meld_sides(data_dir, ("train", "validation", "test")).items()
            },
        },
        "encoder": {"package": ENCODER_PACKAGE, "sha256": encoder_sha256(encoder_dir)},
        "selected_on": "validation",
        "recipe": asdict(chosen.settings),
        "seeds": [
            {"seed": b.seed, "temperature": b.model.config.calibration_temperature}
            | {"cpu_seconds": b.cpu_seconds, "history": b.history}
            for b in branches
        ],
        "shipped": {
            "seed": chosen.seed,
            "chosen_by": f"{METRIC} on validation",
            "parameters": chosen.model.num_parameters(),
            "trained_parameters": sum(p.numel() for p in chosen.model.parameters() if p.requires_grad),
        },
        "operating_points": scored,
        "sentences": sentence_answers(chosen.model, tokenizer),
        "notes": list(NOTES),
        "versions": installed_versions(),
    }


def _side(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = Counter(row["label"] for row in rows)
    return {"texts": len(rows), "labels": {label: counts[label] for label in LABELS}}


def _scores(
    rows: Sequence[Mapping[str, Any]], logits: Sequence[Tensor], branches: Sequence[WordsBranch]
) -> dict[str, Any]:
    """Scores by seed, their mean and sample deviation; all seeds' answers together with intervals over dialogues; and
    how well the probabilities fit with T = 1 and with each seed's own."""
    labels = np.array(label_ids(row["label"] for row in rows))
    by_seed = [emotion_metrics(labels, own.argmax(-1).numpy(), len(LABELS)) for own in logits]
    values = {name: [scores[name] for scores in by_seed] for name in SCORES}
    everything, scaled = torch.cat(list(logits)).double(), zip(logits, branches, strict=True)
    repeated, groups = np.tile(labels, len(logits)), [row["dialogue_id"] for row in rows] * len(logits)
    report = evaluation_report(repeated, everything.argmax(-1).numpy(), groups, dict(enumerate(LABELS)))
    del report["labels"]
    tempered = torch.cat([own.double() / b.model.config.calibration_temperature for own, b in scaled])
    return {
        "seeds": {str(b.seed): scores for b, scores in zip(branches, by_seed, strict=True)},
        "mean": {name: float(np.mean(own)) for name, own in values.items()},
        "seed_deviation": {n: float(np.std(own, ddof=1)) if len(own) > 1 else None for n, own in values.items()},
        "pooled": report | {"dialogues": report.pop("speakers"), "clusters": "dialogue_id"},
        "calibration": {
            "before": calibration_report(everything.numpy(), repeated, 1.0)["before"],
            "after": calibration_report(tempered.numpy(), repeated, 1.0)["before"],
        },
    }


def sentence_answers(model: MMANForEmotionClassification, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the branch says to each of the 21 sentences, a single clip each, with its probability."""
    asked = [(label, sentence) for label, own in SENTENCES.items() for sentence in own]
    logits = text_logits(model, tokenizer, [sentence for _, sentence in asked])
    probabilities = (logits / model.config.calibration_temperature).softmax(-1)
    answers = [
        {
            "sentence": sentence,
            "wanted": label,
            "answer": LABELS[int(own.argmax())],
            "probability": round(float(own.max()), 3),
        }
        for (label, sentence), own in zip(asked, probabilities, strict=True)
    ]
    return {
        "operating_point": "equal_frequencies",
        "form": "written",
        "right": sum(answer["answer"] == answer["wanted"] for answer in answers),
        "asked": len(answers),
        "answers": answers,
    }
