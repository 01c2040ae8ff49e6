"""Metrics against scikit-learn, against definitions, and on sets where they do not exist."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from features.errors import DataError, UndefinedMetricError
from recsys.evaluation import metrics


def sample(n: int = 500, levels: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, tied scores and weights."""
    rng = np.random.default_rng(seed)
    p = rng.integers(1, levels, n) / levels
    return (rng.random(n) < p).astype(float), p, rng.random(n) + 0.1


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=30))
def test_auc_is_the_share_of_ordered_pairs(rows: list[tuple[int, int]]) -> None:
    positive = [s for y, s in rows if y]
    negative = [s for y, s in rows if not y]
    y, s = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], float)
    if not positive or not negative:
        with pytest.raises(UndefinedMetricError, match=r"rows is (positive|negative)"):
            metrics.auc(y, s)
        return
    wins = sum((a > b) + 0.5 * (a == b) for a in positive for b in negative)
    assert metrics.auc(y, s) == pytest.approx(wins / (len(positive) * len(negative)))


@pytest.mark.parametrize("seed", range(3))
def test_parity_with_scikit_learn(seed: int) -> None:
    y, p, w = sample(seed=seed)
    assert metrics.auc(y, p) == pytest.approx(sk.roc_auc_score(y, p), abs=1e-12)
    assert metrics.auc(y, p, w) == pytest.approx(sk.roc_auc_score(y, p, sample_weight=w), abs=1e-12)
    assert metrics.logloss(y, p) == pytest.approx(sk.log_loss(y, p), abs=1e-12)
    assert metrics.logloss(y, p, w) == pytest.approx(sk.log_loss(y, p, sample_weight=w), abs=1e-12)


def test_normalised_entropy_of_the_base_rate_is_one() -> None:
    y, _, _ = sample()
    assert metrics.normalised_entropy(y, np.full(len(y), y.mean())) == pytest.approx(1.0)


def test_calibration_ratio_is_expected_over_observed() -> None:
    assert metrics.calibration_ratio(np.array([1, 0, 0, 1]), np.array([0.5, 0.5, 0.5, 0.5])) == 1.0
    assert metrics.calibration_ratio(np.array([1, 0]), np.array([0.9, 0.6])) == pytest.approx(1.5)


def test_ece_of_a_constant_shift_is_the_shift() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(400_000) * 0.8
    y = (rng.random(400_000) < p).astype(float)
    assert metrics.expected_calibration_error(y, p) < 0.004
    assert metrics.expected_calibration_error(y, p + 0.1) == pytest.approx(0.1, abs=0.004)


def test_equal_scores_are_one_bin() -> None:
    y, p = np.array([0, 1, 1, 1, 0, 1]), np.full(6, 0.5)
    curve = metrics.reliability_curve(y, p, bins=3)
    assert curve["weight"].tolist() == [6.0]
    assert curve["observed"][0] == pytest.approx(4 / 6)


@pytest.mark.parametrize("weighted", [False, True])
def test_gauc_equals_a_loop_over_groups(weighted: bool) -> None:
    y, p, w = sample()
    w = w if weighted else np.ones(len(y))
    group = np.random.default_rng(1).integers(0, 60, len(y))
    values, shares, single = [], [], 0
    for g in np.unique(group):
        rows = group == g
        if len(np.unique(y[rows])) < 2:
            single += 1
            continue
        values.append(sk.roc_auc_score(y[rows], p[rows], sample_weight=w[rows]))
        shares.append(w[rows].sum())
    out = metrics.evaluate(y, p, w if weighted else None, group)
    assert out["gauc"] == pytest.approx(np.average(values, weights=shares), abs=1e-12)
    assert out["gauc_groups"] == len(values)
    assert out["gauc_groups_single_class"] == single
    assert metrics.gauc(y, p, group, w) == pytest.approx(out["gauc"], abs=1e-12)


def test_what_does_not_exist_is_none_with_a_reason() -> None:
    out = metrics.evaluate(np.zeros(10), np.full(10, 0.2), group=np.arange(10))
    assert out["auc"] is None
    assert out["undefined"]["auc"] == "none of 10 rows is positive"
    assert out["gauc"] is None
    assert out["undefined"]["gauc"] == "none of 10 groups has both classes"
    assert out["calibration_ratio"] is None
    assert out["logloss"] == pytest.approx(-np.log(0.8))


def test_sure_and_wrong_is_finite() -> None:
    assert np.isfinite(metrics.logloss(np.array([1.0, 0.0]), np.array([0.0, 1.0])))


def test_of_several_tasks_the_first_is_measured() -> None:
    y, p, _ = sample()
    both = metrics.evaluate(np.stack([y, 1 - y], 1), np.stack([p, p], 1))
    assert both == metrics.evaluate(y, p)


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match=r"scores are not finite.*1 of 2 rows"):
        metrics.evaluate(np.array([0, 1]), np.array([0.5, np.nan]))


def test_weights_that_are_all_zero_leave_everything_undefined() -> None:
    out = metrics.evaluate(np.array([0, 1]), np.array([0.5, 0.6]), np.zeros(2))
    assert out["base_rate"] is None
    assert out["undefined"]["logloss"] == "all weights are 0"
