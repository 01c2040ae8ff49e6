"""Whether one model is better than another on the same rows: differences of AUC and logloss with 95 % intervals.

Two sources of chance are told apart: the rows that happened to be tested, and the seeds that happened to be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import stdtrit

from features.errors import UndefinedMetricError
from recsys.evaluation.rows import row_losses

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean over seeds of a metric of model `a` minus that of model `b`, with its interval."""

    mean: float
    low: float
    high: float
    row_error: float
    """Standard error from the rows, the seeds as they are."""
    seed_error: float
    """Standard error from the seeds, the rows as they are; 0 with one seed, whose chance cannot be seen."""
    freedom: float
    """Degrees of freedom of the interval."""
    seeds: tuple[float, ...]
    """The difference of each seed."""

    def to_json(self) -> dict[str, float | list[float]]:
        """All fields as JSON knows them; infinite degrees of freedom are left out."""
        out = asdict(self) | {"seeds": list(self.seeds)}
        return {name: value for name, value in out.items() if value != math.inf}


def paired_auc(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> Difference:
    """Difference of AUC between two models.

    The AUC is a mean over pairs of a positive and a negative row, so its error from the rows is that of the rows'
    structural components (DeLong, DeLong and Clarke-Pearson 1988), found by midranks (Sun and Xu 2014).  Components of
    `a` minus `b`, averaged over seeds, give the error of the mean difference: what both models and all seeds have in
    common cancels.  See `_difference` for the interval.

    Args:
        labels: [N] in {0, 1}.
        a: [N] scores of one model, or [S, N] of S seeds of it.
        b: of the same shape; seed s of `a` is paired with seed s of `b`.

    Raises:
        UndefinedMetricError: Fewer than two rows of a class.
    """
    y, a, b = _rows(labels, a, b)
    positive = y > 0
    if min(positive.sum(), (~positive).sum()) < 2:
        raise UndefinedMetricError(f"{int(positive.sum())} of {len(y)} rows are positive: two of each class are needed")
    of_a, of_b = ([auc_components(y, scores) for scores in model] for model in (a, b))
    per_seed = [float(x[0].mean() - z[0].mean()) for x, z in zip(of_a, of_b, strict=True)]
    variance = 0.0
    for side in (0, 1):
        components = np.mean([x[side] - z[side] for x, z in zip(of_a, of_b, strict=True)], axis=0)
        variance += components.var(ddof=1) / len(components)
    return _difference(per_seed, variance)


def paired_logloss(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> Difference:
    """Difference of logloss between two models, from the difference of their losses row by row.

    Args:
        labels: [N] in {0, 1}.
        a: [N] probabilities of one model, or [S, N] of S seeds of it.
        b: of the same shape; seed s of `a` is paired with seed s of `b`.

    Raises:
        UndefinedMetricError: Fewer than two rows.
    """
    y, a, b = _rows(labels, a, b)
    if len(y) < 2:
        raise UndefinedMetricError(f"{len(y)} rows: two are needed")
    losses = np.array([row_losses(y, p) - row_losses(y, q) for p, q in zip(a, b, strict=True)])
    return _difference([float(v) for v in losses.mean(1)], float(losses.mean(0).var(ddof=1)) / len(y))


def over_seeds(differences: Sequence[float]) -> Difference:
    """The interval of a difference whose seeds each have test rows of their own: Student's, over the seeds.

    The spread between seeds then holds the chance of the rows too.

    Args:
        differences: of each seed, at least two.

    >>> found = over_seeds([0.001, 0.002, 0.003])
    >>> round(found.low, 5), round(found.high, 5), found.freedom
    (-0.00048, 0.00448, 2.0)
    """
    if len(differences) < 2:
        raise ValueError("one seed has no spread: compare it on its rows")
    return _difference([float(value) for value in differences], 0.0)


def auc_components(
    labels: np.ndarray, scores: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The structural components of an AUC: what each row wins against the other class, ties counting half.

    Args:
        labels: [N] in {0, 1}.
        scores: [N], any scale.
        weight: [N] non-negative; a row wins the weight of the rows it beats.

    Returns:
        For each positive the share of negatives below it, and for each negative the share of positives above it, both
        in row order; the (weighted) mean of either is the AUC.

    >>> wins, losses = auc_components(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
    >>> wins.tolist(), losses.tolist()
    ([0.75, 1.0], [1.0, 0.75])
    """
    positive = labels > 0
    w = np.ones(len(positive)) if weight is None else weight
    _, place = np.unique(scores, return_inverse=True)
    at, of_negatives = (np.bincount(place, weights=np.where(side, w, 0.0)) for side in (positive, ~positive))
    below = (np.cumsum(of_negatives) - of_negatives / 2) / of_negatives.sum()
    above = 1 - (np.cumsum(at) - at / 2) / at.sum()
    return below[place[positive]], above[place[~positive]]


def auc_influence(labels: np.ndarray, scores: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """How far each row moves an AUC: the sum of the squares is the variance of the AUC, as DeLong has it.

    The sum of the squares of sums over groups is the variance if groups of rows were drawn and not single rows
    (Obuchowski, Biometrics 1997).  The influence on a difference of two AUCs is the difference of the influences.

    Args:
        labels: [N] in {0, 1}, two of each at least.
        scores: [N], any scale.
        weight: [N] non-negative.

    Returns:
        [N], adding up to 0 over the rows of each class.
    """
    positive = labels > 0
    w = np.ones(len(positive)) if weight is None else weight
    influence = np.empty(len(positive))
    for side, components in zip((positive, ~positive), auc_components(labels, scores, weight), strict=True):
        share, rows = w[side] / w[side].sum(), len(components)
        influence[side] = share * (components - share @ components) * math.sqrt(rows / (rows - 1))
    return influence


def _difference(per_seed: list[float], row_variance: float) -> Difference:
    """The interval of a mean of S seeds' differences d_1 .. d_S on the same rows.

    Rows and seeds are drawn independently, so their variances add: `v = r + s` with r the variance that the rows give
    to the mean, seeds as they are, and `s = sum (d_i - mean)^2 / (S - 1) / S`.  The interval is `mean +- t sqrt(v)`, t
    the Student quantile with Welch and Satterthwaite's `v^2 / (s^2 / (S - 1))` degrees of freedom: r comes from so many
    rows that it counts as known.  What rows and seeds do together is in both terms: the interval errs to the wide side.
    """
    seeds = len(per_seed)
    mean = float(np.mean(per_seed))
    seed_variance = float(np.var(per_seed, ddof=1)) / seeds if seeds > 1 else 0.0
    variance = row_variance + seed_variance
    freedom = variance**2 * (seeds - 1) / seed_variance**2 if seed_variance > 0 else math.inf
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Difference(
        mean, mean - half, mean + half, math.sqrt(row_variance), math.sqrt(seed_variance), freedom, tuple(per_seed)
    )


def _rows(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y = np.asarray(labels, dtype=np.float64).reshape(-1)
    a, b = (np.atleast_2d(np.asarray(scores, dtype=np.float64)) for scores in (a, b))
    if a.shape != b.shape or a.shape[1:] != y.shape:
        raise ValueError(f"labels {y.shape}, a {a.shape} and b {b.shape} are not of the same rows and seeds")
    return y, a, b
