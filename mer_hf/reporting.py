"""From the records of finished trainings to what is published: a results file, Markdown tables, a picture.

Scores are means over the seeds; intervals resample the clusters (speakers, as a rule) of all seeds' clips together;
what compares two models is paired clip by clip. The honest numbers stand first. Those of `--protocol paper` were
chosen on the test clips themselves, as the papers' released codes choose: they stand beside, labelled, and go into
nothing.
"""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import calibration_report
from .corpora import Corpus
from .data.protocols import FoldSplit
from .evaluation import SCORES, evaluation_report, format_table
from .intervals import format_gap, paired_gap
from .recipes import FLOORS

PACKAGES = ("torch", "transformers", "scikit-learn", "numpy")
BREAKDOWNS = ("gender", "scripted", "session", "speaker")
"""Columns whose values are scored apart, where there are between 2 and `MOST_GROUPS` of them."""
MOST_GROUPS = 40
OPTIMISTIC = "chosen on test"
REGRESSIONS = [floor for floor, vectors in FLOORS.items() if vectors]

Record = dict[str, Any]


def installed_versions(*more: str) -> dict[str, str]:
    """Of Python, the packages that decide what a training gives, and more of them, for a results file."""
    return {"python": platform.python_version()} | {name: version(name) for name in (*PACKAGES, *more)}


def summarize(corpus: Corpus, splits: Sequence[FoldSplit], records: Sequence[Record]) -> dict[str, Any]:
    """The results file: data, protocol, and of each model its scores by fold and seed, means, all clips pooled with
    intervals, calibration, breakdowns, and the paired difference in WA to every other model."""
    honest, optimistic = {}, {}
    for record in records:
        side = optimistic if record["origin"]["chosen_on"] == "test" else honest
        side.setdefault(record["origin"]["model"], []).append(record)
    models = {name: model_results(corpus, own) for name, own in honest.items()}
    for name, model in models.items():
        model["wa_minus"] = {other: gap for other in honest if (gap := _difference(honest[name], honest[other]))}
        if name in optimistic:
            model[OPTIMISTIC] = means(optimistic[name])
    sides = [{"fold": s.fold, "sha256": s.sha256} | {side: len(ids) for side, ids in s.sides.items()} for s in splits]
    return {
        "corpus": {"name": corpus.name, "labels": list(corpus.labels), "sha256": corpus.sha256, **corpus.notes},
        "protocol": {
            "split": splits[0].name,
            **corpus.protocol_notes,
            "selected_on": "validation",
            "folds": sides,
        },
        "models": models,
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "cpu_seconds": round(sum(record["cpu_seconds"] for record in records), 1),
        "versions": installed_versions(),
    }


def model_results(corpus: Corpus, records: Sequence[Record]) -> dict[str, Any]:
    """One model's part of the results file, but for comparisons with others."""
    first = records[0]["origin"]
    own = pooled(records)
    report = evaluation_report(own["labels"], own["predictions"], own["groups"], dict(enumerate(corpus.labels)))
    del report["labels"]
    return {
        "parameters": first["parameters"],
        "settings": None if first["settings"] is None else {k: v for k, v in first["settings"].items() if k != "seed"},
        "config": first["config"],
        **means(records),
        "pooled": report | {"clusters": corpus.cluster},
        "calibration": _calibration(records),
        "by": _breakdowns(corpus, records),
        "folds": [
            {"fold": record["origin"]["fold"], "seed": record["origin"]["seed"], **record["scores"]}
            | {name: record[name] for name in ("chosen", "temperature", "seconds", "cpu_seconds", "processes")}
            for record in records
        ],
        "cpu_seconds": round(sum(record["cpu_seconds"] for record in records), 1),
    }


def means(records: Sequence[Record]) -> dict[str, Any]:
    """`mean`: over folds and seeds. `deviation`: between folds of one seed, averaged. `seeds`: each seed's mean over
    folds; `seed_deviation`: their sample deviation, None for one seed."""
    by_seed: dict[int, list[dict[str, float]]] = {}
    for record in records:
        by_seed.setdefault(record["origin"]["seed"], []).append(record["scores"])
    table = {name: [[scores[name] for scores in own] for own in by_seed.values()] for name in SCORES}
    seeds = {name: [float(np.mean(own)) for own in values] for name, values in table.items()}
    several = len(by_seed) > 1
    return {
        "mean": {name: float(np.mean(np.concatenate(values))) for name, values in table.items()},
        "deviation": {name: float(np.mean([np.std(own) for own in values])) for name, values in table.items()},
        "seeds": {str(seed): {name: seeds[name][k] for name in SCORES} for k, seed in enumerate(by_seed)},
        "seed_deviation": {name: float(np.std(seeds[name], ddof=1)) if several else None for name in SCORES},
    }


