"""Curves: scikit-learn's points, weights as repeated rows, and what does not exist is left out."""

import numpy as np
import pytest
from sklearn import metrics as sk

from features.errors import DataError
from recsys.evaluation.curves import (
    POINTS,
    curves_of,
    precision_recall_points,
    reliability_points,
    roc_points,
    score_histogram,
    thin,
)


def rows(count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, and whole weights, some of them 0."""
    rng = np.random.default_rng(seed)
    p = rng.beta(2, 5, count).round(2)
    return (rng.random(count) < p).astype(float), p, rng.integers(0, 4, count).astype(float)


@pytest.mark.parametrize("weighted", [False, True])
def test_points_are_those_of_scikit_learn(weighted: bool) -> None:
    y, p, weight = rows()
    w = weight if weighted else None
    false, true, _ = sk.roc_curve(y, p, sample_weight=w, drop_intermediate=False)
    points = roc_points(y, p, w)
    np.testing.assert_allclose(points["false_positive_rate"], false, atol=1e-12)
    np.testing.assert_allclose(points["true_positive_rate"], true, atol=1e-12)
    precision, recall, _ = sk.precision_recall_curve(y, p, sample_weight=w)
    points = precision_recall_points(y, p, w)
    # scikit-learn goes from the lowest score to the highest and adds a point without rows
    np.testing.assert_allclose(points["recall"], recall[-2::-1], atol=1e-12)
    np.testing.assert_allclose(points["precision"], precision[-2::-1], atol=1e-12)


def test_weights_count_as_repeated_rows() -> None:
    y, p, weight = rows()
    times = weight.astype(int)
    weighted, repeated = curves_of(y, p, weight), curves_of(np.repeat(y, times), np.repeat(p, times))
    for name in ("roc", "precision_recall"):
        for axis, values in repeated[name].items():
            np.testing.assert_allclose(np.unique(weighted[name][axis]), np.unique(values), atol=1e-12)


def test_a_long_curve_is_thinned_without_moving_its_ends() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(50_000)
    y = (rng.random(50_000) < p).astype(float)
    points = roc_points(y, p)
    x, up = np.array(points["false_positive_rate"]), np.array(points["true_positive_rate"])
    assert len(x) <= POINTS
    assert (x[0], up[0], x[-1], up[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(up, x) == pytest.approx(sk.roc_auc_score(y, p), abs=1e-4)
    line = np.arange(POINTS), np.arange(POINTS)
    assert thin(*line) is not None
    np.testing.assert_array_equal(thin(*line)[0], line[0])


def test_the_reliability_interval_holds_the_rate_of_a_calibrated_model() -> None:
    held, bins = 0, 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        p = rng.beta(2, 5, 4000)
        points = reliability_points((rng.random(4000) < p).astype(float), p)
        low, predicted, high = (np.array(points[name]) for name in ("low", "predicted", "high"))
        held += int(((low <= predicted) & (predicted <= high)).sum())
        bins += len(low)
    assert 0.93 < held / bins < 0.98


def test_the_histogram_counts_every_row_of_a_class_once() -> None:
    y, p, weight = rows()
    points = score_histogram(y, p, weight)
    assert len(points["edges"]) == len(points["positive"]) + 1
    for name in ("positive", "negative"):
        assert sum(points[name]) == pytest.approx(1)
    below = sum(share for share, edge in zip(points["positive"], points["edges"][1:], strict=True) if edge <= 0.2)
    assert 0 < below < 1


def test_one_class_has_no_roc_and_scores_out_of_range_are_refused() -> None:
    y, p, _ = rows()
    assert set(curves_of(np.zeros_like(y), p)) == {"reliability", "scores"}
    assert curves_of(y[:0], p[:0]) == {}
    with pytest.raises(DataError, match="out of range"):
        curves_of(y, p * 3)
    with pytest.raises(DataError, match="not finite"):
        curves_of(y, np.where(y > 0, np.nan, p))
