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
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
from datasets.builder import Key

from ..models.media import import_av
from .scanning import (
    CorpusBuilder,
    CorpusConfig,
    Scan,
    Skipped,
    checked_folder,
    files_below,
    logger,
    unreadable,
    unreadable_wav,
)
from .schema import FEATURES, make_row, rows_to_table
from .video_clips import Clip, cut_clips
from .word_times import read_wdseg

EMOTION_WORDS = {
    "neu": "neutral",
    "hap": "happy",
    "exc": "excited",
    "sad": "sad",
    "ang": "angry",
    "fea": "fearful",
    "dis": "disgusted",
    "sur": "surprised",
    "fru": "frustrated",
    "xxx": None,
    "oth": None,
}
SESSIONS = ("Ses01", "Ses02", "Ses03", "Ses04", "Ses05")
VIDEO = ("none", "full", "speaker")

# Reasons a file or a line gives no row.
NO_SESSION = "the session is not in the copy"
MAC_FILE = "what macOS leaves beside a file"
OTHER_FILE = "of another type than the folder's files"
BAD_NAME = "name is no dialogue of the session"
BAD_LABEL_LINE = "not `[start - end] turn emotion [v, a, d]`"
OTHER_DIALOGUE = "a turn of another dialogue"
OTHER_WORD = f"emotion is none of {', '.join(EMOTION_WORDS)}"
NO_DURATION = "the turn ends before it starts"
REPEATED_LABEL = "the turn has a label on an earlier line"
BAD_TEXT_LINE = "not `turn [start-end]: text`"
NO_TURN_NAMED = "a transcript line that names no turn"
NOT_CUT_OUT = "a transcribed turn that was not cut out (XX)"
TEXT_ONLY = "a transcribed turn without a label"
REPEATED_TEXT = "the turn is transcribed on an earlier line"
SOUND_ONLY = "a wav file of no turn with a label"
HARMLESS = frozenset({MAC_FILE, OTHER_FILE, NO_TURN_NAMED, NOT_CUT_OUT})
"""Reasons that are listed but not worth a warning: complete copies give them too."""

# What a row may lack.
NO_AGREEMENT = "no label: the raters do not agree (xxx)"
OTHER_EMOTION = "no label: another emotion (oth)"
NO_TEXT = "no text: the turn is not in the transcript"
ONLY_MARKS = "no text: nothing is said, as in [LAUGHTER]"
NO_WORDS = "no words: no .wdseg file"
BAD_WORDS = "no words: the .wdseg file cannot be read"
NO_SPOKEN_WORD = "no words: the .wdseg file holds none"
NO_VIDEO = "no video: no file of the dialogue"
BROKEN_VIDEO = "no video: the dialogue's file cannot be read"
VIDEO_ENDS = "no video: the dialogue's file ends before the turn"
_UNLABELLED = {"xxx": NO_AGREEMENT, "oth": OTHER_EMOTION}

_NUMBER = r"\s*(\d+(?:\.\d*)?)\s*"
_LABEL_LINE = re.compile(rf"\[{_NUMBER}-{_NUMBER}\]\s+(\S+)\s+(\w+)\s+\[{_NUMBER},{_NUMBER},{_NUMBER}\]")
_RATER_LINE = re.compile(r"[CA]-[EFM]\w*:")
_TEXT_LINE = re.compile(rf"(Ses0[1-5]\S+)\s+\[{_NUMBER}-{_NUMBER}\]:(.*)")
_SPEAKER_LINE = re.compile(r"[FM]:")
_MARK = re.compile(r"\[[^\]]*\]|\+\+\w+\+\+")  # what is heard but not said: [LAUGHTER], ++GARBAGE++

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
    reader = _Reader(root, with_video=video != "none")
    for session in SESSIONS:
        reader.read_session(session)
    found = Scan(reader.rows, sorted(reader.skipped, key=_place), sorted(reader.incomplete, key=_place))
    if not found.rows:
        raise ValueError(f"data_dir {str(data_dir)!r} holds no turn{found.counts()}. {_EXPECTED}")
    return found


def _place(item: Skipped) -> tuple[str, int]:
    path, line = re.fullmatch(r"(.*?)(?::(\d+))?", item.path, flags=re.DOTALL).groups()
    return path, int(line or 0)


class _Turn(NamedTuple):
    """A label line. place: `file:line`."""

    id: str
    dialogue: str
    start: float
    end: float
    emotion: str
    valence: float
    arousal: float
    dominance: float
    place: str


