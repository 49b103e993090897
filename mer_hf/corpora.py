"""Corpora ready for experiments: rows, splits, word times, face scores; and the fixed vector of each clip.

corpus = load_corpus("ravdess", "RAVDESS", face_scores="face_scores.parquet", cache_dir="runs/cache")
"""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import (
    AlignmentError,
    FilterbankStatisticsConfig,
    MerProcessor,
    MMANConfig,
    MMANForEmotionClassification,
    WordAligner,
    load_audio,
)
from .data.collator import ClipDataset
from .data.controlled import load_controlled
from .data.face_scores import load_face_scores
from .data.features import cache_embeds
from .data.protocols import FoldSplit, official_split
from .data.ravdess import ravdess_splits, scan
from .data.schema import EMOTIONS
from .training import process_state

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
ALIGNER_VERSION = 1
"""Raise it when `WordAligner` places words otherwise: cached times are then made anew."""


def audio_vector_config() -> FilterbankStatisticsConfig:
    """The fixed vector of a clip's speech, the same for MMAN and for the logistic regression it is held against.

    Without the silence around the words the floor gains 9 points on RAVDESS's validation folds (trim_db 30; 15 to 35
    are within 1 point of it).
    """
    return FilterbankStatisticsConfig(trim_db=30.0)


@dataclass(frozen=True)
class Corpus:
    """Rows of the common schema, how they are split, and what else is known of each clip.

    extras: by row id, fields to add to its example, such as {"vision_embeds": (frames, 7), "vision_times": (frames,)}.
    notes: what a results file says about the data, ready for JSON.
    """

    name: str
    rows: Sequence[Row]
    splits: Sequence[FoldSplit]
    labels: Sequence[str]
    extras: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def label2id(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}

    @cached_property
    def by_id(self) -> dict[str, Row]:
        return {row["id"]: row for row in self.rows}

    @cached_property
    def vision_width(self) -> int | None:
        """Width of the extras' `vision_embeds`; None where no clip has any."""
        tracks = (extra["vision_embeds"] for extra in self.extras.values() if "vision_embeds" in extra)
        first = next(tracks, None)
        return None if first is None else first.shape[-1]

    @cached_property
    def sha256(self) -> str:
        """Of everything a model can see but the sound itself: ids, labels, words with times, extras."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps([row[c] for c in ("id", "speaker", "label", "text", "words")]).encode())
            for name, value in sorted(self.extras.get(row["id"], {}).items()):
                digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def audio_vectors(self) -> dict[str, Tensor]:
        """One fixed vector a clip by row id, (1, 240): `audio_vector_config`. Clips without sound have none."""
        config = MMANConfig(audio_config=audio_vector_config(), network="unimodal")
        backbone = MMANForEmotionClassification(config)
        clips = ClipDataset(self.rows, MerProcessor.default(), modalities=("audio",))
        found = cache_embeds(backbone, clips, ("audio",))
        return {
            row["id"]: example["audio_embeds"]
            for row, example in zip(self.rows, found, strict=True)
            if "audio_embeds" in example
        }

    @cached_property
    def vision_vectors(self) -> dict[str, Tensor]:
        """Mean, standard deviation and maximum over the frames of the extras' `vision_embeds`, (1, 3 * width)."""
        tracks = {i: extra["vision_embeds"] for i, extra in self.extras.items() if "vision_embeds" in extra}
        return {
            i: torch.cat([track.mean(0), track.std(0, correction=0), track.amax(0)])[None]
            for i, track in tracks.items()
        }


# Loading


