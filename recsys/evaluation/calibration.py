"""Calibration: predicted against observed rates in bins of equally many rows, and what follows from them.

Bins are cut at quantiles of the predictions; equal predictions are never parted, so a bin may hold more.
"""

from __future__ import annotations

import numpy as np

from features.errors import UndefinedMetricError
from recsys.evaluation.rows import columns, mean, require_probabilities

ECE_BINS = 20


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
    rate.  `ece_interval.ece_interval` takes that away.

    >>> expected_calibration_error(np.array([0, 1]), np.array([0.25, 0.75]), bins=2)
    0.25
    """
    curve = reliability_curve(labels, probabilities, weight, bins)
    total = curve["weight"].sum()
    return float((np.abs(curve["predicted"] - curve["observed"]) * curve["weight"]).sum() / total)


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
    share, gap, _, noise = bin_gaps(y, p, w, bins)
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


def bin_gaps(
    y: np.ndarray, p: np.ndarray, w: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each bin: its share of the weight, predicted less observed rate, the error of that, and its unbiased square.

    All are [bins], or shorter where equal scores fill several bins.  The error is that of a rate with half a click and
    half a row without one added, so that a bin without clicks has one too.  A bin of one row has no square and counts
    with 0.
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
