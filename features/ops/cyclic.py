"""cyclic: a part of a time as a point on a circle, sine and cosine, so that 23 o'clock stands next to 0."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from features.ops.base import Encoder, Operator, Problem, Schema
from features.ops.time import PARTS, microseconds_encoder, microseconds_expr, part_of
from features.spec import CyclicFeature


class Cyclic(Operator):
    """Both numbers of a missing time are 0, the middle of the circle."""

    kind = "number"
    outputs = 2

    def __init__(self, feature: CyclicFeature) -> None:
        self.name, self.column, self.part, self.unit = feature.name, feature.column, feature.part, feature.unit
        # A table, as a sine may differ in its last bit between Python and Polars.
        values = PARTS[self.part]
        angles = [2 * math.pi * step / len(values) for step in range(len(values))]
        self._points = {value: (math.sin(a), math.cos(a)) for value, a in zip(values, angles, strict=True)}

    def expressions(self, schema: Schema) -> list[pl.Expr]:
        """[B] Float32 sine, [B] Float32 cosine."""
        time, problems = microseconds_expr(self.column, schema[self.column], self.unit)
        for problem in problems:
            time = problem.guard(time)
        part = part_of(time, self.part)
        return [
            part.replace_strict(
                list(self._points), [point[place] for point in self._points.values()], default=0.0
            ).cast(pl.Float32)
            for place in (0, 1)
        ]

    def problems(self, schema: Schema) -> list[Problem]:
        """Integers so large that they are no time, and text that is none."""
        return microseconds_expr(self.column, schema[self.column], self.unit)[1]

    def encoder(self) -> Encoder:
        """Value -> tuple of sine and cosine."""
        read, part, points = microseconds_encoder(self.column, self.unit), self.part, self._points

        def encode(value: Any) -> tuple[float, float]:
            time = read(value)
            return (0.0, 0.0) if time is None else points[part_of(time, part)]

        return encode
