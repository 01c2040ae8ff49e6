"""Side tables: the last row before the event and never a later one; the log's rows and order stay."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.errors import ConfigError, DataError
from features.reading.joins import JoinConfig, SideTables
from features.validation import validate

EVENTS = pl.DataFrame({"user": ["a", "b", "a", None, "z", "a"], "item": [1, 2, 1, 1, 1, 3], "t": [5, 5, 1, 5, 5, 9]})
USERS = pl.DataFrame({"user": ["a", "a", "b", None], "at": [2, 6, 6, 0], "age": [20, 21, 30, 99]})


def config(source: Path, **more: Any) -> JoinConfig:
    return validate(JoinConfig, {"source": str(source), "on": "user", **more})


def write(frame: pl.DataFrame, path: Path) -> Path:
    frame.write_parquet(path) if path.suffix == ".parquet" else frame.write_csv(path)
    return path


def joined(events: pl.DataFrame, *joins: JoinConfig, **more: Any) -> pl.DataFrame:
    return SideTables(joins, time="t", **more).join_to(events.lazy()).collect(engine="streaming")


def test_the_last_row_at_or_before_the_event(tmp_path):
    join = config(write(USERS, tmp_path / "users.parquet"), time="at")
    found = joined(EVENTS, join)
    assert found.drop("age").equals(EVENTS)
    assert found["age"].to_list() == [20, None, None, None, None, 21]
    assert joined(EVENTS.with_columns(t=6), join)["age"].to_list() == [21, 30, 21, None, None, 21]


def test_max_age_columns_and_prefix(tmp_path):
    users = USERS.with_columns(plan=pl.lit("free"))
    path = write(users, tmp_path / "users.parquet")
    join = config(path, time="at", max_age="3s", columns=["age", "at"], prefix="user_", time_unit="s")
    found = joined(EVENTS, join, time_unit="s")
    assert found.columns == ["user", "item", "t", "user_age", "user_at"]
    assert found["user_age"].to_list() == [20, None, None, None, None, 21]
    assert joined(EVENTS.with_columns(t=10), join, time_unit="s")["user_at"].null_count() == 6


def test_a_plain_join_keeps_rows_and_order(tmp_path):
    items = write(pl.DataFrame({"id": [3, 1], "brand": ["x", None]}), tmp_path / "items.csv")
    brands = write(pl.DataFrame({"brand": ["x"], "country": ["NO"]}), tmp_path / "brands.parquet")
    chain = config(items, on={"item": "id"}), config(brands, on="brand")
    found = joined(EVENTS, *chain)
    assert found.select(EVENTS.columns).equals(EVENTS)
    assert found["country"].to_list() == [None] * 5 + ["NO"]
    sides = SideTables(chain)
    assert sides.count_unmatched(sides.join_to(EVENTS.lazy())) == {str(items): 1, str(brands): 5}


def test_unmatched_are_those_without_a_row_not_those_with_nulls(tmp_path):
    path = write(USERS.with_columns(age=None), tmp_path / "users.parquet")
    sides = SideTables([config(path, time="at")], time="t")
    assert sides.count_unmatched(sides.join_to(EVENTS.lazy())) == {str(path): 4}


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_keys_of_text_and_whole_numbers_meet(tmp_path, kind):
    events = EVENTS.with_columns(pl.col("item").cast(pl.String))
    path = write(pl.DataFrame({"item": [1, 2], "brand": ["x", "y"]}), tmp_path / f"items.{kind}")
    assert joined(events, config(path, on=["item"]))["brand"].to_list() == ["x", "y", "x", "x", "x", None]


def brute_force(events: pl.DataFrame, side: pl.DataFrame, most: int | None) -> list[int | None]:
    found = []
    for user, time in events.select("user", "t").iter_rows():
        past = [
            (at, value)
            for key, at, value in side.iter_rows()
            if time is not None and key == user is not None and at <= time and (most is None or time - at <= most)
        ]
        found.append(max(past)[1] if past else None)
    return found


keys = st.sampled_from(["a", "b", "c"])
times = st.integers(-5, 20)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    events=st.lists(st.tuples(st.none() | keys, st.none() | times), min_size=1, max_size=30),
    side=st.dictionaries(st.tuples(keys, times), st.integers(0, 9), max_size=20),
    future=st.lists(keys, max_size=3, unique=True),
    order=st.randoms(use_true_random=False),
    most=st.none() | st.integers(1, 9),
)
def test_never_the_future_whatever_the_order_of_the_side_table(tmp_path, events, side, future, order, most):
    log = pl.DataFrame(events, schema={"user": pl.String, "t": pl.Int64}, orient="row")
    rows = [(*key, value) for key, value in side.items()]
    schema = {"user": pl.String, "at": pl.Int64, "value": pl.Int64}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    join = config(
        write(table, tmp_path / "side.parquet"), time="at", time_unit="s", max_age=None if most is None else f"{most}s"
    )
    found = joined(log, join, time_unit="s")
    assert found.select("user", "t").equals(log)
    assert found["value"].to_list() == brute_force(log, table, most)
    order.shuffle(rows)
    later = [(key, 21 + place, 77) for place, key in enumerate(future)]
    write(pl.DataFrame(later + rows, schema=schema, orient="row"), tmp_path / "side.parquet")
    assert joined(log, join, time_unit="s").equals(found)


def test_many_batches_of_a_log_keep_their_order(tmp_path):
    rows = 300_000
    log = pl.DataFrame({"user": pl.int_range(rows, eager=True) * 7919 % 1000, "t": pl.int_range(rows, eager=True)})
    side = pl.DataFrame({"user": range(1000), "at": range(1000), "since": range(1000)})
    path, source = write(side, tmp_path / "side.parquet"), write(log, tmp_path / "log.parquet")
    frame = SideTables([config(path, time="at")], time="t").join_to(pl.scan_parquet(source))
    found = frame.collect(engine="streaming")
    assert found.drop("since").equals(log)
    wanted = log.select(pl.when(pl.col("user") <= pl.col("t")).then("user").alias("since"))
    assert found.select("since").equals(wanted)
    assert frame.collect(engine="in-memory").equals(found)


@pytest.mark.parametrize(
    ("event", "side"),
    [
        (pl.Datetime("us"), pl.Datetime("ms")),
        (pl.Datetime("ns"), pl.Datetime("us", "UTC")),
        (pl.Datetime("ns"), pl.Datetime("ns")),
        (pl.String, pl.Datetime("us")),
        (pl.Datetime("us"), pl.String),
        (pl.Datetime("us"), pl.Date),
    ],
)
def test_times_of_every_type_compare(tmp_path, event, side):
    def column(dtype: Any, days: list[int]) -> pl.Series:
        moments = [datetime.datetime(2024, 1, day) for day in days]
        if dtype == pl.String:
            return pl.Series([f"{moment:%Y-%m-%d %H:%M:%S}" for moment in moments])
        zone = getattr(dtype, "time_zone", None)
        series = pl.Series(moments, dtype=pl.Datetime("us"))
        return series.dt.replace_time_zone(zone).cast(dtype)

    log = pl.DataFrame({"user": ["a"] * 3, "t": column(event, [1, 2, 3])})
    table = pl.DataFrame({"user": ["a"] * 2, "at": column(side, [2, 3]), "value": [2, 3]})
    join = config(write(table, tmp_path / "side.parquet"), time="at")
    assert joined(log, join)["value"].to_list() == [None, 2, 3]


@pytest.mark.parametrize(("event_unit", "later"), [("us", 1), ("ns", 1), ("ns", 999)])
def test_a_nanosecond_later_is_the_future(tmp_path, event_unit, later):
    table = pl.DataFrame({"user": ["a"], "at": [5000 + later], "value": [1]})
    path = write(table.with_columns(pl.col("at").cast(pl.Datetime("ns"))), tmp_path / "side.parquet")
    join = config(path, time="at")
    for steps, seen in ((5000, None), (6000, 1), *([(5000 + later, 1)] if event_unit == "ns" else [])):
        time = pl.Series([steps], dtype=pl.Datetime("ns")).cast(pl.Datetime(event_unit))
        assert joined(pl.DataFrame({"user": ["a"], "t": time}), join)["value"].to_list() == [seen]


def test_empty_sides_and_events(tmp_path):
    join = config(write(USERS.clear(), tmp_path / "users.parquet"), time="at")
    assert joined(EVENTS, join)["age"].null_count() == EVENTS.height
    assert joined(EVENTS.clear(), join).schema["age"] == pl.Int64
    write(USERS, tmp_path / "users.parquet")
    assert joined(EVENTS.clear(), join).height == 0


def test_two_rows_of_one_key(tmp_path):
    path = write(USERS, tmp_path / "users.parquet")
    with pytest.raises(DataError, match=r"on \(user\): 2 rows .*users\.parquet share their key.*with 'time'"):
        joined(EVENTS, config(path))
    path = write(pl.concat([USERS, USERS.tail(2)]), tmp_path / "users.parquet")
    with pytest.raises(DataError, match="share their key and time"):
        joined(EVENTS, config(path, time="at"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"columns": ["agee"]}, r"agee: column is missing \(the spec's side table .*did you mean 'age'"),
        ({"on": {"user": "usr"}}, "usr: column is missing.*did you mean 'user'"),
        ({"on": {"usr": "user"}}, "usr: column is missing.*events' key"),
        ({"on": {"item": "age"}, "prefix": "", "columns": ["user"], "time": None}, "user: the side table.*prefix"),
        ({"event_time": "tt"}, "tt: column is missing"),
        ({"on": {"user": "wealth"}, "columns": ["age"]}, "user: .*cannot be compared.*Float64"),
        ({"time": "gap"}, "gap: is missing in 1 of 3 rows"),
        ({"time": "word"}, "users.parquet: word: text that is no time"),
    ],
)
def test_what_cannot_be_joined(tmp_path, more, words):
    users = USERS.head(3).with_columns(wealth=pl.lit(1.5), gap=pl.Series([1, None, 2]), word=pl.lit("soon"))
    path = write(users, tmp_path / "users.parquet")
    with pytest.raises(DataError, match=words):
        joined(EVENTS, config(path, **{"time": "at", **more}))


@pytest.mark.parametrize("key", [{"max_age": "3d"}, {"event_time": "t"}, {"time_unit": "s"}])
def test_what_belongs_to_an_as_of_join(key):
    with pytest.raises(ConfigError, match=rf"{next(iter(key))}: belongs to an as-of join"):
        config(Path("users.csv"), **key)


def test_an_as_of_join_needs_the_time_of_the_event(tmp_path):
    join = config(write(USERS, tmp_path / "users.parquet"), time="at")
    with pytest.raises(ConfigError, match="needs the time of the event"):
        SideTables([join]).join_to(EVENTS.lazy())
    with pytest.raises(ConfigError, match="max_age"):
        config(Path("u.csv"), time="at", max_age="3 days")
    with pytest.raises(ConfigError, match="no key"):
        config(Path("u.csv"), on=[])


def test_an_event_time_that_is_none(tmp_path):
    join = config(write(USERS, tmp_path / "users.parquet"), time="at")
    frame = SideTables([join], time="t").join_to(EVENTS.with_columns(t=pl.lit("soon")).lazy())
    with pytest.raises(pl.exceptions.PolarsError, match="'t': text that is no time"):
        frame.collect()


def test_one_table_serves_logs_of_several_types(tmp_path):
    sides = SideTables([config(write(USERS, tmp_path / "users.parquet"), time="at")], time="t")
    whole = sides.join_to(EVENTS.lazy()).collect()
    texts = EVENTS.with_columns(pl.col("t").cast(pl.String))
    again = sides.join_to(texts.lazy()).collect()
    assert again.drop("t").equals(whole.drop("t"))
    assert sides.join_to(EVENTS.head(2).lazy()).collect().equals(whole.head(2))
