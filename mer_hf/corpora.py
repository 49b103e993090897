"""Corpora ready for experiments: rows, splits, word times, face scores; and the fixed vector of each clip.

corpus = load_corpus("ravdess", "RAVDESS", "runs/cache", protocol="ravdess-emobox", face_scores="face_scores.parquet")
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import (
    AlignmentError,
    CTCWordAligner,
    FilterbankStatisticsConfig,
    MerProcessor,
    MMANConfig,
    MMANForEmotionClassification,
    WordAligner,
    load_audio,
)
from .data import crema_d, folder, iemocap, meld, ravdess
from .data.collator import ClipDataset
from .data.controlled import load_controlled
from .data.face_scores import load_face_scores
from .data.feature_store import FeatureStore
from .data.features import cache_embeds
from .data.named_protocols import Protocol, choose_protocol
from .data.protocols import FoldSplit
from .data.scanning import Scan, audio_hashes
from .data.schema import EMOTIONS
from .data.whole_files import write_whole
from .training import process_state

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
Aligner = WordAligner | CTCWordAligner
ALIGNER_VERSION = 1
"""Raise it when `WordAligner` places words otherwise: cached times are then made anew."""
CTC_VERSION = 1
"""The same of `CTCWordAligner`."""


def audio_vector_config() -> FilterbankStatisticsConfig:
    """The fixed vector of a clip's speech, the same for MMAN and for the logistic regression it is held against.

    Without the silence around the words the floor on RAVDESS's validation folds is 51.2 % and not 41.5 % (WA; beside
    the face 69.8 and not 67.6); trim_db from 15 to 35 is within 1 point of 30.
    """
    return FilterbankStatisticsConfig(trim_db=30.0)


@dataclass(frozen=True)
class Corpus:
    """Rows of the common schema, how they are split, and what else is known of each clip.

    extras: by row id, fields to add to its example, such as {"vision_embeds": (frames, 7), "vision_times": (frames,)}.
    notes: what a results file says about the data, ready for JSON. protocol: the one that the splits are of.
    audio_hashes: of each row's sound by id, where they were taken; vectors_dir: where its fixed vectors are kept.
    """

    name: str
    rows: Sequence[Row]
    splits: Sequence[FoldSplit]
    labels: Sequence[str]
    extras: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    protocol: Protocol | None = None
    audio_hashes: Mapping[str, str] = field(default_factory=dict)
    vectors_dir: Path | None = None

    @cached_property
    def label2id(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}

    @cached_property
    def by_id(self) -> dict[str, Row]:
        return {row["id"]: row for row in self.rows}

    @cached_property
    def has_audio(self) -> bool:
        """Whether any clip has sound."""
        return any(row["audio"] is not None for row in self.rows)

    @cached_property
    def has_text(self) -> bool:
        """Whether any clip has words."""
        return any(row["text"] for row in self.rows)

    @cached_property
    def cluster(self) -> str:
        """The column that intervals resample: speakers, or what the protocol keeps apart where speakers recur."""
        by_dialogue = self.protocol is not None and self.protocol.unit == "dialogue_id"
        unnamed = any(row["speaker"] is None for row in self.rows)
        return "dialogue_id" if by_dialogue else "id" if unnamed else "speaker"

    @cached_property
    def protocol_notes(self) -> dict[str, str]:
        """Beside every result: what is apart on the sides of a fold, who uses it, what intervals resample."""
        if self.protocol is None:
            return {"clusters": self.cluster}
        own = self.protocol
        return {"unit": own.unit, "source": own.source, "metric": own.metric, "clusters": self.cluster}

    @cached_property
    def vision_width(self) -> int | None:
        """Width of the extras' `vision_embeds`; None where no clip has any."""
        tracks = (extra["vision_embeds"] for extra in self.extras.values() if "vision_embeds" in extra)
        first = next(tracks, None)
        return None if first is None else first.shape[-1]

    @cached_property
    def sha256(self) -> str:
        """Of everything a model can see: ids, labels, words with times, extras, and the sound where it was hashed."""
        digest = hashlib.sha256()
        for row in self.rows:
            seen = [row[column] for column in ("id", "speaker", "label", "text", "words")]
            digest.update(json.dumps([*seen, self.audio_hashes.get(row["id"])]).encode())
            for name, value in sorted(self.extras.get(row["id"], {}).items()):
                digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def audio_vectors(self) -> dict[str, Tensor]:
        """One fixed vector a clip by row id, (1, 240): `audio_vector_config`. Clips without sound have none.

        Kept in `vectors_dir` (None = nowhere), where a `FeatureStore` computes a clip once.
        """
        model = MMANForEmotionClassification(MMANConfig(audio_config=audio_vector_config(), network="unimodal"))
        heard, processor = [row for row in self.rows if row["audio"] is not None], MerProcessor.default()
        if self.vectors_dir is None:
            clips = cache_embeds(model, ClipDataset(heard, processor, modalities=("audio",)), ("audio",))
        else:
            clips = FeatureStore(self.vectors_dir, model, processor, ("audio",), dtype="float32").examples(heard)
        found = zip(heard, clips, strict=True)
        return {row["id"]: clip["audio_embeds"] for row, clip in found if "audio_embeds" in clip}

    @cached_property
    def vision_vectors(self) -> dict[str, Tensor]:
        """Mean, standard deviation and maximum over the frames of the extras' `vision_embeds`, (1, 3 * width)."""
        tracks = {i: extra["vision_embeds"] for i, extra in self.extras.items() if "vision_embeds" in extra}
        return {
            i: torch.cat([track.mean(0), track.std(0, correction=0), track.amax(0)])[None]
            for i, track in tracks.items()
        }


