"""MELD, from the user's own copy: dialogues of a television series, repaired text, clips where the copy has them.

Poria et al. 2019, "MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations", ACL; annotations
GPL-3.0, https://github.com/declare-lab/MELD. 13,708 turns of 1,432 dialogues of *Friends*, in seven emotions. A copy:

    train_sent_emo.csv   dev_sent_emo.csv   test_sent_emo.csv          anywhere below data_dir
    train_splits/dia0_utt0.mp4   dev_splits_complete/...   output_repeated_splits_test/...     at any depth, or absent

Things to know before scores are read
- Speakers recur across the official split, so what it keeps apart is the dialogue: `official_split(rows,
  "meld-official", "dialogue_id")`. `Dialogue_ID` starts again in every file; here it carries its split's name.
- Some scenes are on two sides of it. In the published files test dialogues 84 and 85 (9 turns) are the end of train
  dialogue 12, and test 155 begins (2 turns) as train 51 ends: 11 of 2,610 test turns. Nothing is taken out: published
  scores include them.
- The files in circulation differ in damage to quotes and dashes. All forms of it are repaired to the same text (see
  `repair`); copies from which the characters are gone ("dont") cannot be told from careless spelling.
- Of two test clips (dialogue 38 turn 4, 220 turn 0) the times span minutes; such rows keep them and are reported.
"""

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import datasets

from .damaged_text import DOUBTFUL, decode, repair
from .scanning import (
    NO_FILE,
    REPEATED,
    CorpusBuilder,
    CorpusConfig,
    Scan,
    Skipped,
    checked_folder,
    files_below,
    unreadable,
)
from .schema import FEATURES, make_row

LABELS = {
    "neutral": "neutral",
    "joy": "happy",
    "sadness": "sad",
    "anger": "angry",
    "fear": "fearful",
    "disgust": "disgusted",
    "surprise": "surprised",
}
TABLES = {"train": "train_sent_emo.csv", "validation": "dev_sent_emo.csv", "test": "test_sent_emo.csv"}
PUBLISHED_ROWS = {"train": 9989, "validation": 1109, "test": 2610}
COLUMNS = (
    *("Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID"),
    *("Season", "Episode", "StartTime", "EndTime"),
)
BROKEN_IN_RELEASE = {("train", 125, 3), ("validation", 110, 7)}
"""Clips that the published archives have broken or not at all: opened even where no other is."""
LONGEST = 60.0
"""Seconds; the longest turn with plausible times takes 41."""

# Reasons for giving no row, or no clip.
BAD_FIELDS = "the line does not have the header's columns"
BAD_LABEL = "emotion is not one of MELD's seven"
BAD_NUMBER = "a dialogue, turn, season or episode is not a number"
REPEATED_TURN = "the dialogue has this turn already"
NOTHING = "no text and no clip"
NOT_MEDIA = "not a dia<dialogue>_utt<turn>.mp4 clip"
NO_SPLIT = "a clip in a folder that names no split"
NO_ROW = "a clip of a turn that the tables do not have"
BROKEN = "a clip that cannot be opened"
# What a row, or a table, that is there lacks.
OTHER_COUNT = "not the published number of rows"
NO_CLIP = "the turn's clip is not there or not readable"
BAD_TIMES = "times malformed or not start < end: null"
LONG = "times of more than a minute: the end is doubtful"
REPAIRED = "damaged characters, repaired"
UNREPAIRED = "a damaged character that cannot be repaired"
HARMLESS = frozenset({NOT_MEDIA, NO_ROW, REPAIRED})
"""Reasons that are listed but not worth a warning: the published archives themselves have such."""

_CLIP = re.compile(r"dia(\d+)_utt(\d+)\.mp4", re.IGNORECASE)
_FOLDERS = {"train": "train", "dev": "validation", "test": "test", "output_repeated_splits_test": "test"}
_TIME = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d[.,]\d+)")
_EXPECTED = (
    "A MELD copy holds train_sent_emo.csv, dev_sent_emo.csv and test_sent_emo.csv as published and, where wanted, the "
    "unpacked clips: train_splits/dia0_utt0.mp4, dev_splits_complete/..., output_repeated_splits_test/..."
)

Place = tuple[str, int, int]
"""Split, dialogue, turn."""


