"""Slices: what they say is what the metrics say of their rows, and the harm of all of them is the harm of the whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError, UndefinedMetricError
from recsys.evaluation.divisions import Division
from recsys.evaluation.metrics import evaluate
from recsys.evaluation.slices import Slice, miscalibrated, slice_metrics

NAMES = {0: "Rome", 1: "Oslo", 2: "Lima"}


def rows(count: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Calibrated clicks in three cities."""
    rng = np.random.default_rng(seed)
    p = rng.beta(2, 5, count)
    return (rng.random(count) < p).astype(np.float64), p, rng.choice(3, count, p=[0.6, 0.3, 0.1])


def by_city(codes: np.ndarray) -> Division:
    return Division("value", "city", codes, names=NAMES)


def find(found: tuple[Slice, ...], value: str) -> Slice:
    return next(one for one in found if one.value == value)


@given(st.integers(0, 1000), st.booleans())
def test_the_slices_of_all_rows_add_up_to_the_whole(seed: int, weighted: bool) -> None:
    labels, scores, city = rows(60, seed)
    weight = np.random.default_rng(seed).integers(0, 3, 60).astype(float) if weighted else None
    if weight is not None:
        weight[0] = 1
    slices = slice_metrics(labels, scores, [by_city(city)], weight, min_rows=1, min_share=0)
    whole = evaluate(labels, scores, weight)
    assert sum(one.share for one in slices.found) == pytest.approx(1)
    assert sum(one.share * one.logloss for one in slices.found) == pytest.approx(whole["logloss"])
    assert sum(one.share * one.base_rate for one in slices.found) == pytest.approx(whole["base_rate"])
    assert sum(one.excess_loss for one in slices.found) == pytest.approx(0, abs=1e-12)
    assert [one.excess_loss for one in slices.found] == sorted((s.excess_loss for s in slices.found), reverse=True)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_slice_says_what_the_metrics_say_of_its_rows(weighted: bool) -> None:
    labels, scores, city = rows()
    weight = np.random.default_rng(1).gamma(2, 1, len(labels)) if weighted else None
    slices = slice_metrics(labels, scores, [by_city(city)], weight)
    for code, name in NAMES.items():
        here = city == code
        one = find(slices.found, name)
        own = evaluate(labels[here], scores[here], None if weight is None else weight[here])
        assert one.rows == own["rows"]
        assert one.auc is not None
        assert one.calibration is not None
        assert one.auc.value == pytest.approx(own["auc"])
        assert one.calibration.value == pytest.approx(own["calibration_ratio"])
        assert (one.logloss, one.base_rate) == pytest.approx((own["logloss"], own["base_rate"]))
        assert one.auc.low < own["auc"] < one.auc.high


def test_the_city_that_is_predicted_badly_harms_most_and_is_surely_off() -> None:
    labels, scores, city = rows(20_000)
    scores = np.where(city == 2, scores * 0.3, scores)
    slices = slice_metrics(labels, scores, [by_city(city)])
    worst = slices.found[0]
    assert worst.name == "city = Lima"
    assert worst.excess_loss > 5 * worst.excess_error
    assert miscalibrated(slices)[0] is worst
    assert worst.calibration is not None
    assert worst.calibration.high < 0.5
    others = [one.calibration for one in slices.found[1:]]
    assert all(interval is not None and interval.low < 1 < interval.high for interval in others)


def test_the_error_of_the_excess_is_its_spread_over_samples() -> None:
    found = []
    for seed in range(300):
        labels, scores, city = rows(500, seed)
        found.append(find(slice_metrics(labels, np.sqrt(scores), [by_city(city)], min_rows=1).found, "Oslo"))
    spread = np.std([one.excess_loss for one in found], ddof=1)
    assert np.mean([one.excess_error for one in found]) == pytest.approx(spread, rel=0.12)


def test_a_slice_of_one_class_has_what_exists_and_says_why_the_rest_does_not() -> None:
    labels, scores, city = rows()
    labels[city == 2] = 0
    one = find(slice_metrics(labels, scores, [by_city(city)]).found, "Lima")
    assert one.auc is None
    assert one.calibration is None
    assert "positive" in one.undefined["auc"]
    assert "positive" in one.undefined["calibration"]
    assert one.logloss > 0
    assert one.to_json()["auc"] is None


def test_small_slices_are_counted_and_left_out() -> None:
    labels, scores, _ = rows()
    codes = np.where(np.arange(3000) < 2500, 0, np.arange(3000))
    slices = slice_metrics(labels, scores, [by_city(codes)])
    assert [one.rows for one in slices.found] == [2500]
    assert (slices.too_small, slices.min_rows, slices.rows) == (500, 100, 3000)


def test_a_row_may_be_in_several_slices_or_in_none() -> None:
    labels, scores, _ = rows(300)
    division = Division("value", "tags", np.repeat([7, 8], 150), np.r_[np.arange(150), np.arange(50, 200)])
    slices = slice_metrics(labels, scores, [division])
    assert sorted(one.rows for one in slices.found) == [150, 150]
    assert sum(one.share for one in slices.found) == pytest.approx(1)
    assert {one.value for one in slices.found} == {f"#{7:016x}", f"#{8:016x}"}


def test_what_cannot_be_judged_is_refused() -> None:
    labels, scores, city = rows(200)
    with pytest.raises(DataError, match="not finite"):
        slice_metrics(labels, np.where(city == 0, np.nan, scores), [by_city(city)])
    with pytest.raises(DataError, match="out of range"):
        slice_metrics(labels, scores + 1, [by_city(city)])
    with pytest.raises(UndefinedMetricError, match="no rows"):
        slice_metrics(labels[:0], scores[:0], [by_city(city[:0])])
    assert slice_metrics(labels, scores, [by_city(city[:0])]).found == ()
