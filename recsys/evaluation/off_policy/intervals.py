"""The interval of a mean of bounded values that holds for every number of rows."""

from __future__ import annotations

import math

import numpy as np

from features.errors import DataError
from recsys.evaluation.intervals import Interval


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
    return Interval(mean, max(low, mean - half), min(high, mean + half), level, "empirical Bernstein")
