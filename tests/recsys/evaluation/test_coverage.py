"""Nominal 95 % intervals against a known truth, 1,000 samples each: they cover it in 93 to 97 %."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, ndtr

from recsys.evaluation.bootstrap import bootstrap_auc, bootstrap_sums
from recsys.evaluation.ece_interval import ece_interval
from recsys.evaluation.intervals import (
    Interval,
    auc_interval,
    brier_interval,
    calibration_ratio_interval,
    logloss_interval,
    normalised_entropy_interval,
)
from recsys.evaluation.metrics import evaluate

SAMPLES = 1000
Draw = Callable[[np.random.Generator], tuple[float, Interval]]
"""A sample's true value and the interval."""


def two_normals(rng: np.random.Generator, rows: int, share: float, apart: float) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.random(rows) < share
    return labels, rng.standard_normal(rows) + apart * labels


def delong(rows: int, share: float, apart: float) -> Draw:
    truth = float(ndtr(apart / np.sqrt(2)))
    return lambda rng: (truth, auc_interval(*two_normals(rng, rows, share, apart)))


def delong_weighted(rng: np.random.Generator) -> tuple[float, Interval]:
    return float(ndtr(1 / np.sqrt(2))), auc_interval(*two_normals(rng, 600, 0.3, 1.0), rng.gamma(2.0, size=600))


def resampled_auc(rng: np.random.Generator) -> tuple[float, Interval]:
    rows = two_normals(rng, 300, 0.3, 1.0)
    return float(ndtr(1 / np.sqrt(2))), bootstrap_auc(*rows, replicates=500, seed=int(rng.integers(2**31)))


def users(kind: Any) -> Draw:
    """Calibration ratio over 150 users of 1 to 20 rows, whose rates differ, so that a user's rows hang together."""

    def draw(rng: np.random.Generator) -> tuple[float, Interval]:
        user = np.repeat(np.arange(150), rng.integers(1, 21, 150))
        clicks = rng.random(len(user)) < rng.beta(2, 6, 150)[user]
        sums = np.stack([clicks, np.full(len(user), 0.25)], 1)
        seed = int(rng.integers(2**31))
        return 1.0, bootstrap_sums(lambda s: s[..., 1] / s[..., 0], sums, group=user, kind=kind, seed=seed)

    return draw


