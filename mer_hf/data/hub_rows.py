"""Rows of a data set on the Hub, or in Parquet files on this machine, one after another as they are fetched.

for row in stream_rows("ann/clips", "train", revision=data_set_version("ann/clips")):
    row = fetch_media(row)
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
from huggingface_hub import HfApi

from .protocols import SIDES

CLIP_FIELDS = ("audio", "video", "text", "words")
"""What of a row can be classified."""


def data_set_version(path: str, revision: str | None = None) -> str | list[list[Any]]:
    """What tells a data set from what it becomes later: of a Hub id the commit that `revision` (None = main) is now,
    of Parquet files on this machine their names, sizes and times of change.

    Raises:
        ValueError: a folder without Parquet files; neither here nor on the Hub, as far as it is reached.
    """
    if not Path(path).exists():
        try:
            return HfApi().dataset_info(path, revision=revision).sha
        except (OSError, ValueError) as error:
            raise ValueError(f"dataset: there is no {path} on this machine, and on the Hub: {error}") from error
    stats = [(file, file.stat()) for file in parquet_files(path)]
    return [[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def parquet_files(path: str) -> list[Path]:
    """The file itself, or those of a folder and its subfolders by name.

    Raises:
        ValueError: there are none.
    """
    found = [Path(path)] if Path(path).is_file() else sorted(Path(path).rglob("*.parquet"))
    if not found:
        raise ValueError(f"dataset: the folder {path} has no Parquet files; name another, or use a corpus instead")
    return found


def stream_rows(
    path: str,
    split: str | None = None,
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    revision: str | None = None,
) -> Iterator[dict[str, Any]]:
    """The rows of a data set, one after another as it is fetched: a Hub id, a Parquet file, or a folder of those.

    columns: field (id, audio, video, text, words, label, dialogue_id) -> column, for columns that bear another name;
    a class label that is a number is given its name. revision: of a Hub id, such as `data_set_version` gives.

    Raises:
        ValueError: a column that is not there, no column to classify, a data set of several splits without `split`,
            a folder without files of the split.
    """
    import datasets

    if Path(path).exists():
        files = [str(file) for file in _of_split(path, parquet_files(path), split)]
        loaded = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    else:
        loaded = datasets.load_dataset(path, config, split=split, streaming=True, revision=revision)
    if isinstance(loaded, Mapping):
        raise ValueError(f"split: the data set {path} has {', '.join(loaded)}; name one of them")
    loaded = loaded.decode(False)
    features = loaded.features or next(iter(loaded), {})
    wanted = {name: name for name in ("id", *CLIP_FIELDS, "label", "dialogue_id") if name in features}
    wanted |= columns or {}
    absent = sorted(set(wanted.values()) - set(features))
    if absent or not wanted.keys() & set(CLIP_FIELDS):
        raise ValueError(
            f"columns: {path} has {', '.join(features)}; {absent or 'audio, video or text'} not among them: name its "
            "columns, such as {'audio': 'clip'} (--columns audio=clip)"
        )
    names = getattr(features[wanted["label"]], "names", None) if "label" in wanted else None
    for row in loaded:
        values = {field: row[column] for field, column in wanted.items()}
        if names is not None and values["label"] is not None:
            values["label"] = names[values["label"]] if values["label"] >= 0 else None
        yield values


def _of_split(path: str, files: Sequence[Path], split: str | None) -> list[Path]:
    """Those of the files that are of a split."""
    splits = {file: _split_named(file, Path(path)) for file in files}
    present = sorted({name for name in splits.values() if name is not None})
    if split is None:
        if len(present) > 1:
            raise ValueError(f"split: {path} has {', '.join(present)}; name one of them")
        return list(files)
    chosen = [file for file, name in splits.items() if name == split]
    if not chosen:
        raise ValueError(
            f"split: {path} has no file of {split!r}, such as {split}-00000-of-00001.parquet; found "
            f"{', '.join(present) or 'files that name no split: leave split out'}"
        )
    return chosen


def _split_named(file: Path, root: Path) -> str | None:
    """The split that a Parquet file's name, or that of a folder on the way to it, tells: as `publish_dataset` writes
    them, test-00000-of-00001.parquet, or test.parquet, or test/anything.parquet."""
    numbered = re.fullmatch(r"(.+?)-\d+(-of-\d+)?", file.stem)
    if numbered:
        return numbered[1]
    folders = () if root.is_file() else file.relative_to(root).parts[-2::-1]
    return next((part for part in (file.stem, *folders) if part in SIDES), None)


def fetch_media(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with the bytes of media that lie at an address and not on this machine, as streamed data sets name them.

    What cannot be fetched stays as it is: whoever opens it says what is wrong.
    """
    fetched = dict(row)
    for name in ("audio", "video"):
        media = row.get(name)
        if isinstance(media, Mapping) and media.get("bytes") is None and "://" in str(media.get("path") or ""):
            with suppress(OSError, ValueError), fsspec.open(media["path"], "rb") as file:
                fetched[name] = {"path": media["path"], "bytes": file.read()}
    return fetched
