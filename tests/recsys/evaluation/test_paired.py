"""Paired differences: parity with structural components pair by pair, and coverage where the truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import UndefinedMetricError
from recsys.evaluation.metrics import auc, logloss
from recsys.evaluation.paired import auc_components, paired_auc, paired_logloss

T_975_2 = 4.302652729911275
"""Student's 97.5 % quantile at two degrees of freedom, from a table."""


def wins(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[positives, negatives]: 1 where the positive scores above the negative, 1/2 where they tie."""
    positive, negative = scores[labels > 0][:, None], scores[labels == 0][None, :]
    return (positive > negative) + 0.5 * (positive == negative)


def tied_scores(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    return np.round(rng.normal(size=len(labels)) + labels, 1)


@given(seed=st.integers(0, 10_000), rows=st.integers(8, 60))
@settings(max_examples=40, deadline=None)
def test_auc_and_its_row_error_equal_delong_pair_by_pair(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.r_[np.ones(3), np.zeros(3), rng.integers(0, 2, rows - 6)].astype(float)
    a, b = tied_scores(rng, labels), tied_scores(rng, labels)
    difference = wins(labels, a) - wins(labels, b)
    covariance = difference.mean(1).var(ddof=1) / len(difference) + difference.mean(0).var(ddof=1) / len(difference.T)
    found = paired_auc(labels, a, b)
    assert found.mean == pytest.approx(auc(labels, a) - auc(labels, b), abs=1e-12)
    assert found.row_error == pytest.approx(math.sqrt(covariance), abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * math.sqrt(covariance), abs=1e-6)
    for side, axis in enumerate((1, 0)):
        assert auc_components(labels, a)[side] == pytest.approx(wins(labels, a).mean(axis), abs=1e-12)


def test_several_seeds_share_rows_and_add_their_own_spread() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200).astype(float)
    a = np.stack([tied_scores(rng, labels) for _ in range(3)])
    b = np.stack([tied_scores(rng, labels) for _ in range(3)])
    found = paired_auc(labels, a, b)
    kernel = np.mean([wins(labels, x) - wins(labels, z) for x, z in zip(a, b, strict=True)], axis=0)
    rows = kernel.mean(1).var(ddof=1) / kernel.shape[0] + kernel.mean(0).var(ddof=1) / kernel.shape[1]
    per_seed = [auc(labels, x) - auc(labels, z) for x, z in zip(a, b, strict=True)]
    seeds = np.var(per_seed, ddof=1) / 3
    assert found.seeds == pytest.approx(per_seed, abs=1e-12)
    assert found.mean == pytest.approx(np.mean(per_seed), abs=1e-12)
    assert (found.row_error, found.seed_error) == pytest.approx((math.sqrt(rows), math.sqrt(seeds)), abs=1e-12)
    assert found.freedom == pytest.approx((rows + seeds) ** 2 / (seeds**2 / 2))


def test_without_row_noise_it_is_the_t_interval_over_seeds() -> None:
    labels = np.array([1.0, 0.0] * 50)
    # every row loses the same, so the rows have no noise; the seeds differ
    a = np.stack([np.where(labels > 0, p, 1 - p) for p in (0.6, 0.7, 0.8)])
    found = paired_logloss(labels, a, np.full_like(a, 0.5))
    per_seed = [math.log(0.5) - math.log(p) for p in (0.6, 0.7, 0.8)]
    assert found.mean == pytest.approx(np.mean(per_seed))
    assert found.freedom == pytest.approx(2)
    assert (found.high - found.low) / 2 == pytest.approx(T_975_2 * np.std(per_seed, ddof=1) / math.sqrt(3))


def test_logloss_is_paired_row_by_row() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 500).astype(float)
    a, b = rng.uniform(0.01, 0.99, (2, 500))
    found = paired_logloss(labels, a, b)
    losses = -np.log(np.where(labels > 0, a, 1 - a)) + np.log(np.where(labels > 0, b, 1 - b))
    assert found.mean == pytest.approx(logloss(labels, a) - logloss(labels, b))
    assert found.row_error == pytest.approx(losses.std(ddof=1) / math.sqrt(500))
    assert found.seed_error == 0


def test_a_model_equals_itself_and_the_other_order_changes_the_sign() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 300).astype(float)
    a, b = rng.uniform(size=(2, 2, 300))
    for paired in (paired_auc, paired_logloss):
        same, there, back = paired(labels, a, a), paired(labels, a, b), paired(labels, b, a)
        assert (same.mean, same.low, same.high) == (0, 0, 0)
        assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low))


def test_shared_noise_of_the_rows_cancels() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 2000).astype(float)
    common = rng.normal(size=2000) + labels
    near = paired_auc(labels, common + 0.05 * rng.normal(size=2000), common)
    far = paired_auc(labels, rng.normal(size=2000) + labels, common)
    assert near.row_error < 0.3 * far.row_error


@pytest.mark.parametrize("metric", ["auc", "logloss"])
def test_the_interval_covers_the_truth(metric: str) -> None:
    """Rows and seeds drawn anew 400 times: a seed shifts both models' strength, a row's noise is common to all."""
    rng = np.random.default_rng(4)
    trials, seeds, rows = 400, 3, 400

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    def draw() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        signal, noise = rng.normal(size=(2, rows))
        labels = (rng.uniform(size=rows) < sigmoid(signal)).astype(float)
        strength = 1 + 0.1 * rng.normal(size=(2, seeds, 1))
        a, b = (
            sigmoid(s * signal + w * noise + 0.2 * rng.normal(size=(seeds, rows)))
            for s, w in zip(strength, (0.5, 0.8), strict=True)
        )
        return labels, a, b

    paired = paired_auc if metric == "auc" else paired_logloss
    found = [paired(*draw()) for _ in range(trials)]
    # the mean of the trials is the truth to within a tenth of an interval
    truth = np.mean([f.mean for f in found])
    covered = sum(f.low <= truth <= f.high for f in found)
    widths = [f.high - f.low for f in found]
    assert 0.92 <= covered / trials <= 0.99
    assert np.mean(widths) < 8 * np.std([f.mean for f in found])


def test_what_cannot_be_compared_is_refused() -> None:
    ones = np.ones(4)
    with pytest.raises(UndefinedMetricError, match="4 of 4 rows are positive"):
        paired_auc(ones, ones / 2, ones / 2)
    with pytest.raises(UndefinedMetricError, match="two are needed"):
        paired_logloss(ones[:1], ones[:1] / 2, ones[:1] / 2)
    with pytest.raises(ValueError, match="same rows"):
        paired_auc(ones, np.ones((2, 4)), ones)