def load_corpus(
    name: str,
    data_dir: str | PathLike,
    cache_dir: str | PathLike,
    folds: str | Sequence[Collection[int]] = "emobox",
    face_scores: str | PathLike | None = None,
) -> Corpus:
    """A corpus by name, from the user's own copy, with word times where the words can be placed.

    name: "ravdess" (`folds` as for `ravdess_splits`, `face_scores` the published Parquet file) or "controlled", a
    generated corpus with its own split. cache_dir: where word times are kept, by content. Under `torchrun` the first
    process fills it and the others read it.

    Raises:
        ValueError: an unknown name, face scores for another corpus than RAVDESS, and what its loader refuses.
    """
    if name not in ("ravdess", "controlled"):
        raise ValueError(f"corpus must be ravdess or controlled, found {name!r}")
    if name == "controlled" and face_scores is not None:
        raise ValueError(f"face_scores are RAVDESS's; the corpus is {name!r}")
    with process_state().main_process_first():
        if name == "ravdess":
            rows = scan(data_dir).rows
            splits = ravdess_splits(rows, folds)
        else:
            rows = [row for part in load_controlled(data_dir, Path(cache_dir) / "datasets").values() for row in part]
            splits = [official_split(rows, "controlled", "dialogue_id")]
        rows, unaligned = align_rows(rows, Path(cache_dir) / "words.json")
    extras, face_notes = _faces(face_scores, [row["id"] for row in rows])
    present = {row["label"] for row in rows}
    notes = {
        "clips": len(rows),
        "speakers": len({row["speaker"] for row in rows}),
        "clips_without_word_times": unaligned,
        **face_notes,
    }
    return Corpus(name, rows, splits, [label for label in EMOTIONS if label in present], extras, notes)


def _faces(path: str | PathLike | None, ids: Sequence[str]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    if path is None:
        return {}, {"face": None}
    found = load_face_scores(path)
    extras = {
        i: {"vision_embeds": torch.from_numpy(track.scores), "vision_times": torch.from_numpy(track.times)}
        for i in ids
        if (track := found.get(i)) is not None
    }
    if not extras:
        raise ValueError(f"face_scores {str(path)!r} has no track for any of the {len(ids)} clips")
    source = "seven emotion scores a frame, computed and published by a third party"
    return extras, {"face": source, "clips_without_face": found.missing(ids)}


def align_rows(
    rows: Sequence[Row],
    cache_file: str | PathLike,
    aligner: WordAligner | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows with `words`, where they had none and the transcript can be placed; and why not, by row id.

    Times are cached in a JSON file by a hash of the audio file and the words, refusals too. A row that cannot be
    aligned keeps its text and has words None. progress: called with (rows done, rows).
    """
    cache_file = Path(cache_file)
    cache = json.loads(cache_file.read_text()) if cache_file.is_file() else {}
    known, aligner = len(cache), aligner or WordAligner()
    aligned, refused = [], {}
    for number, row in enumerate(rows, 1):
        row = dict(row)
        if not row["words"] and row["text"] and row["audio"] is not None:
            key = _content_key(row)
            if key not in cache:
                cache[key] = _align(aligner, row)
            row["words"] = cache[key] if isinstance(cache[key], list) else None
            refused |= {} if row["words"] else {row["id"]: cache[key]}
        aligned.append(row)
        if progress is not None:
            progress(number, len(rows))
    if len(cache) > known:
        write_json(cache_file, cache)
    if refused:
        logger.warning("%d of %d clips have no word times, such as %s", len(refused), len(rows), next(iter(refused)))
    return aligned, refused


def _align(aligner: WordAligner, row: Row) -> list[dict[str, Any]] | str:
    try:
        return [dict(word) for word in aligner.align(load_audio(row["audio"]), row["text"]).words]
    except AlignmentError as error:
        return str(error)


def _content_key(row: Row) -> str:
    audio = row["audio"]["path"] if isinstance(row["audio"], Mapping) else row["audio"]
    digest = hashlib.sha256(json.dumps([ALIGNER_VERSION, row["text"]]).encode())
    digest.update(Path(audio).read_bytes())
    return digest.hexdigest()


def write_json(file: Path, values: Any) -> None:
    """Whole or not at all: an interrupted run leaves no half of a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(file)
