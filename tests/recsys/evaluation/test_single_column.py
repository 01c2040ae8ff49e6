"""What one column tells of the label, by known truth; and columns that know it."""

import numpy as np
import polars as pl
import pytest

from features.profiling.profile import profile_of
from recsys.evaluation.single_column import label_of, power_of

ROWS = 8000


def power(values, labels):
    frame = pl.DataFrame({"x": values})
    return power_of(profile_of(frame.lazy()).column("x"), frame.get_column("x"), labels)


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(7).integers(0, 2, ROWS).astype(float)


def test_chance_is_a_half_even_for_ids_that_hardly_come_again(labels):
    rng = np.random.default_rng(8)
    for values in (rng.normal(size=ROWS), [str(x) for x in rng.integers(0, 6000, ROWS)], [str(x) for x in range(ROWS)]):
        found = power(values, labels)
        assert found.auc == pytest.approx(0.5, abs=0.03)
        assert not found.suspicious


def test_a_value_tells_its_rate():
    rng = np.random.default_rng(9)
    city = rng.integers(0, 2, ROWS)
    labels = (rng.random(ROWS) < np.where(city == 1, 0.8, 0.2)).astype(float)
    found = power([f"c{x}" for x in city], labels)
    assert found.by_value == pytest.approx(0.8, abs=0.02)
    assert found.by_size is None
    rates = {rate.value: rate for rate in found.rates}
    assert set(rates) == {"c0", "c1"}
    for place, truth in enumerate((0.2, 0.8)):
        rate = rates[f"c{place}"]
        assert rate.rows == (city == place).sum()
        assert rate.rate == labels[city == place].mean()
        assert rate.low < truth < rate.high


def test_a_rate_that_goes_up_and_down_shows_in_ranges_only():
    x = np.random.default_rng(10).normal(size=ROWS)
    labels = (np.abs(x) < 0.7).astype(float)
    found = power(x, labels)
    assert found.by_size == pytest.approx(0.5, abs=0.03)
    assert found.by_range > 0.9


@pytest.mark.parametrize(
    ("make", "copies"),
    [
        (lambda y, rng: ["yes" if one else "no" for one in y], True),
        (lambda y, rng: 1 - y, True),
        (lambda y, rng: np.where(rng.random(ROWS) < 0.001, 1 - y, y), True),
        (lambda y, rng: y * 2 + rng.normal(size=ROWS) * 0.5, False),
        (lambda y, rng: [["paid"] * int(one) for one in y], True),
        (lambda y, rng: [str(place) if one else None for place, one in enumerate(y)], True),
    ],
)
def test_a_column_that_knows_the_label_is_suspicious(labels, make, copies):
    values = make(labels, np.random.default_rng(11))
    found = power(values, labels)
    assert found.suspicious
    assert found.copies == copies


def test_a_half_without_both_classes_has_no_power():
    assert power([1.0, 2.0, 3.0, 4.0], np.array([1.0, 0, 0, 0])) is None


@pytest.mark.parametrize(
    "values", [[1, 0, 1], [1.0, 0.0, 1.0], [True, False, True], ["1", "0", "1"], ["True", "false", "true"]]
)
def test_labels_of_every_form(values):
    assert label_of(pl.Series(values)).tolist() == [1.0, 0.0, 1.0]
