"""IEMOCAP, from the user's own copy: rows of the common schema, and clips of the actor who speaks.

Busso et al. 2008, "IEMOCAP: Interactive emotional dyadic motion capture database", Language Resources and Evaluation
42(4); for research, under a signed release form, https://sail.usc.edu/iemocap. In five sessions an actress and an
actor play scripts and improvise: 151 dialogues, cut into 10,039 turns. A dialogue's letter (`Ses01F_impro01`) says who
wears the markers of the motion capture, a turn's letter (`Ses01F_impro01_M003`) who speaks. What is read of a copy:

    Session1/dialog/EmoEvaluation/Ses01F_impro01.txt          [6.2901 - 8.2357]  <turn>  neu  [2.5000, 2.5000, 2.5000]
    Session1/dialog/transcriptions/Ses01F_impro01.txt         <turn> [006.2901-008.2357]: Excuse me.
    Session1/sentences/wav/Ses01F_impro01/<turn>.wav          16 kHz
    Session1/sentences/ForcedAlignment/Ses01F_impro01/<turn>.wdseg
    Session1/dialog/avi/DivX/Ses01F_impro01.avi               both actors, side by side

Emotion and [valence, activation, dominance], 1 to 5, are the raters' summary; single raters' files, in which valence
and activation stand reversed (6 - x), are not read. Labels: `xxx` (no majority) and `oth` (another emotion) become
null, and such turns stay, since the turns around them need them; `Scan.incomplete` counts them.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.builder import Key

from ..models.media import import_av
from .iemocap_tree import HARMLESS, SESSIONS, read_tree
from .scanning import CorpusBuilder, CorpusConfig, Scan, Skipped, checked_folder, logger
from .schema import FEATURES, rows_to_table
from .video_clips import Clip, cut_clips

VIDEO = ("none", "full", "speaker")

# What a row may lack besides, once clips are cut.
BROKEN_VIDEO = "no video: the dialogue's file cannot be read"
VIDEO_ENDS = "no video: the dialogue's file ends before the turn"

_EXPECTED = (
    "An IEMOCAP tree holds Session1 to Session5, as in the unpacked IEMOCAP_full_release: "
    "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt and Session1/sentences/wav/Ses01F_impro01/*.wav at least."
)


def scan(data_dir: str | os.PathLike, video: str = "none") -> Scan:
    """Read an IEMOCAP tree into schema rows, dialogue by dialogue, in the order of turns; no sound is decoded.

    turn counts a dialogue's labelled turns from 0 by their start (turns overlap; equal starts by id), those whose
    sound is missing included. start and end place the turn in the recording, words in the turn's own wav. text is
    what is said, without marks such as [LAUGHTER]. A turn whose wav is missing or damaged gives no row. video, unless
    "none", is the whole dialogue's file; `Iemocap`, or `with_clips`, cuts the turn out of it.

    Raises:
        ValueError: for an unknown `video`, a data_dir that is not a directory, or one without a single turn.
    """
    if video not in VIDEO:
        raise ValueError(f"video must be one of {', '.join(VIDEO)}, got {video!r}")
    root = checked_folder(data_dir, _EXPECTED)
    found = read_tree(root, with_video=video != "none")
    if not found.rows:
        raise ValueError(f"data_dir {str(data_dir)!r} holds no turn{found.counts()}. {_EXPECTED}")
    return found


# -- The counts of a complete copy ------------------------------------------------------------------------------------

COUNTS = {
    "turns": 10039,
    "of four classes": 5531,
    "angry": 1103,
    "happy or excited": 1636,
    "neutral": 1708,
    "sad": 1084,
    "improvised": 2943,
    "scripted": 2588,
    "Ses01": 1085,
    "Ses02": 1023,
    "Ses03": 1151,
    "Ses04": 1031,
    "Ses05": 1241,
}
"""Turns of the release, and of them those of the usual four classes: in all, by label, by kind and by session."""
_FOUR_CLASSES = {
    "angry": "angry",
    "happy": "happy or excited",
    "excited": "happy or excited",
    "neutral": "neutral",
    "sad": "sad",
}


def check_counts(rows: Iterable[Mapping[str, Any]]) -> None:
    """Compare a copy that has all five sessions with `COUNTS`; one that lacks a session is not looked at.

    Raises:
        ValueError: naming each count that differs, expected and found.
    """
    rows = list(rows)
    if {row["session"] for row in rows} != set(SESSIONS):
        return
    found = Counter({"turns": len(rows)})
    for row in rows:
        if row["label"] in _FOUR_CLASSES:
            kind = "scripted" if row["scripted"] else "improvised"
            found.update(["of four classes", _FOUR_CLASSES[row["label"]], kind, row["session"]])
    differing = [name for name in COUNTS if found[name] != COUNTS[name]]
    wrong = [f"{name}: {COUNTS[name]} expected, {found[name]} found" for name in differing]
    if wrong:
        raise ValueError(
            f"the copy has all sessions of IEMOCAP but not its turns ({'; '.join(wrong)}). "
            "The report names what gave no row; unpack the release again, or compare with nobody's results"
        )


# -- Clips of turns ---------------------------------------------------------------------------------------------------


def side_of_speaker(turn_id: str) -> str:
    """Which half of the dialogue's picture shows who speaks: "left" or "right".

    The actor with the markers, whose letter the dialogue bears, is on the left: in `Ses01F_impro01` the actress. The
    release's README says who wears the markers, not on which side they are seen. Two public programs that cut the
    videos agree: one, on EmoBox's turns, takes x = 0 for a speaker of the dialogue's letter and x = 360 of 720 for
    the other; the author of the second looked at dialogues of both letters in sessions 1, 3 and 5.
    """
    dialogue, _, turn = turn_id.rpartition("_")
    return "left" if turn[0] == dialogue[5] else "right"


def with_clips(
    turns: Sequence[Mapping[str, Any]], folder: str | os.PathLike, speaker_only: bool
) -> tuple[list[dict[str, Any]], list[Skipped]]:
    """The rows of one dialogue, each with a clip of its turn in place of the dialogue's video, and what has none.

    folder: where clips are kept; one that is there is not cut again. speaker_only: the half with who speaks.
    """
    video = turns[0]["video"]
    if video is None:
        return [dict(row) for row in turns], []
    folder = Path(os.path.abspath(folder))
    clips = [_clip(row, folder, side_of_speaker(row["id"]) if speaker_only else None) for row in turns]
    missing = [clip for clip in clips if not os.path.exists(clip.file)]
    broken = cut_clips(video, missing) if missing else None
    if broken:
        logger.warning("IEMOCAP: %s", broken)
    cut = [os.path.exists(clip.file) for clip in clips]
    rows = [
        {**row, "video": str(clip.file) if there else None} for row, clip, there in zip(turns, clips, cut, strict=True)
    ]
    place, reason = "/".join(Path(video).parts[-5:]), BROKEN_VIDEO if broken else VIDEO_ENDS
    return rows, [Skipped(f"{place}/{row['id']}", reason) for row in rows if row["video"] is None]


def _clip(row: Mapping[str, Any], folder: Path, side: str | None) -> Clip:
    """Where a row's clip is kept: another video, or other times, give another name."""
    source = [row["video"], os.path.getsize(row["video"]), row["start"], row["end"], side]
    digest = hashlib.sha256(repr(source).encode()).hexdigest()[:12]
    return Clip(folder / row["dialogue_id"] / f"{row['id']}-{digest}.mp4", row["start"], row["end"], side)


