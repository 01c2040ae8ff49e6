"""The delayed join against a slow one that looks at all rows at once, in any pieces, with all that goes wrong."""

from __future__ import annotations

import datetime
from collections import Counter
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import ConfigError, DataError
from features.validation import validate
from recsys.evaluation.online import LABEL_LOG, PREDICTION_LOG, DelayedJoin, OnlineConfig

SECOND = 1_000_000
CONFIG = OnlineConfig(
    window="10s", max_delay="8s", max_lead="1s", lateness="3s", max_jump="60s", believed_after=3, unlabelled="missing"
)


def at(second: float) -> datetime.datetime:
    return datetime.datetime(2024, 1, 1) + datetime.timedelta(seconds=second)


def predictions(*rows: tuple[Any, ...], role: str = "champion", **columns: list[Any]) -> pl.DataFrame:
    """(request, second) or (request, second, role)."""
    data = {
        "request_id": [row[0] for row in rows],
        "model": ["m"] * len(rows),
        "version": ["1"] * len(rows),
        "role": [row[2] if len(row) > 2 else role for row in rows],
        "probability": [0.5] * len(rows),
        "time": [None if row[1] is None else at(row[1]) for row in rows],
        **columns,
    }
    return pl.DataFrame(data, schema_overrides=PREDICTION_LOG)


def labels(*rows: tuple[Any, ...]) -> pl.DataFrame:
    """(request, second, label)."""
    data = {
        "request_id": [row[0] for row in rows],
        "label": [row[2] for row in rows],
        "time": [None if row[1] is None else at(row[1]) for row in rows],
    }
    return pl.DataFrame(data, schema_overrides=LABEL_LOG)


def of_windows(windows: list[Any]) -> list[tuple[float, list[tuple[float, int | None]]]]:
    """(start in seconds, [(request's second, label)])."""
    zero = int(at(0).replace(tzinfo=datetime.UTC).timestamp()) * SECOND
    return [
        (
            (window.start - zero) / SECOND,
            [((time - zero) / SECOND, label) for time, label in window.rows.select("requested", "label").iter_rows()],
        )
        for window in windows
    ]


def read(config: OnlineConfig, log: pl.DataFrame, answers: pl.DataFrame) -> tuple[DelayedJoin, list[Any]]:
    join = DelayedJoin(config)
    return join, [*join.update(log, answers), *join.finish()]


def test_a_label_within_the_delay_counts_and_the_others_are_told_apart():
    log = predictions(("a", 0), ("b", 1), ("c", 2), ("d", 4), ("z", 60))
    answers = labels(("c", 1.5, 0), ("d", 2.5, 1), ("x", 5, 1), ("a", 8, 1), ("b", 9.5, 1), ("z", 61, 1))
    join, windows = read(CONFIG, log, answers)
    assert of_windows(windows) == [(0, [(0, 1), (1, None), (2, 0), (4, None)]), (60, [(60, 1)])]
    expected = {"read": 6, "matched": 3, "overdue": 1, "early": 1, "orphan": 1}
    assert {name: count for name, count in join.labels.items() if count} == expected


def test_of_several_labels_the_first_counts_and_contradictions_are_counted():
    join, windows = read(CONFIG, predictions(("a", 0)), labels(("a", 2, 0), ("a", 3, 1), ("a", 4, 0)))
    assert of_windows(windows) == [(0, [(0, 0)])]
    assert (join.labels["matched"], join.labels["duplicate"], join.labels["contradicting"]) == (1, 2, 1)


def test_a_label_that_is_read_before_its_prediction_waits_for_it():
    join = DelayedJoin(CONFIG)
    assert join.update(labels=labels(("a", 3, 1))) == []
    assert join.waiting == {"predictions": 0, "labels": 1}
    join.update(predictions(("a", 1)))
    assert join.waiting == {"predictions": 1, "labels": 0}
    assert of_windows(join.finish()) == [(0, [(1, 1)])]


def test_a_window_is_final_when_both_logs_are_past_it():
    join = DelayedJoin(CONFIG)
    join.update(predictions(("a", 1), ("b", 12)), labels(("a", 2, 1)))
    assert join.update(predictions(("c", 40))) == []  # labels may still come
    assert join.update(labels=labels(("c", 20.9, 1))) == []  # 10 + 8 + 3: not quite
    assert of_windows(join.update(labels=labels(("c", 21, 1)))) == [(0, [(1, 1)])]
    assert join.update(labels=labels(("q", 20, 1))) == []
    assert of_windows(join.update(labels=labels(("q", 31, 1)))) == [(10, [(12, None)])]
    assert join.waiting["predictions"] == 1


