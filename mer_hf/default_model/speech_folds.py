"""RAVDESS's five folds for the speech branches: what their recipe is worth, and with which temperatures they ship.

Every fold trains the branches anew on its training actors; the test side is read once, by `measure_speech`. What
another fold's file holds already is not made again.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration import calibration_report, fit_temperature
from ..corpora import Corpus
from ..data.protocols import FoldSplit
from ..data.whole_files import check_same_run
from ..experiment import FLOOR_OF, Job, fuse_records, run_job
from ..models.modeling_late_fusion import fuse_logits
from ..recipes import RECIPES
from ..reporting import logits_of
from .frequencies import LABELS
from .speech import BRANCHES, SpeechBranch, SpeechClips, branch_logits, settings_of, train_branch

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Logits = tuple[NDArray, NDArray, dict[str, Any]]
"""Of the validation and of the test clips, and what was chosen: what `experiment.Floor` gives."""


def measure_speech(
    clips: SpeechClips,
    output_dir: str | PathLike,
    branches: Mapping[str, SpeechBranch] = BRANCHES,
    progress: Callable[[str], None] = logger.info,
) -> dict[str, list[Record]]:
    """Records of every fold, as `run_job` makes them, by model: the branches, `speech` (all of them), the same with
    equally likely emotions, the regressions, and where there are face scores `face` and `speech_face`.

    A fold's file in output_dir is not made again.

    Raises:
        ValueError: output_dir was made with other settings.
    """
    output_dir = Path(output_dir)
    check_same_run(output_dir / "settings.json", settings_of(branches))
    faces = clips.corpus.vision_width is not None
    others = ["lr_audio", *(["lr_face", "lr_both", "face"] if faces else [])]
    found: dict[str, list[Record]] = {}
    for split in clips.corpus.splits:
        run = partial(_run, clips.corpus, split, output_dir)
        own = {name: run(name, partial(_trained, branch, clips)) for name, branch in branches.items()}
        progress(f"fold {split.fold}: {', '.join(own)}")
        own["speech"] = run("speech", lambda *_, of=dict(own): _fused(list(of.values())))
        frequencies = np.bincount(clips.labels(split.train), minlength=len(LABELS)) / len(split.train)
        own["speech_equal"] = run("speech_equal", lambda *_, of=own["speech"], p=frequencies: _equal(of, p))
        own |= {name: run(name, FLOOR_OF.get(name)) for name in others}
        if faces:
            own["speech_face"] = run("speech_face", lambda *_, of=dict(own): _fused([of["speech"], of["face"]]))
        for name, record in own.items():
            found.setdefault(name, []).append(record)
    return found


def _run(corpus: Corpus, split: FoldSplit, output_dir: Path, name: str, answer: Callable | None) -> Record:
    """answer: (corpus, split) -> Logits; None = the recipe of that name."""
    floors = {} if answer is None else {name: answer}
    return run_job(corpus, Job(name, 0, split), output_dir, recipes=RECIPES, floors=floors)[0]


def _trained(branch: SpeechBranch, clips: SpeechClips, corpus: Corpus, split: FoldSplit) -> Logits:
    model = train_branch(branch, clips, split.train)
    validation, test = (branch_logits(branch, model, clips, ids) for ids in (split.validation, split.test))
    return validation, test, {"parameters": model.num_parameters()}


def _fused(records: Sequence[Record]) -> Logits:
    return *fuse_records(records), {"branches": [record["origin"]["model"] for record in records]}


def _equal(speech: Record, frequencies: NDArray) -> Logits:
    """Calibrated log-probabilities less the training side's log frequencies."""
    validation, test = (logits_of(side) / speech["temperature"] for side in (speech["validation"], speech))
    return validation - np.log(frequencies), test - np.log(frequencies), {"frequencies": frequencies.tolist()}


def fusion_rules(records: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, dict[str, float]]]:
    """How well voice and face fit together, calibrated and fused without anything fitted to both, by two rules.

    records: as `measure_speech` returns them, with `face`. Returns log loss and calibration error by side and rule:
    "mean" of the log-probabilities, and their "sum", as for senses that err independently.
    """
    labels = [
        np.concatenate([record["validation"]["labels"] for record in records["speech"]]),
        np.concatenate([record["labels"] for record in records["speech"]]),
    ]
    found: dict[str, dict[str, dict[str, float]]] = {"validation": {}, "test": {}}
    for rule in ("mean", "sum"):
        pairs = zip(records["speech"], records["face"], strict=True)
        logits = zip(*(fuse_records(pair, independent=rule == "sum") for pair in pairs), strict=True)
        for side, right, own in zip(found, labels, logits, strict=True):
            found[side][rule] = calibration_report(np.concatenate(own), right, 1.0)["before"]
    return found


@dataclass(frozen=True)
class Calibration:
    """Of the branches, from the validation sides of all folds together."""

    temperatures: dict[str, float]
    """Of each branch as it is stored: its own times that of all together."""
    alone: dict[str, float]
    """Of each branch by itself."""
    together: float
    """Of the mean of the branches' calibrated log-probabilities."""


def calibrate(records: Mapping[str, Sequence[Record]], branches: Sequence[str]) -> Calibration:
    """records: as `measure_speech` returns them."""
    labels = np.concatenate([record["validation"]["labels"] for record in records[branches[0]]])
    logits = np.stack(
        [np.concatenate([logits_of(record["validation"]) for record in records[name]]) for name in branches]
    )
    alone = [fit_temperature(own, labels) for own in logits]
    together = fit_temperature(fuse_logits(logits, alone).numpy(), labels)
    stored = {name: own * together for name, own in zip(branches, alone, strict=True)}
    return Calibration(stored, dict(zip(branches, alone, strict=True)), together)
