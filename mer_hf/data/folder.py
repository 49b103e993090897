"""One's own clips as a corpus: a manifest that names them, or a folder of folders named by emotion.

    scan("clips/metadata.csv", columns={"audio": "clip", "label": "mood"}, labels={"mad": "angry"})
    scan("clips", speaker_from=r"([a-z]+)_\\d+")        # clips/happy/anna_01.wav, clips/angry/take2/bert_07.mp4

A manifest is a table with a header (.csv, .tsv, .parquet) or JSON objects (.jsonl, or .json with lines or one list),
one clip a row, its files relative to the manifest. Columns are known by their usual names or by `columns`, label
words by their usual forms or by `labels`. The labels are the schema's fixed set: a class that none of EMOTIONS stands
for cannot be used.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from .class_folders import HIDDEN, NOT_MEDIA, list_class_folders
from .field_values import (  # noqa: F401 - LABEL_WORDS is imported from here
    LABEL_WORDS,
    NoRow,
    is_null,
    label_key,
    label_words,
    parse_values,
    refuse_unknown_labels,
    string,
)
from .manifests import (  # noqa: F401 - FIELDS is imported from here
    FIELDS,
    MANIFEST_TYPES,
    UNUSED_COLUMN,
    Entry,
    find_manifest,
    read_manifest,
)
from .media_check import BadMedia, check_clip
from .scanning import CorpusBuilder, CorpusConfig, Scan, Skipped
from .schema import FEATURES, make_row
from .word_times import read_textgrid, read_wdseg

# Reasons for giving no row, beside those of class folders, manifests, values and media.
NOTHING = "no audio, no video and no text"
NO_SPLIT = "no split, though other rows have one"
NOT_CUT = "start and end leave out more than a second of the file: cut the clip out of it first"
REPEATED_ID = "its id is that of an earlier row"
REPEATED_FILE = "its files are those of an earlier row"
HARMLESS = frozenset({NOT_MEDIA, HIDDEN, UNUSED_COLUMN})
"""Reasons that are listed but not worth a warning: they are no sign of damage."""

# What a row that is kept may lack, beside values that cannot be read.
NO_SPEAKER = "speaker_from finds no speaker in the path"
BAD_TIMES = "start and end are not 0 <= start < end"
BAD_WORD_TIMES = "its word_times file is not there, or no TextGrid with a tier of words and no .wdseg"
WORDS_BEYOND = "words begin after the end of the clip"

_UNCUT_SECONDS = 1.0  # clips cut at key frames are longer than start and end say, by less than this


def scan(
    data_dir: str | os.PathLike,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    media_dir: str | os.PathLike | None = None,
    speaker_from: str | None = None,
    check_media: bool = True,
    encoding: str = "utf-8",
    corpus: str = "folder",
) -> Scan:
    """Read one's own clips into schema rows.

    data_dir: a manifest, a folder with exactly one, or a folder of class folders (`happy/a/1.wav`, or
        `train/happy/1.wav` with splits). In class folders, a sound and a video file of one name are one clip.
    columns: field (FIELDS) -> the manifest's column; "" = none. Other fields find theirs by its usual name.
    labels: the user's label word -> one of EMOTIONS, beside and before the usual words of LABEL_WORDS.
    media_dir: what the manifest's paths are relative to, where that is not the manifest's own folder.
    speaker_from: a regular expression that is searched for in each path relative to the media folder (its own folder,
        for class folders data_dir); its first group is the speaker. Without it or a column, speakers are null, and no
        speaker-disjoint protocol can be made.
    check_media: open each file, without decoding more than a first frame, so that broken ones are found here.
    encoding: of the manifest's text.
    corpus: the rows' `corpus`, where no column is mapped to it.

    A video file is both video and, where it has a sound track, audio. A row's id is, where no column gives one, its
    path relative to the media folder without its type (with it, where two files differ in nothing else), or a hash of
    the row where it has no files. Times are seconds. Whole recordings are not cut: `start` and `end` say where a clip
    that is a file of its own was cut from. Skips of a manifest are placed by line (`metadata.csv:17`; entries are
    counted where there are no lines). The result's `incomplete` names its unused columns, and values that could not be
    read and are null, where the clip is of use without them.

    Raises:
        ValueError: wrong arguments; no manifest or several; a manifest that cannot be read, or columns in it that are
            ambiguous or give no clip; rows that share a recording; no row with a known label though there are labels;
            no row at all.
    """
    manifest = find_manifest(data_dir, _EXPECTED)
    root = _media_folder(data_dir, manifest, columns, media_dir)
    listed = list_class_folders(root) if manifest is None else read_manifest(manifest, columns or {}, encoding)
    entries = listed.entries
    if not entries:
        raise ValueError(f"data_dir {str(data_dir)!r} holds no clip{Scan([], listed.skipped).counts()}. {_EXPECTED}")
    maker = _RowMaker(root, label_words(labels), _speaker_pattern(speaker_from, entries), check_media, corpus)
    maker.refuse_shared_recordings(entries)
    refuse_unknown_labels(data_dir, [entry.values.get("label") for entry in entries], maker.label_of)
    made = maker.rows(entries)
    found = Scan(
        sorted(made.rows, key=lambda row: row["id"]),
        sorted(listed.skipped + made.skipped, key=_by_place),
        sorted(listed.unused + made.incomplete, key=_by_place),
    )
    if not found.rows:
        raise ValueError(
            f"data_dir {str(data_dir)!r}: none of its {len(entries)} clips can be used{found.counts(HARMLESS)}. "
            "media_dir= says where a manifest's files lie, and columns={'turn': ''} leaves a column out"
        )
    return found


_EXPECTED = (
    f"Expected a manifest ({', '.join(MANIFEST_TYPES)}), a folder with one, or a folder of folders named by emotion "
    "with sound or video files inside, such as happy/001.wav."
)


def _media_folder(data_dir: Any, manifest: Path | None, columns: Any, media_dir: Any) -> Path:
    """What paths are relative to."""
    if manifest is None:
        if columns or media_dir is not None:
            name = "columns" if columns else "media_dir"
            raise ValueError(f"{name} belongs to a manifest, but data_dir {str(data_dir)!r} holds none. {_EXPECTED}")
        return Path(data_dir)
    if media_dir is None:
        return manifest.parent
    if not os.path.isdir(media_dir):
        raise ValueError(f"media_dir {str(media_dir)!r} is not a directory")
    return Path(media_dir)


def _by_place(item: Skipped) -> tuple[str, int]:
    """By file, then by line as a number; what has no line comes first."""
    file, _, line = item.path.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (item.path, 0)


def _speaker_pattern(speaker_from: str | None, entries: Sequence[Entry]) -> re.Pattern | None:
    if speaker_from is None:
        return None
    try:
        pattern = re.compile(speaker_from)
    except re.error as error:
        raise ValueError(f"speaker_from {speaker_from!r} is no regular expression: {error}") from error
    if not pattern.groups:
        raise ValueError(f"speaker_from {speaker_from!r} has no group; put the speaker in parentheses")
    if "speaker" in entries[0].values:
        raise ValueError("speaker_from and a speaker column both name the speaker; columns={'speaker': ''} drops one")
    return pattern


# -- Rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _RowMaker:
    """Entries to rows, by the options of `scan`."""

    root: Path
    label_of: Mapping[str, str]
    speaker: re.Pattern | None
    check_media: bool
    corpus: str

    def refuse_shared_recordings(self, entries: Sequence[Entry]) -> None:
        """A file with several pairs of start and end is a recording that was not cut; each row would be all of it."""
        times_of: dict[str, tuple[Any, Any]] = {}
        for place, values in entries:
            file, times = self._first_file(values), (values.get("start"), values.get("end"))
            if file is None or all(is_null(time, by_word=True) for time in times):
                continue
            if times_of.setdefault(file, times) != times:
                raise ValueError(
                    f"{place}: {file!r} is a recording that several rows take parts of, by start and end. Recordings "
                    f"are not cut here: cut the parts out, such as `ffmpeg -i {file} -ss {times[0]} -to {times[1]} "
                    "part.wav`, and name each part's own file"
                )

    def rows(self, entries: Sequence[Entry]) -> Scan:
        """Everything in the order of the entries."""
        found = Scan([], [], [])
        split_known = any(not is_null(entry.values.get("split")) for entry in entries)
        ids: set[str] = set()
        files: set[tuple[str, ...]] = set()
        for entry, row_id in zip(entries, self._ids(entries), strict=True):
            try:
                row, gaps = self._row(entry.values, row_id)
                if split_known and row["split"] is None:
                    raise NoRow(NO_SPLIT)
                media = tuple(row[field] for field in ("audio", "video") if row[field])
                if media in files:
                    raise NoRow(REPEATED_FILE)
                if row_id in ids:
                    raise NoRow(REPEATED_ID)
            except (NoRow, BadMedia) as reason:
                found.skipped.append(Skipped(entry.place, str(reason)))
                continue
            ids.add(row_id)
            files |= {media} if media else set()
            found.rows.append(row)
            found.incomplete.extend(Skipped(entry.place, gap) for gap in gaps)
        return found

    def _row(self, values: Mapping[str, Any], row_id: str) -> tuple[dict[str, Any], list[str]]:
        """The row, and what it lacks."""
        parsed, gaps = parse_values(values)
        paths = {field: self._path(parsed[field]) for field in ("audio", "video") if parsed.get(field) is not None}
        if not paths and not parsed.get("text"):
            raise NoRow(NOTHING)
        if parsed.get("label") is not None:
            parsed["label"] = self._label(parsed["label"])
        audio, video, seconds = check_clip(paths, self.check_media)
        if self.speaker is not None:
            parsed["speaker"] = self._speaker_in(next(iter(paths.values()))) if paths else None
            gaps += [] if parsed["speaker"] else [NO_SPEAKER]
        gaps += _place_in_recording(parsed, seconds) + self._place_words(parsed, seconds)
        parsed["corpus"] = parsed.get("corpus") or self.corpus
        return make_row(**(parsed | {"id": row_id, "audio": audio, "video": video})), gaps

    def _label(self, word: str) -> str:
        label = self.label_of.get(label_key(word))
        if label is None:
            raise NoRow(f"label {word!r} is not known")
        return label

    def _speaker_in(self, path: str) -> str | None:
        found = self.speaker.search(self._relative(path))
        return None if found is None else found[1] or None

    def _place_words(self, parsed: dict[str, Any], seconds: float | None) -> list[str]:
        """`words` in place of `word_times`, null where they cannot be those of the clip; what is lacking."""
        gaps = []
        file = parsed.pop("word_times", None)
        if file is not None:
            read = read_wdseg if file.lower().endswith(".wdseg") else read_textgrid
            try:
                parsed["words"] = [dict(word) for word in read(self._path(file))]
            except (OSError, ValueError):
                gaps.append(BAD_WORD_TIMES)
        if seconds is not None and any(word["start"] >= seconds for word in parsed.get("words") or ()):
            parsed["words"] = None
            gaps.append(WORDS_BEYOND)
        return gaps

    def _path(self, name: str) -> str:
        """Absolute, links left as they are. Manifests from Windows part folders with backslashes."""
        path = os.path.abspath(self.root / name)
        if "\\" in name and not os.path.exists(path):
            path = os.path.abspath(self.root / name.replace("\\", "/"))
        return path

    def _relative(self, path: str) -> str:
        return Path(os.path.relpath(path, self.root)).as_posix()

    def _ids(self, entries: Sequence[Entry]) -> list[str]:
        """The given ids, else made from paths or contents, so that the order of entries does not matter."""
        relative = [self._first_file(entry.values) for entry in entries]
        stems: dict[str, set[str]] = {}
        for path in filter(None, relative):
            stems.setdefault(os.path.splitext(path)[0], set()).add(path)
        copies: Counter[str] = Counter()
        ids = []
        for (_, values), path in zip(entries, relative, strict=True):
            if not is_null(values.get("id")):
                ids.append(string(values["id"]).strip())
            elif path is not None:
                stem = os.path.splitext(path)[0]
                ids.append(stem if len(stems[stem]) == 1 else path)
            else:
                content = json.dumps(values, sort_keys=True, default=str)
                row_id = f"text-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
                copies[row_id] += 1
                ids.append(row_id if copies[row_id] == 1 else f"{row_id}-{copies[row_id]}")
        return ids

    def _first_file(self, values: Mapping[str, Any]) -> str | None:
        """The path of the entry's sound, else of its video, relative to the media folder."""
        for field in ("audio", "video"):
            name = values.get(field)
            name = name.get("path") if isinstance(name, Mapping) else name
            if not is_null(name):
                return self._relative(self._path(string(name).strip()))
        return None


