"""Face tracks of RAVDESS's videos: per-frame emotion scores that a third party computed and published as one file.

They are not part of RAVDESS, and this package did not compute them: their face detector and classifier are unknown
here, so a model fed with them says so in its card.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

FACE_EMOTIONS = ("angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral")
"""What the columns of `FaceTrack.scores` stand for, in our words."""
_FACE_COLUMNS = ("angry", "disgust", "fearful", "happy", "sad", "surprised", "neutral")
FRAMES_PER_SECOND = 30000 / 1001
"""RAVDESS's videos run at the NTSC rate; a plain 30 would drift by 1 ms a second."""
_FULL_VIDEO = re.compile(r"01-(\d\d(?:-\d\d){5})")  # modality 01, then the row id


class FaceTrack(NamedTuple):
    """One clip's face."""

    scores: NDArray[np.float32]
    """(frames, 7) in the order of FACE_EMOTIONS, each row a distribution."""
    times: NDArray[np.float32]
    """(frames,) seconds from the clip's start, increasing; gaps are frames without a score."""


@dataclass(frozen=True)
class FaceScores:
    """Face tracks by clip, and what was left out in reading them.

    dropped: rows or clips by reason; an untouched file gives an empty dict.
    """

    tracks: dict[str, FaceTrack]
    dropped: dict[str, int]

    def get(self, clip_id: str) -> FaceTrack | None:
        """The track of the clip with this row id; None where there is none. Absent is never a track of zeros."""
        return self.tracks.get(clip_id)

    def missing(self, clip_ids: Iterable[str]) -> list[str]:
        """Those of the row ids that have no track."""
        return [clip_id for clip_id in clip_ids if clip_id not in self.tracks]

    def unused(self, clip_ids: Iterable[str]) -> list[str]:
        """Clips that have a track but are not among the row ids."""
        return sorted(set(self.tracks).difference(clip_ids))


def load_face_scores(path: str | os.PathLike) -> FaceScores:
    """Read the published Parquet file of face scores into one track a clip.

    Its columns: `clip` (a full video's name without type, `01-` + row id), `frame` (the video's frame, counted from 0
    as far as can be told), and one score for each of angry, disgust, fearful, happy, sad, surprised, neutral. The
    scores begin at frame 26 and end about 25 frames before the video does: times are those of the frames, not of the
    rows.

    Rows with a score that is not in [0, 1] (NaN included), a negative frame or a clip that is not named as a full
    RAVDESS video are dropped; of rows that repeat a frame the first stays; frames out of order are sorted. All are
    counted in `dropped`.

    Raises:
        ValueError: for a file that is not Parquet, or without one of the columns.
    """
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except pa.ArrowInvalid as error:
        raise ValueError(f"face_scores {str(path)!r} is no Parquet file: {error}") from error
    absent = [column for column in ("clip", "frame", *_FACE_COLUMNS) if column not in table.column_names]
    if absent:
        raise ValueError(f"face scores lack the column(s) {', '.join(absent)}; found {', '.join(table.column_names)}")
    clips = np.asarray(table["clip"].to_pylist(), dtype=object)
    frames = np.asarray(table["frame"].to_numpy(), dtype=np.float64)  # float: a null frame becomes NaN
    scores = np.stack([table[column].to_numpy() for column in _FACE_COLUMNS], 1).astype(np.float32)
    dropped: Counter[str] = Counter()
    keep = _sound_rows(clips, frames, scores, dropped)
    return FaceScores(_tracks(clips[keep], frames[keep].astype(np.int64), scores[keep], dropped), dict(dropped))


def _sound_rows(clips: NDArray, frames: NDArray, scores: NDArray, dropped: Counter[str]) -> NDArray[np.bool_]:
    """Which rows (n,) can be used; counts the others by their first fault."""
    known = {clip: bool(_FULL_VIDEO.fullmatch(clip or "")) for clip in set(clips)}
    named = np.array([known[clip] for clip in clips], dtype=bool)
    counted = frames >= 0
    scored = ((scores >= 0) & (scores <= 1)).all(1)
    faults = {
        "rows of a clip that is not a full RAVDESS video": ~named,
        "rows with a negative or null frame": named & ~counted,
        "rows with a score outside [0, 1]": named & counted & ~scored,
    }
    dropped.update({reason: int(rows.sum()) for reason, rows in faults.items() if rows.any()})
    return named & counted & scored


def _tracks(clips: NDArray, frames: NDArray, scores: NDArray, dropped: Counter[str]) -> dict[str, FaceTrack]:
    rows_of: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        rows_of.setdefault(clip.removeprefix("01-"), []).append(index)
    tracks = {}
    for clip_id in sorted(rows_of):
        rows = np.array(rows_of[clip_id])
        if (np.diff(frames[rows]) < 0).any():
            dropped["clips with frames out of order (sorted)"] += 1
        numbers, first = np.unique(frames[rows], return_index=True)  # sorted; the first row of each frame
        if len(numbers) < len(rows):
            dropped["rows that repeat a frame"] += len(rows) - len(numbers)
        tracks[clip_id] = FaceTrack(scores[rows[first]], (numbers / FRAMES_PER_SECOND).astype(np.float32))
    return tracks
