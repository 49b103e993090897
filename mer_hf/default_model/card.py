"""The default checkpoint's card and licence, from what was measured of its branches.

    write_card("mer_hf/default_checkpoint", "hub_cards/results")   # README.md and LICENSE beside the weights

Every number comes from the three results files that the branches' trainings wrote.
What is said of licences and of the fusion is in the templates `hub_cards/default_checkpoint*.md`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..card_results import group_rows
from ..cards import METRICS, render_template
from ..models.pipeline_mer import TASK
from .card_branches import FACE_TITLE, Branch, Results, face_branch, speech_branch, words_branch
from .loading import WORDS

WRITERS = {
    "speech": "speech_results.train_speech",
    "face": "face_results.write_face_branch",
    WORDS: "words_results.write_words",
}
"""Which function of `mer_hf.default_model` writes `default-<branch>.json`."""


def write_card(folder: str | PathLike, results_dir: str | PathLike) -> ModelCard:
    """Write README.md and LICENSE beside an assembled default checkpoint; returns the card.

    folder: as `assembly.assemble` made it. results_dir: with default-speech.json, default-face.json and
    default-words.json.

    Raises:
        ValueError: a folder that is no such checkpoint; a results file that is missing, that lacks something, or that
            is about other branches than those in the folder.
    """
    folder = Path(folder)
    found = {name: _read(Path(results_dir) / f"default-{name}.json", writer) for name, writer in WRITERS.items()}
    branches = [_branch(name, results) for name, results in found.items()]
    _check_same_branches(folder, branches)
    card = _card(branches, found)
    licence = render_template("default_checkpoint_licence.md", "", {"branches": branches}).lstrip()
    (folder / "LICENSE").write_text(licence, encoding="utf-8")
    card.save(folder / "README.md")
    return card


def _read(file: Path, writer: str) -> Results:
    if not file.is_file():
        raise ValueError(f"results_dir: {file} is missing; mer_hf.default_model.{writer} writes it")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"results_dir: {file} cannot be read as JSON: {error}") from error


def _branch(name: str, results: Results) -> Branch:
    try:
        return {"speech": speech_branch, "face": face_branch, WORDS: words_branch}[name](results)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"results_dir: default-{name}.json lacks {error}; mer_hf.default_model.{WRITERS[name]} writes it anew"
        ) from error


def _check_same_branches(folder: Path, branches: Sequence[Branch]) -> None:
    """The folder's temperatures must be those that the results files state."""
    stated = {name: value for branch in branches for name, value in branch.temperatures.items()}
    stored = _stored_temperatures(folder)
    if set(stored) != set(stated):
        raise ValueError(f"folder: {folder} has the branches {sorted(stored)}, results_dir those of {sorted(stated)}")
    for name, temperature in stored.items():
        if abs(temperature - stated[name]) > 1e-9:
            raise ValueError(
                f"folder: branch {name!r} in {folder} has the temperature {temperature}, its results file states "
                f"{stated[name]}, so they are of different trainings; assemble the branches that were measured"
            )


def _stored_temperatures(folder: Path) -> dict[str, float]:
    for file in (folder / "config.json", folder / WORDS / "config.json"):
        if not file.is_file():
            raise ValueError(f"folder: {file} is missing; mer_hf.default_model.assembly.assemble writes it")
    config, words = (json.loads((own / "config.json").read_text("utf-8")) for own in (folder, folder / WORDS))
    if "branch_names" not in config:
        raise ValueError(f"folder: {folder} holds a {config.get('model_type')}, not a fusion of branches")
    branches = dict(zip(config["branch_names"], config["branches"], strict=True)) | {WORDS: words}
    return {name: branch.get("calibration_temperature", 1.0) for name, branch in branches.items()}


# The card


def _card(branches: Sequence[Branch], found: Mapping[str, Results]) -> ModelCard:
    measured = found["speech"]["models"]["speech_equal"]
    data = ModelCardData(
        license="other",
        license_name="ravdess-cc-by-nc-sa-4.0-meld-gpl-3.0-fer2013-not-stated",
        license_link="LICENSE",
        language="en",
        library_name="transformers",
        pipeline_tag="audio-classification",
        base_model=["sentence-transformers/all-MiniLM-L6-v2"],
        datasets=[branch.corpus for branch in branches],
        tags=["emotion-recognition", "multimodal", "custom_code", "mer_late_fusion"],
        inference=False,  # the Hub's own widget knows neither the task nor the code
        model_name="mer_hf default checkpoint",
        eval_results=[result for branch in branches for result in _eval_results(branch)],
    )
    values = {
        "task": TASK,
        "labels": found["speech"]["corpus"]["labels"],
        "branches": branches,
        "face_title": FACE_TITLE,
        "level": measured["pooled"]["intervals"]["level"],
        "speech": found["speech"],
        "words": found["words"],
        "groups": group_rows(measured["by"]),
    }
    return ModelCard(render_template("default_checkpoint.md", data.to_yaml(), values))


def _eval_results(branch: Branch) -> Iterator[EvalResult]:
    """The scores as shipped."""
    for score, (metric, arguments) in zip(branch.rows[0].scores, METRICS.values(), strict=True):
        yield EvalResult(
            task_type=branch.task,
            task_name=f"Emotion recognition, {branch.name} alone",
            dataset_type=branch.corpus,
            dataset_name=branch.title,
            dataset_split="test",
            dataset_args=dict(branch.hashed),
            metric_type=metric,
            metric_name=score.name,
            metric_value=score.value,
            metric_args=(arguments or {}) | {"interval": [score.low, score.high]},
        )