def pooled(records: Sequence[Record]) -> dict[str, NDArray]:
    """labels, predictions and groups (n,) of all records one after another."""
    return {name: np.concatenate([record[name] for record in records]) for name in ("labels", "predictions", "groups")}


def logits_of(record: Mapping[str, Any]) -> NDArray[np.float64]:
    """Logits (n, labels) of a record or its validation side; null stands for -inf, which JSON does not have."""
    return np.array([[-np.inf if v is None else v for v in row] for row in record["logits"]], dtype=float)


def _calibration(records: Sequence[Record]) -> dict[str, Any]:
    """Temperatures, and how well all clips' probabilities fit without and with them: each record's by its own."""
    logits = [logits_of(record) for record in records]
    labels = np.concatenate([record["labels"] for record in records])
    plain = calibration_report(np.concatenate(logits), labels, 1.0)
    scaled = [values / record["temperature"] for values, record in zip(logits, records, strict=True)]
    return {
        "temperatures": [record["temperature"] for record in records],
        "before": plain["before"],
        "after": calibration_report(np.concatenate(scaled), labels, 1.0)["before"],
    }


def _breakdowns(corpus: Corpus, records: Sequence[Record]) -> dict[str, dict[str, dict[str, Any]]]:
    """WA, UA and clips of every value of a column, over all seeds."""
    splits = {split.fold: split for split in corpus.splits}
    ids = [i for record in records for i in splits[record["origin"]["fold"]].test]
    own = pooled(records)
    found = {}
    for column in BREAKDOWNS:
        values = np.array([str(corpus.by_id[i][column]) for i in ids])
        names = [name for name in np.unique(values) if name != "None"]
        if 2 <= len(names) <= MOST_GROUPS:
            found[column] = {str(name): _scores(corpus, own, values == name) for name in names}
    return found


def _scores(corpus: Corpus, own: Mapping[str, NDArray], chosen: NDArray) -> dict[str, Any]:
    labels, predictions = own["labels"][chosen], own["predictions"][chosen]
    report = evaluation_report(labels, predictions, None, dict(enumerate(corpus.labels)))
    return {name: report[name] for name in ("n", "wa", "ua")}


def _difference(records: Sequence[Record], others: Sequence[Record]) -> dict[str, float] | None:
    """WA minus the other model's on the same clips with the same seeds; None for itself, where they differ, and where
    one speaker is all there is."""
    if others is records or [_place(record) for record in others] != [_place(record) for record in records]:
        return None
    own, theirs = pooled(records), pooled(others)
    correct = own["labels"] == own["predictions"], own["labels"] == theirs["predictions"]
    return paired_gap(*correct, own["groups"])


def _place(record: Record) -> tuple[int, int]:
    return record["origin"]["fold"], record["origin"]["seed"]


# Tables


