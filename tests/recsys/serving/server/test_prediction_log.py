"""The prediction log: what was answered is in it once; what cannot be is counted, and nobody waits for it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.serve_worker import BoundedLog
from recsys.serving.server.metrics import Metrics
from recsys.serving.server.prediction_log import PredictionLog, log_rows
from recsys.serving.server.served import ServedModel
from recsys.serving.server.settings import ServerSettings

ROWS = [{"user": 1, "item": "a", "tags": ["x"], "price": 2}, {"user": None, "item": 5, "tags": None, "price": "dear"}]
SCORES = np.array([[0.25], [0.5]])


def settings(**changes: Any) -> ServerSettings:
    return ServerSettings(state=Path(), parent=1, log_seconds=1000, **changes)


def counted(metrics: Metrics, name: str) -> float:
    return sum(
        sample.value
        for family in (metrics.logged, metrics.log_dropped, metrics.log_failures)
        for kind in family.collect()
        for sample in kind.samples
        if name in (sample.name, sample.labels.get("reason")) and not sample.name.endswith("_created")
    )


def test_rows_hold_the_inputs_that_are_plain_values(model: ServedModel) -> None:
    log = log_rows(model, "r", 1.5, [{"item": "a"}, {"item": 5}], {"user": 3, "price": 2}, SCORES)
    assert log.to_dict(as_series=False) == {
        "request_id": ["r:0", "r:1"],
        "model": ["clicks", "clicks"],
        "version": ["1", "1"],
        "role": ["champion", "champion"],
        "probability": [0.25, 0.5],
        "time": [pl.Series([1_500_000]).cast(pl.Datetime("us"))[0]] * 2,
        "user": [3, 3],
        "item": ["a", "5"],
        "price": [2.0, 2.0],
    }


def test_everything_is_written_at_the_end(model: ServedModel) -> None:
    written: list[pl.DataFrame] = []
    metrics = Metrics()
    log = PredictionLog(written.append, settings(), metrics)
    for number in range(5):
        log.add(model, f"r{number}", ROWS, None, SCORES)
    log.close()
    rows = pl.concat(written)
    assert rows["request_id"].to_list() == [f"r{number}:{row}" for number in range(5) for row in range(2)]
    assert counted(metrics, "recsys_prediction_log_rows_total") == 10


def test_a_file_is_written_once_it_is_full(model: ServedModel) -> None:
    written = threading.Event()
    log = PredictionLog(lambda rows: written.set(), settings(log_rows=4), Metrics())
    log.add(model, "r0", ROWS, None, SCORES)
    log.add(model, "r1", ROWS, None, SCORES)
    assert written.wait(60)
    log.close()


def test_the_sample_hangs_on_the_request_alone(model: ServedModel) -> None:
    samples = []
    for _ in range(2):
        written: list[pl.DataFrame] = []
        log = PredictionLog(written.append, settings(log_sample=0.3), Metrics())
        for number in range(1000):
            log.add(model, f"r{number}", ROWS[:1], None, SCORES[:1])
        log.close()
        samples.append(pl.concat(written)["request_id"].to_list())
    assert samples[0] == samples[1]
    assert 230 < len(samples[0]) < 370


def test_a_writer_that_fails_loses_its_rows_and_no_others(model: ServedModel) -> None:
    metrics, calls = Metrics(), []

    def write(rows: pl.DataFrame) -> None:
        calls.append(len(rows))
        if len(calls) == 1:
            raise OSError("no space left on device")

    log = PredictionLog(write, settings(log_rows=2), metrics)
    log.add(model, "r0", ROWS, None, SCORES)
    while not calls:
        pass
    log.add(model, "r1", ROWS, None, SCORES)
    log.close()
    assert calls == [2, 2]
    assert counted(metrics, "not written") == 2
    assert counted(metrics, "recsys_prediction_log_rows_total") == 2


def test_a_writer_that_is_behind_holds_nobody_up(model: ServedModel) -> None:
    metrics, go, begun = Metrics(), threading.Event(), threading.Event()

    def write(rows: pl.DataFrame) -> None:
        begun.set()
        go.wait()

    log = PredictionLog(write, settings(log_rows=2), metrics)
    log.add(model, "r0", ROWS, None, SCORES)
    assert begun.wait(60)
    for number in range(1, 10):
        log.add(model, f"r{number}", ROWS, None, SCORES)
    assert counted(metrics, "behind") == 16
    go.set()
    log.close()
    assert counted(metrics, "recsys_prediction_log_rows_total") == 4


def test_the_oldest_files_of_a_log_that_is_too_large_are_removed(tmp_path: Path) -> None:
    rows = pl.DataFrame({"x": np.random.default_rng(0).random(1000)})
    BoundedLog(tmp_path / "one", 1 << 30)(rows)
    (file,) = (tmp_path / "one").iterdir()
    log = BoundedLog(tmp_path / "log", 3 * file.stat().st_size)
    names = []
    for _ in range(6):
        log(rows)
        names.append(max(path.name for path in (tmp_path / "log").iterdir()))
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == names[-3:]
