"""Side tables joined to the event log: by key, or as-of, which is by key and to the last row before the event.

The side tables lie in memory; the log streams. Rows and their order stay; no row of the future is ever seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from features.errors import ConfigError, DataError, list_names
from features.frames import first_line, require_column, schema_of
from features.ops.text import is_text, whole_expr
from features.ops.time import microseconds_expr
from features.reading.inputs import Options
from features.reading.sources import scan
from features.spec import TimeUnit
from features.validation import Strict

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_CODE, _TIME, _SIDE = "__join_code__", "__join_time__", "__join_side__"


class JoinConfig(Strict):
    """One side table."""

    source: str
    """A path, glob, folder, Delta table or URL, as `data.source`."""
    on: str | list[str] | dict[str, str]
    """Key columns: one name, several, or `event column: side column`."""
    time: str | None = None
    """The side table's column that says since when a row holds; without it there is one row a key."""
    time_unit: TimeUnit | None = None
    """What one step of an integer `time` is; the spec's `time_unit` when left out."""
    event_time: str | None = None
    """The events' column to compare with; the spec's `time` when left out."""
    columns: list[str] | None = None
    """Columns to take; all but keys and time when left out."""
    prefix: str = ""
    """Put before the names of the columns taken."""
    max_age: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}[smhdw]$")] | None = None
    """How old a row may be at the time of the event, such as 90s, 15m, 12h, 30d or 4w; any age when left out."""

    @model_validator(mode="before")
    @classmethod
    def _on_is_no_truth(cls, data: Any) -> Any:
        # YAML 1.1 reads a bare `on` as true.
        return {"on" if key is True else key: value for key, value in data.items()} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _check(self) -> JoinConfig:
        if not self.keys:
            raise ConfigError("no key to join by", field=f"data.join ({self.source}).on", mend="name a column")
        given = [key for key in ("time_unit", "event_time", "max_age") if getattr(self, key) is not None]
        if self.time is None and given:
            raise ConfigError(
                "belongs to an as-of join, which needs the side table's time",
                field=f"data.join ({self.source}).{given[0]}",
                mend="name the column with 'time'",
            )
        return self

    @property
    def keys(self) -> dict[str, str]:
        """The events' key columns with those of the side table."""
        if isinstance(self.on, dict):
            return self.on
        return {key: key for key in ([self.on] if isinstance(self.on, str) else self.on)}

    def time_of_event(self, spec_time: str | None) -> str:
        """Returns the events' time column.

        Raises:
            ConfigError: Neither the join nor the spec names one.
        """
        name = self.event_time or spec_time
        if name is None:
            raise ConfigError(
                "an as-of join needs the time of the event",
                field=f"data.join ({self.source}).event_time",
                mend="name the events' column here or as the spec's time",
            )
        return name


class SideTables:
    """Side tables in memory, read once for any number of event logs.

    Args:
        joins: The side tables, in the order in which they are joined.
        time: The events' time column, for joins that name none.
        time_unit: What one step of an integer time is.
        storage_options: Settings of the object store, for side tables with a URL.

    Raises:
        DataError: A column is missing, or a table cannot be read.
    """

    def __init__(
        self,
        joins: Sequence[JoinConfig],
        *,
        time: str | None = None,
        time_unit: TimeUnit = "us",
        storage_options: Options | None = None,
    ) -> None:
        self._time, self._unit = time, time_unit
        self._sides = [_Side.read(join, time_unit, storage_options) for join in joins]

    def join_to(self, events: pl.LazyFrame) -> pl.LazyFrame:
        """Adds the columns of the side tables to the events, one table after the other.

        Without `time` the one side row of the key. With it the last row of the key whose time is at or before the
        event's; two rows of one key and time are an error, so that the order of the side table never counts. An event
        without such a row, without a key or without a time has nulls. Nothing of the events is read yet.

        Args:
            events: One row an event.

        Raises:
            ConfigError: An as-of join has no time of the event.
            DataError: A column is missing, is there already or has a wrong type, or a key is there twice.
        """
        for side in self._sides:
            events = side.join_to(events, self._time, self._unit)
        return events

    def count_unmatched(self, joined: pl.LazyFrame) -> dict[str, int]:
        """Counts the events for which each side table has no row, by its source.

        One streaming pass over keys and times.

        Args:
            joined: What `join_to` returned, or rows of it.

        Raises:
            DataError: The events cannot be read.
        """
        marks = [f"__join_mark_{number}__" for number in range(len(self._sides))]
        for side, mark in zip(self._sides, marks, strict=True):
            joined = side.marked(mark).join_to(joined, self._time, self._unit)
        try:
            counts = joined.select(pl.col(mark).null_count() for mark in marks).collect(engine="streaming")
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError("data cannot be read", found=first_line(error), mend="check the input files") from error
        unmatched: dict[str, int] = {}
        for side, mark in zip(self._sides, marks, strict=True):
            unmatched[side.join.source] = unmatched.get(side.join.source, 0) + int(counts[mark][0])
        return unmatched


