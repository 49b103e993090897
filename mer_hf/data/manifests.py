"""Manifests: tables that name clips, read into the user's values by field.

CSV with any usual delimiter, TSV, JSON objects by line or in one list, Parquet. The columns are found by their usual
names, or as the user maps them. Nothing is made of the values here, and no file that they name is looked at.
"""

import codecs
import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from .scanning import Skipped
from .schema import FEATURES

MANIFEST_TYPES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
FIELDS = (*FEATURES, "word_times")
"""What `columns` may name: the schema's columns, and `word_times`, a file (.TextGrid, .wdseg) that gives `words`."""

_USUAL_NAMES = {
    "audio": ("path", "file", "file_name", "filename", "audio", "audio_path", "wav"),
    "video": ("video", "video_path"),
    "label": ("label", "emotion", "class"),
    "speaker": ("speaker", "speaker_id", "actor"),
    "text": ("text", "transcript", "transcription", "sentence", "utterance"),
    "split": ("split", "partition", "set"),
    "dialogue_id": ("dialogue_id", "dialogue"),
    "turn": ("turn", "utterance_id"),
    "gender": ("gender", "sex"),
    "word_times": ("word_times", "textgrid"),
    **{name: (name,) for name in ("id", "session", "start", "end", "words", "scripted")},
    **{name: (name,) for name in ("valence", "arousal", "dominance")},
}
_FIELD_OF = {usual: field for field, names in _USUAL_NAMES.items() for usual in names}

# Reasons a line gives no clip.
RAGGED = "another number of fields than the header has"
NOT_AN_OBJECT = "not a JSON object"

UNUSED_COLUMN = "a column that no field takes"


class Entry(NamedTuple):
    """One clip as it was found: its place for the report, and the user's values by field."""

    place: str
    values: dict[str, Any]


class Listed(NamedTuple):
    """The entries; the lines or files that none could be made of; the columns that no field takes."""

    entries: list[Entry]
    skipped: list[Skipped]
    unused: list[Skipped]


_Records = list[tuple[int, dict[str, Any] | str]]
"""(line, values by column), or (line, the reason why there are none)."""


def find_manifest(data_dir: str | os.PathLike | None, expected: str) -> Path | None:
    """data_dir as an absolute path where it is a file, else the one manifest in it, None where it has none.

    Raises:
        ValueError: nothing there, a file of another type, several manifests; expected: the end of the message.
    """
    given = None if data_dir is None else Path(os.path.abspath(data_dir))
    if given is None or not (given.is_dir() or given.is_file()):
        name = None if data_dir is None else str(data_dir)
        raise ValueError(f"data_dir {name!r} is neither a folder nor a file. {expected}")
    if given.is_file():
        if given.suffix.lower() not in MANIFEST_TYPES:
            raise ValueError(f"data_dir {str(data_dir)!r} is a {given.suffix or 'nameless'} file. {expected}")
        return given
    manifests = sorted(path for path in given.iterdir() if _is_manifest(path))
    if len(manifests) > 1:
        names = ", ".join(path.name for path in manifests)
        raise ValueError(f"data_dir {str(data_dir)!r} holds several manifests ({names}); name one of them instead")
    return manifests[0] if manifests else None


def _is_manifest(path: Path) -> bool:
    return path.suffix.lower() in MANIFEST_TYPES and not path.name.startswith(".") and path.is_file()


def read_manifest(manifest: Path, columns: Mapping[str, str], encoding: str) -> Listed:
    """Every line; placed as `metadata.csv:17`, by number where a format has no lines.

    columns: field -> column, "" = none; other fields find theirs by its usual name. encoding: of text.

    Raises:
        ValueError: text that is not of the encoding, a table that cannot be read, quotes that are never closed;
            columns that are ambiguous, absent, repeated, or give no clip.
    """
    data = manifest.read_bytes()
    kind = manifest.suffix.lower()
    if kind == ".parquet":
        names, records = _parquet(manifest, data)
    elif kind in (".csv", ".tsv"):
        names, records = _csv(manifest, _text(manifest, data, encoding), columns)
    else:
        names, records = _json(manifest, _text(manifest, data, encoding))
    column_of = _match_columns(manifest, names, columns)
    entries, skipped = [], []
    for line, record in records:
        place = f"{manifest.name}:{line}"
        if isinstance(record, str):
            skipped.append(Skipped(place, record))
        else:
            entries.append(Entry(place, {field: record.get(name) for field, name in column_of.items()}))
    unused = [name for name in names if name not in column_of.values()]
    return Listed(entries, skipped, [Skipped(f"{manifest.name}: column {n!r}", UNUSED_COLUMN) for n in unused])


# -- Tables -----------------------------------------------------------------------------------------------------------