def _place_in_recording(parsed: dict[str, Any], seconds: float | None) -> list[str]:
    """Null start and end where they cannot be; what is lacking.

    A clip is refused where its file is the whole recording: start to end lies inside it and is not nearly all of it.
    """
    start, end = parsed.get("start"), parsed.get("end")
    if min(start or 0.0, end or 0.0) < 0 or (start is not None and end is not None and start >= end):
        parsed["start"] = parsed["end"] = None
        return [BAD_TIMES]
    if start is not None and end is not None and seconds is not None:
        if end <= seconds and seconds - (end - start) > _UNCUT_SECONDS:
            raise NoRow(NOT_CUT)
    return []


# -- The data set -----------------------------------------------------------------------------------------------------


@dataclass
class FolderConfig(CorpusConfig):
    """`data_dir` and the options of `scan`."""

    columns: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    media_dir: str | None = None
    speaker_from: str | None = None
    check_media: bool = True
    encoding: str = "utf-8"
    corpus: str = "folder"

    def scan(self) -> Scan:
        """As the function."""
        return scan(
            self.data_dir,
            columns=self.columns,
            labels=self.labels,
            media_dir=self.media_dir,
            speaker_from=self.speaker_from,
            check_media=self.check_media,
            encoding=self.encoding,
            corpus=self.corpus,
        )


class Folder(CorpusBuilder):
    """One's own clips as a data set; see `CorpusBuilder` and, for `data_dir` and the options, `scan`."""

    BUILDER_CONFIG_CLASS = FolderConfig
    HARMLESS = HARMLESS

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description="Clips of the user's own", features=FEATURES)
