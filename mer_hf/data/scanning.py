"""What every builder over a user's own copy shares: files in a fixed order, skips with reasons, a report of them.

Nothing a copy holds is lost without a word: whatever gives no row is a `Skipped`, with a reason, and
`Scan.write_report` puts rows, skips and counts into a file. Rows are ordered by name, never by the file system.
"""

import hashlib
import json
import logging
import os
import struct
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import soundfile
from datasets.builder import Key

from .schema import rows_to_table

logger = logging.getLogger(__name__)

_UNKNOWN_SIZE = 0x7FFF0000  # recorders that write to a pipe put a size at or above this into the wav header

# Reasons that several corpora have for giving no row.
EMPTY = "zero bytes"
BROKEN_LINK = "a link to a file that is not there"
NO_FILE = "the file is not there"
REPEATED = "the same file name occurs earlier in the tree"
NOT_WAV = "no wav file inside"
LFS_POINTER = "a pointer of Git LFS in the file's place (git lfs pull fetches it)"
NO_SAMPLES = "a wav file without samples"
TRUNCATED = "ends before its header says"


class Skipped(NamedTuple):
    """What gave no row, or a row that lacks something: its place in data_dir (a file, `file:line`), and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """What a copy holds: schema rows in a fixed order; what gave none; and what rows that were kept all the same lack,
    such as the label that raters did not agree on."""

    rows: list[dict[str, Any]]
    skipped: list[Skipped]
    incomplete: list[Skipped] = field(default_factory=list)

    def __iter__(self) -> Iterator[list]:
        """`rows, skipped = scan(...)`"""
        return iter((self.rows, self.skipped))

    @property
    def skip_counts(self) -> dict[str, int]:
        """Number of skips by reason."""
        return _by_reason(self.skipped)

    def counts(self, harmless: Collection[str] = ()) -> str:
        """` (3 skipped: 2 zero bytes, 1 ...)` for a message, and likewise what is incomplete, less the harmless
        reasons; '' where nothing is left."""
        return _told(self.skipped, "skipped", harmless) + _told(self.incomplete, "incomplete", harmless)

    def report(self) -> dict[str, Any]:
        """Rows by label and by split; skips, and gaps in rows, by reason and one by one; ready for JSON."""
        return {
            "rows": len(self.rows),
            "labels": _tally(self.rows, "label"),
            "splits": _tally(self.rows, "split"),
            "speakers": len({row["speaker"] for row in self.rows if row["speaker"] is not None}),
            "skipped": self.skip_counts,
            "skips": [item._asdict() for item in self.skipped],
            "incomplete": _by_reason(self.incomplete),
            "gaps": [item._asdict() for item in self.incomplete],
        }

    def write_report(self, file: str | os.PathLike) -> Path:
        """`report` as a JSON file; returns its path."""
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.report(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return file


def _by_reason(items: Sequence[Skipped]) -> dict[str, int]:
    return dict(Counter(item.reason for item in items))


def _told(items: Sequence[Skipped], what: str, harmless: Collection[str]) -> str:
    told = {reason: count for reason, count in _by_reason(items).items() if reason not in harmless}
    reasons = ", ".join(f"{count} {reason}" for reason, count in told.items())
    return f" ({sum(told.values())} {what}: {reasons})" if told else ""


def _tally(rows: Sequence[dict[str, Any]], column: str) -> dict[str, int]:
    counts = Counter("null" if row[column] is None else row[column] for row in rows)
    return dict(sorted(counts.items()))


def files_below(root: Path) -> list[Path]:
    """Every file below root in the order of its path, links to folders followed."""
    found = [Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def unreadable(path: Path) -> str | None:
    """Why a media file cannot be used, by its size alone: NO_FILE, BROKEN_LINK, EMPTY; None = it may be good."""
    if not os.path.isfile(path):
        return BROKEN_LINK if os.path.islink(path) else NO_FILE
    return EMPTY if os.path.getsize(path) == 0 else None


def pointer(path: Path) -> str | None:
    """LFS_POINTER where a clone without Git LFS, or a zip of the repository, has 130 bytes of text for a file."""
    with open(path, "rb") as file:
        return LFS_POINTER if file.read(24) == b"version https://git-lfs." else None


def unreadable_wav(path: Path) -> str | None:
    """Why a wav file cannot be used, by its size and header; None = it may be good.

    As `unreadable`, and NOT_WAV, LFS_POINTER, NO_SAMPLES or TRUNCATED. What lacks at most 0.05 s, or was written by a
    recorder that did not know its length, passes, as it does in `models.media.load_audio`.
    """
    reason = unreadable(path) or pointer(path)
    if reason is not None:
        return reason
    with open(path, "rb") as file:
        start = file.read(12)
        if start[:4] not in (b"RIFF", b"RF64") or start[8:] != b"WAVE":
            return NOT_WAV
        second = 0
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                left = os.path.getsize(path) - file.tell()
                if not min(size, left):
                    return NO_SAMPLES
                return TRUNCATED if size < _UNKNOWN_SIZE and size - left > 0.05 * second else None
            chunk_end = file.tell() + size + size % 2
            if name == b"fmt ":
                second = struct.unpack("<8xI", file.read(12).ljust(12, b"\0"))[0]
            file.seek(chunk_end)
    return NO_SAMPLES


def checked_folder(data_dir: str | os.PathLike | None, expected: str) -> Path:
    """data_dir as an absolute path.

    Raises:
        ValueError: it is no directory; the message ends with what was expected.
    """
    if data_dir is None or not os.path.isdir(data_dir):
        name = None if data_dir is None else str(data_dir)
        raise ValueError(f"data_dir {name!r} is not a directory. {expected}")
    return Path(os.path.abspath(data_dir))


def fingerprint(found: Scan) -> str:
    """Hash of the rows (absolute paths included) and of the sizes of the files that they name."""
    digest = hashlib.sha256()
    for row in found.rows:
        sizes = [os.path.getsize(row[column]) if row[column] else None for column in ("audio", "video")]
        digest.update(json.dumps([row, sizes], sort_keys=True).encode())
    return digest.hexdigest()[:16]


def audio_hashes(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """SHA-256 of each row's sound by row id: of its samples, whatever the file's header, name and tags.

    Of a file that soundfile cannot read, such as an mp4, the bytes are hashed. Rows without sound have no entry.
    """
    return {row["id"]: _sound_hash(_path(row["audio"])) for row in rows if row["audio"] is not None}


def _path(audio: Any) -> str:
    return audio["path"] if isinstance(audio, Mapping) else audio


def _sound_hash(path: str) -> str:
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.SoundFileError:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return hashlib.sha256(f"{rate} {samples.shape}".encode() + samples.tobytes()).hexdigest()


def _without_media(part: datasets.Dataset) -> datasets.Dataset:
    table = part.data.table
    for column in ("audio", "video"):
        place = table.column_names.index(column)
        table = table.set_column(place, column, pa.nulls(len(part), table.field(column).type))
    return datasets.Dataset(table, info=part.info, split=part.split)


class CorpusConfig(datasets.BuilderConfig, ABC):
    """Configuration of a builder over the user's own copy: `data_dir`, and a subclass's own fields (a dataclass).

    A subclass says in `scan` how its copy is read.
    """

    @abstractmethod
    def scan(self) -> Scan:
        """The rows and skips of `data_dir`."""

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Name the cache by what the copy holds: `data_dir` alone would bring back stale rows after it changed."""
        return super().create_config_id({"content": fingerprint(self.scan())}, custom_features)


