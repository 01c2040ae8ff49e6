"""Calibration: predicted against observed rates in bins of equally many rows, and what follows from them.

Bins are cut at quantiles of the predictions; equal predictions are never parted, so a bin may hold more.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from features.errors import UndefinedMetricError
from recsys.evaluation.intervals import LEVEL, Interval
from recsys.evaluation.rows import columns, mean, require_probabilities

ECE_BINS = 20
_NOISE = math.sqrt(2 / math.pi)
"""Mean distance from 0 of a standard normal value."""
_HUMP = 0.6
"""Width of the correction of `ece_interval`; narrower ones take off less from clear gaps, but vary more."""


def reliability_curve(
    labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None, bins: int = ECE_BINS
) -> dict[str, np.ndarray]:
    """Predicted and observed rate in bins of equally many rows.

    Returns:
        `predicted`, `observed`, `weight`, each [bins] or shorter where equal scores fill several bins.

    Raises:
        UndefinedMetricError: there are no rows.
    """
    y, p, w = columns(labels, probabilities, weight)
    require_probabilities(p)
    place, count = _bins(p, w, bins)
    weights = np.bincount(place, w, count)
    kept = weights > 0
    predicted, observed = (np.bincount(place, w * v, count)[kept] / weights[kept] for v in (p, y))
    return {"predicted": predicted, "observed": observed, "weight": weights[kept]}


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None, bins: int = ECE_BINS
) -> float:
    """Mean distance between predicted and observed rate over bins of equally many rows (equal scores stay together).

    It is never below its noise: a perfect model of n rows has about `sqrt(2 / pi) sqrt(bins b (1 - b) / n)`, b the base
    rate.  `ece_interval` takes that away.

    >>> expected_calibration_error(np.array([0, 1]), np.array([0.25, 0.75]), bins=2)
    0.25
    """
    curve = reliability_curve(labels, probabilities, weight, bins)
    total = curve["weight"].sum()
    return float((np.abs(curve["predicted"] - curve["observed"]) * curve["weight"]).sum() / total)


def ece_interval(
    labels: np.ndarray,
    probabilities: np.ndarray,
    weight: np.ndarray | None = None,
    bins: int = ECE_BINS,
    level: float = LEVEL,
) -> Interval:
    """The expected calibration error without its noise, and its interval.

    In bin k the measured gap of predicted and observed rate, in units of its error `e_k = sqrt(o_k (1 - o_k) / n_k)`,
    is z_k, normal around the true one t_k with variance 1.  The plain figure `T = sum a_k e_k |z_k|` is too high by
    `sum a_k e_k h(t_k)`, with `h(t) = E|z| - |t|`, which is sqrt(2 / pi) at t = 0 and next to nothing from t = 2 on:
    how much depends on how many true gaps are near 0, which the measured ones do not tell.  (Kumar, Liang and Ma 2019
    avoid this by squares: `brier_parts` has theirs.)  But there are two figures whose means are on either side of the
    truth, whatever the true gaps are: T, which is never too low, and

        `L = sum a_k e_k (|z_k| - c exp(-z_k^2 / (2 s^2)))`, `c = sqrt(2 / pi) sqrt(1 + s^2) / s`,

    which is never too high, for `h(t) <= sqrt(2 / pi) exp(-t^2 / 2)` and the mean of the correction is `sqrt(2 / pi)
    exp(-t^2 / (2 (1 + s^2)))`, with s = .6.  The interval goes from L less q of its errors to T plus q of its errors; q
    is 1.96 where L and T agree, and 1.64 where they are far apart, because then the truth can be missed on one side
    only (Imbens and Manski, Econometrica 2004).  It covers in 95 % of samples of a calibrated model and of one all of
    whose gaps are clear, and in more of those between.

    The value is T less the excess `E|z| - |t|` a bin that true gaps t have which are normal with the mean of z_k and
    their variance less 1 (0 if that is below 0); then both means are those of folded normal values.

    All this is for the bins that these predictions cut.  More bins see finer errors.

    Args:
        labels: [N] in {0, 1}.
        probabilities: [N] in [0, 1].
        weight: [N] non-negative; a bin then counts as `(sum w)^2 / sum w^2` rows.
        bins: of equally many rows.
        level: of confidence.

    Raises:
        UndefinedMetricError: there are no rows.

    >>> rng = np.random.default_rng(0)
    >>> p = rng.random(5000)
    >>> y = rng.random(5000) < p
    >>> str(ece_interval(y, p)), round(expected_calibration_error(y, p), 4)
    ('0 [0, 0.02031]', 0.0137)
    >>> str(ece_interval(y, p**2)), round(expected_calibration_error(y, p**2), 4)
    ('0.1585 [0.14718, 0.16979]', 0.1585)
    """
    y, p, w = columns(labels, probabilities, weight)
    require_probabilities(p)
    share, gap, error, _ = _gaps(y, p, w, bins)
    z, scale = gap / error, share * error
    plain, corrected = float(scale @ np.abs(z)), float(scale @ _corrected(z))
    above, below = (math.sqrt(scale**2 @ _variance(of, z)) for of in (np.abs, _corrected))
    q = _quantile(level, (plain - corrected) / max(above, below))
    low, high = max(corrected - q * below, 0.0), plain + q * above
    centre, spread = float(z.mean()), max(float(z.var(ddof=1)) - 1, 0.0) if len(z) > 1 else 0.0
    excess = _mean_size(centre, 1 + spread) - _mean_size(centre, spread)
    value = plain - float(scale.sum()) * excess
    return Interval(min(max(value, low), high), low, high, level, "between bounds of the noise")


def brier_parts(
    labels: np.ndarray, probabilities: np.ndarray, weight: np.ndarray | None = None, bins: int = ECE_BINS
) -> dict[str, float]:
    """The Brier score taken apart (Murphy 1973), over bins of equally many rows.

    With a share a_k of the weight, predicted rate p_k and observed rate o_k in bin k, and base rate b:

    - `reliability = sum a_k (p_k - o_k)^2`, which a calibrated model brings to 0;
    - `resolution = sum a_k (o_k - b)^2`, what the bins tell apart: more is better;
    - `uncertainty = b (1 - b)`, which no model changes;
    - `within`: what is left because predictions differ within a bin (Stephenson et al. 2008), 0 if they do not;
    - `reliability_debiased`: reliability less the noise of the observed rates, `sum a_k o_k (1 - o_k) / (n_k - 1)`
      (Broecker 2012; Kumar, Liang and Ma 2019).  Its mean over samples is the true one, so it may be below 0.

    `brier = reliability - resolution + uncertainty + within`.

    Raises:
        UndefinedMetricError: there are no rows.

    >>> y, p = np.array([0, 0, 1, 0, 1, 1]), np.array([0.2, 0.2, 0.2, 0.7, 0.7, 0.7])
    >>> parts = brier_parts(y, p, bins=2)
    >>> [round(parts[name], 4) for name in ("reliability", "resolution", "uncertainty", "reliability_debiased")]
    [0.0094, 0.0278, 0.25, -0.1017]
    """
    y, p, w = columns(labels, probabilities, weight)
    require_probabilities(p)
    share, gap, _, noise = _gaps(y, p, w, bins)
    rate = mean(y, w)
    curve = reliability_curve(y, p, w, bins)
    reliability = float((share * gap**2).sum())
    resolution = float((share * (curve["observed"] - rate) ** 2).sum())
    uncertainty = rate * (1 - rate)
    return {
        "reliability": reliability,
        "resolution": resolution,
        "uncertainty": uncertainty,
        "within": mean((p - y) ** 2, w) - (reliability - resolution + uncertainty),
        "reliability_debiased": reliability - float((share * noise).sum()),
    }


def _mean_size(mean: float, variance: float) -> float:
    """Mean of |x| where x is normal."""
    if variance == 0:
        return abs(mean)
    error = math.sqrt(variance)
    return error * _NOISE * math.exp(-(mean**2) / (2 * variance)) + mean * (1 - 2 * float(ndtr(-mean / error)))


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


def _quantile(level: float, apart: float) -> float:
    """The q with `Phi(q + apart) - Phi(-q) = level`: two-sided for 0, one-sided for a wide apart."""
    return float(brentq(lambda q: ndtr(q + apart) - ndtr(-q) - level, 0, 40))


def _gaps(
    y: np.ndarray, p: np.ndarray, w: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each bin: its share of the weight, predicted less observed rate, the error of that, and its unbiased square.

    The error is that of a rate with half a click and half a row without one added, so that a bin without clicks has one
    too.  A bin of one row has no square and counts with 0.
    """
    place, count = _bins(p, w, bins)
    weights = np.bincount(place, w, count)
    kept = weights > 0
    weights = weights[kept]
    predicted, observed = (np.bincount(place, w * v, count)[kept] / weights for v in (p, y))
    rows = weights**2 / np.bincount(place, w * w, count)[kept]
    smooth = (observed * rows + 0.5) / (rows + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        unbiased = np.where(observed * (1 - observed) > 0, observed * (1 - observed) / (rows - 1), 0.0)
    return weights / weights.sum(), predicted - observed, np.sqrt(smooth * (1 - smooth) / rows), unbiased


def _bins(p: np.ndarray, w: np.ndarray, bins: int) -> tuple[np.ndarray, int]:
    """The bin of every row, and the number of bins."""
    if len(p) == 0 or w.sum() == 0:
        raise UndefinedMetricError("all weights are 0" if len(p) else "there are no rows")
    ordered = np.sort(p)
    # a bin begins at the first of its equals, so that no score is split between bins
    edges = np.unique(ordered[(np.arange(bins) * len(p)) // bins])
    return np.searchsorted(edges, p, side="right") - 1, len(edges)