@dataclasses.dataclass
class _Side:
    """A side table in memory, its rows in the order of keys and time.

    Attributes:
        join: What it was read for.
        keys: The columns of the key, R rows.
        values: The columns to take under their new names, R rows.
        time: The column of the time, R rows; None for a join by key alone.
        unit: What one step of an integer time is.
        made: What is looked up in, by the types of the events' columns: made once for all logs of these types.
    """

    join: JoinConfig
    keys: pl.DataFrame
    values: pl.DataFrame
    time: pl.Series | None
    unit: TimeUnit
    made: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @staticmethod
    def read(join: JoinConfig, unit: TimeUnit, storage_options: Options | None) -> _Side:
        """Reads the columns that the join needs; a row without a key is left out, as it can never match."""
        frame = scan(join.source, storage_options=storage_options)
        schema = schema_of(frame)
        keys, unit = list(join.keys.values()), join.time_unit or unit
        for column in [*keys, *([join.time] if join.time else []), *(join.columns or [])]:
            require_column(column, schema, role=f"side table {join.source}")
        taken = join.columns
        if taken is None:
            taken = [column for column in schema if column not in (*keys, join.time)]
        needed = list(dict.fromkeys([*keys, *([join.time] if join.time else []), *taken]))
        try:
            rows = frame.select(needed).drop_nulls(keys).collect(engine="streaming")
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(
                "side table cannot be read", field=join.source, found=first_line(error), mend="check the file"
            ) from error
        if join.time and (missing := rows[join.time].null_count()):
            raise DataError(
                f"is missing in {missing} of {rows.height} rows of the side table {join.source}",
                field=join.time,
                expected="since when the row holds",
                mend="give every row a time, or drop these rows",
            )
        values = rows.select(pl.col(name).alias(join.prefix + name) for name in taken)
        return _Side(join, rows.select(keys), values, rows[join.time] if join.time else None, unit)

    def marked(self, mark: str) -> _Side:
        """The table with a column of truths in place of its own."""
        values = pl.DataFrame({mark: pl.repeat(True, self.keys.height, eager=True)})
        return dataclasses.replace(self, values=values, made={})

    def join_to(self, events: pl.LazyFrame, spec_time: str | None, event_unit: TimeUnit) -> pl.LazyFrame:
        """Adds the columns to the events; nothing of them is read yet."""
        schema = schema_of(events)
        for name in self.values.columns:
            if name in schema:
                raise DataError(
                    f"the side table {self.join.source} and the events both have this column",
                    field=name,
                    mend=f"give the join a prefix, such as prefix: side_, or leave {name} out of its columns",
                )
        left, right = self._common_keys(schema)
        names = [f"__join_key_{number}__" for number in range(len(left))]
        types: tuple[Any, ...] = tuple(schema[key] for key in self.join.keys)
        if self.time is None:
            if types not in self.made:
                keys = self._keys(right, names)
                _check_once(keys, self.join)
                self.made[types] = keys.hstack(self.values)
            return _left_join(events, left, self.made[types], names)
        column = self.join.time_of_event(spec_time)
        require_column(column, schema, role="time of the event")
        types = (*types, column, schema[column])
        if types not in self.made:
            event_time, side_time, second = self._times(column, schema[column], event_unit)
            self.made[types] = event_time, *self._history(self._keys(right, names), side_time, second)
        event_time, groups, values, history = self.made[types]

        def look_up(asked: pl.Series) -> pl.Series:
            rows = history.last(asked.struct.field(_CODE), asked.struct.field(_TIME))
            return values.select(pl.all().gather(rows)).to_struct(_SIDE)

        asked = pl.struct(pl.col(_CODE).cast(pl.Int64), event_time.alias(_TIME))
        found = asked.map_batches(look_up, return_dtype=pl.Struct(values.schema), is_elementwise=True)
        coded = _left_join(events, left, groups, names)
        return coded.with_columns(found.alias(_SIDE)).drop(_CODE).unnest(_SIDE)

    def _keys(self, right: list[pl.Expr], names: list[str]) -> pl.DataFrame:
        return self.keys.select(key.alias(name) for key, name in zip(right, names, strict=True))

    def _history(
        self, keys: pl.DataFrame, side_time: pl.Series, second: int
    ) -> tuple[pl.DataFrame, pl.DataFrame, _History]:
        """The keys with their numbers, and the values and times of each in their order."""
        names = keys.columns
        order = keys.with_columns(side_time.alias(_TIME)).with_row_index("row").sort([*names, _TIME])
        _check_once(order.select(*names, _TIME), self.join)
        groups = order.group_by(names, maintain_order=True).len().with_row_index(_CODE)
        codes = np.repeat(np.arange(groups.height), groups["len"].to_numpy())
        most = None
        if self.join.max_age:
            most = int(self.join.max_age[:-1]) * _SECONDS[self.join.max_age[-1]] * second
        return groups.drop("len"), self.values[order["row"]], _History(codes, order[_TIME], most)

    def _common_keys(self, schema: pl.Schema) -> tuple[list[pl.Expr], list[pl.Expr]]:
        """The keys of events and side table, cast to one type where they differ: whole numbers and text to text."""
        left, right = [], []
        for event_key, side_key in self.join.keys.items():
            require_column(event_key, schema, role=f"events' key of {self.join.source}")
            types = (schema[event_key], self.keys.schema[side_key])
            common: Any = types[0]
            if types[0] != types[1] or is_text(types[0]):
                if not all(is_text(kind) or kind.is_integer() for kind in types):
                    raise DataError(
                        "the two columns of a key have types that cannot be compared",
                        field=event_key,
                        found=f"{types[0]} in the events, {types[1]} in {side_key!r} of {self.join.source}",
                        expected="one type, or whole numbers and text",
                        mend="write the column of one of the two anew",
                    )
                common = pl.String
            elif types[0].is_float() or types[0].is_nested():
                raise DataError(
                    "no key to join by", field=event_key, found=types[0], mend="use a column of text or whole numbers"
                )
            left.append(pl.col(event_key).cast(common))
            right.append(pl.col(side_key).cast(common))
        return left, right

    def _times(self, column: str, dtype: pl.DataType, unit: TimeUnit) -> tuple[pl.Expr, pl.Series, int]:
        """The times of events and side rows as Int64 in one unit, and how many of it make a second.

        Both in nanoseconds are compared as they are. Otherwise in microseconds: those of events are rounded down,
        those of the side table up, so that no side row counts as older than it is.
        """
        assert self.time is not None
        name, frame = str(self.join.time), self.time.to_frame()
        texts = is_text(dtype) or is_text(self.time.dtype)
        if not texts and _in_nanoseconds(dtype, unit) and _in_nanoseconds(self.time.dtype, self.unit):
            return _steps(column, dtype), frame.select(_steps(name, self.time.dtype)).to_series(), 1_000_000_000
        event_time, problems = microseconds_expr(column, dtype, unit)
        for problem in problems:
            event_time = problem.guard(event_time)
        side_time, problems = microseconds_expr(name, self.time.dtype, self.unit)
        for problem in problems:
            bad = frame.filter(problem.bad)
            if bad.height:
                error = problem.error(bad.item(0, 0), bad.height)
                raise DataError(
                    error.what,
                    field=f"{self.join.source}: {name}",
                    found=error.found,
                    expected=error.expected,
                    mend=error.mend,
                )
        if _in_nanoseconds(self.time.dtype, self.unit):
            side_time = side_time + (_steps(name, self.time.dtype) % 1000 != 0).fill_null(False).cast(pl.Int64)
        return event_time, frame.select(side_time).to_series(), 1_000_000