def test_late_rows_are_left_out_and_counted():
    join, windows = read(
        CONFIG, predictions(("a", 10), ("b", 7), ("c", 6.9)), labels(("a", 12, 1), ("b", 9, 1), ("b", 8.9, 0))
    )
    assert of_windows(windows) == [(0, [(7, 1)]), (10, [(10, 1)])]
    assert join.predictions["late"] == 1
    assert join.labels["late"] == 1


def test_duplicate_requests_are_counted_and_an_id_may_come_again_later():
    log = predictions(("a", 0), ("a", 0.5), ("a", 0.5, "shadow"), ("a", 1, "shadow"), ("a", 30))
    join, windows = read(CONFIG, log, labels(("a", 2, 1), ("a", 31, 0)))
    # the shadow's prediction belongs to the request of second 0 and gets its label
    assert of_windows(windows) == [(0, [(0, 1), (0, 1)]), (30, [(30, 0)])]
    assert (join.predictions["accepted"], join.predictions["duplicate"]) == (3, 2)


def test_a_clock_that_jumps_does_not_close_windows():
    log = predictions(("a", 0), ("wild", 5_000), ("b", 1), ("c", 2))
    join, windows = read(CONFIG, log, labels(("b", 3, 1)))
    assert of_windows(windows) == [(0, [(0, None), (1, 1), (2, None)])]
    assert join.predictions["jumped"] == 1


def test_after_an_outage_the_log_goes_on():
    log = predictions(("a", 0), *((f"b{i}", 5_000 + i) for i in range(5)))
    join, windows = read(CONFIG, log, labels(("a", 1, 1)))
    # two were not believed, the third was
    assert of_windows(windows) == [(0, [(0, 1)]), (5_000, [(5_002, None), (5_003, None), (5_004, None)])]
    assert join.predictions["jumped"] == 2


def test_rows_that_cannot_be_used_are_counted_by_reason():
    log = predictions(("a", 0), (None, 0), ("", 0), ("b", None), ("c", 0, "boss"), ("d", 0), ("e", 0), ("f", 0))
    log = log.with_columns(probability=pl.Series([0.5, 0.5, 0.5, 0.5, 0.5, float("nan"), 1.5, None]))
    join, _ = read(CONFIG, log, labels(("a", 0, 1), (None, 0, 1), ("b", None, 1), ("c", 0, 2), ("d", 0, None)))
    assert join.predictions == {
        "read": 8,
        "accepted": 1,
        "late": 0,
        "jumped": 0,
        "duplicate": 0,
        "without request id": 2,
        "without time": 1,
        "role none of champion, challenger, shadow": 1,
        "probability not between 0 and 1": 3,
    }
    assert join.labels["matched"] == 1
    assert join.labels["label neither 0 nor 1"] == 2


def test_times_with_a_zone_and_numbers_as_ids():
    log = predictions(("7", 0)).with_columns(
        pl.col("request_id").cast(pl.Int64),
        pl.col("time").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo"),
    )
    _, windows = read(CONFIG, log, labels(("7", 1, 1)))
    assert of_windows(windows) == [(0, [(0, 1)])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: log.drop("role"), r"role: column is missing \(the spec's prediction log\)"),
        (lambda log: log.with_columns(time=pl.lit(3)), "time: the time of the prediction log is no time"),
        (lambda log: log.with_columns(request_id=pl.lit(3.5)), "request_id: .* neither text nor an integer"),
    ],
)
def test_a_log_without_what_it_needs_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        DelayedJoin(CONFIG).update(change(predictions(("a", 0))))


@pytest.mark.parametrize("key", ["window", "max_delay"])
def test_lengths_that_are_none(key):
    with pytest.raises(ConfigError, match=f"{key}: wrong value"):
        validate(OnlineConfig, {key: "1 hour" if key == "max_delay" else "0s"})


