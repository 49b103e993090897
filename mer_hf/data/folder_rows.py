"""One's own clips: entries of a manifest or of class folders -> rows of the common schema, and why some give none."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .field_values import NoRow, is_null, label_key, parse_values, string
from .manifests import Entry
from .media_check import BadMedia, check_clip
from .scanning import Scan, Skipped
from .schema import make_row
from .word_times import read_textgrid, read_wdseg

# Reasons for giving no row, beside those of class folders, manifests, values and media.
NOTHING = "no audio, no video and no text"
NO_SPLIT = "no split, though other rows have one"
NOT_CUT = "start and end leave out more than a second of the file: cut the clip out of it first"
REPEATED_ID = "its id is that of an earlier row"
REPEATED_FILE = "its files are those of an earlier row"

# What a row that is kept may lack, beside values that cannot be read.
NO_SPEAKER = "speaker_from finds no speaker in the path"
BAD_TIMES = "start and end are not 0 <= start < end"
BAD_WORD_TIMES = "its word_times file is not there, or no TextGrid with a tier of words and no .wdseg"
WORDS_BEYOND = "words begin after the end of the clip"

_UNCUT_SECONDS = 1.0  # clips cut at key frames are longer than start and end say, by less than this


@dataclass(frozen=True)
class RowMaker:
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
