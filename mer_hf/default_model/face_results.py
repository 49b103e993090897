"""What the face branch can do, measured on FER2013, and the results file that says so.

The recipe and the epoch are chosen on the validation side; the test side is read here and nowhere else. Scores are
given for both operating points of the same weights: `training_frequencies`, as trained, for faces that are as often
happy as FER2013's, and `equal_frequencies`, as the branch is shipped, whose accuracy on FER2013 is lower because
FER2013 is not like that. There is one face a picture and nobody's name, so intervals resample pictures.
"""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..calibration import calibration_report
from ..data.fer2013 import SPLITS, FacePictures, load_fer2013
from ..evaluation import evaluation_report
from ..reporting import installed_versions
from . import face_pictures
from .face import FaceBranch, face_logits, save_face_branch, train_face
from .face_training import FaceRecipe
from .frequencies import LABELS, label_ids

NOTES = (
    "The pictures are those of the 2013 ICML challenge in representation learning; the copy used states no licence.",
    "Of the published training side 703 pictures that are on its test side too and 1,064 repeats were dropped in the "
    "copy used, and the validation side was carved out of it by the pictures' hashes.",
    "Measured on FER2013's pictures only, not on video; who is shown is not recorded, so one person may be on two "
    "sides.",
    "Many of FER2013's labels are doubtful: people agree with about 65 % of them (Goodfellow et al. 2013).",
)
VIDEO_MARGIN = 4
"""Pixels added around 48: 48 / 56 = 0.86, about the size of a video's face against that of FER2013's."""


def write_face_branch(
    data_dir: str | os.PathLike,
    folder: str | os.PathLike,
    results: str | os.PathLike,
    seed: int = 0,
    recipe: FaceRecipe | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> FaceBranch:
    """Train the branch, measure it, and write its folder and its results file.

    Raises:
        ValueError: as `train_face`, and a test side that shares a picture with another.
    """
    branch = train_face(data_dir, seed, recipe, checkpoint)
    save_face_branch(branch, folder)
    found = measure_face(branch, data_dir)
    found["training"]["file_bytes"] = (Path(folder) / "model.safetensors").stat().st_size
    Path(results).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return branch


def measure_face(branch: FaceBranch, data_dir: str | os.PathLike) -> dict[str, Any]:
    """Everything the results file holds but the file's size. Reads the test side.

    Raises:
        ValueError: what `load_fer2013` refuses.
    """
    sides = load_fer2013(data_dir)
    points: dict[str, dict[str, Any]] = {"training_frequencies": {}, "equal_frequencies": {}}
    for name in ("validation", "test"):
        logits = face_logits(branch.model, branch.image_processor, sides[name].pixels)
        points["equal_frequencies"][name] = _scores(branch, sides[name], logits)
        points["training_frequencies"][name] = _scores(branch, sides[name], logits + branch.frequency_logits)
    return {
        "branch": "face",
        "corpus": {"name": "fer2013", "labels": list(LABELS), "sides": {name: _side(sides[name]) for name in SPLITS}},
        "selected_on": "validation",
        "recipe": asdict(branch.recipe) | {"augmentation": _augmentation()},
        "training": {
            "seed": branch.seed,
            "parameters": sum(parameter.numel() for parameter in branch.model.parameters()),
            "best_epoch": branch.best_epoch,
            "cpu_seconds": round(sum(entry["cpu_seconds"] for entry in branch.history), 1),
            "half_precision_change": branch.half_precision_change,
            "history": branch.history,
        },
        "temperature": branch.model.config.calibration_temperature,
        "operating_points": points,
        "framed_as_video": _framed_as_video(branch, sides["validation"]),
        "notes": list(NOTES),
        "versions": installed_versions("pillow"),
    }


def _scores(branch: FaceBranch, side: FacePictures, logits: Tensor) -> dict[str, Any]:
    """`evaluation_report`, how well the probabilities fit, and the NLL with every emotion counting alike."""
    labels = np.array(label_ids(side.labels))
    report = evaluation_report(labels, logits.numpy(), side.ids, dict(enumerate(LABELS)))
    del report["labels"], report["speakers"]
    temperature = branch.model.config.calibration_temperature
    likelihoods = (logits.double() / temperature).log_softmax(-1).numpy()[np.arange(len(labels)), labels]
    macro_nll = -np.mean([likelihoods[labels == label].mean() for label in np.unique(labels)])
    return report | {
        "clusters": "picture",
        "calibration": calibration_report(logits.numpy(), labels, temperature) | {"macro_nll": float(macro_nll)},
    }


def _framed_as_video(branch: FaceBranch, side: FacePictures) -> dict[str, float]:
    """WA and UA on the validation side with faces as small in the picture as in a video's crops."""
    logits = face_logits(branch.model, branch.image_processor, add_margin(side.pixels, VIDEO_MARGIN))
    labels = np.array(label_ids(side.labels))
    report = evaluation_report(labels, (logits + branch.frequency_logits).numpy(), None, dict(enumerate(LABELS)))
    return {"margin": VIDEO_MARGIN, "wa": report["wa"], "ua": report["ua"]}


def add_margin(pictures: NDArray[np.uint8], margin: int) -> NDArray[np.uint8]:
    """pictures (n, height, width) with so many mirrored pixels more on each side."""
    return np.pad(pictures, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")


def _side(side: FacePictures) -> dict[str, Any]:
    digest = hashlib.sha256("".join(side.hashes()).encode()).hexdigest()
    return {"pictures": len(side), "skipped": len(side.skipped), "sha256": digest}


def _augmentation() -> dict[str, Any]:
    names = ("ZOOM", "STRETCH", "TURN", "SHIFT", "CONTRAST", "BRIGHTNESS", "SHARPNESS", "NOISE", "ERASED_SHARE")
    values = {name.lower(): getattr(face_pictures, name) for name in (*names, "ERASED_SIDES")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
