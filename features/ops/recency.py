"""recency: the time from an earlier moment, such as the user's last visit, to the event, as the id of a bucket."""

from __future__ import annotations

from typing import Any

import polars as pl

from features.ops.base import Encoder, Operator, Problem, Schema
from features.ops.gap import GapBuckets
from features.ops.time import microseconds_encoder, microseconds_expr
from features.spec import RecencyFeature, TimeUnit


class Recency(Operator):
    """Reads its own column and that of the event's time.

    Args:
        feature: Its description.
        event_time: Column of the event's time.
        event_unit: What one step of that column is, if it holds integers.
    """

    def __init__(self, feature: RecencyFeature, event_time: str, event_unit: TimeUnit) -> None:
        self.name, self.column, self.unit = feature.name, feature.column, feature.unit
        self.event_time, self.event_unit = event_time, event_unit
        self.buckets = GapBuckets(feature)

    @property
    def columns(self) -> tuple[str, ...]:
        """The moment's column and the event's."""
        return (self.column, self.event_time)

    def expressions(self, schema: Schema) -> list[pl.Expr]:
        """[B] Int64 fingerprints."""
        then, _ = microseconds_expr(self.column, schema[self.column], self.unit)
        now, _ = microseconds_expr(self.event_time, schema[self.event_time], self.event_unit)
        code = self.buckets.expression(then, now)
        for problem in self.problems(schema):
            code = problem.guard(code)
        return [code]

    def problems(self, schema: Schema) -> list[Problem]:
        """Integers and text that are no time."""
        return [
            *microseconds_expr(self.column, schema[self.column], self.unit)[1],
            *microseconds_expr(self.event_time, schema[self.event_time], self.event_unit)[1],
        ]

    def encoder(self) -> Encoder:
        """Moment, time of the event -> int."""
        then, now = (
            microseconds_encoder(self.column, self.unit),
            microseconds_encoder(self.event_time, self.event_unit),
        )
        bucket = self.buckets.encoder()

        def encode(moment: Any, event: Any) -> int:
            return bucket(then(moment), now(event))

        return encode
