"""One's own clips as a corpus: a manifest that names them, or a folder of folders named by emotion.

    scan("clips/metadata.csv", columns={"audio": "clip", "label": "mood"}, labels={"mad": "angry"})
    scan("clips", speaker_from=r"([a-z]+)_\\d+")        # clips/happy/anna_01.wav, clips/angry/take2/bert_07.mp4

A manifest is a table with a header (.csv, .tsv, .parquet) or JSON objects (.jsonl, or .json with lines or one list),
one clip a row, its files relative to the manifest. Columns are known by their usual names or by `columns`, label
words by their usual forms or by `labels`. The labels are the schema's fixed set: a class that none of EMOTIONS stands
for cannot be used.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from .class_folders import HIDDEN, NOT_MEDIA, list_class_folders
from .field_values import label_words, refuse_unknown_labels
from .folder_rows import RowMaker
from .manifests import MANIFEST_TYPES, UNUSED_COLUMN, Entry, find_manifest, read_manifest
from .scanning import CorpusBuilder, CorpusConfig, Scan, Skipped
from .schema import FEATURES

HARMLESS = frozenset({NOT_MEDIA, HIDDEN, UNUSED_COLUMN})
"""Reasons that are listed but not worth a warning: they are no sign of damage."""


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
    columns: field (`manifests.FIELDS`) -> the manifest's column; "" = none. Others find theirs by its usual name.
    labels: the user's label word -> one of EMOTIONS, beside and before the usual words of `field_values.LABEL_WORDS`.
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
    maker = RowMaker(root, label_words(labels), _speaker_pattern(speaker_from, entries), check_media, corpus)
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