class CorpusBuilder(datasets.ArrowBasedBuilder):
    """A corpus as a data set: `Corpus(data_dir=...)`, then `download_and_prepare()` and `as_dataset(split=...)`, or
    `as_streaming_dataset(split=...)`. Nothing is downloaded.

    Rows with a `split` column are in that split; where no row has one, all are in "train" and a protocol makes folds.
    `report.json`, beside the prepared data, counts the rows and lists everything that gave none, with its reason.
    Arrow-based for the sake of `rows_to_table`, which says why.

    Raises:
        ValueError: at construction, as the corpus's `scan`.
    """

    VERSION = datasets.Version("1.0.0")
    HARMLESS: frozenset[str] = frozenset()
    """Reasons that are listed but not worth a warning: they are no sign of a damaged copy."""
    MEDIA_MAY_BE_SHARED = False
    """Whether the corpus's licence lets a user publish its sound and pictures again."""

    @cached_property
    def found(self) -> Scan:
        """Rows and skips; known without preparing the data set."""
        return self.config.scan()

    @property
    def skipped(self) -> list[Skipped]:
        """What of data_dir gave no row, and why."""
        return self.found.skipped

    def shareable(self) -> datasets.DatasetDict:
        """The prepared data set as it may be published: sound and pictures are null where the licence forbids them.

        `builder.shareable().push_to_hub(repo_id)` then writes Parquet with the media's bytes inside, or without any;
        a path of the user's own copy never stays in it.
        """
        parts = {name: self.as_dataset(split=name) for name in self.info.splits}
        if not self.MEDIA_MAY_BE_SHARED:
            parts = {name: _without_media(part) for name, part in parts.items()}
        return datasets.DatasetDict(parts)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        told = self.found.counts(self.HARMLESS)
        if told:
            logger.warning("%s: %d rows%s", type(self).__name__, len(self.found.rows), told)
        sides: dict[str, list[dict[str, Any]]] = {}
        for row in self.found.rows:
            sides.setdefault(row["split"] or "train", []).append(row)
        return [datasets.SplitGenerator(side, gen_kwargs={"rows": rows}) for side, rows in sides.items()]

    def _generate_tables(self, rows: list[dict[str, Any]]) -> Iterator[tuple[Key, pa.Table]]:
        yield Key(0, 0), rows_to_table(rows, self.info.features)

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        super()._download_and_prepare(*args, **kwargs)
        self.found.write_report(Path(self._output_dir) / "report.json")
