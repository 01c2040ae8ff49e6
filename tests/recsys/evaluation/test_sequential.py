"""Always-valid tests: few false alarms though every row is looked at, early stops, intervals, exact algebra."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from recsys.evaluation.power import rates_deviation, sample_size
from recsys.evaluation.sequential import Plan, SequentialMean, TwoArms, loss_differences

LEVEL = 0.05
Draw = Callable[[np.random.Generator, int], np.ndarray]


def fair_coin(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.integers(0, 2, rows) * 2.0 - 1


def skewed(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Mean 0: nine times in ten -1/9, else 1; no normal approximation holds early on."""
    return np.where(rng.random(rows) < 0.1, 1.0, -1 / 9)


def losses(rng: np.random.Generator, rows: int, gain: float = 0.0) -> np.ndarray:
    """Differences of squared errors of two models, b sharper than a by `gain` (0: as good)."""
    truth = rng.beta(1, 6, rows)
    labels = (rng.random(rows) < truth).astype(float)
    noise = rng.normal(0, 0.1, (2, rows))
    a, b = (np.clip(truth + scale * n, 0, 1) for n, scale in zip(noise, (1 + gain, 1), strict=True))
    return (a - labels) ** 2 - (b - labels) ** 2


def alarms(draw: Draw, runs: int, rows: int, plan: Plan | None, seed: int) -> tuple[float, float]:
    """Share of runs in which the e-value passes 1 / level at any row, and the mean share of rows that took."""
    rng = np.random.default_rng(seed)
    test = SequentialMean(-1, 1, level=LEVEL, plan=plan)
    at = []
    for _ in range(runs):
        over = test.e_values(draw(rng, rows)) >= 1 / LEVEL
        if over.any():
            at.append((over.argmax() + 1) / rows)
    return len(at) / runs, float(np.mean(at)) if at else math.nan


def arm_alarms(runs: int, requests: int, rate: float, effect: float, seed: int) -> float:
    """The same for two arms whose rates differ by `effect` or, with 0, not at all; planned for .05."""
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(runs):
        arms = TwoArms(rate=0.2, effect=0.05)
        challenger = rng.random(requests) < 0.5
        clicks = rng.random(requests) < rate + effect * challenger
        values = (clicks - 0.2) * np.where(challenger, 2.0, -2.0)
        assert arms.difference.low <= values.min() <= values.max() <= arms.difference.high
        found += bool((arms.difference.e_values(values) >= 1 / LEVEL).any())
    return found / runs


PLAN = Plan(effect=0.1, deviation=1.0)
NULLS = [("fair coin", fair_coin, PLAN), ("skewed", skewed, Plan(0.03, 1 / 3)), ("losses", losses, None)]


@pytest.mark.parametrize(("name", "draw", "plan"), NULLS, ids=[name for name, *_ in NULLS])
def test_few_false_alarms_though_every_row_is_looked_at(name: str, draw: Draw, plan: Plan | None) -> None:
    share, _ = alarms(draw, runs=200, rows=800, plan=plan, seed=1)
    assert share <= LEVEL + 2.33 * math.sqrt(LEVEL * (1 - LEVEL) / 200)


def test_stops_before_the_fixed_sample_size_in_half_of_the_runs() -> None:
    rows = sample_size(PLAN.deviation, PLAN.effect)
    share, _ = alarms(lambda rng, n: np.where(rng.random(n) < 0.55, 1.0, -1.0), 200, rows, PLAN, seed=2)
    assert share >= 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "draw", "plan"), NULLS, ids=[name for name, *_ in NULLS])
def test_false_alarms_over_2000_null_runs(name: str, draw: Draw, plan: Plan | None) -> None:
    share, _ = alarms(draw, runs=2000, rows=3000, plan=plan, seed=3)
    print(f"{name}: {share:.2%} false alarms over 2,000 null runs of 3,000 looks")
    assert share <= LEVEL


@pytest.mark.slow
def test_early_stops_over_1000_runs_with_the_planned_effect() -> None:
    rows = sample_size(PLAN.deviation, PLAN.effect)
    share, at = alarms(lambda rng, n: np.where(rng.random(n) < 0.55, 1.0, -1.0), 1000, rows, PLAN, seed=4)
    print(f"mean: {share:.1%} of runs stop within {rows} rows, on average after {at:.0%} of them")
    assert share >= 0.5


@pytest.mark.slow
def test_two_arms_over_2000_null_runs_and_1000_with_the_planned_effect() -> None:
    requests = sample_size(rates_deviation(0.2), 0.05)
    null = arm_alarms(2000, requests, rate=0.2, effect=0, seed=5)
    seen = arm_alarms(1000, requests, rate=0.2, effect=0.05, seed=6)
    print(f"two arms: {null:.2%} false alarms, {seen:.1%} of runs stop within {requests} requests")
    assert null <= LEVEL
    assert seen >= 0.5