def slow_join(config: OnlineConfig, log: list[Any], answers: list[Any]) -> tuple[list[Any], Counter, Counter]:
    """The rules of the join, row by row, with all rows in memory."""
    delay, lead, lateness, jump, enough = 8, 1, 3, 60, config.believed_after
    counts: dict[str, Counter] = {"predictions": Counter(), "labels": Counter()}

    def on_time(rows: list[Any], name: str):
        newest, run = None, []
        for place, row in enumerate(rows):
            watermark = -1e18 if newest is None else newest - lateness
            counts[name]["read"] += 1
            if newest is not None and row[1] > newest + jump:
                run.append(row[1])
                if len(run) < enough:
                    counts[name]["jumped"] += 1
                    continue
                newest = min(run)
                run = []
                if row[1] > newest + jump:
                    counts[name]["jumped"] += 1
                    continue
            run = []
            newest = row[1] if newest is None else max(newest, row[1])
            if row[1] < watermark:
                counts[name]["late"] += 1
                continue
            yield place, row, watermark

    requests: list[dict[str, Any]] = []
    for _, (key, time, role), watermark in on_time(log, "predictions"):
        mine = [r for r in requests if r["key"] == key and time <= r["time"] + delay + lead]
        if not mine:
            mine = [{"key": key, "time": time, "roles": [], "label": None, "labelled": False}]
            requests += mine
        if mine[0]["time"] < watermark:
            counts["predictions"]["late"] += 1
        elif role in mine[0]["roles"]:
            counts["predictions"]["duplicate"] += 1
        else:
            counts["predictions"]["accepted"] += 1
            mine[0]["roles"].append(role)
    for _, (key, time, label), _ in on_time(answers, "labels"):
        mine = [r for r in requests if r["key"] == key]
        match = [r for r in mine if -lead <= time - r["time"] <= delay]
        if match and match[0]["labelled"]:
            counts["labels"]["duplicate"] += 1
            counts["labels"]["contradicting"] += match[0]["label"] != label
        elif match:
            counts["labels"]["matched"] += 1
            match[0].update(label=label, labelled=True)
        elif any(delay < time - r["time"] <= 2 * delay for r in mine):
            counts["labels"]["overdue"] += 1
        elif any(-delay - lead <= time - r["time"] < -lead for r in mine):
            counts["labels"]["early"] += 1
        else:
            counts["labels"]["orphan"] += 1
    windows: dict[int, list[Any]] = {}
    for request in requests:
        for _ in request["roles"]:
            windows.setdefault(request["time"] // 10 * 10, []).append((request["time"], request["label"]))
    return sorted((start, sorted(rows, key=str)) for start, rows in windows.items()), *counts.values()


def rows_of(last: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Rows of few requests whose times mostly go up, with steps back and jumps."""
    step = st.one_of(st.integers(0, 4), st.integers(-6, 12), st.sampled_from([70, 200, -100]))
    row = st.tuples(st.sampled_from("abcde"), step, last)

    def placed(rows: list[Any]) -> list[Any]:
        time, out = 0, []
        for key, by, value in rows:
            # a jump is of one row, now and then of all to come
            out.append((key, time + by, value))
            time += by if -10 < by < 60 or by == 200 else 0
        return out

    return st.lists(row, max_size=30).map(placed)


@settings(max_examples=60)
@given(
    rows_of(st.sampled_from(["champion", "shadow"])),
    rows_of(st.integers(0, 1)),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.booleans()), max_size=12),
)
def test_equals_the_slow_join_in_any_pieces(log, answers, pieces):
    expected, seen, heard = slow_join(CONFIG, log, answers)
    join, windows, p, a = DelayedJoin(CONFIG), [], 0, 0
    for by_p, by_a, restart in [*pieces, (len(log), len(answers), False)]:
        part, other = log[p : p + by_p], answers[a : a + by_a]
        p, a = p + by_p, a + by_a
        windows += join.update(predictions(*part), labels(*other))
        if restart:
            values, tables = join.state()
            join = DelayedJoin(CONFIG)
            join.restore(values, tables)
    windows += join.finish()
    assert [(start, sorted(rows, key=str)) for start, rows in of_windows(windows)] == expected
    assert +Counter(join.predictions) == +seen
    assert +Counter(join.labels) == +heard
    # nothing is lost
    assert seen["read"] == sum(seen[name] for name in ("accepted", "late", "jumped", "duplicate"))
    assert join.waiting == {"predictions": 0, "labels": 0}


def test_memory_holds_only_what_is_not_final():
    join = DelayedJoin(CONFIG)
    for start in range(0, 3_000, 30):
        ids = [(f"{start + i}", start + i) for i in range(30)]
        join.update(predictions(*ids), labels(*((name, second + 1, 1) for name, second in ids)))
    _, tables = join.state()
    assert join.labels["matched"] == 3_000
    assert {name: table.height for name, table in tables.items()} == {"waiting": 20, "requests": 29, "labels": 0}


def test_nothing_comes_after_the_end():
    join = DelayedJoin(CONFIG)
    join.finish()
    with pytest.raises(ValueError, match="over"):
        join.update(predictions(("a", 0)))
