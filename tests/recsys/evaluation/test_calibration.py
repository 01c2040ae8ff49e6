"""Calibration: bins, the Brier score's parts, and a calibration error without its noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError, UndefinedMetricError
from recsys.evaluation.calibration import brier_parts, expected_calibration_error, reliability_curve
from recsys.evaluation.ece_interval import _corrected, _table, _variance, ece_interval
from recsys.evaluation.metrics import brier


def sample(rows: int, slope: float = 1.0, shift: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities of a model that is too sure by `slope` and too high by `shift`, on logits."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=rows) - 1
    labels = rng.random(rows) < 1 / (1 + np.exp(-logits))
    return labels.astype(float), 1 / (1 + np.exp(-(slope * logits + shift)))


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8), st.integers(0, 3)), min_size=1, max_size=60),
    st.integers(1, 12),
)
def test_parts_of_the_brier_score_add_up(rows: list[tuple[int, int, int]], bins: int) -> None:
    y, p, w = (np.array(column, float) for column in zip(*rows, strict=True))
    if not w.sum():
        with pytest.raises(UndefinedMetricError, match="all weights are 0"):
            brier_parts(y, p / 8, w, bins)
        return
    parts = brier_parts(y, p / 8, w, bins)
    total = parts["reliability"] - parts["resolution"] + parts["uncertainty"] + parts["within"]
    assert total == pytest.approx(brier(y, p / 8, w), abs=1e-12)
    if bins == 12 and len(rows) <= 12:
        assert parts["within"] == pytest.approx(0, abs=1e-12)  # a bin a score


def test_debiased_reliability_is_right_on_average() -> None:
    found = [brier_parts(*sample(800, seed=seed)) for seed in range(300)]
    assert abs(np.mean([parts["reliability_debiased"] for parts in found])) < 0.0003
    assert np.mean([parts["reliability"] for parts in found]) > 0.003


def test_weights_count_as_copies_do() -> None:
    y, p = sample(400)
    p = np.round(p, 1)  # so that the bins are the same, which hold equally many rows
    times = np.random.default_rng(0).integers(1, 4, 400)
    one, copied = reliability_curve(y, p, times, 50), reliability_curve(y.repeat(times), p.repeat(times), bins=50)
    for name in one:
        np.testing.assert_allclose(one[name], copied[name])


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (1.0, 0.4), (1.6, 0.0), (2.5, 1.0)])
def test_interval_holds_the_truth_and_its_value_is_nearer_than_the_plain_figure(slope: float, shift: float) -> None:
    truth = 0.0 if (slope, shift) == (1, 0) else expected_calibration_error(*sample(1_000_000, slope, shift))
    samples = [sample(2000, slope, shift, seed) for seed in range(1, 41)]
    found = [ece_interval(*rows) for rows in samples]
    plain = np.mean([expected_calibration_error(*rows) for rows in samples])
    assert sum(f.low <= truth <= f.high for f in found) >= 35
    assert abs(np.mean([f.value for f in found]) - truth) < 0.6 * abs(plain - truth) + 0.001
    assert all(f.low <= f.value <= f.high for f in found)


def test_bounds_of_the_noise_are_on_either_side_of_every_gap() -> None:
    noise = np.random.default_rng(0).standard_normal(200_000)
    for gap in np.linspace(0, 6, 25):
        error = 4 / np.sqrt(len(noise))
        assert _corrected(gap + noise).mean() <= gap + error
        assert np.abs(gap + noise).mean() >= gap - error
        assert _variance(_corrected, np.array([gap])) == pytest.approx(_corrected(gap + noise).var(), rel=0.02)
    assert _corrected(6 + noise).mean() == pytest.approx(6, abs=0.01)


def test_the_limit_of_what_is_unusual_is_one_sided_at_the_boundary_and_two_sided_far_from_it() -> None:
    grid, limits = _table(0.95)
    rng = np.random.default_rng(0)
    for place in (0, 10, 30, 60, 80):
        x = grid[place] + rng.standard_normal(200_000)
        ratio = (x - grid[place]) ** 2 - np.minimum(x, 0) ** 2
        assert (ratio <= limits[place]).mean() == pytest.approx(0.95, abs=0.002)
    assert (limits[0], limits[-1]) == pytest.approx((1.6449**2, 1.96**2), abs=0.001)


def test_gaps_that_scatter_are_told_from_gaps_on_a_curve() -> None:
    rng = np.random.default_rng(1)
    p = np.repeat(np.linspace(0.05, 0.95, 20), 2000)
    wave = np.repeat(np.where(np.arange(20) % 2, 0.03, -0.03), 2000)
    rough = ece_interval((rng.random(len(p)) < p + wave).astype(float), p)
    smooth = ece_interval((rng.random(len(p)) < p + 0.03).astype(float), p)
    assert rough.method == "bounds of the noise, rough gaps"
    assert smooth.method == "inversion, smooth gaps"
    assert rough.low < 0.03 < rough.high
    assert smooth.low < 0.03 < smooth.high


def test_one_bin_that_is_off_does_not_carry_the_others_away() -> None:
    rng = np.random.default_rng(0)
    p = np.repeat(np.linspace(0.05, 0.95, 20), 500)
    y = (rng.random(len(p)) < np.where(p > 0.94, 0.6, p)).astype(float)
    found = ece_interval(y, p)
    assert found.low < 0.35 / 20 < found.high
    assert found.value < expected_calibration_error(y, p)


def test_few_bins_clicks_or_rows_have_an_interval() -> None:
    for y, p in (([0, 1], [0.5, 0.5]), ([0, 0, 0], [0.1, 0.2, 0.3]), ([0], [0.2]), ([1, 0, 0, 1], [0, 0.3, 0.6, 1])):
        found = ece_interval(np.array(y), np.array(p))
        assert 0 <= found.low <= found.value <= found.high <= 1
    with pytest.raises(UndefinedMetricError, match="there are no rows"):
        ece_interval(np.empty(0), np.empty(0))
    with pytest.raises(DataError, match="probabilities are out of range"):
        expected_calibration_error(np.array([0, 1]), np.array([-0.1, 0.5]))
