"""One commit to the Hub, looked at before it is made: what would go where, what stays here and why.

A commit is all or nothing. Large files arrive before it and are kept by their hash, so that a publication which was
cut off, run again, sends only what has not arrived; run again unchanged, it makes no commit.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.table import embed_table_storage
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError

ROWS_AT_ONCE = 100
"""Rows of a data set in memory, with their media, and in one row group of a Parquet file."""
LARGEST_FILE = 500_000_000
"""Bytes after which another Parquet file is begun."""

REPLACED = {"dataset": "data/*.parquet", "space": "mer_hf-*.whl"}
"""Of these, what was there before and is not published again is removed: it would be read along with the new."""

AGAIN = "Run it again: what has arrived is not sent twice, and what was committed is not committed twice."
REMEDIES = {
    401: "Log in with `hf auth login`, or set HF_TOKEN to a token of yours (huggingface.co/settings/tokens).",
    403: "Publish in a namespace of yours, with a token that may write there (huggingface.co/settings/tokens).",
    **dict.fromkeys((412, 429, 500, 502, 503, 504), AGAIN),
}
"""By the status of the Hub's answer."""

Contents = Mapping[str, Path | bytes]
"""Path in the repository -> the file, or what is to be in it."""


@dataclass(frozen=True)
class Publication:
    """What goes where, and after it went, the commit. `print` it."""

    repo_id: str
    repo_type: str
    """model, dataset or space"""
    files: Mapping[str, int]
    """path in the repository -> bytes"""
    left_out: Mapping[str, str]
    """what lies beside them and stays here -> why"""
    card: str
    """README.md as it goes up"""
    private: bool
    endpoint: str
    commit: CommitInfo | None = None
    """None = a dry run: nothing was sent"""
    removed: Sequence[str] = ()
    """what the repository held and the publication replaces by files of other names"""
    changed: bool = False
    """whether the commit is a new one: there is none where the repository held the same already"""

    @property
    def url(self) -> str:
        """Where it is, or would be, to be seen."""
        folder = "" if self.repo_type == "model" else f"{self.repo_type}s/"
        return f"{self.endpoint}/{folder}{self.repo_id}"

    def __str__(self) -> str:
        seen = "private" if self.private else "public"
        width = max(map(len, [*self.files, *self.left_out]))
        lines = [f"{seen} {self.repo_type} {self.repo_id} at {self.endpoint}: {len(self.files)} files"]
        lines += [f"  {path:<{width}}  {_size(size):>9}" for path, size in sorted(self.files.items())]
        lines += [f"  {'together':<{width}}  {_size(sum(self.files.values())):>9}"]
        if self.left_out:
            lines += ["left out", *(f"  {path:<{width}}  {why}" for path, why in sorted(self.left_out.items()))]
        if self.removed:
            lines += ["removed", *(f"  {path}" for path in self.removed)]
        if self.commit is None:
            lines.append("dry run: nothing was sent")
        else:
            lines.append(f"{'commit' if self.changed else 'nothing new since commit'} {self.commit.oid}")
            lines.append(self.url)
        return "\n".join(lines)


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError for what is not namespace/name; the Hub would take a bare name for one of its own."""
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ValueError(f"repo_id must be namespace/name, found {repo_id!r}")


def publish(
    contents: Contents,
    left_out: Mapping[str, str],
    repo_id: str,
    repo_type: str,
    *,
    private: bool,
    dry_run: bool,
    token: str | None,
    endpoint: str | None,
    message: str,
    space_sdk: str | None = None,
) -> Publication:
    """Make the repository, where it is not there, and one commit of all contents; of a dry run only the plan.

    Raises:
        ValueError: private=True for a repository that is public already; a Space that is private.
        HfHubHTTPError: what the Hub refuses, with a note of what to do about it.
        RuntimeError, ConnectionError: a file that did not arrive, a network that is not there or broke off.
    """
    card = contents["README.md"]
    plan = Publication(
        repo_id,
        repo_type,
        {path: len(item) if isinstance(item, bytes) else item.stat().st_size for path, item in contents.items()},
        left_out,
        (card if isinstance(card, bytes) else card.read_bytes()).decode(),
        private,
        endpoint or constants.ENDPOINT,
    )
    if dry_run:
        return plan
    try:
        return _commit(plan, contents, token, endpoint, message, space_sdk)
    except RuntimeError as error:
        error.add_note(AGAIN)
        raise
    except HTTPError as error:
        if isinstance(error, HfHubHTTPError):  # the Hub has answered
            if error.response.status_code in REMEDIES:
                error.add_note(REMEDIES[error.response.status_code])
            raise
        raise ConnectionError(f"{plan.endpoint} cannot be reached, or broke off: {error}. {AGAIN}") from error


def _commit(
    plan: Publication,
    contents: Contents,
    token: str | None,
    endpoint: str | None,
    message: str,
    space_sdk: str | None,
) -> Publication:
    api = HfApi(endpoint=endpoint, token=token, library_name="mer_hf")
    kind = {"repo_id": plan.repo_id, "repo_type": plan.repo_type}
    api.create_repo(**kind, private=plan.private or None, exist_ok=True, space_sdk=space_sdk)
    before = api.repo_info(**kind)
    if plan.private and not before.private:
        raise ValueError(f"private: {plan.repo_id} is there already and public; make it private, or publish elsewhere")
    if before.private and plan.repo_type == "space":
        raise ValueError(
            f"repo_id: {plan.repo_id} is private, so that its own builder could not fetch the wheel; make it public"
        )
    held = [file.rfilename for file in before.siblings or ()]
    removed = [path for path in fnmatch.filter(held, REPLACED.get(plan.repo_type, "")) if path not in contents]
    operations = [CommitOperationAdd(path, item) for path, item in contents.items()]
    operations += [CommitOperationDelete(path) for path in removed]
    commit = api.create_commit(**kind, operations=operations, commit_message=message)
    changed = commit.oid != before.sha
    return replace(plan, commit=commit, changed=changed, removed=removed, private=bool(before.private))


def _size(size: int) -> str:
    power = min((len(str(size)) - 1) // 3, 3)
    return f"{size / 1000**power:.{min(power, 1)}f} {('B', 'kB', 'MB', 'GB')[power]}"


def write_parquet(part: Dataset, split: str, directory: str | PathLike, with_media: bool) -> list[Path]:
    """A split as `<split>-00000-of-00001.parquet` and so on, the same bytes each time.

    with_media: whether the bytes of sound and pictures are inside, with the names of their files but not where these
    lay; without, the columns `audio` and `video` are null.
    """
    batches = iter(part.with_format("arrow").iter(batch_size=ROWS_AT_ONCE))
    files: list[Path] = []
    batch = next(batches, None)
    while batch is not None or not files:
        files.append(Path(directory) / f"{split}-{len(files)}.parquet")
        with open(files[-1], "wb") as file, pq.ParquetWriter(file, part.features.arrow_schema) as writer:
            while batch is not None and file.tell() < LARGEST_FILE:
                writer.write_table(embed_table_storage(batch) if with_media else _without_media(batch))
                batch = next(batches, None)
    names = [f"{split}-{number:05}-of-{len(files):05}.parquet" for number in range(len(files))]
    return [file.rename(file.with_name(name)) for file, name in zip(files, names, strict=True)]


def _without_media(batch: pa.Table) -> pa.Table:
    for column in ("audio", "video"):
        field = batch.schema.field(column)
        batch = batch.set_column(batch.column_names.index(column), field, pa.nulls(len(batch), field.type))
    return batch
