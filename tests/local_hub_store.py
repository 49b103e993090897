"""What the tests' Hub keeps: repositories with their history, and what of a card it refuses."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-sa-4.0", "gpl-3.0", "odbl", "cc0-1.0", "other", "unknown"}
"""A few of those that huggingface.co knows; it refuses others, and so does this."""


class HubError(Exception):
    """An answer that is a refusal; `code` is the word by which clients tell what was not found."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit


class Blob(NamedTuple):
    """A file's content, and whether it is stored beside git."""

    data: bytes
    large: bool

    @property
    def oid(self) -> str:
        """SHA-256 of a large file; of any other, git's SHA-1."""
        if self.large:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


class Commit(NamedTuple):
    sha: str
    title: str
    files: dict[str, Blob]


@dataclass
class Repo:
    private: bool
    sdk: str | None
    commits: list[Commit] = field(default_factory=lambda: [Commit("0" * 40, "initial commit", {})])

    def at(self, revision: str) -> Commit:
        """The commit a revision names: "main" or a hash."""
        if revision == "main":
            return self.commits[-1]
        for commit in self.commits:
            if commit.sha == revision:
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def tree_entries(files: Mapping[str, Blob]) -> dict[str, dict[str, Any]]:
    """What the tree endpoint says of each file, and of each folder that files lie in, by path in order."""
    entries: dict[str, dict[str, Any]] = {}
    for path, blob in files.items():
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{blob.oid}\nsize {len(blob.data)}\n".encode()
        )
        entry = {"type": "file", "path": path, "size": len(blob.data), "oid": Blob(pointer, False).oid}
        large = {"lfs": {"oid": blob.oid, "size": len(blob.data), "pointerSize": len(pointer)}}
        entries[path] = entry | (large if blob.large else {"oid": blob.oid})
        for end in [place for place, letter in enumerate(path) if letter == "/"]:
            oid = hashlib.sha1(path[:end].encode()).hexdigest()
            entries[path[:end]] = {"type": "directory", "path": path[:end], "size": 0, "oid": oid}
    return dict(sorted(entries.items()))


def card_metadata(content: str) -> Any:
    """The YAML block at the top of a card; None = there is none."""
    block = re.match(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", content, re.DOTALL)
    return None if block is None else yaml.safe_load(block[1])


def card_errors(content: str) -> list[str]:
    """What of a card's metadata huggingface.co would refuse."""
    try:
        metadata = card_metadata(content)
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if metadata is None:
        return []
    if not isinstance(metadata, dict):
        return ["the metadata must be a mapping"]
    errors = []
    if metadata.get("license", "unknown") not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    for model in metadata.get("model-index") or ():
        for result in model.get("results", ()):
            if not {"task", "dataset", "metrics"} <= set(result) or not {"type", "name"} <= set(result["dataset"]):
                errors.append(f'"model-index": {model.get("name")} lacks task, dataset or metrics')
            errors += [f"{metric}: no value" for metric in result.get("metrics", ()) if "value" not in metric]
    return errors