def model(rng: np.random.Generator, rows: int, slope: float, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities of a model that is too sure by `slope` and too high by `shift`, and true probabilities."""
    logits = rng.standard_normal(rows) - 1
    true = expit(logits)
    return (rng.random(rows) < true).astype(float), expit(slope * logits + shift), true


def calibration_error(rows: int, slope: float, shift: float) -> Draw:
    def draw(rng: np.random.Generator) -> tuple[float, Interval]:
        y, p, true = model(rng, rows, slope, shift)
        bins = np.array_split(np.argsort(p), 20)
        truth = sum(abs((p - true)[rows].sum()) for rows in bins) / len(p)
        return float(truth), ece_interval(y, p)

    return draw


def rough_calibration_error(off: float, every: int) -> Draw:
    """Every few of 20 equal scores, of 200 rows each, are off; with 1 all are, to either side in turn."""
    p = np.repeat(np.linspace(0.1, 0.6, 20), 200)
    place = np.arange(20)
    gap = np.where(place % every == 0, off, 0.0) if every > 1 else np.where(place % 2, off, -off)
    rates = p + np.repeat(gap, 200)
    return lambda rng: (float(np.abs(gap).mean()), ece_interval((rng.random(len(p)) < rates).astype(float), p))


def delta(interval_of: Callable[..., Interval], name: str) -> Draw:
    y, p, _ = model(np.random.default_rng(0), 4_000_000, 1.3, 0.2)
    truth = evaluate(y, p)[name]
    return lambda rng: (truth, interval_of(*model(rng, 1000, 1.3, 0.2)[:2]))


def of_users(rng: np.random.Generator, users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and users of 1 to 20 rows each, whose rates differ by more than the model knows."""
    user = np.repeat(np.arange(users), rng.integers(1, 21, users))
    logits, taste = rng.standard_normal(len(user)) - 1, rng.standard_normal(users)[user]
    return (rng.random(len(user)) < expit(logits + taste)).astype(float), expit(logits), user


def by_user(interval_of: Callable[..., Interval], name: str) -> Draw:
    y, p, _ = of_users(np.random.default_rng(0), 400_000)
    truth = evaluate(y, p)[name]

    def draw(rng: np.random.Generator) -> tuple[float, Interval]:
        y, p, user = of_users(rng, 150)
        return truth, interval_of(y, p, group=user)

    return draw


def covered(draw: Draw) -> tuple[float, float, float]:
    """Share of samples whose interval covers the truth, is wholly above it, and is wholly below it."""
    rng = np.random.default_rng(0)
    found = [draw(rng) for _ in range(SAMPLES)]
    above = np.mean([interval.low > truth for truth, interval in found])
    below = np.mean([interval.high < truth for truth, interval in found])
    return float(1 - above - below), float(above), float(below)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("DeLong, 300 rows, AUC .76", delong(300, 0.3, 1.0)),
        ("DeLong, 2000 rows, 5 % positive, AUC .92", delong(2000, 0.05, 2.0)),
        ("DeLong, 1000 rows, 5 % positive, AUC .92", delong(1000, 0.05, 2.0)),
        ("DeLong, 400 rows, 5 % positive, AUC .76", delong(400, 0.05, 1.0)),
        ("DeLong, 2000 rows, 5 % positive, AUC .98", delong(2000, 0.05, 3.0)),
        ("DeLong, 200 rows, AUC .5", delong(200, 0.5, 0.0)),
        ("DeLong, weighted", delong_weighted),
        ("bootstrap of the AUC by row", resampled_auc),
        ("percentile bootstrap by user", users("percentile")),
        ("BCa bootstrap by user", users("bca")),
        ("ECE, calibrated", calibration_error(5000, 1.0, 0.0)),
        ("ECE, calibrated, 2000 rows", calibration_error(2000, 1.0, 0.0)),
        ("ECE, as large as its noise, too sure", calibration_error(2000, 1.3, 0.0)),
        ("ECE, as large as its noise, not sure enough", calibration_error(2000, 0.7, 0.0)),
        ("ECE, as large as its noise, too high", calibration_error(2000, 1.0, 0.15)),
        ("ECE, as large as its noise, both", calibration_error(5000, 1.6, 0.3)),
        ("ECE, smaller than its noise", calibration_error(5000, 1.1, 0.0)),
        ("ECE, smaller than its noise, 20000 rows", calibration_error(20_000, 1.0, 0.05)),
        ("ECE, rough, all off to either side", rough_calibration_error(0.04, 1)),
        ("ECE, rough, one in seven off", rough_calibration_error(0.07, 7)),
        ("ECE, too high", calibration_error(10_000, 1.0, 0.7)),
        ("ECE, far too sure and too high", calibration_error(20_000, 2.5, 1.5)),
    ],
)
def test_nominal_intervals_cover(name: str, draw: Draw) -> None:
    share, above, below = covered(draw)
    print(f"{name}: covers {share:.3f}, above {above:.3f}, below {below:.3f}")
    assert 0.93 <= share <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "interval_of"),
    [
        ("logloss", logloss_interval),
        ("brier", brier_interval),
        ("normalised_entropy", normalised_entropy_interval),
        ("calibration_ratio", calibration_ratio_interval),
    ],
)
def test_delta_method_covers(name: str, interval_of: Callable[..., Interval]) -> None:
    share, above, below = covered(delta(interval_of, name))
    print(f"{name}: covers {share:.3f}, above {above:.3f}, below {below:.3f}")
    assert 0.93 <= share <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "interval_of"),
    [
        ("auc", auc_interval),
        ("logloss", logloss_interval),
        ("brier", brier_interval),
        ("normalised_entropy", normalised_entropy_interval),
        ("calibration_ratio", calibration_ratio_interval),
    ],
)
def test_intervals_by_user_cover(name: str, interval_of: Callable[..., Interval]) -> None:
    share, above, below = covered(by_user(interval_of, name))
    print(f"{name} by user: covers {share:.3f}, above {above:.3f}, below {below:.3f}")
    assert 0.93 <= share <= 0.97
