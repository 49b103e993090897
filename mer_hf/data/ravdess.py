"""RAVDESS, from the user's own copy: rows of the common schema, and the field's actor folds.

Livingstone and Russo 2018, "The Ryerson Audio-Visual Database of Emotional Speech and Song", PLoS ONE 13(5); CC
BY-NC-SA 4.0, https://zenodo.org/records/1188976. 24 actors speak two sentences in eight emotions, two intensities
(neutral has one) and two repetitions: 1440 speech clips. A file is named by seven fields,

    modality-channel-emotion-intensity-statement-repetition-actor      03-01-06-01-02-01-12.wav

modality 01 full audio-video, 02 video only (both mp4), 03 audio only (wav); channel 01 speech, 02 song.

Every actor says every sentence in every emotion, so the words tell nothing about the label: a model that reads only
the text has a UA of exactly 1/8 on complete data. That is a check of honesty, not a flaw of the copy.
"""

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
from datasets.builder import Key

from .protocols import Folds, FoldSplit
from .schema import FEATURES, make_row, rows_to_table

logger = logging.getLogger(__name__)

EMOTION_CODES = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgusted",
    "08": "surprised",
}
STATEMENTS = {"01": "kids are talking by the door", "02": "dogs are sitting by the door"}
CHANNELS = {"speech": ("01",), "song": ("02",), "both": ("01", "02")}
ACTORS = tuple(range(1, 25))
_FILE_TYPES = {"01": ".mp4", "02": ".mp4", "03": ".wav"}  # by modality
_NAME = re.compile(r"(0[1-3])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(0[1-9]|1\d|2[0-4])")

# Reasons a file gives no row.
NOT_MEDIA = "not a .wav or .mp4 file"
BAD_NAME = "name does not follow modality-channel-emotion-intensity-statement-repetition-actor"
WRONG_TYPE = "modality and file type disagree (01 and 02 are .mp4, 03 is .wav)"
EMPTY = "zero bytes"
BROKEN_LINK = "a link to a file that is not there"
OTHER_CHANNEL = "of a channel that was not asked for"
REPEATED = "the same file name occurs earlier in the tree"
HARMLESS = frozenset({NOT_MEDIA, OTHER_CHANNEL})
"""Reasons that are listed but not worth a warning: they are no sign of a damaged copy."""


class Skipped(NamedTuple):
    """A file that gave no row: its path relative to data_dir, and one of the reasons above."""

    path: str
    reason: str


class Scan(NamedTuple):
    """What a tree holds: schema rows sorted by id, and the files that gave none, sorted by path."""

    rows: list[dict[str, Any]]
    skipped: list[Skipped]

    @property
    def skip_counts(self) -> dict[str, int]:
        """Number of skipped files by reason."""
        return dict(Counter(file.reason for file in self.skipped))


def scan(data_dir: str | os.PathLike, channel: str = "speech") -> Scan:
    """Read the names in a RAVDESS tree, flat or nested, into schema rows; no file is opened.

    A row's id is the file name without its modality and type (`01-06-01-02-01-12`), the same whichever of a clip's
    files a copy has. audio is the wav, else the full audio-video mp4, else null; video the full mp4, else the silent
    one, else null. Paths are absolute. Word times are left to an aligner, start and end stay null.

    Raises:
        ValueError: for an unknown channel, a data_dir that is not a directory, or one without a single clip.
    """
    if channel not in CHANNELS:
        raise ValueError(f"channel must be one of {', '.join(CHANNELS)}, got {channel!r}")
    if data_dir is None or not os.path.isdir(data_dir):
        raise ValueError(f"data_dir {data_dir!r} is not a directory. {_EXPECTED}")
    root = Path(os.path.abspath(data_dir))
    clips: dict[str, dict[str, str]] = {}
    skipped = []
    for path in _files(root):
        reason = _refusal(path, channel)
        modality, clip_id = path.stem[:2], path.stem[3:]
        if reason is None and modality in clips.get(clip_id, ()):
            reason = REPEATED
        if reason is None:
            clips.setdefault(clip_id, {})[modality] = str(path)
        else:
            skipped.append(Skipped(path.relative_to(root).as_posix(), reason))
    result = Scan([_row(clip_id, clips[clip_id]) for clip_id in sorted(clips)], skipped)
    if not clips:
        raise ValueError(f"data_dir {str(data_dir)!r} holds no {channel} clip{_counts(result)}. {_EXPECTED}")
    return result


_EXPECTED = (
    "A RAVDESS tree holds the unpacked archives of the corpus, such as Actor_01/03-01-01-01-01-01-01.wav "
    "and, where wanted, Actor_01/01-01-01-01-01-01-01.mp4; the folders' names do not matter."
)


