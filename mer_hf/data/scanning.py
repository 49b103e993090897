"""What every builder over a user's own copy shares: files in a fixed order, skips with reasons, a report of them.

Nothing a copy holds is lost without a word: whatever gives no row is a `Skipped`, with a reason, and
`Scan.write_report` puts rows, skips and counts into a file. Rows are ordered by name, never by the file system.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import soundfile
from datasets.builder import Key

from .schema import rows_to_table

logger = logging.getLogger(__name__)

# Reasons that several corpora have for giving no row.
EMPTY = "zero bytes"
BROKEN_LINK = "a link to a file that is not there"
NO_FILE = "the file is not there"
REPEATED = "the same file name occurs earlier in the tree"


class Skipped(NamedTuple):
    """What gave no row: its place relative to data_dir (a file, or `file:line`), and why."""

    path: str
    reason: str


class Scan(NamedTuple):
    """What a copy holds: schema rows sorted by id, and what gave none, sorted by place."""

    rows: list[dict[str, Any]]
    skipped: list[Skipped]

    @property
    def skip_counts(self) -> dict[str, int]:
        """Number of skips by reason."""
        return dict(Counter(item.reason for item in self.skipped))

    def counts(self, harmless: Collection[str] = ()) -> str:
        """` (3 skipped: 2 zero bytes, 1 ...)` for a message, less the harmless reasons; '' where nothing is left."""
        told = {reason: count for reason, count in self.skip_counts.items() if reason not in harmless}
        reasons = ", ".join(f"{count} {reason}" for reason, count in told.items())
        return f" ({sum(told.values())} skipped: {reasons})" if told else ""

    def report(self) -> dict[str, Any]:
        """Rows by label and by split, skips by reason, and every skip, ready for JSON."""
        return {
            "rows": len(self.rows),
            "labels": _tally(self.rows, "label"),
            "splits": _tally(self.rows, "split"),
            "speakers": len({row["speaker"] for row in self.rows if row["speaker"] is not None}),
            "skipped": self.skip_counts,
            "skips": [item._asdict() for item in self.skipped],
        }

    def write_report(self, file: str | os.PathLike) -> Path:
        """`report` as a JSON file; returns its path."""
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.report(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return file


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


class CorpusConfig(datasets.BuilderConfig):
    """Configuration of a builder over the user's own copy: `data_dir`, and a subclass's own fields (a dataclass).

    A subclass says in `scan` how its copy is read.
    """

    def scan(self) -> Scan:
        """The rows and skips of `data_dir`."""
        raise NotImplementedError

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
