"""Which of several models is better on the same rows: every pair, every metric, and what may be claimed of it.

Differences are paired, so what is hard about the rows for both models cancels.  The chance of a false claim is shared
among all pairs and metrics.  Where nothing may be claimed, that is what is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from features.errors import DataError
from recsys.evaluation.auc import aucs_of_groups
from recsys.evaluation.bootstrap import resampled_sums
from recsys.evaluation.folded import folded_error, folded_interval, folded_p_value
from recsys.evaluation.metrics import evaluate, row_losses
from recsys.evaluation.paired import auc_influence
from recsys.evaluation.power import LEVEL, detectable, sample_size

METRICS = ("auc", "logloss", "normalised_entropy", "miscalibration", "gauc")
"""In the order they are shown; gauc needs groups. miscalibration is |calibration ratio - 1|."""
HIGHER_IS_BETTER = frozenset({"auc", "gauc"})
RESAMPLES = 1000
_ROUNDING = 1e-12
"""What sums of equal values differ by at most."""


@dataclass(frozen=True)
class PairDifference:
    """A metric of model `a` minus that of model `b` on the same rows."""

    metric: str
    a: str
    b: str
    difference: float
    low: float
    """Lower end of the interval for this difference alone."""
    high: float
    """Upper end of it."""
    error: float
    """Standard error."""
    p_value: float
    """Of this difference alone."""
    p_adjusted: float
    """After Holm's correction over all pairs and metrics."""
    better: str | None
    """The better model, if that may be claimed after the correction."""
    detectable: float | None
    """The smallest difference that these rows show with a chance of 80 %; None where the models are equal."""
    method: str
    """DeLong or bootstrap."""

    @property
    def equal(self) -> bool:
        """Whether the metric is the same for both on these rows, and on any that could be drawn of them."""
        return self.difference == 0 and self.error == 0

    def rows_needed(self, effect: float, rows: int) -> int | None:
        """How many rows show a difference of `effect` with a chance of 80 %, when `rows` rows gave this error.

        None if the models are the same on every row, so that nothing is known of the error.
        """
        return sample_size(self.error * math.sqrt(rows), effect) if self.error > 0 else None


@dataclass(frozen=True)
class Comparison:
    """Several models on the same rows."""

    rows: int
    units: int
    """What was drawn: groups, or rows."""
    by: str
    """group or row."""
    level: float
    models: dict[str, dict[str, Any]]
    """Metrics of each model."""
    differences: tuple[PairDifference, ...]
    undefined: dict[str, str]
    """Metrics that do not exist on these rows, and why."""

    def of(self, metric: str, a: str, b: str) -> PairDifference | None:
        """The difference `a` minus `b` of a metric; None if the metric does not exist on these rows."""
        for found in self.differences:
            if (found.metric, found.a, found.b) == (metric, a, b):
                return found
        return None

    def verdicts(self) -> list[str]:
        """A sentence a pair: what may be claimed and what may not.

        >>> rng = np.random.default_rng(0)
        >>> labels = (rng.random(500) < 0.3).astype(float)
        >>> same = compare(labels, {"new": np.full(500, 0.3), "old": np.full(500, 0.3)}, resamples=100)
        >>> same.verdicts()
        ['new and old: equal in every metric']
        """
        sentences = []
        for a, b in combinations(self.models, 2):
            pair = [found for found in self.differences if (found.a, found.b) == (a, b)]
            parts = [
                f"{winner} is better in {_and([f.metric for f in pair if f.better == winner])}"
                for winner in (a, b)
                if any(f.better == winner for f in pair)
            ]
            equal = [f.metric for f in pair if f.equal]
            open_ = [f.metric for f in pair if f.better is None and not f.equal]
            if equal:
                parts.append(f"equal in {_and(equal) if len(equal) < len(pair) else 'every metric'}")
            if open_:
                parts.append("no difference can be claimed" + (f" in {_and(open_)}" if parts else ""))
            sentences.append(f"{a} and {b}: {'; '.join(parts) or 'no metric exists on these rows'}")
        return sentences

    def to_json(self) -> dict[str, Any]:
        """All of it, and the verdicts."""
        return {**asdict(self), "verdicts": self.verdicts()}


