"""What a card may say of a model's scores: only what stands in the files that evaluation wrote.

    read_results("runs/x/results.json", "runs/x/cme", "cme")     # `mer-hf train`, `mer-hf evaluate`, cross_validate.py
    read_results("runs/x/report.json", "runs/x/cme", "cme")      # `mer-hf evaluate --model runs/x/cme`

Both become `MeasuredResults`. A file about another model, another fold or other labels is refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from .evaluation import SCORES

SCORE_NAMES = {"wa": "WA", "ua": "UA", "macro_f1": "macro F1", "weighted_f1": "weighted F1"}
TRAINED_ON = "trained_on.json"
"""Beside a checkpoint: which corpus, protocol and fold it was trained on."""
NOT_FROM_EVALUATION = (
    "is neither a results file of `mer-hf train` or `mer-hf evaluate` nor a report of `mer-hf evaluate --model`"
)


@dataclass(frozen=True)
class Score:
    """One score with what is known of its spread; None = not measured."""

    name: str
    value: float
    """mean over folds and seeds; of a report, the score itself"""
    pooled: float
    """of all clips together, which the interval is of"""
    low: float | None
    high: float | None
    over_folds: float | None = None
    over_seeds: float | None = None


@dataclass(frozen=True)
class MeasuredResults:
    """One evaluation, ready for a template. Lists and mappings are as `evaluation_report` has them."""

    corpus: str
    protocol: str
    folds: list[dict[str, Any]]
    """[{"fold", "sha256"}], and by side the number of clips where the file has it"""
    unit: str | None
    source: str | None
    clusters: str | None
    selected_on: str | None
    metric: str | None
    """the score that the field compares on this protocol"""
    face: str | None
    """where the face's features come from"""
    level: float
    scores: dict[str, Score]
    n: int
    """decisions scored: clips times seeds"""
    groups: int | None
    majority_wa: float
    labels: list[str]
    support: dict[str, int]
    recall: dict[str, float | None]
    confusion: list[list[int]]
    by: dict[str, dict[str, dict[str, Any]]]
    calibration: dict[str, Any]
    seeds: int | None
    """trainings of each fold; None = the file is about this very checkpoint"""
    checkpoint: dict[str, Any] | None
    """fold, seed and scores of this very checkpoint among them"""
    published: dict[str, Any]
    """what of the file goes to the Hub: no path, no other model"""

    @property
    def name(self) -> str:
        """`ravdess-emobox`, or `ravdess-emobox-fold5` for a report on one fold."""
        return self.protocol if self.seeds is not None else f"{self.protocol}-fold{self.folds[0]['fold']}"


def read_results(file: str | PathLike, checkpoint: str | PathLike, model: str) -> MeasuredResults:
    """The results of one model, checked against the checkpoint they are to stand beside.

    file: JSON of either kind above. checkpoint: the folder. model: its name among the file's models.

    Raises:
        ValueError: a file of another kind, without this model, or that is not about this checkpoint: another corpus,
            fold, temperature or other labels, or no `trained_on.json` beside the checkpoint to tell by.
    """
    file, checkpoint = Path(file), Path(checkpoint)
    found = _json(file)
    config = _json(checkpoint / "config.json")
    trained = _json(checkpoint / TRAINED_ON) if (checkpoint / TRAINED_ON).is_file() else None
    if not isinstance(found, dict):
        raise ValueError(f"results: {file} {NOT_FROM_EVALUATION}")
    if "models" in found and "folds" in found.get("protocol", {}):
        measured = _of_cross_validation(file, found, config, trained, model)
    elif {"split", "sha256", "confusion", "calibration"} <= set(found):
        measured = _of_report(file, found, config, trained)
    else:
        raise ValueError(f"results: {file} {NOT_FROM_EVALUATION}")
    labels = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
    if measured.labels != labels:
        raise ValueError(f"results: {file} is about the labels {measured.labels}, the checkpoint's are {labels}")
    return measured


def _of_cross_validation(
    file: Path, found: Mapping[str, Any], config: Mapping[str, Any], trained: Mapping[str, Any] | None, name: str
) -> MeasuredResults:
    if name not in found["models"]:
        raise ValueError(
            f"results: {file} has no model {name!r}, only {', '.join(found['models'])}; say which with model_name="
        )
    model, protocol, corpus = found["models"][name], found["protocol"], found["corpus"]
    own = _own_training(file, model, protocol, corpus["name"], config, trained)
    pooled = model["pooled"]
    return MeasuredResults(
        corpus=corpus["name"],
        protocol=protocol["split"],
        folds=protocol["folds"],
        unit=protocol.get("unit"),
        source=protocol.get("source"),
        clusters=pooled["clusters"],
        selected_on=protocol.get("selected_on"),
        metric=SCORE_NAMES.get(protocol.get("metric")),
        face=corpus.get("face"),
        level=pooled["intervals"]["level"],
        scores={
            key: Score(
                SCORE_NAMES[key],
                model["mean"][key],
                pooled[key],
                *(pooled["intervals"][key] or (None, None)),
                model["deviation"][key] if len(protocol["folds"]) > 1 else None,
                model["seed_deviation"][key],
            )
            for key in SCORES
        },
        labels=list(corpus["labels"]),
        by=model["by"],
        calibration=model["calibration"],
        seeds=len(model["seeds"]),
        checkpoint={key: own[key] for key in ("fold", "seed", *SCORES)},
        published={**found, "models": {name: model}},
        **_counts(pooled),
    )


