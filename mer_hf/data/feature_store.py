"""States of frozen backbones, computed once a clip and kept: folds, seeds and heads share them.

    store = FeatureStore("runs/features", model, processor)   # a model with the backbones; its head is not used
    clips = store.examples(rows, model.config.label2id)       # a Dataset with `audio_embeds`, ... for the same model
    print(store.report())

An entry is found by what it was made of: the clip's content, the backbone's configuration and weights, and what comes
before the backbone. When one of these changes the entry is not found, whatever the names of files say.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .collator import MODALITIES, ClipDataset
from .feature_keys import backbone_hash, preprocessing, row_content, sha256_of
from .feature_shards import FeatureShards
from .features import cache_embeds
from .length_grouping import LengthBatchSampler, row_seconds
from .whole_files import UNFINISHED

STORE_VERSION = 1
"""Raise it when decoding, preprocessing, a front end of ours or what is made of states changes: all is made anew."""
FIELDS = {
    "audio": ("audio_embeds", "begins"),
    "text": ("text_embeds", "word_times"),
    "vision": ("vision_embeds", "vision_times"),
}
"""What of an example an entry of each modality holds."""
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SHARD_BYTES = 32 * 2**20
"""States of about 90 clips of 4.5 s from wav2vec2-base: what a kill can lose."""
CLIPS_AT_ONCE = 32

Row = Mapping[str, Any]


class FeatureStore:
    """Backbone states of clips in a folder of memory-mapped shards; see the module.

    model: a MerPreTrainedModel with the backbones; processor: its MerProcessor. modalities: whose states are kept,
    None = all that the model has a backbone for. dtype: float16 (half the disk, states to 3 digits), bfloat16 or
    float32. shard_bytes: after which a shard is written.

    `failed`: why a clip gave no states, by row id. Several stores, of several processes too, may use one folder.

    Raises:
        ValueError: another dtype; a modality without a backbone.
    """

    def __init__(
        self,
        folder: str | PathLike,
        model: Any,
        processor: Any,
        modalities: Collection[str] | None = None,
        dtype: str = "float16",
        shard_bytes: int = SHARD_BYTES,
    ):
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, found {dtype!r}")
        backbones = {modality: getattr(model, f"{modality}_model") for modality in MODALITIES}
        wanted = [m for m in MODALITIES if (backbones[m] is not None if modalities is None else m in modalities)]
        lacking = [modality for modality in wanted if backbones[modality] is None]
        if lacking or not wanted:
            raise ValueError(f"modalities: the model has no {' and no '.join(lacking) or 'raw'} backbone")
        self.model, self.processor, self.dtype, self.shard_bytes = model, processor, DTYPES[dtype], shard_bytes
        self.modalities = tuple(wanted)
        self.made_by = {
            modality: sha256_of(
                [STORE_VERSION, dtype, backbone_hash(backbones[modality]), preprocessing(processor, modality)]
            )
            for modality in wanted
        }
        self.shards = FeatureShards(folder)
        self.failed: dict[str, str] = {}
        self.hits = self.misses = 0

    # Keys

    def key(self, modality: str, row: Row) -> str | None:
        """Of what an entry is found by; None where the row lacks the modality.

        Raises:
            MediaError: the row's file is not there.
        """
        content = row_content(modality, row)
        if content is None:
            return None
        # Where silence is trimmed, times of words and frames count from where the sound begins.
        trimmed = modality != "audio" and self.processor.trim_db is not None and row["audio"] is not None
        return sha256_of([modality, self.made_by[modality], content, row_content("audio", row) if trimmed else None])

    def keys(self, row: Row) -> list[str]:
        """Those of the modalities that the row has; what cannot be opened goes to `failed`."""
        try:
            found = [self.key(modality, row) for modality in self.modalities]
        except (ValueError, OSError) as error:
            self.failed[row["id"]] = str(error)
            return []
        return [key for key in found if key is not None]

    # Filling

    def fill(
        self,
        rows: Sequence[Row],
        seconds: float = 120.0,
        rank: int = 0,
        world: int = 1,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Compute what is not there yet, clips of like length together; what cannot be read goes to `failed`.

        rows: of the schema. seconds: of sound in a batch at most, padding included. rank, world: of several processes
        that fill one folder from the same rows, each of which takes and counts its share; `refresh` when all are done.
        progress: called with (modality, clips done, clips to do).

        Raises:
            ValueError: a rank that is not below world; states that float16 cannot hold.
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank} of world {world} processes; count ranks from 0")
        self.refresh()
        for row in rows:
            self.failed.pop(row["id"], None)
        found = [row for row in rows if self.keys(row) or row["id"] not in self.failed]
        for modality in self.modalities:
            missing: dict[str, Row] = {}
            places: dict[str, int] = {}
            for row in found:
                key = self.key(modality, row)
                # By place among all clips: which of them are missing, processes that write meanwhile see differently.
                if key is None or places.setdefault(key, len(places)) % world != rank:
                    continue
                if key in missing or self.shards.intact(key):
                    self.hits += 1
                else:
                    missing[key] = row
            self.misses += len(missing)
            if missing:
                self._extract(modality, missing, seconds, progress)

    def refresh(self) -> None:
        """See what other processes wrote since."""
        self.shards.refresh()

    def _extract(self, modality: str, missing: Mapping[str, Row], seconds: float, progress: Any) -> None:
        keys, rows = list(missing), list(missing.values())
        lengths = [1.0 if modality == "vision" else row_seconds(row) for row in rows]
        pending: dict[str, dict[str, Tensor]] = {}
        done = 0
        try:
            for batch in LengthBatchSampler(lengths, CLIPS_AT_ONCE, seconds, shuffle=False):
                pending |= self._states(modality, {keys[index]: rows[index] for index in batch})
                done += len(batch)
                if sum(t.nbytes for tensors in pending.values() for t in tensors.values()) >= self.shard_bytes:
                    self._write(modality, pending)
                    pending = {}
                if progress is not None:
                    progress(modality, done, len(rows))
        finally:  # Ctrl-C loses nothing that was computed
            if pending:
                self._write(modality, pending)

    def _states(self, modality: str, missing: Mapping[str, Row]) -> dict[str, dict[str, Tensor]]:
        """The entries of a few clips that are run together."""
        decode = {modality, "audio"} if self.processor.trim_db is not None else {modality}
        examples = {}
        for key, row in missing.items():
            try:
                examples[key] = ClipDataset([row], self.processor, modalities=decode)[0]
            except (ValueError, OSError) as error:
                self.failed[row["id"]] = str(error)
        computed = cache_embeds(self.model, list(examples.values()), (modality,), CLIPS_AT_ONCE)
        return {key: self._stored(modality, example) for key, example in zip(examples, computed, strict=True)}

    def _stored(self, modality: str, example: Mapping[str, Any]) -> dict[str, Tensor]:
        tensors = {name: torch.as_tensor(example[name]) for name in FIELDS[modality] if name in example}
        if "begins" in tensors:
            tensors["begins"] = torch.tensor(example["begins"], dtype=torch.float64)  # as precise as it came
        states = tensors.get(f"{modality}_embeds")
        if states is not None:
            tensors[f"{modality}_embeds"] = kept = states.to(self.dtype)
            if not kept.isfinite().all() and states.isfinite().all():
                largest = f"{modality} states reach {states.abs().max():.3g}"
                raise ValueError(f'{largest}, too much for dtype "float16"; make the store with dtype="bfloat16"')
        return tensors

    def _write(self, modality: str, pending: Mapping[str, Mapping[str, Tensor]]) -> None:
        about = {"modality": modality, "made_by": self.made_by[modality]}
        self.shards.write(pending, dict.fromkeys(pending, about))

    # Reading

    def examples(
        self,
        rows: Sequence[Row],
        label2id: Mapping[str, int] | None = None,
        raw: Collection[str] = (),
        transform: Callable[[Row, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> "StoredClips":
        """The clips as examples for the same model, with states in place of raw input; computed now where missing.

        label2id, transform: as of `ClipDataset`. raw: modalities to decode as they are, such as one whose backbone is
        trained.

        Raises:
            ValueError: as `fill` and `ClipDataset`; a clip that cannot be read (`failed` has all, after `fill`).
        """
        self.fill(rows)
        return StoredClips(self, rows, label2id, raw, transform)

    # Accounts

    @property
    def stale(self) -> list[str]:
        """Keys of what another backbone, preprocessing, precision or version made of modalities kept here."""
        made = [(key, entry.about) for key, entry in self.shards.entries.items()]
        return [key for key, by in made if by["made_by"] != self.made_by.get(by["modality"], by["made_by"])]

    def report(self) -> dict[str, Any]:
        """Size of the folder and what was asked of it through this object; ready for JSON.

        hits, misses: clips and modalities that `fill` found and computed; stale: entries no longer used; damaged:
        files and entries that are not what was written.
        """
        asked = self.hits + self.misses
        return {
            "entries": len(self.shards.entries),
            "shards": len(self.shards.files),
            "bytes": sum(file.stat().st_size for file in self.shards.files),
            "hits": self.hits,
            "misses": self.misses,
            "hit_rate": self.hits / asked if asked else None,
            "failed": len(self.failed),
            "stale": len(self.stale),
            "damaged": len(self.shards.damaged),
        }

    def prune(self) -> int:
        """Delete shards in which nothing is of use to this store, and what killed processes left; returns bytes freed.

        Not while another process fills the folder, nor where other backbones' states in it are still wanted.
        """
        stale = set(self.stale)
        used = {entry.file for key, entry in self.shards.entries.items() if key not in stale}
        freed = 0
        for file in [*self.shards.files, *self.shards.folder.glob(f".*{UNFINISHED}")]:
            if file not in used:
                freed += file.stat().st_size
                self.shards.remove(file)
        return freed


class StoredClips(Dataset):
    """Rows whose states are in a store, read from its memory-mapped shards when they are asked for."""

    def __init__(
        self,
        store: FeatureStore,
        rows: Sequence[Row],
        label2id: Mapping[str, int] | None = None,
        raw: Collection[str] = (),
        transform: Callable[[Row, dict[str, Any]], dict[str, Any]] | None = None,
    ):
        twice = sorted(set(raw) & set(store.modalities))
        if twice:
            raise ValueError(f"raw: {', '.join(twice)} come from the store; make one without them")
        if raw and store.processor.trim_db is not None:
            raise ValueError("raw: times of a trimmed clip are known with its sound only; use trim_db=None")
        self.rows, self.clips = rows, ClipDataset(rows, store.processor, label2id, raw)
        self.shards, self.transform = store.shards, transform  # not the store: its model need not go to workers
        self.keys = [store.keys(row) for row in rows]
        there = store.shards.entries.keys()
        absent = [
            r["id"] for r, k in zip(rows, self.keys, strict=True) if r["id"] in store.failed or not there >= set(k)
        ]
        if absent:
            reason = store.failed.get(absent[0], "call the store's fill, or examples, with these rows first")
            raise ValueError(f"rows: {len(absent)} clips have no states, such as {absent[0]!r}: {reason}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.clips[index]
        for key in self.keys[index]:
            stored = self.shards.read(key)
            example |= {name: value.item() if name == "begins" else value for name, value in stored.items()}
        return example if self.transform is None else self.transform(self.rows[index], example)

    @property
    def lengths(self) -> np.ndarray:
        """Places of each clip's longest sequence, for `LengthBatchSampler`; no states are read."""
        shapes = [[self.shards.shapes(key) for key in keys] for keys in self.keys]
        return np.array([max([0, *(s[0] for e in entry for s in e.values() if s)]) for entry in shapes], dtype=float)
