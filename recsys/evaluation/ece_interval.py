"""The expected calibration error without its noise, and its interval.

The plain figure is a sum of distances: noise only adds to it, and how much hangs on how many of the bins are right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtrc, chdtri, ndtr

from recsys.evaluation.calibration import ECE_BINS, bin_gaps
from recsys.evaluation.intervals import LEVEL, Interval
from recsys.evaluation.rows import columns, require_probabilities

_NOISE = math.sqrt(2 / math.pi)
"""Mean distance from 0 of a standard normal value."""
_DEGREE = 2
"""Of the curve that gaps follow."""
_ROUGH = 0.1
"""Gaps that scatter about their curve more than in this share of samples by chance are taken for rough."""
_HUMP = 0.6
"""Width of the correction of `_bounds`; narrower ones take off less from clear gaps, but vary more."""
_STEPS = 600
_FAR = 4.0
"""From so many errors above its least value on, the plain figure knows nothing of the boundary."""


def ece_interval(
    labels: np.ndarray,
    probabilities: np.ndarray,
    weight: np.ndarray | None = None,
    bins: int = ECE_BINS,
    level: float = LEVEL,
) -> Interval:
    """The expected calibration error without its noise, and its interval.

    In bin k of share a_k the measured gap of predicted and observed rate, in units of its error
    `e_k = sqrt(o_k (1 - o_k) / n_k)`, is z_k, normal around the true one t_k with variance 1.  The plain figure
    `T = sum a_k e_k |z_k|` has the mean `sum a_k e_k E|z_k|`, of folded normal values, and a variance, that follow from
    the t_k.  The truth is `sum a_k e_k |t_k|`.

    **Shape.** Neighbouring bins are off alike: the gaps are laid along a curve of second degree over the bins, by
    weighted least squares, and what they scatter about it beyond chance stays as scatter, shrunk to the variance that
    it has without noise.  That gives the proportions of the t_k; their size is what is asked for.

    **Inversion.** The interval holds all sizes under which T would not be unusual.  A size cannot be below 0, where T
    has its least mean; so "unusual" is judged by the ratio of likelihoods to the best size there is (Feldman and
    Cousins, Physical Review D 57, 1998): it covers as often at the boundary, a calibrated model, as far from it.  The
    value is the size under which T is the mean.

    **Rough gaps.** Where the gaps scatter about the curve more than chance does in nine of ten samples, their
    proportions cannot be told from the noise, and the interval is widened to bounds that need none, see `_bounds`.

    All this is for the bins that these predictions cut.  More bins see finer errors.

    Args:
        labels: [N] in {0, 1}.
        probabilities: [N] in [0, 1].
        weight: [N] non-negative; a bin then counts as `(sum w)^2 / sum w^2` rows.
        bins: of equally many rows.
        level: of confidence.

    Raises:
        UndefinedMetricError: there are no rows.

    >>> from recsys.evaluation.calibration import expected_calibration_error
    >>> rng = np.random.default_rng(0)
    >>> p = rng.random(5000)
    >>> y = rng.random(5000) < p
    >>> str(ece_interval(y, p)), round(expected_calibration_error(y, p), 4)
    ('0 [0, 0.013093]', 0.0137)
    >>> str(ece_interval(y, p**2)), round(expected_calibration_error(y, p**2), 4)
    ('0.1585 [0.14721, 0.16979]', 0.1585)
    """
    y, p, w = columns(labels, probabilities, weight)
    require_probabilities(p)
    share, gap, error, _ = bin_gaps(y, p, w, bins)
    z, scale = gap / error, share * error
    shape, rough = _shape(z, error)
    value, low, high = _inverted(shape, scale, float(scale @ np.abs(z)), level)
    if rough:
        sure_low, sure_high = _bounds(z, scale, level)
        low, high = min(low, sure_low), max(high, sure_high)
    method = "bounds of the noise, rough gaps" if rough else "inversion, smooth gaps"
    return Interval(value, low, min(high, 1.0), level, method)


def _shape(z: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, bool]:
    """Proportions of the true gaps, in units of their errors, and whether they are rough."""
    degree = min(_DEGREE, len(z) - 1)
    basis = np.polynomial.legendre.legvander(np.linspace(-1, 1, len(z)), degree) / error[:, None]
    basis, _ = np.linalg.qr(basis)
    curve = basis @ (basis.T @ z)
    scatter = z - curve
    squares, free = float(scatter @ scatter), len(z) - basis.shape[1]
    if not free:
        return curve, False
    variance = max(squares / free - 1, 0.0)
    return curve + scatter * math.sqrt(variance / (1 + variance)), bool(chdtrc(free, squares) < _ROUGH)


def _inverted(shape: np.ndarray, scale: np.ndarray, plain: float, level: float) -> tuple[float, float, float]:
    """The size under which the plain figure is the mean, and the ends of those under which it is not unusual."""
    size = float(scale @ np.abs(shape))
    unit = shape / size if size > 1e-12 else 1 / (scale.sum() * np.ones_like(scale))
    sizes = np.linspace(0, plain + 6 * math.sqrt(scale @ scale), _STEPS)
    t = sizes[:, None] * unit
    folded = _folded_mean(t)
    means, errors = folded @ scale, np.sqrt((t**2 + 1 - folded**2) @ scale**2)
    away, seen = (means - means[0]) / errors, (plain - means[0]) / errors
    # the best size has the ratio 1; below the least mean that is size 0
    unusual = (seen - away) ** 2 - np.minimum(seen, 0) ** 2 - _limits(level, away)
    inside = np.flatnonzero(unusual <= 0)
    value = float(np.interp(plain, means, sizes))
    if not len(inside):
        return value, value, value
    ends = []
    for place, beyond in ((inside[0], -1), (inside[-1], 1)):
        other = place + beyond
        if 0 <= other < _STEPS:
            part = unusual[place] / (unusual[place] - unusual[other])
            ends.append(float(sizes[place] + part * (sizes[other] - sizes[place])))
        else:
            ends.append(float(sizes[place]))
    return value, min(ends[0], value), max(ends[1], value)


def _limits(level: float, away: np.ndarray) -> np.ndarray:
    """How unusual a normal value may be whose mean is so many errors above the least there is."""
    grid, limits = _table(level)
    found: np.ndarray = np.interp(away, grid, limits)
    return found


@lru_cache(maxsize=16)
def _table(level: float) -> tuple[np.ndarray, np.ndarray]:
    grid = np.linspace(0, _FAR, 81)

    def covers(limit: float, away: float) -> float:
        root = math.sqrt(limit)
        low = away - root
        if low < 0:  # below 0 the best mean is 0, and `(x - away)^2 - x^2` takes the place of `(x - away)^2`
            low = (away**2 - limit) / (2 * away) if away > 0 else -math.inf
        return float(ndtr(root) - ndtr(low - away)) - level

    most = float(chdtri(1, 1 - level))
    return grid, np.array([brentq(covers, 0, most + 1, args=(away,)) for away in grid])


def _bounds(z: np.ndarray, scale: np.ndarray, level: float) -> tuple[float, float]:
    """An interval that covers whatever the true gaps are: in `level` of samples, or more.

    T is too high by `sum a_k e_k h(t_k)`, with `h(t) = E|z| - |t|`, which is sqrt(2 / pi) at t = 0 and next to nothing
    from t = 2 on.  There are two figures whose means are on either side of the truth, whatever the true gaps are: T,
    which is never too low, and

        `L = sum a_k e_k (|z_k| - c exp(-z_k^2 / (2 s^2)))`, `c = sqrt(2 / pi) sqrt(1 + s^2) / s`,

    which is never too high, for `h(t) <= sqrt(2 / pi) exp(-t^2 / 2)` and the mean of the correction is `sqrt(2 / pi)
    exp(-t^2 / (2 (1 + s^2)))`, with s = .6.  The interval goes from L less q of its errors to T plus q of its errors; q
    is 1.96 where L and T agree, and 1.64 where they are far apart, because then the truth can be missed on one side
    only (Imbens and Manski, Econometrica 2004).
    """
    plain, corrected = float(scale @ np.abs(z)), float(scale @ _corrected(z))
    above, below = (math.sqrt(scale**2 @ _variance(of, z)) for of in (np.abs, _corrected))
    apart = (plain - corrected) / max(above, below)
    q = float(brentq(lambda q: ndtr(q + apart) - ndtr(-q) - level, 0, 40))
    return max(corrected - q * below, 0.0), plain + q * above


def _folded_mean(t: np.ndarray) -> np.ndarray:
    """Mean of |z| where z is normal around t with variance 1."""
    found: np.ndarray = _NOISE * np.exp(-(t**2) / 2) + t * (1 - 2 * ndtr(-t))
    return found


def _corrected(z: np.ndarray) -> np.ndarray:
    """Figures whose means are at most |t|, where z is normal around t with variance 1."""
    hump: np.ndarray = _NOISE * math.hypot(1, _HUMP) / _HUMP * np.exp(-(z**2) / (2 * _HUMP**2))
    return np.abs(z) - hump


def _variance(figure: Callable[[np.ndarray], np.ndarray], t: np.ndarray) -> np.ndarray:
    """Variance of a figure of z where z is normal around t with variance 1, by a sum over 4.5 errors to either side."""
    steps = np.linspace(-4.5, 4.5, 91)
    chances = np.exp(-(steps**2) / 2)
    chances /= chances.sum()
    values = figure(t[:, None] + steps)
    variance: np.ndarray = values**2 @ chances - (values @ chances) ** 2
    return variance