def _text(manifest: Path, data: bytes, encoding: str) -> str:
    try:
        codec = codecs.lookup(encoding).name
        return data.decode("utf-8-sig" if codec == "utf-8" else codec)  # with the mark that Excel puts first, or not
    except LookupError:
        raise ValueError(f"encoding {encoding!r} is unknown; try utf-8, cp1252 or utf-16") from None
    except UnicodeError as error:
        line = data[: getattr(error, "start", 0)].count(b"\n") + 1
        raise ValueError(
            f"{manifest}:{line}: not {encoding} text; name its encoding=, such as cp1252 (Excel, Windows) or utf-16"
        ) from error


def _csv(manifest: Path, text: str, columns: Mapping[str, str]) -> tuple[list[str], _Records]:
    delimiter = "\t" if manifest.suffix.lower() == ".tsv" else _delimiter(text, columns)
    lines = _csv_lines(manifest, text, delimiter)
    _, header = next(lines, (1, []))
    names = [name.strip() for name in header]
    return names, [
        (line, dict(zip(names, fields, strict=True)) if len(fields) == len(names) else RAGGED)
        for line, fields in lines
    ]


def _delimiter(text: str, columns: Mapping[str, str]) -> str:
    """The one that makes the most known columns of the header, then the most columns; the comma where they tie.

    The rows are not looked at: their text is full of commas.
    """
    header = next((line for line in text.splitlines() if line.strip()), "")
    asked = {name for name in columns.values() if name}

    def columns_found(delimiter: str) -> tuple[int, int]:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        return sum(name in asked or _usual_field(name) is not None for name in names), len(names)

    return max(",;\t|", key=columns_found)


def _csv_lines(manifest: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) of each record; blank lines are none.

    Strict, since a quote that is never closed would otherwise swallow every row after it.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"{manifest}:{first}: {error}; a field that holds a quote is written in quotes, the quote doubled"
            ) from error
        if fields:
            yield first, fields


def _json(manifest: Path, text: str) -> tuple[list[str], _Records]:
    """JSON lines, or one list; the names are those of all objects, in the order in which they occur."""
    if text.lstrip().startswith("["):
        try:
            records: _Records = [(number, _object(value)) for number, value in enumerate(json.loads(text), 1)]
        except json.JSONDecodeError as error:
            raise ValueError(f"{manifest}:{error.lineno}: not JSON ({error.msg})") from error
    else:
        lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
        records = [(number, _json_line(line)) for number, line in lines]
    return list(dict.fromkeys(name for _, record in records if isinstance(record, dict) for name in record)), records


def _json_line(line: str) -> dict[str, Any] | str:
    try:
        return _object(json.loads(line))
    except json.JSONDecodeError:
        return NOT_AN_OBJECT


def _object(value: Any) -> dict[str, Any] | str:
    return value if isinstance(value, dict) else NOT_AN_OBJECT


def _parquet(manifest: Path, data: bytes) -> tuple[list[str], _Records]:
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{manifest}: not a readable Parquet file ({error}); write it again") from error
    return table.column_names, list(enumerate(table.to_pylist(), 1))


# -- Columns ----------------------------------------------------------------------------------------------------------


def _usual_field(name: str) -> str | None:
    return _FIELD_OF.get(re.sub(r"[\s-]+", "_", name.strip().lower()))


def _match_columns(manifest: Path, names: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Field -> the user's column, in the order of FIELDS."""
    _check_names(manifest, names, columns)
    candidates: dict[str, list[str]] = {field: [name] for field, name in columns.items() if name}
    for name in names:
        field = _usual_field(name)
        if field is not None and field not in columns and name not in columns.values():
            candidates.setdefault(field, []).append(name)
    for field, fitting in candidates.items():
        if len(fitting) > 1:
            raise ValueError(
                f"{manifest}: columns {_few(fitting)} could each be {field!r}; choose with "
                f"columns={{{field!r}: {fitting[0]!r}}} (--columns {field}={fitting[0]})"
            )
    if "words" in candidates and "word_times" in candidates:
        raise ValueError(f"{manifest}: words and word_times both give words; columns={{'words': ''}} leaves one out")
    if not {"audio", "video", "text"} & candidates.keys():
        raise ValueError(
            f"{manifest}: no column gives audio, video or text; {_found(names)}. Name one with "
            "columns={'audio': ...} (--columns audio=...)"
        )
    return {field: candidates[field][0] for field in FIELDS if field in candidates}


def _check_names(manifest: Path, names: Sequence[str], columns: Mapping[str, str]) -> None:
    unknown = sorted(set(columns) - set(FIELDS))
    if unknown:
        raise ValueError(f"columns names unknown field(s) {', '.join(unknown)}; the fields are {', '.join(FIELDS)}")
    repeated = sorted(name for name, count in Counter(names).items() if name and count > 1)
    if repeated:
        raise ValueError(f"{manifest}: the header repeats column(s) {_few(repeated)}; rename all but one")
    absent = sorted(name for name in columns.values() if name and name not in names)
    if absent:
        raise ValueError(f"{manifest}: columns names {_few(absent)}, but {_found(names)}")


def _found(names: Sequence[str]) -> str:
    return f"its columns are {', '.join(map(repr, names)) or 'none'}"


def _few(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more
