"""Bootstrap intervals, by row or by group, for any figure that takes weights.

A resample draws as many units as there are, with replacement (Efron 1979); it is expressed as weights, the number of
times each unit was drawn (multinomial), so that no row is copied.  A unit is a row, or a group of rows that belong
together, such as those of a user: then whole groups are drawn, and the interval holds what the rows of a group have in
common.  The same seed gives the same interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri

from features.errors import UndefinedMetricError
from recsys.evaluation.auc import group_codes
from recsys.evaluation.auc_kernels import weighted_aucs
from recsys.evaluation.intervals import LEVEL, Interval
from recsys.evaluation.rows import columns, require_both_classes

Kind = Literal["percentile", "bca"]
REPLICATES = 1000
_BLOCKS = 500
"""Parts of the units that are left out in turn to find how skew the figure is."""
_AT_ONCE = 1 << 22
"""Weights that are in memory at a time."""


def bootstrap(
    figure: Callable[[np.ndarray], float],
    rows: int,
    *,
    weight: np.ndarray | None = None,
    group: np.ndarray | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    kind: Kind = "percentile",
    level: float = LEVEL,
) -> Interval:
    """The interval of any figure that can be computed from weighted rows.

    Args:
        figure: From weights [N] to a number; for example `lambda w: auc(y, a, w) - auc(y, b, w)`.
        rows: N.
        weight: [N] the rows' own weights, by which the drawn ones are multiplied.
        group: [N] keys: whole groups are drawn.
        replicates: how many resamples.
        seed: of the draws.
        kind: `percentile`, or `bca`: corrected for bias and skewness (Efron 1987), at the price of up to 500 more
            evaluations.
        level: of confidence.

    Returns:
        The figure on all rows, and its interval.

    Raises:
        UndefinedMetricError: The figure does not exist on these rows, there is only one unit to draw from, or it does
            not exist on more than one resample in twenty.  Fewer are left out.

    >>> y = np.arange(100.0)
    >>> str(bootstrap(lambda w: float(np.average(y, weights=w)), 100, seed=1))
    '49.5 [43.54, 55.34]'
    """
    own = np.ones(rows) if weight is None else np.asarray(weight, dtype=np.float64)
    codes, units = _units(rows, group)

    def of_units(times: np.ndarray) -> float:
        return figure(own * (times if group is None else times[codes]))

    def of_many(draws: np.ndarray) -> np.ndarray:
        values = np.full(len(draws), np.nan)
        for place, times in enumerate(draws):
            try:
                values[place] = of_units(times)
            except UndefinedMetricError:
                continue
        return values

    return _interval(figure(own), of_many, units, rows, replicates, seed, kind, level, group is not None)


def resampled_sums(columns: np.ndarray, replicates: int, seed: int, group: np.ndarray | None = None) -> np.ndarray:
    """Sums of columns over units drawn with replacement, from which ratios and differences of sums can be made.

    Args:
        columns: [N, K] what each row adds.
        replicates: how many resamples.
        seed: of the draws; the resamples are those of `bootstrap` with the same seed.
        group: [N] keys: whole groups are drawn, as many as there are.

    Returns:
        [replicates, K].

    >>> resampled_sums(np.array([[1.0], [1.0]]), 3, seed=0).tolist()
    [[2.0], [2.0], [2.0]]
    """
    per_unit = _of_units(columns, group)
    return np.concatenate([draws @ per_unit for draws in _draws(len(per_unit), replicates, seed)])


def percentile_interval(value: float, draws: np.ndarray, level: float, method: str) -> Interval:
    """The middle share `level` of a figure's resamples, all of them finite."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level, method, float(draws.std(ddof=1)))


def bootstrap_sums(
    figure: Callable[[np.ndarray], np.ndarray],
    columns: np.ndarray,
    *,
    group: np.ndarray | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    kind: Kind = "percentile",
    level: float = LEVEL,
) -> Interval:
    """The interval of a figure of sums over rows, all resamples in a few matrix products.

    Logloss, calibration ratio, Brier score and normalised entropy are such, and so is a GAUC over groups.

    Args:
        figure: From sums [..., K] to figures [...].
        columns: [N, K] what each row adds, weights included.
        group: [N] keys: whole groups are drawn.
        replicates: how many resamples.
        seed: of the draws; the resamples are those of `bootstrap` with the same seed.
        kind: as for `bootstrap`.
        level: of confidence.

    Raises:
        UndefinedMetricError: as for `bootstrap`; a figure that does not exist is not a finite number.

    >>> clicks, expected = np.array([0, 1, 1, 0, 1.0]), np.array([0.2, 0.7, 0.6, 0.3, 0.9])
    >>> found = bootstrap_sums(lambda s: s[..., 1] / s[..., 0], np.stack([clicks, expected], 1), seed=1)
    >>> round(found.value, 3), found.low < 0.9 < found.high
    (0.9, True)
    """
    per_unit = _of_units(columns, group)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(figure(per_unit.sum(0)))
        if not np.isfinite(value):
            raise UndefinedMetricError("the figure does not exist on all rows")
        return _interval(
            value,
            lambda draws: np.asarray(figure(draws @ per_unit)),
            len(per_unit),
            len(columns),
            replicates,
            seed,
            kind,
            level,
            group is not None,
        )


