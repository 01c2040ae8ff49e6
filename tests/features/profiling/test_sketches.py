"""Sketches stay within their error, merged or whole, and repeat."""

import numpy as np
import polars as pl
import pytest

from features.profiling.sketches import QUANTILE_K, Distinct, Frequent, Quantiles

ROWS = 120_000
PARTS = 5
SHARES = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]


def numbers(kind):
    rng = np.random.default_rng(1)
    return {
        "normal": rng.normal(size=ROWS),
        "heavy": np.exp(3 * rng.normal(size=ROWS)),
        "sorted": np.arange(ROWS, dtype=float),
        "ties": np.round(rng.normal(size=ROWS) * 3),
    }[kind]


def rank_error(values, sketch):
    ordered = np.sort(values)
    worst = 0.0
    for share in SHARES:
        found = sketch.quantile(share)
        low = np.searchsorted(ordered, found, "left") / len(values)
        high = np.searchsorted(ordered, found, "right") / len(values)
        worst = max(worst, low - share, share - high)
    return worst


def sketched(kind, update, parts, make):
    whole = make()
    for part in parts:
        update(whole, part)
    merged = make()
    for part in parts:
        one = make()
        update(one, part)
        merged.merge(one)
    return whole, merged


@pytest.mark.parametrize("kind", ["normal", "heavy", "sorted", "ties"])
def test_quantiles_are_within_their_error_merged_or_whole(kind):
    values = numbers(kind)
    parts = np.array_split(values, PARTS)
    whole, merged = sketched(kind, Quantiles.update, parts, Quantiles)
    for sketch in (whole, merged):
        assert sketch.count == ROWS
        assert (sketch.quantile(0), sketch.quantile(1)) == (values.min(), values.max())
        assert rank_error(values, sketch) < 4.5 / QUANTILE_K


def test_quantiles_repeat_and_leave_out_what_is_no_finite_number():
    values = numbers("heavy")
    first, second = Quantiles(), Quantiles()
    first.update(values)
    second.update(np.concatenate([values, [np.nan, np.inf, -np.inf]]))
    assert [first.quantile(share) for share in SHARES] == [second.quantile(share) for share in SHARES]
    assert Quantiles().quantile(0.5) is None


@pytest.mark.parametrize("distinct", [1, 50, 3_000, 100_000])
def test_distinct_values_are_within_the_error_merged_or_whole(distinct):
    values = pl.Series(np.arange(ROWS) % distinct).cast(pl.String)
    parts = [values[start::PARTS] for start in range(PARTS)]
    whole, merged = sketched(None, Distinct.update, parts, Distinct)
    for sketch in (whole, merged):
        low, high = sketch.bounds(3)
        assert low <= distinct <= high
        assert abs(sketch.count - distinct) <= 0.03 * distinct
    if distinct <= 50:
        assert whole.count == merged.count == distinct


def test_frequent_values_are_never_undercounted_and_the_head_is_found():
    rng = np.random.default_rng(2)
    values = pl.Series(rng.zipf(1.2, ROWS).clip(max=10**9)).cast(pl.String)
    truth = dict(values.value_counts().iter_rows())
    assert len(truth) > 10_000

    def update(sketch, part):
        counts = part.value_counts()
        sketch.update(counts.to_series(0), counts.to_series(1))

    whole, merged = sketched(None, update, [values[start::PARTS] for start in range(PARTS)], Frequent)
    head = sorted(truth, key=lambda value: -truth[value])[:10]
    for sketch in (whole, merged):
        assert sketch.total == ROWS
        assert not sketch.exact
        top = sketch.top(None)
        assert all(item.least <= truth[item.value] <= item.count for item in top)
        assert set(head) == {item.value for item in top[:10]}
        assert sketch.error <= ROWS * 3.5 / 4096


def test_few_values_are_counted_exactly():
    sketch = Frequent()
    for _ in range(3):
        sketch.update(pl.Series(["b", "a", "ü"]), pl.Series([2, 2, 1]))
    assert sketch.exact
    assert [(item.value, item.count, item.least) for item in sketch.top(None)] == [
        ("a", 6, 6),
        ("b", 6, 6),
        ("ü", 3, 3),
    ]
