"""The monitor against metrics of rows joined by hand; the same bits in any pieces."""

from __future__ import annotations

import datetime
import json

import numpy as np
import polars as pl
import pytest

from features.errors import ArtifactError
from recsys.evaluation.metrics import evaluate
from recsys.evaluation.online import Monitor, OnlineConfig
from recsys.evaluation.online.anytime import AnytimeDifference
from recsys.evaluation.paired import paired_logloss

START = datetime.datetime(2024, 1, 1)
CONFIG = OnlineConfig(window="1h", max_delay="10m", lateness="1m")


def logs(requests: int = 4_000, seed: int = 0, step: float = 6.0) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Prediction log, label log (clicks alone), and the requests with their truth; a shadow scores one in two."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-1, 1.2, requests)
    click = rng.random(requests) < 1 / (1 + np.exp(-odds))
    second = np.arange(requests) * step
    truth = pl.DataFrame(
        {
            "request_id": [f"r{number}" for number in range(requests)],
            "click": click.astype(np.int8),
            "champion": 1 / (1 + np.exp(-odds - rng.normal(0, 0.5, requests))),
            "shadow": 1 / (1 + np.exp(-odds - rng.normal(0, 0.2, requests))),
            "hour": (second // 3_600).astype(np.int64),
            "price": rng.normal(size=requests),
        }
    ).with_columns(time=pl.Series([START + datetime.timedelta(seconds=float(s)) for s in second]))
    parts = []
    for role, rows in (("champion", truth), ("shadow", truth[::2])):
        parts.append(
            rows.select(
                "request_id",
                pl.lit("clicks").alias("model"),
                pl.lit("1" if role == "champion" else "2").alias("version"),
                pl.lit(role).alias("role"),
                pl.col(role).alias("probability"),
                "time",
                "price",
            )
        )
    delay = pl.Series(rng.integers(0, 600, requests) * 1_000_000).cast(pl.Duration("us"))
    labels = truth.with_columns(time=pl.col("time") + delay).filter(pl.col("click") == 1)
    labels = labels.select("request_id", pl.col("click").alias("label"), "time")
    return pl.concat(parts).sort("time", maintain_order=True), labels.sort("time", maintain_order=True), truth


def run(config: OnlineConfig, predictions: pl.DataFrame, labels: pl.DataFrame) -> Monitor:
    monitor = Monitor(config)
    monitor.update(predictions, labels)
    monitor.finish()
    return monitor


def test_metrics_of_a_window_are_those_of_its_rows():
    predictions, labels, truth = logs()
    monitor = run(CONFIG, predictions, labels)
    hours = truth.partition_by("hour", maintain_order=True)
    assert len(monitor.windows) == 2 * len(hours)
    for role, step in (("champion", 1), ("shadow", 2)):
        rows = [row for row in monitor.windows if row["role"] == role]
        for row, hour in zip(rows, hours, strict=True):
            scored = hour[::step]
            expected = evaluate(scored["click"].to_numpy(), scored[role].to_numpy())
            assert row["window"] == str(START + datetime.timedelta(hours=int(hour["hour"][0])))
            assert row["labelled"] == scored["click"].sum()
            for name in ("rows", "auc", "logloss", "normalised_entropy", "calibration_ratio", "base_rate", "ece"):
                assert row[name] == expected[name], name


def test_totals_are_exact_but_for_a_stated_error_of_the_auc():
    predictions, labels, truth = logs()
    for row in run(CONFIG, predictions, labels).totals():
        scored = truth if row["role"] == "champion" else truth[::2]
        expected = evaluate(scored["click"].to_numpy(), scored[row["role"]].to_numpy())
        for name in ("rows", "logloss", "normalised_entropy", "calibration_ratio", "base_rate"):
            assert row[name] == pytest.approx(expected[name], rel=1e-9)
        assert abs(row["auc"] - expected["auc"]) <= row["auc_error"] < 1e-3


def test_predictions_without_a_label_are_negatives_or_left_out():
    predictions, labels, truth = logs()
    missing = run(CONFIG.model_copy(update={"unlabelled": "missing"}), predictions, labels)
    rows = [row for row in missing.windows if row["role"] == "champion"]
    assert sum(row["rows"] for row in rows) == truth["click"].sum()
    assert {row["auc"] for row in rows} == {None}
    assert {row["base_rate"] for row in rows} == {1.0}


def test_a_model_that_scores_the_champions_requests_is_compared_on_them():
    predictions, labels, truth = logs()
    rows = run(CONFIG, predictions, labels).differences
    hour = truth.filter(pl.col("hour") == 0)[::2]
    expected = paired_logloss(*(hour[name].to_numpy() for name in ("click", "shadow", "champion")))
    first = rows[0]
    assert (first["role"], first["version"], first["rows"]) == ("shadow", "2", hour.height)
    assert (first["logloss"], first["logloss_low"], first["logloss_high"]) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )
    assert first["logloss_high"] < 0


