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
from recsys.serving.server.shares import in_share

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


def split_logs(requests: int = 4_000, step: float = 6.0, rows: int = 2) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Logs as a server writes them that answers requests of several rows and deals two fifths to a challenger."""
    rng = np.random.default_rng(1)
    to_challenger = np.repeat([in_share(f"r{number}", 0.4, seed=1) for number in range(requests)], rows)
    clicked = rng.random(requests * rows) < np.where(to_challenger, 0.3, 0.2)
    predictions = pl.DataFrame(
        {
            "request_id": [f"r{number}:{row}" for number in range(requests) for row in range(rows)],
            "model": "clicks",
            "version": np.where(to_challenger, "2", "1"),
            "role": np.where(to_challenger, "challenger", "champion"),
            "probability": rng.beta(2, 8, requests * rows),
            "time": [START + datetime.timedelta(seconds=step * n) for n in range(requests) for _ in range(rows)],
        }
    )
    labels = predictions.select("request_id", pl.lit(1).alias("label"), "time").filter(pl.Series(clicked))
    return predictions, labels


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


SPLIT = OnlineConfig.model_validate({**CONFIG.model_dump(), "challenger": {"share": 0.4}})


def test_split_traffic_is_counted_by_request_and_its_difference_may_be_acted_on():
    predictions, labels = split_logs()
    monitor = run(SPLIT, predictions, labels)
    (row,) = monitor.split()
    assert (row["role"], row["version"], row["champion"], row["verdict"]) == ("challenger", "2", "clicks 1", "higher")
    clicked = set(labels["request_id"].str.split(":").list.first())
    for arm, role in zip(row["arms"], ("champion", "challenger"), strict=True):
        answered = set(predictions.filter(pl.col("role") == role)["request_id"].str.split(":").list.first())
        assert (arm["role"], arm["requests"], arm["rows"]) == (role, len(answered), 2 * len(answered))
        assert arm["label_rate"] == len(answered & clicked) / len(answered)
    assert row["label_rate"] == pytest.approx(1 - 0.7**2 - (1 - 0.8**2), abs=0.05)
    hours = [window["window"] for window in monitor.windows if window["role"] == "champion"]
    looks = [look for look in monitor.looks if look["of"] == "label_rate"]
    assert [look["window"] for look in looks] == hours[1:-1]
    last = looks[-1]
    assert (last["mean"], last["low"], last["high"]) == (row["label_rate"], row["low"], row["high"])
    assert row["since"] == next(look["window"] for look in looks if look["verdict"] == "higher")
    assert monitor.anytime() == []


def test_every_look_at_a_shadow_is_kept():
    predictions, labels, _ = logs()
    monitor = run(CONFIG, predictions, labels)
    (row,) = monitor.anytime()
    assert [look["window"] for look in monitor.looks] == [found["window"] for found in monitor.differences]
    assert [look["rows"] for look in monitor.looks] == np.cumsum([d["rows"] for d in monitor.differences]).tolist()
    assert (monitor.looks[-1]["mean"], monitor.looks[-1]["high"]) == (row["logloss"], row["high"])


def test_split_traffic_in_any_pieces_and_over_restarts_gives_the_same_bits():
    predictions, labels = split_logs()
    whole, rng = run(SPLIT, predictions, labels), np.random.default_rng(0)
    monitor, p, a = Monitor(SPLIT), 0, 0
    while p < predictions.height or a < labels.height:
        by_p, by_a = rng.integers(0, 2_000, 2)
        monitor.update(predictions[p : p + by_p], labels[a : a + by_a])
        p, a = p + int(by_p), a + int(by_a)
        values, tables = monitor.state()
        monitor = Monitor(SPLIT)
        monitor.restore(json.loads(json.dumps(values)), tables)
    monitor.finish()
    assert monitor.result() == whole.result()


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