def scan(data_dir: str | os.PathLike, check_media: bool = False) -> Scan:
    """Read a copy's tables into schema rows, in the order split, dialogue, turn; clips are looked up by name.

    check_media: open every clip with PyAV (minutes for the whole corpus); otherwise a clip is refused only when it has
    zero bytes or is one of BROKEN_IN_RELEASE and cannot be opened.

    id `meld-test-84-2`, dialogue_id `meld-test-84`, session = the episode (`S01E05`), speaker like `meld-Phoebe-Sr`;
    start and end are seconds of the episode; audio and video are both the clip. The sentiment has no column. The
    result's `incomplete` names repaired characters, rows without times or, where others have theirs, without a clip,
    and tables without their published number of rows. A table that is not there is among `skipped`.

    Raises:
        ValueError: for a data_dir that is not a directory or has none of the tables, and for a table that is not CSV
            or lacks columns, naming it.
    """
    root = checked_folder(data_dir, _EXPECTED)
    tables, clips, skipped = _sort_files(root)
    if not tables:
        raise ValueError(f"data_dir {str(data_dir)!r} holds none of {', '.join(TABLES.values())}. {_EXPECTED}")
    there = {Path(item.path).name for item in skipped} | {file.name for file in tables.values()}
    skipped += [Skipped(name, NO_FILE) for name in TABLES.values() if name not in there]
    with_clips = {split for split, _, _ in clips}
    skipped += _drop_unreadable(clips, root, check_media)
    turns: dict[Place, _Turn] = {}
    incomplete = []
    for split, file in tables.items():
        before = len(turns)
        for found in _read_table(file, root, split):
            refusal = found.reason if isinstance(found, Skipped) else _turn_refusal(found, turns, clips)
            if refusal is not None:
                skipped.append(Skipped(found.path, refusal))
                continue
            turns[found.place] = found
            incomplete += [Skipped(found.path, gap) for gap in _gaps(found, clips, split in with_clips)]
        if len(turns) - before != PUBLISHED_ROWS[split]:
            count = f"{len(turns) - before} of {PUBLISHED_ROWS[split]}"
            incomplete.append(Skipped(f"{file.relative_to(root).as_posix()} ({count})", OTHER_COUNT))
    skipped += [Skipped(p.relative_to(root).as_posix(), NO_ROW) for place, p in clips.items() if place not in turns]
    order = sorted(turns, key=lambda place: (list(TABLES).index(place[0]), *place[1:]))
    rows = [_row(turns[place], clips.get(place)) for place in order]
    return Scan(rows, sorted(skipped, key=_place_in_file), sorted(incomplete, key=_place_in_file))


class _Turn(NamedTuple):
    """A line of a table, read."""

    path: str
    """`file:line`"""
    place: Place
    fields: Mapping[str, str]
    """Repaired."""
    times: tuple[float, float] | None
    damage: Sequence[str]


def _turn_refusal(turn: _Turn, turns: Mapping[Place, _Turn], clips: Mapping[Place, Path]) -> str | None:
    if turn.place in turns:
        return REPEATED_TURN
    return NOTHING if not turn.fields["Utterance"].strip() and turn.place not in clips else None


def _gaps(turn: _Turn, clips: Mapping[Place, Path], with_clips: bool) -> list[str]:
    long = turn.times is not None and turn.times[1] - turn.times[0] > LONGEST
    gaps = {BAD_TIMES: turn.times is None, LONG: long, NO_CLIP: with_clips and turn.place not in clips}
    return [*turn.damage, *(reason for reason, holds in gaps.items() if holds)]


def _place_in_file(item: Skipped) -> tuple[str, int, str]:
    file, _, line = item.path.partition(":")
    return file, int(line) if line.isdecimal() else 0, item.reason


def _row(turn: _Turn, clip: Path | None) -> dict[str, Any]:
    (split, dialogue, number), fields = turn.place, turn.fields
    start, end = turn.times or (None, None)
    dialogue_id, media = f"meld-{split}-{dialogue}", None if clip is None else str(clip)
    return make_row(
        id=f"{dialogue_id}-{number}",
        corpus="meld",
        dialogue_id=dialogue_id,
        turn=number,
        speaker=speaker_id(fields["Speaker"]),
        session=f"S{int(fields['Season']):02}E{int(fields['Episode']):02}",
        split=split,
        start=start,
        end=end,
        audio=media,
        video=media,
        text=fields["Utterance"] if fields["Utterance"].strip() else None,
        label=LABELS[fields["Emotion"].strip().lower()],
        scripted=True,
    )


def speaker_id(name: str) -> str:
    """`Phoebe Sr.` -> meld-Phoebe-Sr, `Joey's Hand Twin` -> meld-Joeys-Hand-Twin; None where nothing is left."""
    slug = re.sub(r"[^\w]+", "-", re.sub("['’‘]", "", name)).strip("-")
    return f"meld-{slug}" if slug else None


# Files


