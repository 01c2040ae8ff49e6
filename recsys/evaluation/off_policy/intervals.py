"""Intervals of off-policy values: the bootstrap, and one that holds for every number of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from features.errors import DataError

_BLOCK = 1 << 22
"""Counts held at a time while resampling."""


@dataclass(frozen=True)
class Interval:
    """Two ends."""

    low: float
    high: float


def resampled_sums(columns: np.ndarray, draws: int, seed: int, group: np.ndarray | None = None) -> np.ndarray:
    """Sums of columns over rows drawn with replacement, for the bootstrap (Efron 1979).

    All columns share the rows drawn, so that ratios and differences of sums can be made afterwards.

    Args:
        columns: [N, C].
        draws: How often N rows are drawn.
        seed: Decides which.
        group: [N]: draws whole groups in place of rows, as many as there are. Rows of one group, such as a user or a
            slate, need not be independent then.

    Returns:
        [draws, C].

    >>> resampled_sums(np.array([[1.0], [1.0]]), draws=3, seed=0).tolist()
    [[2.0], [2.0], [2.0]]
    """
    if group is not None:
        _, index = np.unique(group, return_inverse=True)
        columns = np.stack([np.bincount(index, weights=column) for column in columns.T], axis=1)
    units = len(columns)
    rng = np.random.default_rng(seed)
    sums = np.empty((draws, columns.shape[1]))
    step = max(1, _BLOCK // units)
    for start in range(0, draws, step):
        stop = min(start + step, draws)
        drawn = rng.integers(0, units, (stop - start, units))
        counts = np.stack([np.bincount(row, minlength=units) for row in drawn]).astype(np.float64)
        sums[start:stop] = counts @ columns
    return sums


def percentile_interval(draws: np.ndarray, level: float) -> Interval | None:
    """The middle share `level` of bootstrapped values; None if one of them is undefined."""
    if not np.isfinite(draws).all():
        return None
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def empirical_bernstein(values: np.ndarray, span: tuple[float, float], level: float) -> Interval | None:
    """The empirical Bernstein interval of a mean of independent, bounded values.

    `mean +- [ sqrt(2 V ln(4 / d) / n) + 7 R ln(4 / d) / (3 (n - 1)) ]`

    with d = 1 - level, V the sample variance with n - 1 and R = high - low of `span`: Theorem 4 for either side with
    d / 2, hence 4 in place of 2. It covers with at least the stated level for every n, and is wide: with a bound far
    above the values the second term rules.

    References:
        Maurer and Pontil, "Empirical Bernstein Bounds and Sample Variance Penalization", COLT 2009, Theorem 4.

    Args:
        values: [N], independent.
        span: What they lie between, known beforehand.
        level: Of the interval.

    Returns:
        The interval, cut to the span; None of fewer than two values.

    Raises:
        DataError: A value is outside the span.

    >>> found = empirical_bernstein(np.array([0.0, 1.0] * 5000), (0.0, 1.0), 0.95)
    >>> round(found.low, 4), round(found.high, 4)
    (0.4842, 0.5158)
    """
    n = len(values)
    if n < 2:
        return None
    low, high = span
    slack = 1e-9 * max(1.0, abs(low), abs(high))
    if values.min() < low - slack or values.max() > high + slack:
        raise DataError(
            "a value is outside its bounds",
            field="span",
            found=f"{values.min():.6g} to {values.max():.6g}",
            expected=f"{low:g} to {high:g}",
        )
    log_term = math.log(4 / (1 - level))
    mean = float(values.mean())
    half = math.sqrt(2 * float(values.var(ddof=1)) * log_term / n) + 7 * (high - low) * log_term / (3 * (n - 1))
    return Interval(max(low, mean - half), min(high, mean + half))
