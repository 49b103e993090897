"""FER2013: 48 x 48 grey crops of faces found on the web, each with one of seven emotions; still pictures, no clips.

I. J. Goodfellow et al.: Challenges in Representation Learning: A Report on Three Machine Learning Contests, ICML 2013
workshop, https://arxiv.org/abs/1307.0414. Human accuracy on it is about 65 % (section 2.1): many labels are doubtful.

The copy read here is a folder of `train.parquet`, `validation.parquet` and `test.parquet`, each with the columns `id`,
`label` (the challenge's words) and `jpeg` (an encoded picture). The published training set holds pictures of its own
test set, so `load_fer2013` refuses sides that share one; `shared_pictures` says which.
"""

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from .scanning import Skipped

SPLITS = ("train", "validation", "test")
LABELS = {
    "neutral": "neutral",
    "happy": "happy",
    "sad": "sad",
    "angry": "angry",
    "fear": "fearful",
    "disgust": "disgusted",
    "surprise": "surprised",
}
"""The challenge's words -> the schema's."""
SIDE = 48
"""Pixels a side of every picture."""
_COLUMNS = ("id", "label", "jpeg")


@dataclass(frozen=True)
class FacePictures:
    """One side of the corpus, in the file's order."""

    ids: tuple[str, ...]
    pixels: NDArray[np.uint8]
    """(n, 48, 48), grey"""
    labels: tuple[str, ...]
    """Words of the schema's label set"""
    skipped: tuple[Skipped, ...] = ()
    """Rows that gave no picture, as `file:row`, and why; an untouched copy has none."""

    def __len__(self) -> int:
        return len(self.ids)

    def hashes(self) -> tuple[str, ...]:
        """SHA-256 of each picture's pixels, which finds equal pictures however they were encoded."""
        return tuple(hashlib.sha256(picture.tobytes()).hexdigest() for picture in self.pixels)


def load_fer2013(data_dir: str | os.PathLike, splits: tuple[str, ...] = SPLITS) -> dict[str, FacePictures]:
    """The named sides of a copy, by name; none shares a picture with another.

    Raises:
        ValueError: what `load_split` refuses, and a picture that is on two of the sides.
    """
    sides = {split: load_split(data_dir, split) for split in splits}
    shared = list(shared_pictures(sides))
    if shared:
        one, other = shared[0]
        raise ValueError(
            f"data_dir {os.fspath(data_dir)}: {len(shared)} pictures are on two sides, the first {one} and {other}; "
            "drop them from the training side"
        )
    return sides


def load_split(data_dir: str | os.PathLike, split: str) -> FacePictures:
    """One side. Rows without a readable 48 x 48 grey picture are left out and are in `skipped`.

    Raises:
        ValueError: an unknown split; a file that is absent, lacks a column, or has no picture at all; a label that is
            none of the challenge's; an id that occurs twice.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, found {split!r}")
    path = Path(data_dir) / f"{split}.parquet"
    if not path.is_file():
        raise ValueError(f"data_dir {os.fspath(data_dir)} has no {path.name}; name the folder of your copy of FER2013")
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        absent = [column for column in _COLUMNS if column not in names]
        if absent:
            raise ValueError(f"{path} lacks the column(s) {', '.join(absent)}; found {', '.join(names)}")
        columns = file.read(columns=list(_COLUMNS)).to_pydict()
    _check_rows(path, columns["id"], columns["label"])
    pictures, skipped = {}, []
    for row, encoded in enumerate(columns["jpeg"]):
        try:
            pictures[row] = _decode(encoded)
        except (OSError, ValueError) as error:
            skipped.append(Skipped(f"{path.name}:{row}", str(error)))
    if not pictures:
        raise ValueError(f"{path} holds no readable picture in {len(columns['jpeg'])} rows; copy or download it again")
    return FacePictures(
        ids=tuple(columns["id"][row] for row in pictures),
        pixels=np.stack(list(pictures.values())),
        labels=tuple(LABELS[columns["label"][row]] for row in pictures),
        skipped=tuple(skipped),
    )


def shared_pictures(sides: dict[str, FacePictures]) -> Iterator[tuple[str, str]]:
    """Pictures with equal pixels on two sides, as pairs of `side/id`: the first place and the later one."""
    first: dict[str, tuple[str, str]] = {}
    for name, side in sides.items():
        for picture_id, digest in zip(side.ids, side.hashes(), strict=True):
            place = first.setdefault(digest, (name, picture_id))
            if place[0] != name:
                yield "/".join(place), f"{name}/{picture_id}"


def _check_rows(path: Path, ids: list[str | None], labels: list[str | None]) -> None:
    seen: set[str] = set()
    for row, (picture_id, label) in enumerate(zip(ids, labels, strict=True)):
        if not picture_id or picture_id in seen:
            raise ValueError(f"{path}: row {row} has the id {picture_id!r}, empty or used before; ids must differ")
        if label not in LABELS:
            raise ValueError(f"{path}: row {row} has the label {label!r}, which is none of {', '.join(LABELS)}")
        seen.add(picture_id)


def _decode(encoded: bytes | None) -> NDArray[np.uint8]:
    if not encoded:
        raise ValueError("no picture")
    with Image.open(io.BytesIO(encoded)) as image:  # UnidentifiedImageError is an OSError
        if image.size != (SIDE, SIDE):
            raise ValueError(f"{image.size[0]} x {image.size[1]} pixels, expected {SIDE} x {SIDE}")
        return np.asarray(image.convert("L"))
