"""Tensors by key in append-only, memory-mapped safetensors files, each of which appears whole or not at all.

A shard's header says what it holds and the hash of each entry, so that a file is all there is to look at: no index can
disagree with it, a kill loses at most what was not written yet, and processes that write at once never meet.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .whole_files import write_whole

PATTERN = "features-*.safetensors"
INDEX = "mer_hf.entries"


class Entry(NamedTuple):
    """Where an entry lies and what its writer said of it."""

    file: Path
    fields: tuple[str, ...]
    sha256: str
    about: dict[str, str]


class FeatureShards:
    """The shards of a folder. `entries`: what of them can be opened, by key; `damaged`: files and keys that cannot be
    used, with the reason.

    An entry is compared with its hash before it is first used; one that differs is as if it were not there.
    """

    def __init__(self, folder: str | PathLike):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.entries: dict[str, Entry] = {}
        self.damaged: dict[str, str] = {}
        self._intact: set[str] = set()
        self._open: dict[Path, Any] = {}
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a worker process maps the files itself

    def refresh(self) -> None:
        """Read the headers of shards that appeared since, from other processes too."""
        for file in sorted(self.folder.glob(PATTERN)):
            if file not in self._open and file.name not in self.damaged:
                self._add(file)

    def _add(self, file: Path) -> None:
        try:
            listed = json.loads((self._mapped(file).metadata() or {})[INDEX])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            self.damaged[file.name] = f"not a whole shard: {error}"
            return
        for key, entry in listed.items():
            self.entries[key] = Entry(file, tuple(entry["fields"]), entry["sha256"], entry["about"])

    def _mapped(self, file: Path) -> Any:
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        return self._open[file]

    def intact(self, key: str) -> bool:
        """Whether there is such an entry, and it is what was written."""
        if key in self._intact:
            return True
        if key not in self.entries:
            return False
        if digest(self._tensors(key)) != self.entries[key].sha256:
            self.damaged[key] = f"differs from its hash in {self.entries.pop(key).file.name}"
            return False
        self._intact.add(key)
        return True

    def read(self, key: str) -> dict[str, Tensor]:
        """The tensors of an entry, by field.

        Raises:
            KeyError: there is no such entry, or it is damaged.
        """
        if not self.intact(key):
            raise KeyError(key)
        return self._tensors(key)

    def shapes(self, key: str) -> dict[str, tuple[int, ...]]:
        """Shapes by field, from the header alone; KeyError where there is no such entry."""
        mapped = self._mapped(self.entries[key].file)
        return {name: tuple(mapped.get_slice(f"{key}.{name}").get_shape()) for name in self.entries[key].fields}

    def _tensors(self, key: str) -> dict[str, Tensor]:
        entry = self.entries[key]
        mapped = self._mapped(entry.file)
        return {name: mapped.get_tensor(f"{key}.{name}") for name in entry.fields}

    def write(self, entries: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Mapping[str, str]]) -> None:
        """A new shard with these entries, each with what `about` says of it."""
        listed = {
            key: {"fields": list(tensors), "sha256": digest(tensors), "about": dict(about[key])}
            for key, tensors in entries.items()
        }
        file = self.folder / PATTERN.replace("*", uuid.uuid4().hex)
        flat = {f"{key}.{name}": t.contiguous() for key, tensors in entries.items() for name, t in tensors.items()}
        write_whole(file, lambda unfinished: save_file(flat, unfinished, {INDEX: json.dumps(listed)}))
        self._add(file)

    def remove(self, file: Path) -> None:
        """Forget a shard and delete it."""
        self._open.pop(file, None)
        self.damaged.pop(file.name, None)
        self.entries = {key: entry for key, entry in self.entries.items() if entry.file != file}
        self._intact &= self.entries.keys()
        file.unlink(missing_ok=True)

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob(PATTERN))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()
