"""Scores for emotion recognition, and how far to trust them.

The field reports two accuracies. Write `C (classes, classes)` for the confusion matrix, rows = references:

    WA  = sum_k C[k, k] / sum_kl C[k, l]                    accuracy over utterances ("weighted" by class size)
    UA  = mean_k C[k, k] / sum_l C[k, l]                    mean recall over the classes present in the references
    F1  = 2 C[k, k] / (sum_l C[k, l] + sum_l C[l, k])       of class k; averaged plainly, or weighted by support

Intervals resample whole speakers (see `intervals`): every score above is a function of `C`, and `C` of a resample is a
sum of speakers' matrices.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .intervals import Interval, bootstrap_interval, group_numbers

IGNORED_LABEL = -100
"""The label of padding: turns past a dialogue's end."""


# Scores as functions of confusion matrices (..., classes, classes) -> (...)


def weighted_accuracy(confusion: NDArray) -> NDArray:
    """Accuracy over utterances (WA). confusion (..., classes, classes) -> (...)."""
    return _ratio(_hits(confusion).sum(-1), confusion.sum((-2, -1)))


def unweighted_accuracy(confusion: NDArray) -> NDArray:
    """Mean recall over the classes present in the references (UA). confusion (..., classes, classes) -> (...)."""
    support = confusion.sum(-1)
    return _ratio(_ratio(_hits(confusion), support).sum(-1), (support > 0).sum(-1))


def macro_f1(confusion: NDArray) -> NDArray:
    """Mean F1 over the classes that occur at all, in references or predictions, which is scikit-learn's default.

    confusion (..., classes, classes) -> (...).
    """
    occurs = confusion.sum(-1) + confusion.sum(-2) > 0
    return _ratio(_class_f1(confusion).sum(-1), occurs.sum(-1))


def weighted_f1(confusion: NDArray) -> NDArray:
    """F1 weighted by each class's share of the references. confusion (..., classes, classes) -> (...)."""
    support = confusion.sum(-1)
    return _ratio((_class_f1(confusion) * support).sum(-1), support.sum(-1))


SCORES: dict[str, Callable[[NDArray], NDArray]] = {
    "wa": weighted_accuracy,
    "ua": unweighted_accuracy,
    "macro_f1": macro_f1,
    "weighted_f1": weighted_f1,
}


def _hits(confusion: NDArray) -> NDArray:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _class_f1(confusion: NDArray) -> NDArray:
    return _ratio(2 * _hits(confusion), confusion.sum(-1) + confusion.sum(-2))


def _ratio(numerator: NDArray, denominator: NDArray) -> NDArray:
    """Elementwise quotient, 0 where the denominator is 0 (a class that does not occur adds nothing)."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


# From labels and predictions


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_labels: int) -> NDArray[np.int64]:
    """Counts (num_labels, num_labels): rows are references, columns predictions, both in the order of the label ids.

    labels and predictions are integers of one shape; positions labelled -100 are ignored.

    Raises:
        ValueError: for shapes that differ, ids outside [0, num_labels), or nothing labelled.
    """
    labels, predictions, _ = _labelled(labels, predictions, num_labels)
    return _group_confusions(labels, predictions, np.zeros(len(labels), int), num_labels)[0]


def emotion_metrics(labels: ArrayLike, predictions: ArrayLike, num_labels: int) -> dict[str, float]:
    """WA, UA, macro F1 and weighted F1 as fractions; arguments and errors as `confusion_matrix`."""
    confusion = confusion_matrix(labels, predictions, num_labels)
    return {name: float(score(confusion)) for name, score in SCORES.items()}


def compute_metrics(eval_prediction: Any) -> dict[str, float]:
    """`emotion_metrics` in the form `transformers.Trainer(compute_metrics=...)` takes.

    eval_prediction.predictions: logits (n, classes), or (n, turns, classes) of dialogues, or a tuple that begins with
    them. eval_prediction.label_ids: (n,) or (n, turns), where Trainer has padded short dialogues with -100.

    Raises:
        ValueError: without labels, for logits that do not fit the labels or are NaN where there is a label.
    """
    logits = eval_prediction.predictions
    logits = np.asarray(logits[0] if isinstance(logits, tuple | list) else logits)
    if eval_prediction.label_ids is None:
        raise ValueError("label_ids is None: metrics need labels")
    labels = np.asarray(eval_prediction.label_ids)
    return emotion_metrics(labels, _decide(logits, labels), logits.shape[-1])


def _decide(logits: NDArray, labels: NDArray) -> NDArray[np.int64]:
    """The class with the largest logit: logits (*labels.shape, classes) -> labels.shape."""
    if logits.shape[:-1] != labels.shape or logits.ndim == 0:
        raise ValueError(f"logits of shape {logits.shape} do not fit labels of shape {labels.shape}")
    if np.isnan(logits[labels != IGNORED_LABEL]).any():
        raise ValueError("logits contain NaN")
    return logits.argmax(-1)


def _labelled(
    labels: ArrayLike, predictions: ArrayLike, num_labels: int, groups: ArrayLike | None = None
) -> tuple[NDArray, NDArray, NDArray | None]:
    """Flatten, drop what is labelled -100, check the ids: (n,) labels, (n,) predictions, (n,) groups."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(f"labels have shape {labels.shape}, predictions {predictions.shape}")
    keep = labels != IGNORED_LABEL
    if not keep.any():
        raise ValueError("no labelled item: labels are empty or all -100")
    labels = _class_ids("labels", labels[keep], num_labels)
    predictions = _class_ids("predictions", predictions[keep], num_labels)
    if groups is None:
        return labels, predictions, None
    groups = np.asarray(groups, dtype=object)
    if groups.shape != keep.shape:
        raise ValueError(f"groups have shape {groups.shape}, labels {keep.shape}")
    return labels, predictions, groups[keep]


