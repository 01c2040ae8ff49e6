"""Sample sizes: a textbook's figure, and the power that simulated tests come to."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.evaluation.power import detectable, rates_deviation, sample_size


def test_the_standard_case_of_the_textbooks() -> None:
    # (1.95996 + 0.84162)^2 = 7.8489 times (deviation / effect)^2
    assert sample_size(deviation=10, effect=1) == 785
    assert sample_size(deviation=10, effect=-1, power=0.9) == 1051


@given(deviation=st.floats(0.01, 10), rows=st.integers(100, 10**8))
def test_sample_size_and_detectable_are_inverse(deviation: float, rows: int) -> None:
    effect = detectable(deviation, rows)
    assert sample_size(deviation, effect) == pytest.approx(rows, abs=1)


def test_so_many_rows_have_the_power_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    rows = sample_size(deviation=1, effect=0.2)
    values = rng.normal(0.2, 1, size=(4000, rows))
    claimed = np.abs(values.mean(1)) / values.std(1, ddof=1) * math.sqrt(rows) > 1.959964
    assert claimed.mean() == pytest.approx(0.8, abs=0.025)


def test_two_arms_are_worth_as_much_as_the_split_allows() -> None:
    per_arm = 2 * 0.05 * 0.95 * 7.8489 / 0.005**2
    assert sample_size(rates_deviation(0.05), 0.005) == pytest.approx(2 * per_arm, rel=1e-4)
    assert rates_deviation(0.05, 0.1) == pytest.approx(rates_deviation(0.05) * 0.5 / 0.3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: sample_size(1, 0),
        lambda: sample_size(1, 0.1, level=0),
        lambda: detectable(1, 100, power=0.01),
        lambda: rates_deviation(0),
        lambda: rates_deviation(0.1, 1),
    ],
)
def test_what_has_no_answer_is_refused(call: object) -> None:
    with pytest.raises(ValueError):
        call()  # type: ignore[operator]
