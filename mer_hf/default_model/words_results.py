"""The words branch's results file: trained seed by seed, the best on validation shipped, the test side read once.

Scores are given for both operating points of the same weights: `training_frequencies`, as trained, for talk that is as
often neutral as MELD's, and `equal_frequencies`, as the branch is shipped (see `frequencies`).
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..calibration import calibration_report
from ..evaluation import SCORES, emotion_metrics, evaluation_report
from ..models.modeling_mman import MMANForEmotionClassification
from ..reporting import installed_versions
from ..text_fine_tuning import FORMS, FineTuning, text_logits
from .frequencies import LABELS, label_ids
from .sentences import SENTENCES
from .words import ENCODER_PACKAGE, WEIGHTS, encoder_sha256, find_encoder, save_words
from .words_training import METRIC, WordsBranch, meld_sides, train_words

logger = logging.getLogger(__name__)

NOTES = (
    "Trained on MELD's transcripts and labels (Poria et al. 2019, GPL-3): talk of one television series.",
    "No turn sees another: a single text and a turn of a dialogue are read alike, and nobody's name is read.",
    "The recipe was chosen on the validation side. The test side was read once for this model, at the end and for all "
    "seeds together; the test scores of four other models over the same frozen encoder were known before.",
    "written: the transcript as it is; spoken: its bare words, as speech recognisers give them. Trained on both.",
    "The 21 sentences were written down before training and looked at once, after the seed was chosen on validation.",
)


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
    everything = meld_sides(data_dir, ("train", "validation", "test"))
    sides = {side: everything[side] for side in ("validation", "test")}
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
            "sides": {side: _side(rows) for side, rows in everything.items()},
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