@dataclass
class _Reader:
    """Goes through a tree and gathers what `scan` returns."""

    root: Path
    with_video: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    incomplete: list[Skipped] = field(default_factory=list)

    def read_session(self, session: str) -> None:
        folder = self.root / f"Session{int(session[3:])}"
        if not os.path.isdir(folder):
            self.skipped.append(Skipped(self.name(folder), NO_SESSION))
            return
        dialogues = [self.read_labels(file) for file in self.files(folder / "dialog" / "EmoEvaluation", session)]
        labelled = {turn.id for turns in dialogues for turn in turns}
        texts: dict[str, str] = {}
        for file in self.files(folder / "dialog" / "transcriptions", session):
            self.read_texts(file, labelled, texts)
        for turns in dialogues:
            self.add_rows(folder, turns, texts)
        self.list_other_sound(folder / "sentences" / "wav", labelled)

    def files(self, folder: Path, session: str) -> list[Path]:
        """The dialogues' text files in a folder, but not those in folders of its own, which are single raters'."""
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        good = []
        for path in (folder / name for name in names if os.path.isfile(folder / name)):
            reason = _refusal(path, ".txt")
            if reason is None and not re.fullmatch(rf"{session}[FM]_(?:impro|script)\w+", path.stem):
                reason = BAD_NAME
            if reason is None:
                good.append(path)
            else:
                self.skipped.append(Skipped(self.name(path), reason))
        return good

    def read_labels(self, file: Path) -> list[_Turn]:
        """A dialogue's turns by their start, then id."""
        turns: dict[str, _Turn] = {}
        for place, line in self.lines(file):
            if line.startswith("%") or _RATER_LINE.match(line):
                continue
            turn = _parsed_label(line, file.stem, place)
            if isinstance(turn, _Turn) and turn.id in turns:
                turn = REPEATED_LABEL
            if isinstance(turn, _Turn):
                turns[turn.id] = turn
            else:
                self.skipped.append(Skipped(place, turn))
        return sorted(turns.values(), key=lambda turn: (turn.start, turn.id))

    def read_texts(self, file: Path, labelled: set[str], texts: dict[str, str]) -> None:
        """Put what is said in a dialogue's turns into `texts`, by id."""
        for place, line in self.lines(file):
            fields = _TEXT_LINE.fullmatch(line)
            if fields is None:
                reason = NO_TURN_NAMED if _SPEAKER_LINE.match(line) else BAD_TEXT_LINE
            elif fields[1] in texts:
                reason = REPEATED_TEXT
            elif fields[1] in labelled:
                texts[fields[1]] = " ".join(_MARK.sub(" ", fields[4]).split())
                if texts[fields[1]]:
                    continue
                self.incomplete.append(Skipped(place, ONLY_MARKS))
                continue
            else:
                reason = NOT_CUT_OUT if re.search(r"_[FM]XX\d+$", fields[1]) else TEXT_ONLY
            self.skipped.append(Skipped(place, reason))

    def add_rows(self, folder: Path, turns: Sequence[_Turn], texts: Mapping[str, str]) -> None:
        """Rows of a dialogue's turns."""
        video = self.dialogue_video(folder, turns[0].dialogue) if self.with_video and turns else None
        for number, turn in enumerate(turns):
            wav = folder / "sentences" / "wav" / turn.dialogue / f"{turn.id}.wav"
            if reason := unreadable_wav(wav):
                self.skipped.append(Skipped(self.name(wav), reason))
                continue
            if turn.id not in texts:
                self.incomplete.append(Skipped(turn.place, NO_TEXT))
            if turn.emotion in _UNLABELLED:
                self.incomplete.append(Skipped(turn.place, _UNLABELLED[turn.emotion]))
            actor = turn.id.rpartition("_")[2][0]
            self.rows.append(
                make_row(
                    id=turn.id,
                    corpus="iemocap",
                    dialogue_id=turn.dialogue,
                    turn=number,
                    speaker=f"iemocap-{turn.dialogue[:5]}{actor}",
                    gender={"F": "female", "M": "male"}[actor],
                    session=turn.dialogue[:5],
                    start=turn.start,
                    end=turn.end,
                    audio=str(wav),
                    video=video,
                    text=texts.get(turn.id) or None,
                    words=self.words(folder / "sentences" / "ForcedAlignment" / turn.dialogue / f"{turn.id}.wdseg"),
                    label=EMOTION_WORDS[turn.emotion],
                    scripted="_script" in turn.dialogue,
                    valence=turn.valence,
                    arousal=turn.arousal,
                    dominance=turn.dominance,
                )
            )

    def words(self, file: Path) -> list[dict[str, Any]] | None:
        reason = NO_WORDS
        if os.path.isfile(file):
            try:
                words = read_wdseg(file)
                reason = None if words else NO_SPOKEN_WORD
            except ValueError:
                reason = BAD_WORDS
        if reason is None:
            return words
        self.incomplete.append(Skipped(self.name(file), reason))
        return None

    def dialogue_video(self, folder: Path, dialogue: str) -> str | None:
        file = folder / "dialog" / "avi" / "DivX" / f"{dialogue}.avi"
        if unreadable(file) is None:
            return str(file)
        self.incomplete.append(Skipped(self.name(file), NO_VIDEO))
        return None

    def list_other_sound(self, folder: Path, labelled: set[str]) -> None:
        for path in files_below(folder):
            reason = _refusal(path, ".wav")
            known = path.stem in labelled and path.parent == folder / path.stem.rpartition("_")[0]
            if reason is not None or not known:
                self.skipped.append(Skipped(self.name(path), reason or SOUND_ONLY))

    def lines(self, file: Path) -> Iterator[tuple[str, str]]:
        """(`file:line`, the line without blanks around it) of every line that is not blank."""
        data = file.read_bytes()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"{self.name(file)}:{number}", line.strip()

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _refusal(path: Path, suffix: str) -> str | None:
    if path.name.startswith("._") or path.name == ".DS_Store":
        return MAC_FILE
    return None if path.suffix == suffix else OTHER_FILE


def _parsed_label(line: str, dialogue: str, place: str) -> _Turn | str:
    """The turn on a label line, or why it is none."""
    fields = _LABEL_LINE.fullmatch(line)
    if fields is None:
        return BAD_LABEL_LINE
    start, end, turn_id, emotion, *ratings = fields.groups()
    if not re.fullmatch(rf"{dialogue}_[FM]\d+", turn_id):
        return OTHER_DIALOGUE
    if emotion not in EMOTION_WORDS:
        return OTHER_WORD
    if float(start) >= float(end):
        return NO_DURATION
    return _Turn(turn_id, dialogue, float(start), float(end), emotion, *map(float, ratings), place)


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