def _own_training(
    file: Path,
    model: Mapping[str, Any],
    protocol: Mapping[str, Any],
    corpus: str,
    config: Mapping[str, Any],
    trained: Mapping[str, Any] | None,
) -> Mapping[str, Any]:
    """The training, among those of all folds and seeds, that left this checkpoint: known by fold and temperature."""
    if trained is None:
        raise ValueError(f"results: nothing ({TRAINED_ON}) beside the checkpoint says that {file} is about it")
    hashes = {fold["fold"]: fold["sha256"] for fold in protocol["folds"]}
    if trained["corpus"] != corpus or hashes.get(trained["fold"]) != trained["sha256"]:
        raise ValueError(
            f"results: {file} is about {corpus} under {protocol['split']}; the checkpoint was trained for fold "
            f"{trained['fold']} ({trained['sha256'][:12]}) of {trained['protocol']}, which is not among its folds"
        )
    temperature = config.get("calibration_temperature", 1.0)
    for training in model["folds"]:
        if training["fold"] == trained["fold"] and abs(training["temperature"] - temperature) < 1e-9:
            return training
    raise ValueError(
        f"results: no training of fold {trained['fold']} in {file} has the checkpoint's temperature {temperature}; it "
        "is from another run"
    )


def _of_report(
    file: Path, found: Mapping[str, Any], config: Mapping[str, Any], trained: Mapping[str, Any] | None
) -> MeasuredResults:
    same_fold = trained is not None and trained["sha256"] == found["sha256"]
    corpus = found.get("corpus") or (trained["corpus"] if same_fold else None)
    if corpus is None:
        raise ValueError(f"results: {file} does not say what corpus it is about; write it again with mer-hf evaluate")
    if trained is not None and trained["corpus"] == corpus and not same_fold:
        raise ValueError(f"results: {file} is about another fold of {corpus} than the checkpoint was trained for")
    temperature = config.get("calibration_temperature", 1.0)
    if abs(found["calibration"]["temperature"] - temperature) > 1e-9:
        raise ValueError(
            f"results: {file} is about a checkpoint of temperature {found['calibration']['temperature']}, this one "
            f"has {temperature}"
        )
    return MeasuredResults(
        corpus=corpus,
        protocol=found["split"],
        folds=[{"fold": found["fold"], "sha256": found["sha256"]}],
        unit=found.get("unit"),
        source=found.get("source"),
        clusters=found.get("clusters"),
        selected_on=None,
        metric=SCORE_NAMES.get(found.get("metric")),
        face=None,
        level=found["intervals"]["level"],
        scores={
            key: Score(SCORE_NAMES[key], found[key], found[key], *(found["intervals"][key] or (None, None)))
            for key in SCORES
        },
        labels=list(found["labels"]),
        by={},
        calibration=found["calibration"],
        seeds=None,
        checkpoint=None,
        published={"corpus": corpus} | {key: value for key, value in found.items() if key != "model"},
        **_counts(found),
    )


def _counts(report: Mapping[str, Any]) -> dict[str, Any]:
    names = ("n", "majority_wa", "support", "recall", "confusion")
    return {name: report[name] for name in names} | {"groups": report["speakers"]}


def group_rows(by: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of a table of breakdowns: each value of a column with n, wa and ua; of speakers the lowest and highest."""
    rows = []
    for column, values in by.items():
        if column == "speaker":
            order = sorted(values.values(), key=lambda scores: scores["wa"])
            ends = {f"lowest of {len(order)} speakers": order[0], f"highest of {len(order)} speakers": order[-1]}
            rows += [{"group": name, **scores} for name, scores in ends.items()]
        else:
            rows += [{"group": f"{column} {value}", **scores} for value, scores in values.items()]
    return rows


def confusion_picture(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> bytes:
    """The confusion matrix as a PNG file: per cent of each true emotion's clips. Legible in black and white.

    Raises:
        ImportError: as `plots.check_plotting`.
    """
    from .plots import check_plotting, draw_confusion

    check_plotting()
    import io

    from matplotlib.figure import Figure  # without pyplot, which keeps every figure

    figure = Figure(figsize=(1.5 + 0.6 * len(labels), 1.2 + 0.55 * len(labels)), layout="constrained")
    axes = figure.subplots()
    draw_confusion(axes, confusion, labels, "% of each true emotion")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png", metadata={"Software": None})  # the same bytes another time
    return picture.getvalue()


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # a JSONDecodeError is a ValueError
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