def _files(root: Path) -> list[Path]:
    """Every file below root in the order of its path, links to folders followed."""
    found = [Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _refusal(path: Path, channel: str) -> str | None:
    """Why a file gives no row, or None. Looks at the name and the size only."""
    if path.suffix.lower() not in (".wav", ".mp4"):
        return NOT_MEDIA
    fields = _NAME.fullmatch(path.stem)
    if fields is None:
        return BAD_NAME
    if path.suffix.lower() != _FILE_TYPES[fields[1]]:
        return WRONG_TYPE
    if fields[2] not in CHANNELS[channel]:
        return OTHER_CHANNEL
    if not os.path.isfile(path):
        return BROKEN_LINK
    return EMPTY if os.path.getsize(path) == 0 else None


def _row(clip_id: str, files: Mapping[str, str]) -> dict[str, Any]:
    _, emotion, _, statement, _, actor = clip_id.split("-")
    return make_row(
        id=clip_id,
        corpus="ravdess",
        speaker=f"ravdess-{actor}",
        gender="male" if int(actor) % 2 else "female",
        audio=files.get("03", files.get("01")),
        video=files.get("01", files.get("02")),
        text=STATEMENTS[statement],
        label=EMOTION_CODES[emotion],
        scripted=True,
        sentence=statement,
    )


def _counts(found: Scan) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in found.skip_counts.items())
    return f" ({len(found.skipped)} file(s) skipped: {counts})" if counts else ""


@dataclass
class RavdessConfig(datasets.BuilderConfig):
    """`data_dir`: the user's copy. `channel`: speech, song or both."""

    channel: str = "speech"

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Name the cache by what the copy holds: `data_dir` alone would bring back stale rows after it changed."""
        return super().create_config_id({"content": _fingerprint(scan(self.data_dir, self.channel))}, custom_features)


def _fingerprint(found: Scan) -> str:
    """Hash of the rows (absolute paths included) and of the sizes of the files that they name."""
    digest = hashlib.sha256()
    for row in found.rows:
        sizes = [os.path.getsize(row[column]) if row[column] else None for column in ("audio", "video")]
        digest.update(json.dumps([row, sizes], sort_keys=True).encode())
    return digest.hexdigest()[:16]


class Ravdess(datasets.ArrowBasedBuilder):
    """RAVDESS as a data set: `Ravdess(data_dir=...)`, then `download_and_prepare()` and `as_dataset(split="train")`,
    or `as_streaming_dataset(split="train")`. Nothing is downloaded.

    RAVDESS has no official split: all rows are in "train", and `ravdess_splits` makes speaker-disjoint folds of them.
    Arrow-based for the sake of `rows_to_table`, which says why.

    Raises:
        ValueError: at construction, as `scan`.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = RavdessConfig

    @cached_property
    def _scan(self) -> Scan:
        return scan(self.config.data_dir, self.config.channel)

    @property
    def skipped(self) -> list[Skipped]:
        """The files of data_dir that gave no row, and why; known without preparing the data set."""
        return self._scan.skipped

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Ryerson Audio-Visual Database of Emotional Speech and Song",
            features=FEATURES,
            homepage="https://zenodo.org/records/1188976",
            license="CC BY-NC-SA 4.0",
            citation="Livingstone and Russo 2018, PLoS ONE 13(5): e0196391",
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        damaged = Scan(self._scan.rows, [file for file in self.skipped if file.reason not in HARMLESS])
        if damaged.skipped:
            logger.warning("RAVDESS: %d clips%s", len(damaged.rows), _counts(damaged))
        return [datasets.SplitGenerator(datasets.Split.TRAIN, gen_kwargs={"rows": self._scan.rows})]

    def _generate_tables(self, rows: list[dict[str, Any]]) -> Iterator[tuple[Key, pa.Table]]:
        yield Key(0, 0), rows_to_table(rows)


RAVDESS_FOLDS: dict[str, tuple[tuple[int, ...], ...]] = {
    # EmoBox: Ma et al. 2024, arXiv:2406.07162
    "emobox": (
        (1, 11, 20, 21),
        (4, 10, 12, 14),
        (8, 9, 19, 23),
        (3, 5, 7, 24),
        (2, 15, 16, 18),
        (6, 13, 17, 22),
    ),
    # Luna-Jimenez et al. 2021, Sensors 21(22): 7665
    "lunajimenez": (
        (2, 5, 14, 15, 16),
        (3, 6, 7, 13, 18),
        (10, 11, 12, 19, 20),
        (8, 17, 21, 23, 24),
        (1, 4, 9, 22),
    ),
}
"""Actors of each fold; fold k is entry k - 1."""


def ravdess_splits(
    rows: Iterable[Mapping[str, Any]],
    folds: str | Sequence[Collection[int]] = "emobox",
    allow_missing: bool = False,
) -> list[FoldSplit]:
    """One speaker-disjoint split for every fold that has data, named `ravdess-emobox` and so on; see `Folds.splits`.

    rows: schema rows of RAVDESS, a `Dataset` or a list; only id and speaker are read.
    folds: a name in RAVDESS_FOLDS, or one's own folds, each a collection of actors (`ravdess-custom`).

    Raises:
        ValueError: for an unknown name, and as `Folds` and `Folds.splits`.
    """
    if isinstance(folds, str) and folds not in RAVDESS_FOLDS:
        raise ValueError(f"folds must be one of {', '.join(RAVDESS_FOLDS)} or lists of actors, got {folds!r}")
    name, actors = (folds, RAVDESS_FOLDS[folds]) if isinstance(folds, str) else ("custom", folds)
    members = tuple(tuple(f"ravdess-{actor:02}" for actor in fold) for fold in actors)
    return Folds(f"ravdess-{name}", members).splits(rows, allow_missing)
