"""How far to trust a score, or a difference of two: confidence intervals over speakers.

Utterances of one speaker resemble each other, so intervals resample whole speakers (a cluster bootstrap: Davison and
Hinkley 1997, section 3.8). What is scored is a function of counts that add up over speakers, so all resamples are one
matrix product. With few speakers the intervals are rough and tend to be too narrow (IEMOCAP has ten); they say nothing
about speakers unlike those tested.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """An estimate with the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float


def bootstrap_interval(
    statistic: Callable[[NDArray], NDArray],
    counts: ArrayLike,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic of summed counts, resampling whole groups with replacement.

    counts (groups, ...) holds what each group adds (a confusion matrix, hits and items); `statistic` maps sums of them
    (n, ...) to values (n,). The estimate is the statistic of the data as they are.

    Raises:
        ValueError: for fewer than two groups (nothing to resample), a level outside (0, 1), or resamples < 1.
    """
    counts = np.asarray(counts, dtype=float)  # float: integer matrix products do not reach BLAS
    if counts.ndim == 0 or len(counts) < 2:
        raise ValueError("a bootstrap over groups needs at least 2 groups")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    groups = len(counts)
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    sums = (drawn @ counts.reshape(groups, -1)).reshape(resamples, *counts.shape[1:])
    low, high = np.quantile(statistic(sums), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(counts.sum(0)[None])[0]), float(low), float(high))


def paired_difference(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    groups: ArrayLike,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """WA of model A minus WA of model B on the same items, resampling groups (speakers).

    correct_a, correct_b (n,): whether each model got item i right; groups (n,). Pairing removes what the items have in
    common: an interval that excludes 0 is evidence of a difference even where the two models' own intervals overlap.

    Raises:
        ValueError: for lengths that differ, values other than 0 and 1, or fewer than two groups.
    """
    correct_a, correct_b, groups = np.asarray(correct_a), np.asarray(correct_b), np.asarray(groups, dtype=object)
    if correct_a.ndim != 1 or not correct_a.shape == correct_b.shape == groups.shape:
        raise ValueError(
            f"correct_a {correct_a.shape}, correct_b {correct_b.shape} and groups {groups.shape} must be of one length"
        )
    if not np.isin([correct_a, correct_b], [0, 1]).all():
        raise ValueError("correct_a and correct_b must hold only True and False (or 1 and 0)")
    numbers, size = group_numbers(groups)
    gained = np.bincount(numbers, weights=correct_a.astype(float) - correct_b.astype(float), minlength=size)
    items = np.bincount(numbers, minlength=size)
    return bootstrap_interval(
        lambda sums: sums[:, 0] / sums[:, 1], np.stack([gained, items], 1), level, resamples, seed
    )


def paired_gap(correct_a: ArrayLike, correct_b: ArrayLike, groups: ArrayLike) -> dict[str, float] | None:
    """`paired_difference` ready for JSON; None where one group is all there is, and so nothing to resample."""
    return None if len(set(groups)) < 2 else paired_difference(correct_a, correct_b, groups)._asdict()


def format_gap(gap: Mapping[str, float] | None) -> str | None:
    """A `paired_gap` as a table shows it."""
    return None if gap is None else f"{gap['estimate']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})"


def group_numbers(groups: NDArray) -> tuple[NDArray[np.int64], int]:
    """Number the groups in the order of first appearance: (n,) numbers from 0, and how many groups there are."""
    numbers: dict[Any, int] = {}
    for group in groups:
        if group is None:
            raise ValueError("groups hold None: every labelled item needs its speaker")
        numbers.setdefault(group, len(numbers))
    return np.array([numbers[group] for group in groups], dtype=np.int64), len(numbers)
