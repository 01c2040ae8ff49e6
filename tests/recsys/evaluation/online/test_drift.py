"""Drift alarms: what moved is named in the window where it moved, and what did not move raises none."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.evaluation.online import AlarmConfig, Reference
from recsys.evaluation.online.drift import DriftWatch
from recsys.evaluation.online.signals import BLOCKS, block_means, signals

DETECTORS = 8


def window(rng: np.random.Generator, rows: int = 3_000, **change: Any) -> pl.DataFrame:
    """A calibrated model with two inputs; `change` moves the log-odds, the truth's slope or offset, or an input."""
    price, city = rng.normal(change.get("price", 0.0), 1, rows), rng.zipf(1.6, rows).clip(max=300)
    odds = change.get("odds", 0.0) + rng.normal(-1, 1, rows)
    truth = change.get("slope", 1.0) * (odds + 1) - 1 + change.get("offset", 0.0)
    there = rng.random(rows) >= change.get("missing", 0.02)
    return pl.DataFrame(
        {
            "key": rng.integers(-(2**63), 2**63 - 1, rows),
            "probability": 1 / (1 + np.exp(-odds)),
            "label": (rng.random(rows) < 1 / (1 + np.exp(-truth))).astype(np.int8),
            "input:price": pl.select(pl.when(pl.Series(there)).then(pl.Series(price))).to_series(),
            "input:city": [f"{change.get('city', 'c')}{number}" for number in city],
        }
    )


def watch(
    changes: list[dict[str, Any]], seed: int = 0, config: AlarmConfig | None = None
) -> list[list[tuple[str, str]]]:
    """The signals that raised an alarm and its kind, a window each."""
    rng, watch = np.random.default_rng(seed), DriftWatch(config or AlarmConfig())
    return [
        [(alarm.signal, alarm.kind) for alarm in watch.update(window(rng, **change), DETECTORS)[0]]
        for change in changes
    ]


@pytest.mark.parametrize(
    ("change", "signal"),
    [
        ({"odds": 0.5}, "prediction"),
        ({"offset": 0.6}, "calibration"),
        ({"offset": -0.6}, "calibration"),
        ({"slope": 0.2}, "calibration slope"),
        ({"price": 0.5}, "input:price"),
        ({"missing": 0.3}, "input:price missing"),
        ({"city": "d"}, "input:city"),
    ],
)
def test_a_change_is_named_within_two_windows_and_told_once(change, signal):
    found = watch([{}] * 5 + [change] * 5)
    assert found[:5] == [[]] * 5
    assert signal in {name for alarms in found[5:7] for name, _ in alarms}
    told = [alarm for alarms in found for alarm in alarms]
    assert len(set(told)) == len(told)


def test_twenty_stationary_replays_raise_no_alarm():
    assert [watch([{}] * 10, seed) for seed in range(20)] == [[[]] * 10] * 20


@pytest.mark.slow
def test_false_alarms_are_below_the_level():
    """Of the chance that a window raises any alarm, over 1,800 windows and at a level that can be seen."""
    config = AlarmConfig(level=0.1, smallest_change=0, psi=0.001)
    windows = [alarms for seed in range(200) for alarms in watch([{}] * 10, 1_000 + seed, config)[1:]]
    share = sum(bool(alarms) for alarms in windows) / len(windows)
    print(f"windows with a false alarm: {share:.4f} at level 0.1")
    assert share <= 0.1


def test_a_small_change_is_no_alarm_however_sure():
    changes = [{}] * 3 + [{"odds": 0.25}] * 3
    assert [("prediction", "mean")] in watch(changes, config=AlarmConfig(smallest_change=0.01))
    assert watch(changes, config=AlarmConfig(smallest_change=0.5)) == [[]] * 6


def test_a_window_with_few_rows_is_not_watched():
    rng, watch = np.random.default_rng(0), DriftWatch(AlarmConfig(min_rows=500))
    for change in ({}, {"odds": 3.0}):
        assert watch.update(window(rng, 499, **change), DETECTORS) == ([], {})
    assert watch.reference is None


def test_a_reference_from_before_the_log_shows_the_first_window_as_drifted():
    rng = np.random.default_rng(0)
    watch = DriftWatch(AlarmConfig(), Reference.of(window(rng)))
    alarms, stability = watch.update(window(rng, odds=1.5), DETECTORS)
    assert [(alarm.signal, alarm.kind) for alarm in alarms] == [("prediction", "distribution")]
    assert stability["prediction"] > 0.25
    assert abs(stability["input:city"]) < 0.05


def test_goes_on_from_its_state_to_the_same_alarms():
    changes = [{}] * 3 + [{"offset": 0.4}] * 2 + [{"price": 1.0}]
    rng, one, two = np.random.default_rng(3), DriftWatch(AlarmConfig()), DriftWatch(AlarmConfig())
    for change in changes:
        rows = window(rng, **change)
        fresh = DriftWatch(AlarmConfig())
        fresh.restore(two.state())
        two = fresh
        assert one.update(rows, DETECTORS) == two.update(rows, DETECTORS)
    assert one.state() == two.state()


def test_blocks_do_not_hang_on_the_order_of_rows_nor_on_rhythms_within_a_window():
    rng = np.random.default_rng(0)
    keys, night = rng.integers(-(2**63), 2**63 - 1, 20_000), np.repeat([0.0, 1.0], 10_000)
    means = block_means(night, keys)
    assert len(means) == BLOCKS
    assert means.mean() == pytest.approx(0.5, abs=0.01)
    assert means.std() == pytest.approx(0.5 / np.sqrt(20_000 / BLOCKS), rel=0.15)
    order = rng.permutation(20_000)
    np.testing.assert_allclose(block_means(night[order], keys[order]), means)


def test_signals_of_a_calibrated_model_stay_at_one_half():
    rng = np.random.default_rng(0)
    rows = window(rng, 200_000)
    found = signals(rows, Reference.of(window(rng, 50_000)))
    assert found["calibration"].mean() == pytest.approx(0.5, abs=0.003)
    assert found["calibration slope"].mean() == pytest.approx(0.5, abs=0.002)
    assert all(values.min() >= 0 and values.max() <= 1 for values in found.values())
    assert found["input:price missing"].mean() == pytest.approx(0.02, abs=0.002)