def bootstrap_auc(
    labels: np.ndarray,
    scores: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    group: np.ndarray | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    kind: Kind = "percentile",
    level: float = LEVEL,
) -> Interval:
    """The interval of the AUC; rows are sorted once and each resample is one pass over them.

    Args:
        labels: [N] in {0, 1}.
        scores: [N], any scale.
        weight: [N] non-negative.
        group: [N] keys: whole groups are drawn.
        replicates: how many resamples.
        seed: of the draws; the resamples are those of `bootstrap` with the same seed.
        kind: as for `bootstrap`.
        level: of confidence.

    Raises:
        UndefinedMetricError: as for `bootstrap`.
    """
    y, s, w = columns(labels, scores, weight)
    require_both_classes(float((w * y).sum()), float((w * (1 - y)).sum()), len(y))
    codes, units = _units(len(y), group)
    order = np.argsort(s)
    ordered, positive, own, place = s[order], y[order] > 0, w[order], codes[order]
    last_of_tie = np.r_[ordered[1:] != ordered[:-1], True]

    def of_many(draws: np.ndarray) -> np.ndarray:
        values = np.empty(len(draws))
        weighted_aucs(positive, own, place, last_of_tie, draws, values)
        return values

    value = float(of_many(np.ones((1, units)))[0])
    return _interval(value, of_many, units, len(y), replicates, seed, kind, level, group is not None)


def _units(rows: int, group: np.ndarray | None) -> tuple[np.ndarray, int]:
    return (np.arange(rows), rows) if group is None else group_codes(group)


def _of_units(columns: np.ndarray, group: np.ndarray | None) -> np.ndarray:
    """[U, K] sums over each unit."""
    rows = np.asarray(columns, dtype=np.float64)
    if group is None:
        return rows
    codes, units = group_codes(group)
    return np.stack([np.bincount(codes, column, units) for column in rows.T], 1)


def _draws(units: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """[R, U] how often each unit is drawn, some resamples at a time; a resample depends on seed and number alone."""
    chunk = max(1, _AT_ONCE // units)
    for start in range(0, replicates, chunk):
        numbers = range(start, min(start + chunk, replicates))
        drawn = np.empty((len(numbers), units))
        for place, number in enumerate(numbers):
            picks = np.random.default_rng((seed, number)).integers(units, size=units)
            drawn[place] = np.bincount(picks, minlength=units)
        yield drawn


def _interval(
    value: float,
    of_many: Callable[[np.ndarray], np.ndarray],
    units: int,
    rows: int,
    replicates: int,
    seed: int,
    kind: Kind,
    level: float,
    grouped: bool,
) -> Interval:
    name = "group" if grouped else "row"
    if units < 2:
        raise UndefinedMetricError(f"{units} {name}s of {rows} rows to draw from: two are needed")
    values = np.concatenate([of_many(draws) for draws in _draws(units, replicates, seed)])
    found = values[np.isfinite(values)]
    if len(found) < 0.95 * replicates:
        missing = replicates - len(found)
        raise UndefinedMetricError(f"the figure does not exist on {missing} of {replicates} resamples")
    method = f"{kind} bootstrap by {name}"
    plain = percentile_interval(value, found, level, method)
    if kind == "percentile":
        return plain
    low, high = np.quantile(found, _bca_shares(value, found, of_many, units, level))
    return replace(plain, low=float(low), high=float(high))


def _bca_shares(
    value: float, found: np.ndarray, of_many: Callable[[np.ndarray], np.ndarray], units: int, level: float
) -> np.ndarray:
    """Which quantiles of the resamples to take: `Phi(z0 + (z0 + z) / (1 - a (z0 + z)))`.

    z0 is the normal quantile of the share of resamples below the value (those equal to it count half); a, a sixth of
    the skewness of the influences over the root of their number, comes from a jackknife that leaves out blocks of
    units, every 500th unit a block: sums over blocks have the same a in expectation.
    """
    below = ((found < value).mean() + (found <= value).mean()) / 2
    shift = ndtri(np.clip(below, 1 / len(found), 1 - 1 / len(found)))
    blocks = min(_BLOCKS, units)
    chunk = max(1, _AT_ONCE // units)
    parts = []
    for start in range(0, blocks, chunk):
        left_out = np.ones((min(chunk, blocks - start), units))
        for place in range(len(left_out)):
            left_out[place, start + place :: blocks] = 0
        parts.append(of_many(left_out))
    jackknife = np.concatenate(parts)
    jackknife = jackknife[np.isfinite(jackknife)]
    influence = jackknife.mean() - jackknife
    spread = (influence**2).sum()
    skew = (influence**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    moved = shift + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    wanted: np.ndarray = ndtr(shift + moved / (1 - skew * moved))
    return wanted
