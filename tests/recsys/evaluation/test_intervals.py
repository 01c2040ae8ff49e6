"""Intervals of metrics: their values are the metrics', their errors are the spread of many samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from features.errors import DataError, UndefinedMetricError
from recsys.evaluation import metrics
from recsys.evaluation.auc import group_auc
from recsys.evaluation.intervals import (
    Interval,
    auc_interval,
    brier_interval,
    calibration_ratio_interval,
    gauc_interval,
    logloss_interval,
    mean_interval,
    normalised_entropy_interval,
)

PAIRS: dict[str, tuple[Callable[..., Interval], Callable[..., float]]] = {
    "auc": (auc_interval, metrics.auc),
    "logloss": (logloss_interval, metrics.logloss),
    "normalised_entropy": (normalised_entropy_interval, metrics.normalised_entropy),
    "calibration_ratio": (calibration_ratio_interval, metrics.calibration_ratio),
    "brier": (brier_interval, metrics.brier),
}


def draw(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits = rng.normal(size=rows) - 1
    labels = (rng.random(rows) < 1 / (1 + np.exp(-1.3 * logits))).astype(float)
    return labels, 1 / (1 + np.exp(-logits)), rng.gamma(2.0, size=rows)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("weighted", [False, True])
def test_value_is_the_metric_and_error_is_the_spread_of_samples(name: str, weighted: bool) -> None:
    interval_of, metric = PAIRS[name]
    rng = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(300):
        y, p, w = draw(rng, 500)
        found = interval_of(y, p, w if weighted else None)
        assert found.value == pytest.approx(metric(y, p, w if weighted else None), rel=1e-12)
        assert found.low < found.value < found.high
        values.append(found.value)
        errors.append(found.error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.12)


@pytest.mark.parametrize("name", PAIRS)
def test_by_group_rows_that_are_alike_tell_no_more_than_one(name: str) -> None:
    interval_of, _ = PAIRS[name]
    y, p, _ = draw(np.random.default_rng(0), 4000)
    rows = interval_of(y, p)
    alone = interval_of(y, p, group=np.arange(4000))
    users = np.tile(np.arange(4000), 5)
    copied = interval_of(np.tile(y, 5), np.tile(p, 5), group=users)
    assert alone.error == pytest.approx(rows.error, rel=2e-3)
    assert copied.error == pytest.approx(rows.error, rel=2e-3)
    assert (copied.low, copied.value, copied.high) == pytest.approx((rows.low, rows.value, rows.high), rel=2e-3)
    assert interval_of(np.tile(y, 5), np.tile(p, 5)).error == pytest.approx(rows.error / math.sqrt(5), rel=2e-3)
    assert "by group" in copied.method
    with pytest.raises(UndefinedMetricError, match="an interval by group needs two"):
        interval_of(y, p, group=np.zeros(4000))


def test_all_intervals_but_that_of_ece_are_by_group_where_there_are_groups() -> None:
    y, p, w = draw(np.random.default_rng(0), 500)
    found = metrics.evaluate_intervals(y, p, w, np.repeat(np.array(["a", "b", "c", "d", "e"]), 100))
    assert {name for name, one in found.items() if "by group" in one.method} == set(PAIRS)
    assert set(found) == {*PAIRS, "ece", "gauc"}


@pytest.mark.parametrize("name", PAIRS)
def test_scale_of_weights_does_not_matter(name: str) -> None:
    y, p, w = draw(np.random.default_rng(0), 200)
    one, ten = PAIRS[name][0](y, p, w), PAIRS[name][0](y, p, 10 * w)
    assert (one.low, one.high) == pytest.approx((ten.low, ten.high), rel=1e-12)
    equal, none = PAIRS[name][0](y, p, np.full(200, 3.0)), PAIRS[name][0](y, p)
    assert (equal.low, equal.high) == pytest.approx((none.low, none.high), rel=1e-12)


def test_a_higher_level_is_wider() -> None:
    y, p, _ = draw(np.random.default_rng(0), 200)
    narrow, wide = auc_interval(y, p, level=0.8), auc_interval(y, p, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    with pytest.raises(ValueError, match=r"level 95 is not between 0 and 1"):
        auc_interval(y, p, level=95)


def test_classes_that_are_apart_do_not_make_a_sure_auc() -> None:
    y, p = np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert auc_interval(y, p).low == pytest.approx(0.025**0.5)
    assert auc_interval(1 - y, p).high == pytest.approx(1 - 0.025**0.5)


def test_a_mean_has_the_interval_of_textbooks() -> None:
    found = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert found.error == pytest.approx(np.sqrt(5 / 3 / 4))
    assert found.high - found.value == pytest.approx(1.959964 * np.sqrt(5 / 12), rel=1e-6)
    assert str(found) == "2.5 [1.2348, 3.7652]"
    assert found.to_json()["method"] == "delta"


def test_gauc_varies_by_groups() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(300), 12)
    values, errors = [], []
    for _ in range(150):
        skill = rng.normal(1, 1, 300)[group]
        y = rng.random(3600) < 0.4
        found = gauc_interval(group_auc(y, rng.normal(size=3600) + skill * y, group))
        values.append(found.value)
        errors.append(found.error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.12)


@pytest.mark.parametrize(
    ("interval_of", "labels", "reason"),
    [
        (auc_interval, [1, 0, 0], "1 of 3 rows are positive: two of each class are needed"),
        (normalised_entropy_interval, [0, 0, 0], "none of 3 rows is positive"),
        (calibration_ratio_interval, [0, 0, 0], "none of 3 rows is positive"),
        (logloss_interval, [], "there are no rows"),
        (brier_interval, [1], "1 values: an interval needs two"),
    ],
)
def test_what_does_not_exist_says_why(interval_of: Any, labels: list[int], reason: str) -> None:
    with pytest.raises(UndefinedMetricError, match=reason):
        interval_of(np.array(labels), np.full(len(labels), 0.2))


def test_probabilities_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match=r"probabilities are out of range.*1 of 2 rows, the first 1.2"):
        logloss_interval(np.array([0, 1]), np.array([0.2, 1.2]))