# -- The builder ------------------------------------------------------------------------------------------------------


@dataclass
class IemocapConfig(CorpusConfig):
    """`data_dir`: the user's copy, the folder with Session1 to Session5.

    video: "none"; "full", both actors while the turn lasts; or "speaker", the half with the actor who speaks.
    clips_dir: where the clips of turns are kept, by default `iemocap_clips` in the cache_dir.
    strict: whether counts that differ from `COUNTS` are an error rather than a warning.
    """

    video: str = "none"
    clips_dir: str | None = None
    strict: bool = False

    def scan(self) -> Scan:
        """As the function; with `strict`, `check_counts` as well, and PyAV must be there to cut clips."""
        found = scan(self.data_dir, self.video)
        if self.strict:
            check_counts(found.rows)
        if self.video != "none":
            import_av()
        return found

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """By what the copy holds, as everywhere, and by which part of the picture is wanted."""
        return f"{super().create_config_id(config_kwargs, custom_features)}-video={self.video}"


class Iemocap(CorpusBuilder):
    """IEMOCAP as a data set; see `CorpusBuilder`. It has no official split; a protocol leaves sessions out.

    With `video`, the turns' clips are cut when the data set is prepared, or as it is streamed, dialogue by dialogue,
    and found again the next time: about 0.1 s of one CPU core for each second of video.
    """

    BUILDER_CONFIG_CLASS = IemocapConfig
    HARMLESS = HARMLESS

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Interactive Emotional Dyadic Motion Capture database",
            features=FEATURES,
            homepage="https://sail.usc.edu/iemocap",
            license="IEMOCAP data release form: for research, not to be passed on",
            citation="Busso et al. 2008, Language Resources and Evaluation 42(4): 335-359",
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        try:
            check_counts(self.found.rows)
        except ValueError as problem:
            logger.warning("Iemocap: %s", problem)
        generators = super()._split_generators(dl_manager)
        for generator in generators:  # parts that streams and processes may share out: a dialogue's film is read once
            rows = generator.gen_kwargs["rows"]
            generator.gen_kwargs["rows"] = [list(turns) for _, turns in groupby(rows, lambda row: row["dialogue_id"])]
        return generators

    def _generate_tables(self, rows: list[list[dict[str, Any]]]) -> Iterator[tuple[Key, pa.Table]]:
        """rows: those of one dialogue after those of the other."""
        if self.config.video != "none":
            dialogues = datasets.utils.tqdm(rows, desc="Cutting the turns' clips", unit=" dialogues")
            rows = (self._with_clips(turns) for turns in dialogues)
        for number, turns in enumerate(rows):
            yield Key(0, number), rows_to_table(turns, self.info.features)

    def _with_clips(self, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        folder = self.config.clips_dir or Path(self._cache_dir_root) / "iemocap_clips"
        rows, gaps = with_clips(turns, folder, self.config.video == "speaker")
        self.found.incomplete.extend(gap for gap in gaps if gap not in self.found.incomplete)
        return rows
