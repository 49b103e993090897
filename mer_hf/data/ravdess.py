"""RAVDESS, from the user's own copy: rows of the common schema, and the field's actor folds.

Livingstone and Russo 2018, "The Ryerson Audio-Visual Database of Emotional Speech and Song", PLoS ONE 13(5); CC
BY-NC-SA 4.0, https://zenodo.org/records/1188976. 24 actors speak two sentences in eight emotions, two intensities
(neutral has one) and two repetitions: 1440 speech clips. A file is named by seven fields,

    modality-channel-emotion-intensity-statement-repetition-actor      03-01-06-01-02-01-12.wav

modality 01 full audio-video, 02 video only (both mp4), 03 audio only (wav); channel 01 speech, 02 song.

Every actor says every sentence in every emotion, so the words tell nothing about the label: a model that reads only
the text has a UA of exactly 1/8 on complete data. That is a check of honesty, not a flaw of the copy.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from .protocols import Folds, FoldSplit
from .scanning import REPEATED, CorpusBuilder, CorpusConfig, Scan, Skipped, checked_folder, files_below, unreadable
from .schema import FEATURES, make_row

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
OTHER_CHANNEL = "of a channel that was not asked for"
HARMLESS = frozenset({NOT_MEDIA, OTHER_CHANNEL})
"""Reasons that are listed but not worth a warning: they are no sign of a damaged copy."""


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
    root = checked_folder(data_dir, _EXPECTED)
    clips: dict[str, dict[str, str]] = {}
    skipped = []
    for path in files_below(root):
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
        raise ValueError(f"data_dir {str(data_dir)!r} holds no {channel} clip{result.counts()}. {_EXPECTED}")
    return result


_EXPECTED = (
    "A RAVDESS tree holds the unpacked archives of the corpus, such as Actor_01/03-01-01-01-01-01-01.wav "
    "and, where wanted, Actor_01/01-01-01-01-01-01-01.mp4; the folders' names do not matter."
)


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
    return unreadable(path)


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


@dataclass
class RavdessConfig(CorpusConfig):
    """`data_dir`: the user's copy. `channel`: speech, song or both."""

    channel: str = "speech"

    def scan(self) -> Scan:
        """As the function."""
        return scan(self.data_dir, self.channel)


class Ravdess(CorpusBuilder):
    """RAVDESS as a data set; see `CorpusBuilder`. It has no official split: `ravdess_splits` makes folds."""

    BUILDER_CONFIG_CLASS = RavdessConfig
    HARMLESS = HARMLESS
    MEDIA_MAY_BE_SHARED = True  # CC BY-NC-SA 4.0: with attribution, not commercially, under the same licence

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Ryerson Audio-Visual Database of Emotional Speech and Song",
            features=FEATURES,
            homepage="https://zenodo.org/records/1188976",
            license="CC BY-NC-SA 4.0",
            citation="Livingstone and Russo 2018, PLoS ONE 13(5): e0196391",
        )


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
