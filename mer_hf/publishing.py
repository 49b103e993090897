"""Publish a checkpoint, a corpus or a Space on the Hub: each in one commit, with its card, after a dry run.

    print(publish_model("runs/x/cme", "ann/cme", results=["runs/x/results.json"]))    # what would go where
    publish_model("runs/x/cme", "ann/cme", results=["runs/x/results.json"], dry_run=False)
    publish_dataset(Ravdess(data_dir="RAVDESS"), "ann/ravdess", dry_run=False)
    publish_space("spaces/emotion_demo", "ann/emotion-demo", dry_run=False)

All take token and endpoint of huggingface_hub's client, by default those that one is logged in with.
"""

import re
import zipfile
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import ModelCard, RepoCard, constants

from .card_results import confusion_picture
from .cards import PICTURE, TERMS, measure, render_dataset_card, render_model_card
from .checkpoint_files import as_json, checkpoint_files
from .data.controlled import ControlledCorpus
from .data.scanning import CorpusBuilder
from .plots import plotting_installed
from .uploads import Publication, check_repo_id, publish, write_parquet

MAKE_WHEEL = "make it with `pip wheel --no-deps --wheel-dir {} .` in the root of the repository"


# A checkpoint


def publish_model(
    checkpoint: str | PathLike,
    repo_id: str,
    *,
    results: Sequence[str | PathLike] = (),
    model_name: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] | None = None,
    private: bool = False,
    dry_run: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
) -> Publication:
    """Model, processor, code, card, and the results that it states with their picture.

    checkpoint: a folder, with folders of branches that are kept apart. What is no part of a checkpoint stays behind,
    and so do paths of this machine. A README.md and licence files of its own are published as they are; a card is made
    where there is none, or where results are given; results, model_name, license, datasets: as `render_model_card`.

    Raises:
        ValueError: a card without licence, arguments for a card that is not made; and as `checkpoint_files`,
            `render_model_card`, `check_repo_id` and `publish`.
    """
    check_repo_id(repo_id)
    folder = Path(checkpoint)
    contents, left_out = checkpoint_files(folder)
    if "README.md" in contents and not results:
        if license is not None or datasets is not None:
            raise ValueError(f"license, datasets: {folder} has a card of its own; change it there, or give results")
        if not ModelCard.load(folder / "README.md").data.license:
            raise ValueError(f"license: {folder / 'README.md'} states none; add it to the metadata at its top")
    else:
        if "README.md" in contents:
            left_out["README.md of the folder"] = "one is made from the results"
        contents |= _card(folder, repo_id, results, model_name, license, datasets)
    where = {"private": private, "dry_run": dry_run, "token": token, "endpoint": endpoint}
    return publish(contents, left_out, repo_id, "model", message="Publish model, processor, code and card", **where)


def _card(
    folder: Path,
    repo_id: str,
    results: Sequence[str | PathLike],
    model_name: str | None,
    license: str | None,
    datasets: Sequence[str] | None,
) -> dict[str, Path | bytes]:
    """README.md, the results that it states, and a picture of the first where matplotlib is installed."""
    measured = measure(folder, results, model_name)
    picture = bool(measured) and plotting_installed()
    card = render_model_card(folder, repo_id, results, model_name, license, datasets, picture)
    contents: dict[str, Path | bytes] = {f"results/{own.name}.json": as_json(own.published) for own in measured}
    if picture:
        contents[PICTURE] = confusion_picture(measured[0].confusion, measured[0].labels)
    return contents | {"README.md": str(card).encode()}


# A corpus


def publish_dataset(
    builder: CorpusBuilder | ControlledCorpus,
    repo_id: str,
    *,
    license: str | None = None,
    share_media: bool | None = None,
    private: bool = False,
    dry_run: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
) -> Publication:
    """A corpus as Parquet files with its card.

    builder: of `mer_hf.data`, such as `Ravdess(data_dir=...)`; it is prepared here, for a dry run too. license: the
    Hub's identifier, None = the corpus's. share_media: whether sound and pictures go too; None = as the corpus's
    licence lets, and of one's own clips it must be said.

    Raises:
        ValueError: a corpus that may not be passed on; no licence known; share_media not said, or True against the
            licence; and as `check_repo_id` and `publish`.
    """
    check_repo_id(repo_id)
    with_media = _media_go(builder, share_media)
    builder.download_and_prepare()
    parts = {split: builder.as_dataset(split=split) for split in builder.info.splits}
    skipped = builder.found.skip_counts if isinstance(builder, CorpusBuilder) else {}
    card = render_dataset_card(parts, builder.info, repo_id, license, with_media, skipped)
    where = {"private": private, "dry_run": dry_run, "token": token, "endpoint": endpoint}
    with TemporaryDirectory() as scratch:
        contents: dict[str, Path | bytes] = {"README.md": str(card).encode()}
        for split, part in parts.items():
            contents |= {f"data/{file.name}": file for file in write_parquet(part, split, scratch, with_media)}
        return publish(contents, {}, repo_id, "dataset", message="Publish data and card", **where)


