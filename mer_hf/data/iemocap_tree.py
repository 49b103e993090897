"""IEMOCAP's files, read turn by turn: labels, transcripts, sound and word times of a copy; see `iemocap`."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .scanning import Scan, Skipped, files_below, unreadable, unreadable_wav
from .schema import make_row
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
_UNLABELLED = {"xxx": NO_AGREEMENT, "oth": OTHER_EMOTION}

_NUMBER = r"\s*(\d+(?:\.\d*)?)\s*"
_LABEL_LINE = re.compile(rf"\[{_NUMBER}-{_NUMBER}\]\s+(\S+)\s+(\w+)\s+\[{_NUMBER},{_NUMBER},{_NUMBER}\]")
_RATER_LINE = re.compile(r"[CA]-[EFM]\w*:")
_TEXT_LINE = re.compile(rf"(Ses0[1-5]\S+)\s+\[{_NUMBER}-{_NUMBER}\]:(.*)")
_SPEAKER_LINE = re.compile(r"[FM]:")
_MARK = re.compile(r"\[[^\]]*\]|\+\+\w+\+\+")  # what is heard but not said: [LAUGHTER], ++GARBAGE++


def read_tree(root: Path, with_video: bool) -> Scan:
    """Rows of all sessions, dialogue by dialogue, and what gave none or lacks something, by file and line.

    with_video: whether rows name their dialogue's video file.
    """
    reader = _Reader(root, with_video)
    for session in SESSIONS:
        reader.read_session(session)
    return Scan(reader.rows, sorted(reader.skipped, key=_place), sorted(reader.incomplete, key=_place))


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
    """Goes through a tree and gathers what `read_tree` returns."""

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
