"""sequence: the latest of a list of past events as a bag of ids, most recent first, and how long ago each was."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl

from features.fingerprint import NULL_FINGERPRINT
from features.ops.base import Encoder, Operator, Problem, Schema, shown, wrong_dtype
from features.ops.cast import hash_encoder, hash_expr
from features.ops.gap import GapBuckets
from features.ops.lists import list_expr
from features.ops.time import microseconds_encoder, microseconds_expr
from features.spec import SequenceFeature, TimeUnit

_NULL_LIST = [NULL_FINGERPRINT]
_MEND = "give both columns one element an event"


class Sequence(Operator):
    """Cuts to the `length` most recent events, puts the newest first and hashes each.

    With times, a second bag holds the bucket of the time from each event to that of the row. An empty list has no
    id at all; a missing list has the one id of null.

    Args:
        feature: Its description.
        event_time: Column of the row's time; read only with `times`.
        event_unit: What one step of that column is, if it holds integers.
    """

    kind = "bag"

    def __init__(self, feature: SequenceFeature, event_time: str | None, event_unit: TimeUnit) -> None:
        self.name, self.column, self.dtype, self.length = feature.name, feature.column, feature.dtype, feature.length
        self.newest_first = feature.newest == "first"
        self.times, self.unit = feature.times, feature.unit
        self.event_time, self.event_unit = event_time or "", event_unit
        self.buckets = GapBuckets(feature)
        self.outputs = 1 if feature.times is None else 2

    @property
    def columns(self) -> tuple[str, ...]:
        """The list's column; with times that of the times and that of the row's time too."""
        return (self.column,) if self.times is None else (self.column, self.times, self.event_time)

    def expressions(self, schema: Schema) -> list[pl.Expr]:
        """[B] List(Int64) fingerprints; with times, [B] List(Int64) fingerprints of the gaps too."""
        lists, inner = self._lists(self.column, schema)
        hashed, _ = hash_expr(pl.element(), inner, self.dtype, self.column)
        null_list = pl.lit(_NULL_LIST, dtype=pl.List(pl.Int64))
        found = [self._latest(lists).list.eval(hashed).fill_null(null_list)]
        if self.times is not None:
            then, inner = self._lists(self.times, schema)
            moments = then.list.eval(microseconds_expr(self.times, inner, self.unit, pl.element())[0])
            now, _ = microseconds_expr(self.event_time, schema[self.event_time], self.event_unit)
            gaps = self.buckets.list_expression(self._latest(moments), now)
            nothing = pl.lit([], dtype=pl.List(pl.Int64))
            found.append(pl.when(lists.is_null()).then(null_list).otherwise(gaps.fill_null(nothing)))
        for problem in self._joint_problems(schema):
            found = [problem.guard(value) for value in found]
        return found

    def problems(self, schema: Schema) -> list[Problem]:
        """Lists with an element that cannot be cast, or with more or fewer times than elements."""
        lists, inner = self._lists(self.column, schema)
        latest = self._latest(lists)
        tests = hash_expr(pl.element(), inner, self.dtype, self.column)[1]
        return [*_within(latest, tests), *self._joint_problems(schema)]

    def encoder(self) -> Encoder:
        """List -> list of int; with times: list, times, time of the row -> two lists of int."""
        column, times, length, newest_first = self.column, self.times, self.length, self.newest_first
        encode_id = hash_encoder(self.dtype, column)

        def latest(value: Any) -> Any:
            return value[:length] if newest_first else value[-length:][::-1]

        def encode(value: Any) -> list[int]:
            if value is None:
                return _NULL_LIST
            _check_list(column, value)
            return [encode_id(element) for element in latest(value)]

        if times is None:
            return encode
        read, read_event = (
            microseconds_encoder(times, self.unit),
            microseconds_encoder(self.event_time, self.event_unit),
        )
        bucket = self.buckets.encoder()

        def encode_both(value: Any, moments: Any, event: Any) -> tuple[list[int], list[int]]:
            ids = encode(value)
            if moments is not None:
                _check_list(times, moments)
            then, now = [read(moment) for moment in (() if moments is None else moments)], read_event(event)
            if len(then) != (0 if value is None else len(value)):
                raise self._uneven(pl.lit(True)).error(moments)
            return ids, _NULL_LIST if value is None else [bucket(moment, now) for moment in latest(then)]

        return encode_both

    def _latest(self, lists: pl.Expr) -> pl.Expr:
        return lists.list.head(self.length) if self.newest_first else lists.list.tail(self.length).list.reverse()

    def _lists(self, column: str, schema: Schema) -> tuple[pl.Expr, pl.DataType]:
        return list_expr(column, schema[column], "a list", "collect the past events into a list before")

    def _joint_problems(self, schema: Schema) -> list[Problem]:
        if self.times is None:
            return []
        lists, _ = self._lists(self.column, schema)
        then, inner = self._lists(self.times, schema)
        uneven = lists.list.len().fill_null(0) != then.list.len().fill_null(0)
        return [
            self._uneven(uneven),
            *_within(then, microseconds_expr(self.times, inner, self.unit, pl.element())[1]),
            *microseconds_expr(self.event_time, schema[self.event_time], self.event_unit)[1],
        ]

    def _uneven(self, bad: pl.Expr) -> Problem:
        expected = f"one time for each element of column {self.column!r}"
        return Problem(str(self.times), bad, "another number of times than of events", expected, _MEND)


def _within(lists: pl.Expr, tests: list[Problem]) -> list[Problem]:
    """The tests for elements as tests for lists."""
    return [dataclasses.replace(test, bad=lists.list.eval(test.bad).list.any().fill_null(False)) for test in tests]


def _check_list(column: str, value: Any) -> None:
    if not isinstance(value, list | tuple | np.ndarray):
        raise wrong_dtype(column, shown(value), "a list", "collect the past events into a list before")
