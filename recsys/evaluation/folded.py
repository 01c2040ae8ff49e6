"""The interval and the p-value of a difference of two distances, such as |a - 1| - |b - 1| of two calibration ratios.

A distance is a folded value: its bootstrap, or its standard error, says nothing true where the signed value may be on
either side of 0.  The signed values are normal around the true ones, and all that is said follows from them.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import stdtr


def folded_interval(x: float, y: float, covariance: np.ndarray, quantile: float) -> tuple[float, float]:
    """The interval of `|x| - |y|` of the true x and y: all values that it takes in an ellipse around the found ones.

    The ellipse holds the pairs within `quantile` errors of the found one, so the interval holds all differences that a
    test of the ratio of likelihoods would not refuse (one degree of freedom).  As `|y| = max u y` over u in [-1, 1],
    the upper end is

        `max over s in {-1, 1} of min over u in [-1, 1] of s x - u y + quantile sqrt(var(s x - u y))`

    and the lower one that of the values exchanged, with its sign turned.

    Where both signs are clear this is the interval of a signed difference, and covers as often.  Where they are not, no
    interval covers in just its level: it must hold the difference under either sign, and covers more often.

    Args:
        x: Found.
        y: Found.
        covariance: [2, 2] of the two.
        quantile: Errors that count as chance, such as 1.96.

    >>> low, high = folded_interval(0.2, 0.1, np.diag([1e-4, 1e-4]), 1.96)
    >>> round(low, 4), round(high, 4)
    (0.0723, 0.1277)
    """
    high = _most(x, y, covariance, quantile)
    low = -_most(y, x, covariance[::-1, ::-1], quantile)
    return low, high


def folded_p_value(x: float, y: float, covariance: np.ndarray, freedom: float = math.inf) -> float:
    """Two-sided, of `|x| = |y|`: refused only if both `x = y` and `x = -y` are; 1 if they are found equal.

    It is below a level just where the interval of that level leaves out 0.

    >>> folded_p_value(0.2, -0.2, np.eye(2)), round(folded_p_value(3.0, 0.0, np.eye(2)), 4)
    (1.0, 0.0339)
    """
    p = 0.0
    for sign in (1, -1):
        distance = abs(x - sign * y)
        error = _error(covariance, 1, sign)
        p = max(p, 1.0 if distance == 0 else float(2 * stdtr(freedom, -distance / error)) if error > 0 else 0.0)
    return p


def folded_error(x: float, y: float, covariance: np.ndarray) -> float:
    """Standard error of `|x| - |y|` were the signs known to be the found ones."""
    return _error(covariance, math.copysign(1, x), math.copysign(1, y))


def _most(x: float, y: float, covariance: np.ndarray, quantile: float) -> float:
    """The largest `|x| - |y|` within the ellipse."""
    largest = -math.inf
    for sign in (1, -1):

        def end(u: float, sign: int = sign) -> float:
            return sign * x - u * y + quantile * _error(covariance, sign, u)

        # convex in u; a search within bounds does not try the bounds themselves
        inner = minimize_scalar(end, bounds=(-1, 1), method="bounded", options={"xatol": 1e-9})
        largest = max(largest, min(float(inner.fun), end(-1), end(1)))
    return largest


def _error(covariance: np.ndarray, of_x: float, of_y: float) -> float:
    """Standard error of `of_x x - of_y y`."""
    square = of_x**2 * covariance[0, 0] - 2 * of_x * of_y * covariance[0, 1] + of_y**2 * covariance[1, 1]
    return math.sqrt(max(float(square), 0.0))