def test_a_test_made_for_one_look_would_cry_wolf() -> None:
    """What the e-values are for: the 5 % test looked at after every row."""
    rng = np.random.default_rng(7)
    values = rng.integers(0, 2, (200, 800)) * 2.0 - 1
    z = values.cumsum(1) / np.sqrt(np.arange(1, 801))
    assert (np.abs(z[:, 50:]) > 1.96).any(1).mean() > 0.2


def test_the_interval_holds_the_mean_at_all_times() -> None:
    rng = np.random.default_rng(8)
    missed = 0
    for _ in range(60):
        test = SequentialMean(-1, 1, plan=Plan(0.1, 0.5))
        ends = [test.update(rng.uniform(-0.7, 0.9, 50)).interval for _ in range(8)]
        missed += any(not low <= 0.1 <= high for low, high in ends)
    assert missed <= 6
    assert 0 < test.interval[1] - test.interval[0] < 0.3


def test_the_e_value_is_the_mixture_written_out() -> None:
    values = np.array([0.3, -0.2, 0.5])
    test = SequentialMean(-0.5, 1.0).update(values)
    halves = 0.5 ** np.arange(16)
    wealth = [math.prod(1 + b * x for x in values) for b in [*(0.95 / 0.5 * halves), *(-0.95 * halves)]]
    assert test.e_value == pytest.approx(np.mean(wealth))
    assert test.p_value == min(1, 1 / test.e_value)


@given(st.lists(st.floats(-1, 2), min_size=1, max_size=60), st.integers(0, 60), st.booleans())
def test_pieces_merges_and_files_come_to_the_same(values: list[float], cut: int, planned: bool) -> None:
    plan = Plan(0.2, 0.7) if planned else None
    x = np.array(values)

    def fresh() -> SequentialMean:
        return SequentialMean(-1, 2, plan=plan)

    whole = fresh().update(x)
    first = fresh().update(x[:cut])
    resumed = SequentialMean.from_json(json.loads(json.dumps(first.to_json()))).update(x[cut:])
    merged = fresh().update(x[cut:]).merge(first)
    for other in (resumed, merged):
        assert other.rows == len(x)
        assert other.e_value == pytest.approx(whole.e_value)
        assert other.interval == pytest.approx(whole.interval, abs=1e-6)
    assert fresh().e_values(x)[-1] == pytest.approx(whole.e_value)
    low, high = whole.interval
    assert -1 <= low <= whole.mean <= high <= 2
    assert whole.decided == (not low <= 0 <= high)


def test_before_the_first_value_nothing_is_known() -> None:
    test = SequentialMean(-1, 2)
    assert (test.mean, test.e_value, test.decided, test.interval) == (0.0, pytest.approx(1.0), False, (-1.0, 2.0))


def test_values_out_of_bounds_are_refused_and_change_nothing() -> None:
    test = SequentialMean(-1, 1).update(np.array([0.5]))
    for wrong in (1.5, math.nan):
        with pytest.raises(DataError, match=r"1 of 2 values are outside the bounds.*-1 to 1"):
            test.update(np.array([0.0, wrong]))
    assert test.rows == 1
    with pytest.raises(ValueError, match="between the bounds"):
        SequentialMean(0, 1)
    with pytest.raises(ValueError, match="other bounds"):
        test.merge(SequentialMean(-1, 2))


def test_two_arms_find_a_difference_in_rates_that_move() -> None:
    """Rates double halfway; the arms' difference stays, and so does the validity of the test."""
    rng = np.random.default_rng(9)
    challenger = rng.random(40_000) < 0.3
    rates = np.where(np.arange(40_000) < 20_000, 0.1, 0.2)
    clicks = rng.random(40_000) < rates + 0.03 * challenger
    arms = TwoArms(rate=0.1, effect=0.02, share=0.3)
    for rows in np.array_split(np.arange(40_000), 7):
        arms.update(challenger[rows], clicks[rows])
    assert arms.difference.decided
    low, high = arms.difference.interval
    assert 0 < low < 0.03 < high
    assert not arms.split.decided


def test_two_arms_see_that_requests_were_lost() -> None:
    rng = np.random.default_rng(10)
    challenger = rng.random(20_000) < 0.47
    arms = TwoArms(rate=0.1, effect=0.02).update(challenger, rng.random(20_000) < 0.1)
    assert arms.split.decided
    with pytest.raises(DataError, match="neither 0 nor 1"):
        arms.update(np.array([0, 2]), np.array([0, 1]))
    with pytest.raises(ValueError, match="2 requests"):
        arms.update(np.array([0, 1]), np.array([0]))


def test_differences_of_logloss_keep_their_bound() -> None:
    values, bound = loss_differences(np.array([1, 0, 1]), np.array([0.0, 1.0, 0.3]), np.array([1.0, 0.0, 0.3]))
    assert values.tolist() == pytest.approx([bound, bound, 0])
    assert SequentialMean(-bound, bound).update(values).rows == 3
