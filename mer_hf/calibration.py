"""Probabilities that mean what they say: one temperature for a model, weights for models that are fused late.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger: On Calibration of Modern Neural Networks, ICML 2017,
https://arxiv.org/abs/1706.04599, section 4.2: probabilities are softmax(z / T), and T minimises the negative
log-likelihood (NLL) of validation clips. No decision changes. With b = 1 / T the NLL is convex,

    d NLL / d b = sum_i (sum_k softmax(b z_i)_k z_ik - z_i,y_i),    so bisection finds its only root.

A validation set without a mistake has none: its NLL falls for ever as T goes to 0. So one clip more is counted, spread
over the validation clips and over all labels, as Platt (1999, section 2.2) does with his targets. The confidence then
never exceeds what n clips can show, and T moves by the order of 1 / n. What is left is cut to `TEMPERATURES`.

    model.config.calibration_temperature = fit_temperature(logits, labels)   # the pipeline applies it
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .evaluation import IGNORED_LABEL, expected_calibration_error

TEMPERATURES = (0.01, 100.0)
"""The least and the greatest temperature that is ever fitted."""
BISECTIONS = 60
"""They bring the interval of `TEMPERATURES`, in logarithms, below a double's precision."""


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature, within `TEMPERATURES`, that minimises the NLL of validation clips and one clip more; see above.

    logits (..., classes), -inf for a class that the model cannot answer; labels (...,) ids, -100 ignored. A clip whose
    own class is at -inf tells nothing about the temperature and is left out. Logits that are all alike give 1.

    Raises:
        ValueError: shapes or ids that do not fit, NaN or +inf, a clip with every class at -inf, no clip left.
    """
    logits, labels = _possible(*_labelled_logits(logits, labels))
    finite = np.isfinite(logits)
    values = np.where(finite, logits, 0.0)
    share = 1 / (1 + len(labels))  # of the one clip more, in each of the others
    own = (1 - share) * _at(values, labels) + share * values.sum(-1) / finite.sum(-1)

    def slope(inverse: float) -> float:
        return float(((np.exp(_log_softmax(logits * inverse)) * values).sum(-1) - own).sum())

    if (np.where(finite, logits, -np.inf).max(-1) == np.where(finite, logits, np.inf).min(-1)).all():
        return 1.0
    return 1 / _root(slope, 1 / TEMPERATURES[1], 1 / TEMPERATURES[0])


def calibration_report(logits: ArrayLike, labels: ArrayLike, temperature: float) -> dict[str, Any]:
    """How well probabilities fit before and after the temperature, ready for `json.dump`.

    Returns n; temperature; `before` and `after`, each with ece (15 bins) and nll (nats a clip); `impossible`, how many
    clips have a class that the model cannot answer (-inf): the nll, else infinite, is over the others, None where
    there are none, the ece over all.

    Raises:
        ValueError: as `fit_temperature`, and for a temperature that is not above 0.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be above 0 and finite, found {temperature}")
    logits, labels = _labelled_logits(logits, labels)
    own = _at(logits, labels)

    def scores(log_probabilities: NDArray) -> dict[str, float | None]:
        likelihoods = _at(log_probabilities, labels)[np.isfinite(own)]
        return {
            "ece": expected_calibration_error(np.exp(log_probabilities), labels),
            "nll": float(-likelihoods.mean()) if len(likelihoods) else None,
        }

    return {
        "n": len(labels),
        "impossible": int(np.isinf(own).sum()),
        "temperature": float(temperature),
        "before": scores(_log_softmax(logits)),
        "after": scores(_log_softmax(logits / temperature)),
    }


def _labelled_logits(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Flatten, drop what is labelled -100, check: (n, classes), (n,)."""
    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels)
    if logits.ndim < 2 or logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits.shape} do not fit labels {labels.shape}; give one row of logits a label")
    keep = labels != IGNORED_LABEL
    logits, labels = logits[keep], labels[keep]
    if not len(labels):
        raise ValueError("labels: no labelled clip, they are empty or all -100")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= logits.shape[-1]:
        raise ValueError(f"labels must be ids in [0, {logits.shape[-1]}), found {np.unique(labels)[:9].tolist()}")
    if np.isnan(logits).any() or np.isposinf(logits).any():
        raise ValueError("logits hold NaN or +inf")
    if np.isneginf(logits).all(-1).any():
        raise ValueError("logits: a clip has -inf for every class")
    return logits, labels


def _possible(logits: NDArray, labels: NDArray) -> tuple[NDArray, NDArray]:
    """The clips whose own class the model can answer."""
    possible = np.isfinite(_at(logits, labels))
    if not possible.any():
        raise ValueError("logits: every clip's own class is at -inf; there is nothing to fit a temperature to")
    return logits[possible], labels[possible]


def _at(values: NDArray, labels: NDArray) -> NDArray:
    """values (n, classes) at each label (n,) -> (n,)."""
    return values[np.arange(len(labels)), labels]


def _log_softmax(logits: NDArray) -> NDArray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _root(increasing: Callable[[float], float], low: float, high: float) -> float:
    """Where an increasing function crosses 0 between two positive bounds; the nearer bound where it does not."""
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if increasing(middle) > 0 else (middle, high)
    return (low * high) ** 0.5