def _media_go(builder: CorpusBuilder | ControlledCorpus, share_media: bool | None) -> bool:
    """Whether sound and pictures are published; refuses a corpus of which nothing may be."""
    if isinstance(builder, ControlledCorpus):
        if share_media is False:
            raise ValueError("share_media: the controlled corpus is its generated clips; they go with it")
        return True
    corpora = {row["corpus"] for row in builder.found.rows}
    check_publishable(corpora)
    if corpora <= set(TERMS):
        if share_media and not builder.MEDIA_MAY_BE_SHARED:
            raise ValueError(f"share_media: its licence ({builder.info.license}) does not let sound and pictures go")
        return builder.MEDIA_MAY_BE_SHARED if share_media is None else share_media
    if share_media is None:
        names = ", ".join(sorted(corpora - set(TERMS)))
        raise ValueError(
            f"share_media: nothing is known of the rights in {names}; say True, if everybody in it agreed that sound "
            "and pictures are published, or False"
        )
    return share_media


def check_publishable(corpora: Iterable[str]) -> None:
    """Raise ValueError if one of these, named as in the schema's `corpus` column, may not be passed on."""
    closed = [TERMS[name].title for name in sorted(corpora) if name in TERMS and not TERMS[name].publishable]
    if closed:
        raise ValueError(
            f"corpus: {closed[0]} may not be passed on, not even its labels; publish what reads it, and let others "
            "bring their own copy"
        )


# A Space


def publish_space(
    folder: str | PathLike,
    repo_id: str,
    wheel: str | PathLike | None = None,
    *,
    dry_run: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
) -> Publication:
    """A Space with this package's wheel beside its app.

    folder: README.md with `sdk:`, requirements.txt with a line for mer-hf, the app. wheel: what `pip wheel .` or
    `python -m build` made; None = the one in the folder. The line becomes the wheel's address in the Space itself,
    where the Hub's builders, which do not see the Space's files yet, can fetch it; hence a Space is public.

    Raises:
        ValueError: no folder, `sdk`, line for mer-hf or wheel; and as `check_repo_id`.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    card, requirements = folder / "README.md", folder / "requirements.txt"
    if not card.is_file() or not requirements.is_file():
        raise ValueError(f"folder: {folder} lacks README.md or requirements.txt")
    sdk = RepoCard.load(card, ignore_metadata_errors=True).data.get("sdk")
    if sdk is None:
        raise ValueError(f"folder: {card} states no sdk; add `sdk: gradio` to the metadata at its top")
    wheel = _wheel(folder) if wheel is None else Path(wheel)
    if not zipfile.is_zipfile(wheel) or not wheel.name.startswith("mer_hf-"):
        raise ValueError(f"wheel: {wheel} is no wheel of this package; {MAKE_WHEEL.format(folder)}")
    contents, left_out = _space_files(folder)
    contents[wheel.name] = wheel
    left_out.pop(wheel.name, None)
    address = f"{endpoint or constants.ENDPOINT}/spaces/{repo_id}/resolve/main/{wheel.name}"
    contents["requirements.txt"] = _with_wheel(requirements, address).encode()
    where = {"private": False, "dry_run": dry_run, "token": token, "endpoint": endpoint, "space_sdk": sdk}
    return publish(contents, left_out, repo_id, "space", message="Publish the Space with its package", **where)


def _wheel(folder: Path) -> Path:
    """The only wheel of this package in a folder."""
    found = sorted(folder.glob("mer_hf-*.whl"))
    if len(found) != 1:
        held = ", ".join(path.name for path in found) or "none"
        raise ValueError(
            f"wheel: {folder} must hold one wheel of this package, found {held}; {MAKE_WHEEL.format(folder)}"
        )
    return found[0]


def _space_files(folder: Path) -> tuple[dict[str, Path | bytes], dict[str, str]]:
    """What of a folder is part of the Space, wheels aside, and why the rest is not."""
    contents: dict[str, Path | bytes] = {}
    left_out = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if any(part.startswith((".", "__pycache__")) for part in name.parts):
            left_out[name.as_posix()] = "hidden, or made by Python"
        elif path.suffix == ".whl":
            left_out[name.as_posix()] = "another wheel"
        else:
            contents[name.as_posix()] = path
    return contents, left_out


def _with_wheel(requirements: Path, address: str) -> str:
    """requirements.txt with the line for mer-hf, its extras kept, pointing to an address."""
    lines = [line for line in requirements.read_text("utf-8").splitlines() if not line.startswith("--find-links")]
    ours = re.compile(r"mer[-_.]hf\s*(\[[^\]]*\])?(?![-\w.]).*", re.IGNORECASE)
    found = [ours.fullmatch(line) for line in lines]
    if not any(found):
        raise ValueError(f"folder: {requirements} has no line for mer-hf, so the Space would lack it")
    told = [f"mer-hf{own[1] or ''} @ {address}" if own else line for own, line in zip(found, lines, strict=True)]
    return "\n".join(told) + "\n"