def test_over_all_windows_the_difference_may_be_looked_at_at_any_time():
    predictions, labels, truth = logs(6_000, step=3.0)
    monitor = run(CONFIG, predictions, labels)
    (row,) = monitor.anytime()
    scored = truth[::2]
    paired = paired_logloss(*(scored[name].to_numpy() for name in ("click", "shadow", "champion")))
    assert (row["role"], row["version"], row["champion"], row["rows"]) == ("shadow", "2", "clicks 1", 3_000)
    assert row["logloss"] == pytest.approx(paired.mean, abs=1e-3)  # probabilities are kept .001 away from 0 and 1
    assert row["low"] < paired.low < paired.high < row["high"] < 0
    assert (row["verdict"], row["e_value"] >= 20) == ("better", True)
    assert row["since"] in {window["window"] for window in monitor.windows}


def test_between_equals_a_verdict_at_any_of_many_looks_is_rare():
    rng, found = np.random.default_rng(0), 0
    for _ in range(200):
        test = AnytimeDifference()
        for window in range(15):
            odds, noise = rng.normal(-1, 1, 200), rng.normal(0, 0.7, (2, 200))
            a, b = (1 / (1 + np.exp(-odds - one)) for one in noise)
            test.update(str(window), (rng.random(200) < 1 / (1 + np.exp(-odds))).astype(float), a, b)
        found += test.row()["verdict"] != "none yet"
    assert found <= 10


@pytest.mark.parametrize("seed", range(3))
def test_in_any_pieces_and_over_restarts_the_results_are_the_same_bits(seed):
    predictions, labels, _ = logs(2_000, seed)
    whole, rng = run(CONFIG, predictions, labels), np.random.default_rng(seed)
    monitor, p, a = Monitor(CONFIG), 0, 0
    while p < predictions.height or a < labels.height:
        by_p, by_a = rng.integers(0, 900, 2)
        monitor.update(predictions[p : p + by_p], labels[a : a + by_a])
        p, a = p + int(by_p), a + int(by_a)
        if rng.random() < 0.5:
            values, tables = monitor.state()
            monitor = Monitor(CONFIG)
            monitor.restore(json.loads(json.dumps(values)), tables)
    monitor.finish()
    assert monitor.result() == whole.result()


def test_a_drift_of_the_inputs_is_told_with_its_window_and_model():
    predictions, labels, _ = logs(6_000, step=3.0)
    moved = pl.when(pl.col("time") >= START + datetime.timedelta(hours=3)).then(pl.col("price") + 1).otherwise("price")
    monitor = run(CONFIG, predictions.with_columns(price=moved), labels)
    assert {alarm["signal"] for alarm in monitor.alarms} == {"input:price"}
    champion = [alarm for alarm in monitor.alarms if alarm["role"] == "champion"]
    assert {alarm["window"] for alarm in champion} == {"2024-01-01 03:00:00"}
    assert {alarm["kind"] for alarm in champion} == {"mean", "distribution"}


def test_state_of_another_config_or_version_is_refused():
    monitor = Monitor(CONFIG)
    values, tables = monitor.state()
    with pytest.raises(ArtifactError, match=r"window: state of another config\. Found: 1h\. Expected: 2h"):
        Monitor(CONFIG.model_copy(update={"window": "2h"})).restore(values, tables)
    with pytest.raises(ArtifactError, match="state of another version"):
        monitor.restore({**values, "version": 0}, tables)