class _History:
    """Finds the last row of a key at or before a time.

    Args:
        codes: [R] int64, the number of a row's key, in increasing order.
        times: Int64 [R], increasing within a key.
        most: The greatest difference allowed, or None.
    """

    def __init__(self, codes: np.ndarray, times: pl.Series, most: int | None) -> None:
        self.codes, self.times, self.most = codes, times.to_numpy(), most
        self.instants = times.unique().sort().to_numpy()
        self.places = self._place(codes, times.rank("dense").to_numpy().astype(np.int64))

    def last(self, codes: pl.Series, times: pl.Series) -> pl.Series:
        """Returns the row of each event, null if there is none. Both are Int64 [B] and may hold nulls."""
        known = (codes.is_not_null() & times.is_not_null()).to_numpy()
        code, time = codes.fill_null(-1).to_numpy(), times.fill_null(0).to_numpy()
        if not len(self.codes):
            return pl.repeat(None, len(codes), dtype=pl.Int64, eager=True)
        row = np.searchsorted(self.places, self._place(code, self._instants_until(time)), side="right") - 1
        near = np.maximum(row, 0)
        found = known & (row >= 0) & (self.codes[near] == code)
        if self.most is not None:
            found &= time - self.times[near] <= self.most
        return pl.select(pl.when(pl.Series(found)).then(pl.Series(near))).to_series()

    def _instants_until(self, times: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.instants, times, side="right")

    def _place(self, codes: np.ndarray, instants: np.ndarray) -> np.ndarray:
        """Key and time as one number, in their order: a sorted search for both at once."""
        return codes * (len(self.instants) + 1) + instants