# Loading

SCANS: dict[str, Callable[..., Scan]] = {
    "iemocap": iemocap.scan,
    "ravdess": ravdess.scan,
    "meld": meld.scan,
    "crema_d": crema_d.scan,
    "folder": folder.scan,
}
"""What reads the user's copy of each corpus; "controlled" is generated."""
CORPORA = (*SCANS, "controlled")


def load_corpus(
    name: str,
    data_dir: str | PathLike,
    cache_dir: str | PathLike,
    protocol: str | None = None,
    face_scores: str | PathLike | None = None,
    aligner: Aligner | None = None,
    **options: Any,
) -> Corpus:
    """A corpus by name, from the user's own copy, under a named protocol, with word times where words can be placed.

    name: one of CORPORA; "folder" is one's own data. protocol: see `named_protocols`, None = the corpus's usual one.
    face_scores: the published Parquet file for RAVDESS. aligner: `WordAligner` (None) or `CTCWordAligner`, for rows
    without word times. options: of the corpus's `scan`, such as channel="song". cache_dir: where word times and fixed
    vectors are kept, by content, and `<name>-report.json`, which lists what of the copy gave no row. Under `torchrun`
    the first process fills it and the others read it.

    Raises:
        ValueError: an unknown name, face scores for another corpus than RAVDESS, and what scan and protocol refuse.
    """
    if name not in CORPORA:
        raise ValueError(f"corpus must be one of {', '.join(CORPORA)}, found {name!r}")
    if name != "ravdess" and face_scores is not None:
        raise ValueError(f"face_scores are RAVDESS's; the corpus is {name!r}")
    cache_dir = Path(cache_dir)
    with process_state().main_process_first():
        found = read_rows(name, data_dir, cache_dir, **options)
        hashes = audio_hashes(found.rows)
        chosen = choose_protocol(protocol, name, found.rows)
        rows, splits, left_out = chosen.apply(found.rows, hashes)
        rows, unaligned = align_rows(rows, cache_dir / "words.json", aligner)
    extras, face_notes = _faces(face_scores, [row["id"] for row in rows])
    present = {row["label"] for row in rows}
    notes = {
        "clips": len(rows),
        "speakers": len({row["speaker"] for row in rows} - {None}),
        "skipped": found.skip_counts,
        "left_out_by_label": left_out,
        "clips_without_word_times": unaligned,
        **face_notes,
    }
    labels = [label for label in EMOTIONS if label in present]
    return Corpus(name, rows, splits, labels, extras, notes, chosen, hashes, cache_dir / "vectors")


def read_rows(name: str, data_dir: str | PathLike, cache_dir: str | PathLike, **options: Any) -> Scan:
    """The rows of a copy, without protocol or alignment, and a report of what gave none in cache_dir; arguments and
    errors as `load_corpus`."""
    cache_dir = Path(cache_dir)
    if name == "controlled":
        parts = load_controlled(data_dir, cache_dir / "datasets").values()
        return Scan([row for part in parts for row in part], [])
    found = SCANS[name](data_dir, **options)
    report = cache_dir / f"{name}-report.json"
    if process_state().is_main_process:
        found.write_report(report)
    if found.skipped or found.incomplete:
        logger.warning("%s: %d rows%s; all are listed in %s", name, len(found.rows), found.counts(), report)
    return found


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
    aligner: Aligner | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows with `words`, where they had none and the transcript can be placed; and why not, by row id.

    Times are cached in a JSON file by a hash of the audio file, the words and the aligner, refusals too. A row that
    cannot be aligned keeps its text and has words None. progress: called with (rows done, rows).
    """
    cache_file = Path(cache_file)
    cache = json.loads(cache_file.read_text()) if cache_file.is_file() else {}
    known, aligner = len(cache), aligner or WordAligner()
    by = [CTC_VERSION, aligner.fingerprint] if isinstance(aligner, CTCWordAligner) else [ALIGNER_VERSION]
    aligned, refused = [], {}
    for number, row in enumerate(rows, 1):
        row = dict(row)
        if not row["words"] and row["text"] and row["audio"] is not None:
            key = _content_key(row, by)
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


def _content_key(row: Row, by: Sequence[Any]) -> str:
    audio = row["audio"]["path"] if isinstance(row["audio"], Mapping) else row["audio"]
    digest = hashlib.sha256(json.dumps([*by, row["text"]]).encode())
    digest.update(Path(audio).read_bytes())
    return digest.hexdigest()


def write_json(file: Path, values: Any) -> None:
    """Whole or not at all: an interrupted run leaves no half of a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(values, indent=1) + "\n"
    write_whole(file, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