def compare(
    labels: np.ndarray,
    scores: Mapping[str, np.ndarray],
    *,
    weight: np.ndarray | None = None,
    group: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Comparison:
    """Compare all pairs of models in all metrics.

    The standard error of a difference of AUC is DeLong's (with groups Obuchowski's, see `auc_influence`); that of the
    others is the standard deviation over bootstrap samples, in which as many rows (with groups: whole groups) are drawn
    as there are, with replacement, the same ones for all models.  An interval is the difference plus and minus the
    Student quantile (of groups - 1 degrees of freedom; without groups the normal one) times that error, and the p-value
    is of the same distribution, so that interval and p-value never disagree.  Miscalibration is a distance: its
    interval and p-value come from the two signed ratios and what the bootstrap says of them together (see `folded`).

    Args:
        labels: [N] in {0, 1}.
        scores: [N] probabilities of each model.
        weight: [N] non-negative.
        group: [N] keys of what the rows were drawn in, such as users; left out, rows count as drawn one by one and
            there is no GAUC.
        resamples: Bootstrap samples.
        seed: Of the bootstrap.
        level: Chance of any false claim, over all pairs and metrics.

    Raises:
        DataError: Fewer than two models, scores of another number of rows, or scores that are no probabilities.
    """
    y, p, w = _columns(labels, scores, weight)
    names = list(p)
    units, n_units = _units(group, len(y))
    models = {name: _metrics(evaluate(y, p[name], weight, group)) for name in names}
    undefined = dict(models[names[0]]["undefined"])
    if n_units < 2:
        undefined |= dict.fromkeys(METRICS, f"{n_units} {'row' if group is None else 'group'} only")
    positive = int(y.sum())
    if min(positive, len(y) - positive) < 2:
        undefined.setdefault("auc", f"{positive} of {len(y)} rows are positive: two of each class are needed")
    freedom = math.inf if group is None else n_units - 1
    metrics = [name for name in METRICS if name in models[names[0]] and name not in undefined]
    pairs = list(combinations(names, 2))
    half = float(stdtrit(freedom, 1 - level / 2))
    found = [
        (metric, a, b, _difference(metric, models[a], models[b], spread, half, freedom))
        for (metric, a, b), spread in _spreads(y, p, w, group, units, n_units, metrics, pairs, resamples, seed).items()
    ]
    adjusted = holm([row[-1].p_value for row in found])
    differences = tuple(
        PairDifference(
            metric,
            a,
            b,
            one.difference,
            one.low,
            one.high,
            one.error,
            one.p_value,
            p_all,
            better_of(metric, a, b, one.difference) if p_all < level else None,
            detectable(one.error * math.sqrt(len(y)), len(y), level=level) if one.error > 0 else None,
            "DeLong" if metric == "auc" else "bootstrap",
        )
        for (metric, a, b, one), p_all in zip(found, adjusted, strict=True)
    )
    by = "row" if group is None else "group"
    return Comparison(len(y), n_units, by, level, models, differences, undefined)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: claiming all that stays below a level, any claim is false with that chance at most.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return [float(value) for value in adjusted]


def p_value(difference: float, error: float, freedom: float = math.inf) -> float:
    """Two-sided, of a difference of 0; 1 if it is 0, however small its error."""
    if difference == 0:
        return 1.0
    return float(2 * stdtr(freedom, -abs(difference) / error)) if error > 0 else 0.0


def better_of(metric: str, a: str, b: str, difference: float) -> str:
    """Which of two models a difference `a` minus `b` of a metric speaks for."""
    return a if (difference > 0) == (metric in HIGHER_IS_BETTER) else b


@dataclass(frozen=True)
class _Single:
    """A difference alone, before any correction."""

    difference: float
    low: float
    high: float
    error: float
    p_value: float


def _difference(
    metric: str, a: Mapping[str, Any], b: Mapping[str, Any], spread: float | np.ndarray, half: float, freedom: float
) -> _Single:
    """The difference of a metric of two models with its interval.

    Args:
        metric: Its name.
        a: Metrics of the one.
        b: Of the other.
        spread: Standard error of the difference; of miscalibration the covariance of the two ratios; 0 of equals.
        half: Quantile of the interval.
        freedom: Degrees of freedom.
    """
    difference = float(a[metric] - b[metric])
    if isinstance(spread, np.ndarray):
        x, y = a["calibration_ratio"] - 1, b["calibration_ratio"] - 1
        low, high = folded_interval(x, y, spread, half)
        return _Single(difference, low, high, folded_error(x, y, spread), folded_p_value(x, y, spread, freedom))
    if spread == 0 and abs(difference) <= _ROUNDING:
        return _Single(0.0, 0.0, 0.0, 0.0, 1.0)
    low, high = difference - half * spread, difference + half * spread
    return _Single(difference, low, high, spread, p_value(difference, spread, freedom))


def _spreads(
    y: np.ndarray,
    p: Mapping[str, np.ndarray],
    w: np.ndarray,
    group: np.ndarray | None,
    units: np.ndarray,
    n_units: int,
    metrics: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    resamples: int,
    seed: int,
) -> dict[tuple[str, str, str], float | np.ndarray]:
    """What `_difference` takes as spread, by metric and pair."""
    spreads: dict[tuple[str, str, str], float | np.ndarray] = {}
    drawn = _bootstrap(_statistics(y, p, w, group, units, n_units), list(p), resamples, seed)
    moved = {name: auc_influence(y, p[name], w) for name in p} if "auc" in metrics else {}
    for metric in metrics:
        for a, b in pairs:
            if metric == "auc":
                by_unit = _sums(moved[a] - moved[b], units, n_units)
                factor = 1.0 if group is None else n_units / (n_units - 1)
                spreads[metric, a, b] = math.sqrt(factor * float(by_unit @ by_unit))
                continue
            both = np.stack([drawn[metric][a], drawn[metric][b]])
            both = both[:, np.isfinite(both).all(0)]  # not of a resample without a click
            if np.allclose(both[0], both[1], rtol=_ROUNDING, atol=0):
                spreads[metric, a, b] = 0.0
            elif metric == "miscalibration":
                spreads[metric, a, b] = np.cov(both)
            else:
                spreads[metric, a, b] = float((both[0] - both[1]).std(ddof=1))
    return spreads


def _statistics(
    y: np.ndarray, p: Mapping[str, np.ndarray], w: np.ndarray, group: np.ndarray | None, units: np.ndarray, n: int
) -> dict[str, np.ndarray]:
    """[U] sums over each unit from which every metric but AUC follows by sums over units."""
    rows = {"weight": w, "clicks": w * y}
    for name, scores in p.items():
        rows |= {f"loss {name}": w * row_losses(y, scores), f"expected {name}": w * scores}
    sums = {key: _sums(values, units, n) for key, values in rows.items()}
    if group is not None:
        for name, scores in p.items():
            share, value = aucs_of_groups(y, scores, w, units, n)
            sums |= {"share": share, f"gauc {name}": share * value}
    return sums


def _bootstrap(
    sums: Mapping[str, np.ndarray], names: Sequence[str], resamples: int, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """[resamples] values of each metric of each model over units drawn with replacement; NaN where there is none.

    Those of miscalibration have their sign.
    """
    drawn = resampled_sums(np.stack(list(sums.values()), axis=1), resamples, seed)
    column = dict(zip(sums, drawn.T, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = column["clicks"] / column["weight"]
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        logloss = {name: column[f"loss {name}"] / column["weight"] for name in names}
        out = {
            "logloss": logloss,
            "normalised_entropy": {name: logloss[name] / entropy for name in names},
            "miscalibration": {name: column[f"expected {name}"] / column["clicks"] - 1 for name in names},
        }
        if "share" in column:
            out["gauc"] = {name: column[f"gauc {name}"] / column["share"] for name in names}
    return out


def _metrics(found: dict[str, Any]) -> dict[str, Any]:
    ratio = found["calibration_ratio"]
    undefined = dict(found["undefined"])
    if ratio is None:
        undefined["miscalibration"] = undefined["calibration_ratio"]
    return {**found, "miscalibration": None if ratio is None else abs(ratio - 1), "undefined": undefined}


def _columns(
    labels: np.ndarray, scores: Mapping[str, np.ndarray], weight: np.ndarray | None
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    if len(scores) < 2:
        raise DataError("a comparison needs two models", field="models", found=", ".join(scores) or "none")
    y = np.asarray(labels, dtype=np.float64).reshape(-1)
    p = {name: np.asarray(values, dtype=np.float64).reshape(-1) for name, values in scores.items()}
    for name, values in p.items():
        if values.shape != y.shape:
            raise DataError(
                "the model has scores of other rows",
                field=name,
                found=f"{len(values):,} scores",
                expected=f"one for each of {len(y):,} labels",
                mend="score the same rows with all models",
            )
        wrong = ~((values >= 0) & (values <= 1))
        if wrong.any():
            raise DataError(
                f"{np.count_nonzero(wrong):,} of {len(values):,} scores are no probabilities",
                field=name,
                found=float(values[wrong][0]),
                expected="0 to 1",
            )
    return y, p, np.ones(len(y)) if weight is None else np.asarray(weight, dtype=np.float64).reshape(-1)


def _units(group: np.ndarray | None, rows: int) -> tuple[np.ndarray, int]:
    if group is None:
        return np.arange(rows), rows
    _, units = np.unique(np.asarray(group).reshape(-1), return_inverse=True)
    if len(units) != rows:
        raise DataError("the groups are of other rows", field="group", found=len(units), expected=rows)
    return units, int(units.max(initial=-1)) + 1


def _sums(values: np.ndarray, units: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(units, weights=values, minlength=n)


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