def _class_ids(name: str, ids: NDArray, num_labels: int) -> NDArray[np.int64]:
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} must be integer class ids, got dtype {ids.dtype}")
    outside = ids[(ids < 0) | (ids >= num_labels)]
    if outside.size:
        raise ValueError(f"{name} hold {outside[0]}, which is not in [0, {num_labels})")
    return ids.astype(np.int64)


def _group_confusions(labels: NDArray, predictions: NDArray, numbers: NDArray, num_labels: int) -> NDArray[np.int64]:
    """One confusion matrix a group: three (n,) arrays -> (groups, num_labels, num_labels)."""
    shape = (int(numbers.max()) + 1, num_labels, num_labels)
    cells = np.ravel_multi_index((numbers, labels, predictions), shape)
    return np.bincount(cells, minlength=int(np.prod(shape))).reshape(shape)


# Intervals


def metric_intervals(
    labels: ArrayLike,
    predictions: ArrayLike,
    groups: ArrayLike,
    num_labels: int,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """An interval for each score of `emotion_metrics`; groups (speakers) have the shape of the labels.

    UA in a resample is over the classes that resample holds.

    Raises:
        ValueError: as `confusion_matrix` and `bootstrap_interval`, and for groups that are None or misaligned.
    """
    labels, predictions, groups = _labelled(labels, predictions, num_labels, groups)
    confusions = _group_confusions(labels, predictions, group_numbers(groups)[0], num_labels)
    return {name: bootstrap_interval(score, confusions, level, resamples, seed) for name, score in SCORES.items()}


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence (Guo et al. 2017, equation 5).

    probabilities (n, classes) sum to 1 in each row; labels (n,), -100 ignored. A confidence on a bin's edge belongs to
    the lower bin.

    Raises:
        ValueError: for rows that are not distributions, labels that do not fit, or bins < 1.
    """
    probabilities, labels = np.asarray(probabilities, dtype=float), np.asarray(labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    predictions = _decide(probabilities, labels)
    labels, predictions, rows = _labelled(labels, predictions, probabilities.shape[-1], np.arange(labels.size))
    probabilities = probabilities[rows.astype(int)]
    if (probabilities < 0).any() or not np.allclose(probabilities.sum(-1), 1, atol=1e-3):
        raise ValueError("probabilities must be >= 0 and sum to 1 in each row: pass softmax outputs, not logits")
    confidence = probabilities.max(-1)
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=(labels == predictions) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


# Reports


def evaluation_report(
    labels: ArrayLike,
    predictions: ArrayLike,
    speakers: ArrayLike | None,
    id2label: Mapping[Any, str],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything a results file or a model card states about one test set, ready for `json.dump`.

    labels (...,) ids, -100 ignored; predictions: ids of the same shape, or logits (..., classes); speakers (...,) or
    None; id2label as in a model's config (keys may be the strings JSON makes of them).

    Returns n, speakers (their number, or None), wa, ua, macro_f1, weighted_f1 (fractions); `intervals`: level, and
    [low, high] for each score, None when there are fewer than two speakers to resample; `majority_wa`: WA of always
    answering the commonest reference; `labels`, `support` and `recall` by label (None for a label absent from the
    references); `confusion`: rows = references, both axes in the order of `labels`.

    Raises:
        ValueError: as `confusion_matrix`, and for an id2label whose keys are not 0 .. classes - 1.
    """
    names = _label_names(id2label)
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if predictions.ndim == labels.ndim + 1:
        if predictions.shape[-1] != len(names):
            raise ValueError(f"logits have {predictions.shape[-1]} classes, id2label {len(names)}")
        predictions = _decide(predictions, labels)
    confusion = confusion_matrix(labels, predictions, len(names))
    support = confusion.sum(1)
    intervals, size = _report_intervals(labels, predictions, speakers, len(names), level, resamples, seed)
    recall = {k: float(confusion[i, i] / support[i]) if support[i] else None for i, k in enumerate(names)}
    return {
        "n": int(support.sum()),
        "speakers": size,
        **{name: float(score(confusion)) for name, score in SCORES.items()},
        "intervals": intervals,
        "majority_wa": float(support.max() / support.sum()),
        "labels": names,
        "support": dict(zip(names, support.tolist(), strict=True)),
        "recall": recall,
        "confusion": confusion.tolist(),
    }


def _label_names(id2label: Mapping[Any, str]) -> list[str]:
    names = {int(key): name for key, name in id2label.items()}
    if sorted(names) != list(range(len(names))) or not names:
        raise ValueError(f"id2label must have the keys 0 .. classes - 1, got {sorted(names)}")
    if len(set(names.values())) < len(names):
        raise ValueError(f"id2label names a label twice: {list(names.values())}")
    return [names[i] for i in range(len(names))]


def _report_intervals(
    labels: NDArray,
    predictions: NDArray,
    speakers: ArrayLike | None,
    num_labels: int,
    level: float,
    resamples: int,
    seed: int,
) -> tuple[dict[str, Any], int | None]:
    none = {"level": level, **dict.fromkeys(SCORES)}
    if speakers is None:
        return none, None
    size = group_numbers(_labelled(labels, predictions, num_labels, speakers)[2])[1]
    if size < 2:
        return none, size
    found = metric_intervals(labels, predictions, speakers, num_labels, level, resamples, seed)
    return {"level": level, **{name: [found[name].low, found[name].high] for name in SCORES}}, size


def format_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A Markdown table of the named columns: floats with three decimals right-aligned, None and absent as a dash."""
    numeric = {c: all(isinstance(row.get(c), int | float | None) for row in rows) for c in columns}
    lines = [columns, ["---:" if numeric[column] else "---" for column in columns]]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")
