"""Differences of two distances: the ellipse gone round, the p-value that agrees with it, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.evaluation.folded import folded_error, folded_interval, folded_p_value

Z = 1.959964
values = st.floats(-3, 3)


def spread(correlation: float, of_y: float = 1.0) -> np.ndarray:
    return np.array([[1.0, correlation * of_y], [correlation * of_y, of_y**2]])


@given(x=values, y=values, correlation=st.floats(-0.95, 0.95), of_y=st.floats(0.2, 3))
@settings(max_examples=60, deadline=None)
def test_the_ends_are_those_found_by_going_round_the_ellipse(
    x: float, y: float, correlation: float, of_y: float
) -> None:
    covariance = spread(correlation, of_y)
    angle = np.linspace(0, 2 * math.pi, 40_001)
    edge = np.linalg.cholesky(covariance) @ np.stack([np.cos(angle), np.sin(angle)]) * Z
    # inside, |x| - |y| is smaller or larger only where it is 0: on the axes
    inner = [edge * part for part in np.linspace(0, 1, 41)]
    points = np.concatenate(inner, axis=1) + np.array([[x], [y]])
    differences = np.abs(points[0]) - np.abs(points[1])
    assert folded_interval(x, y, covariance, Z) == pytest.approx((differences.min(), differences.max()), abs=0.1)
    low, high = folded_interval(x, y, covariance, Z)
    assert low <= differences.min() + 1e-6
    assert high >= differences.max() - 1e-6


@given(x=values, y=values, correlation=st.floats(-0.95, 0.95))
@settings(max_examples=100, deadline=None)
def test_the_p_value_is_below_the_level_where_the_interval_leaves_out_0(x: float, y: float, correlation: float) -> None:
    covariance = spread(correlation)
    low, high = folded_interval(x, y, covariance, Z)
    p = folded_p_value(x, y, covariance)
    if min(abs(low), abs(high)) > 1e-5:
        assert (p < 0.05) == (low > 0 or high < 0)
    assert (folded_interval(y, x, covariance, Z)) == pytest.approx((-high, -low), abs=1e-6)


def test_where_the_signs_are_clear_it_is_the_interval_of_the_signed_difference() -> None:
    covariance = spread(0.9) * 1e-4
    for x, y in ((0.5, 0.4), (-0.5, 0.4), (-0.5, -0.4)):
        error = folded_error(x, y, covariance)
        assert error == pytest.approx(math.sqrt((2 - 1.8 * np.sign(x * y)) * 1e-4))
        assert folded_interval(x, y, covariance, Z) == pytest.approx((0.1 - Z * error, 0.1 + Z * error), abs=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x", "y", "most"),
    [(4, 3, 0.97), (-4, 3, 0.97), (0, 4, 0.97), (0, 1.5, 0.97), (0.5, 2, 0.98), (-1, 2, 0.99), (1, 1, 1), (0, 0, 1)],
)
def test_nominal_intervals_cover(x: float, y: float, most: float) -> None:
    """1,000 pairs of ratios a model apart, in errors from 1, with the correlation of two models on the same rows."""
    rng, covariance = np.random.default_rng(0), spread(0.8)
    pairs = rng.multivariate_normal([x, y], covariance, 1000)
    held = [low <= abs(x) - abs(y) <= high for low, high in (folded_interval(*pair, covariance, Z) for pair in pairs)]
    print(f"|{x}| - |{y}|: covers {np.mean(held):.3f}")
    assert 0.93 <= np.mean(held) <= most