def _left_join(events: pl.LazyFrame, left: list[pl.Expr], side: pl.DataFrame, names: list[str]) -> pl.LazyFrame:
    keyed = events.with_columns(key.alias(name) for key, name in zip(left, names, strict=True))
    # The side table is the one that is hashed: the log only passes by.
    return keyed.join(side.lazy(), on=names, how="left", maintain_order="left", build_side="force_right").drop(names)


def _check_once(keys: pl.DataFrame, join: JoinConfig) -> None:
    """Refuses two rows of one key, or of one key and time."""
    twice = keys.filter(keys.is_duplicated())
    if not twice.height:
        return
    sample = ", ".join(str(value) for value in twice.row(0))
    raise DataError(
        f"{twice.height} rows of the side table {join.source} share "
        + ("their key and time" if join.time else "their key with another"),
        field=f"data.join.on ({list_names(join.keys.values())})",
        found=sample,
        expected="one row of each key and time" if join.time else "one row of each key",
        mend="keep one of them"
        if join.time
        else "name the side table's time column with 'time' for an as-of join, or keep one row of each key",
    )


def _in_nanoseconds(dtype: pl.DataType, unit: TimeUnit) -> bool:
    if isinstance(dtype, pl.Datetime):
        return dtype.time_unit == "ns"
    return unit == "ns" and (dtype.is_integer() or is_text(dtype))


def _steps(column: str, dtype: pl.DataType) -> pl.Expr:
    value = pl.col(column)
    return whole_expr(value) if is_text(dtype) else value.to_physical().cast(pl.Int64)
