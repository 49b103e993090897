"""Logistic regression on fixed vectors, as the floor that every network is held against."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from .models.layers import Standardizer

REGULARISATION = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Values of C, from which the validation side chooses."""


def standardized(inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Vectors (n, width) by side -> z-scored by the side "train" and clipped, as `Standardizer` does; NaN, a clip
    without a vector, becomes 0."""
    mean, std = np.nanmean(inputs["train"], axis=0), np.nanstd(inputs["train"], axis=0)
    std[std == 0] = 1.0
    scaled = {
        side: ((values - mean) / std).clip(-Standardizer.limit, Standardizer.limit) for side, values in inputs.items()
    }
    return {side: np.nan_to_num(values) for side, values in scaled.items()}


def choose_regression(
    inputs: Mapping[str, NDArray],
    labels: Mapping[str, Sequence[int]],
    score: Callable[[LogisticRegression], float] | None = None,
    strengths: Sequence[float] = REGULARISATION,
) -> tuple[LogisticRegression, float]:
    """The regression fitted to the side "train" whose C the side "validation" likes best, and its score there.

    inputs (n, width) and labels (n,) by side. score: of a fitted model, higher is better; None = accuracy on
    "validation". Of equals the most regularised is taken.
    """

    def accuracy(model: LogisticRegression) -> float:
        return float(model.score(inputs["validation"], labels["validation"]))

    fitted = [LogisticRegression(C=c, max_iter=5000).fit(inputs["train"], labels["train"]) for c in sorted(strengths)]
    scored = [((score or accuracy)(model), model) for model in fitted]
    best, model = max(scored, key=lambda pair: pair[0])
    return model, best