def _sort_files(root: Path) -> tuple[dict[str, Path], dict[Place, Path], list[Skipped]]:
    """The table of each split, the clip of each turn, and what is neither. Of copies the first good one counts."""
    split_of = {name: split for split, name in TABLES.items()}
    tables: dict[str, Path] = {}
    clips: dict[Place, Path] = {}
    skipped = []
    for path in files_below(root):
        parts = path.relative_to(root)
        clip, split = _CLIP.fullmatch(path.name), split_of.get(path.name) or _split_of_folder(parts)
        taken: dict[Any, Path] = tables if clip is None else clips
        key = split if clip is None else (split, int(clip[1]), int(clip[2]))
        if clip is None and path.name not in split_of:
            reason = NOT_MEDIA
        elif split is None:
            reason = NO_SPLIT
        else:
            reason = unreadable(path) or (REPEATED if key in taken else None)
        if reason is None:
            taken[key] = path
        else:
            skipped.append(Skipped(parts.as_posix(), reason))
    return {split: tables[split] for split in TABLES if split in tables}, clips, skipped


def _split_of_folder(path: Path) -> str | None:
    """From the nearest folder that says so: train_splits, dev_splits_complete, output_repeated_splits_test."""
    for folder in reversed(path.parts[:-1]):
        for prefix, split in _FOLDERS.items():
            if folder.lower().startswith(prefix):
                return split
    return None


def _drop_unreadable(clips: dict[Place, Path], root: Path, check_media: bool) -> list[Skipped]:
    """Take from the clips those that cannot be opened; what they were."""
    asked = [place for place in clips if check_media or place in BROKEN_IN_RELEASE]
    return [Skipped(clips.pop(p).relative_to(root).as_posix(), BROKEN) for p in asked if not _opens(clips[p])]


def _opens(path: Path) -> bool:
    """Whether the container can be opened and holds a stream; nothing is decoded."""
    try:
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
            return len(container.streams) > 0
    except av.FFmpegError:
        return False


# Tables


def _read_table(file: Path, root: Path, split: str) -> Iterator[_Turn | Skipped]:
    name = file.relative_to(root).as_posix()
    reader = csv.reader(io.StringIO(decode(file.read_bytes()), newline=""), strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        missing = [column for column in COLUMNS if column not in header]
        if missing:
            raise ValueError(
                f"{file}: column(s) {', '.join(missing)} are missing; the table as published has {', '.join(COLUMNS)}"
            )
        for values in reader:
            path = f"{name}:{reader.line_num}"
            if len(values) != len(header):
                yield Skipped(path, BAD_FIELDS)
            else:
                yield _turn(path, split, dict(zip(header, values, strict=True)))
    except csv.Error as error:
        raise ValueError(
            f"{file}:{reader.line_num}: not CSV as published ({error}); download the table again"
        ) from error


def _turn(path: str, split: str, raw: Mapping[str, str]) -> _Turn | Skipped:
    if raw["Emotion"].strip().lower() not in LABELS:
        return Skipped(path, BAD_LABEL)
    if not all(re.fullmatch(r"\s*\d+\s*", raw[c]) for c in ("Dialogue_ID", "Utterance_ID", "Season", "Episode")):
        return Skipped(path, BAD_NUMBER)
    mended = {column: repair(raw[column]) for column in ("Utterance", "Speaker")}
    damage = [REPAIRED] if any(mended[column] != raw[column] for column in mended) else []
    damage += [UNREPAIRED] if any(DOUBTFUL.search(text) for text in mended.values()) else []
    start, end = seconds(raw["StartTime"]), seconds(raw["EndTime"])
    times = (start, end) if start is not None and end is not None and start < end else None
    place = (split, int(raw["Dialogue_ID"]), int(raw["Utterance_ID"]))
    return _Turn(path, place, {**raw, **mended}, times, damage)


def seconds(time: str) -> float | None:
    """`00:06:47,28` -> 407.28; None for what is no HH:MM:SS,mmm. Three published times lack their last zero."""
    fields = _TIME.fullmatch(time.strip())
    return None if fields is None else int(fields[1]) * 3600 + int(fields[2]) * 60 + float(fields[3].replace(",", "."))


# The builder


@dataclass
class MeldConfig(CorpusConfig):
    """`data_dir`: the user's copy. `check_media`: open every clip, not only those known to be broken."""

    check_media: bool = False

    def scan(self) -> Scan:
        """As the function."""
        return scan(self.data_dir, self.check_media)


class Meld(CorpusBuilder):
    """MELD as a data set with its official split; see `CorpusBuilder`."""

    BUILDER_CONFIG_CLASS = MeldConfig
    HARMLESS = HARMLESS
    MEDIA_MAY_BE_SHARED = False  # clips of a television series: the licence covers the annotations

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="MELD: Multimodal EmotionLines Dataset, dialogues of the series Friends",
            features=FEATURES,
            homepage="https://github.com/declare-lab/MELD",
            license="GPL-3.0 (annotations)",
            citation="Poria et al. 2019, Proceedings of ACL, pages 527-536, arXiv:1810.02508",
        )