def results_table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table: means over folds and seeds, 95 % intervals over clusters of the score that the
    field compares on this protocol, and that score's deviation over seeds. Every model is held against the logistic
    regressions or, where there are none, against the first model.

    ece is that of the calibrated probabilities; "wa chosen on test" stands there only where it was measured.
    """
    rows, metric = [], results["protocol"].get("metric", "wa")
    references = [floor for floor in REGRESSIONS if floor in results["models"]] or list(results["models"])[:1]
    for name, model in results["models"].items():
        row = {"model": name} | {column: model["mean"][column] for column in SCORES}
        row[f"{metric}_95"] = _range(model["pooled"]["intervals"][metric])
        row["over seeds"] = model["seed_deviation"][metric]
        row["ece"] = model["calibration"]["after"]["ece"]
        for other in references:
            row[f"wa - {other}"] = format_gap(model["wa_minus"].get(other))
        if OPTIMISTIC in model:
            row[f"wa {OPTIMISTIC}"] = model[OPTIMISTIC]["mean"]["wa"]
        rows.append(row | {"parameters": model["parameters"], "cpu_s": model["cpu_seconds"]})
    columns = ["model", *SCORES, f"{metric}_95", "over seeds", "ece", *(f"wa - {other}" for other in references)]
    columns += [f"wa {OPTIMISTIC}", "parameters", "cpu_s"]
    shown = [column for column in columns if any(row.get(column) is not None for row in rows)]
    return format_table(rows, shown)


def report_text(results: Mapping[str, Any]) -> str:
    """`results.md`: what was evaluated how, the table, every pair of models, calibration, and the breakdowns."""
    protocol, corpus = results["protocol"], results["corpus"]
    counts = ", ".join(f"{fold['train']}/{fold['validation']}/{fold['test']}" for fold in protocol["folds"])
    lines = [
        f"# {corpus['name']}: {protocol['split']}",
        f"Labels: {', '.join(corpus['labels'])}. {protocol.get('source', '')}".rstrip(),
        f"Apart on the sides of every fold: {protocol.get('unit', 'not stated')}. Clips trained on / validated on / "
        f"tested on, by fold: {counts}. SHA-256 of the folds: "
        + ", ".join(fold["sha256"][:12] for fold in protocol["folds"])
        + ".",
        "Everything was chosen on the validation side; each job reads its test side once. Intervals: 95 %, bootstrap "
        f"over {protocol.get('clusters', 'speaker')}s.",
        results_table(results),
    ]
    if any(OPTIMISTIC in model for model in results["models"].values()):
        lines.append(
            f'"{OPTIMISTIC}" is not a result: epoch and settings were chosen on the test clips, with the validation '
            "clips added to the training, as the papers' released codes do. It shows what that adds."
        )
    lines += ["## WA of the row minus WA of the column, paired", _pairs(results), "## By group", _groups(results)]
    return "\n\n".join(lines)


def _pairs(results: Mapping[str, Any]) -> str:
    models = results["models"]
    rows = [
        {"model": name} | {o: format_gap(gap) for o, gap in model["wa_minus"].items()}
        for name, model in models.items()
    ]
    return format_table(rows, ["model", *models])


def _groups(results: Mapping[str, Any]) -> str:
    models = results["models"]
    groups = [(column, value) for column, values in next(iter(models.values()))["by"].items() for value in values]
    rows = [
        {"group": f"{column} {value}", "n": next(iter(models.values()))["by"][column][value]["n"]}
        | {name: model["by"][column][value]["wa"] for name, model in models.items()}
        for column, value in groups
        if column != "speaker"
    ]
    spread = {"group": "lowest speaker", "n": None}, {"group": "highest speaker", "n": None}
    for name, model in models.items():
        found = [scores["wa"] for scores in model["by"].get("speaker", {}).values()]
        if found:
            spread[0][name], spread[1][name] = min(found), max(found)
    rows += [row for row in spread if len(row) > 2]
    return format_table(rows, ["group", "n", *models]) if rows else "No column tells groups apart."


def _range(bounds: Sequence[float] | None) -> str | None:
    return None if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


# Picture


def plot_results(results: Mapping[str, Any], path: str | PathLike) -> None:
    """Every model's WA with its interval, and the confusion matrix of the one with the best validation score.

    Legible in black and white. Raises ImportError as `plots.check_plotting`.
    """
    from .plots import check_plotting, draw_confusion

    check_plotting()
    from matplotlib.figure import Figure  # without pyplot, which keeps every figure

    models, labels = results["models"], results["corpus"]["labels"]
    figure = Figure(figsize=(11, max(4.0, 0.3 * len(models) + 2)), layout="constrained")
    bars, matrix = figure.subplots(1, 2)
    names = list(models)[::-1]
    wa = np.array([models[name]["pooled"]["wa"] for name in names])
    bounds = [
        models[name]["pooled"]["intervals"]["wa"] or (value, value) for name, value in zip(names, wa, strict=True)
    ]
    reach = np.abs(np.array(bounds).T - wa)
    bars.barh(names, wa, xerr=reach, color="0.8", edgecolor="black", capsize=3)
    bars.set(xlim=(0, 1), xlabel="WA, 95 % interval", title=results["protocol"]["split"])
    best = max(models, key=lambda name: validation_score(models[name]))
    title = f"{best}: % of each true emotion"
    draw_confusion(matrix, models[best]["pooled"]["confusion"], labels, title)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def validation_score(model: Mapping[str, Any]) -> float:
    """Mean over folds and seeds of the WA on the validation side."""
    return float(np.mean([fold["chosen"]["validation_wa"] for fold in model["folds"]]))
