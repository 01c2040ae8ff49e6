"""label, weight, reference and event time: the columns that are no features and may not be missing."""

from __future__ import annotations

from typing import Any, Literal

import polars as pl

from features.ops.base import Encoder, Operator, Problem, Schema, plain, wrong_dtype
from features.ops.text import FALSE, TRUE, is_text, number_expr, number_of
from features.ops.time import microseconds_encoder, microseconds_expr
from features.spec import TimeUnit

Role = Literal["label", "weight", "reference"]
_EXPECTED: dict[Role, str] = {
    "label": "0 or 1",
    "weight": "a finite number that is not negative",
    "reference": "a probability from 0 to 1",
}
_WHAT: dict[Role, str] = {
    "label": "label outside {0, 1}",
    "weight": "weight that is no weight",
    "reference": "reference probability outside [0, 1]",
}
_MEND: dict[Role, str] = {
    "label": "turn it into 0 and 1, or drop the rows",
    "weight": "mend or drop the rows",
    "reference": "mend or drop the rows",
}
_NAME: dict[Role, str] = {"label": "label", "weight": "weight", "reference": "reference probability"}
_HIGHEST = {"weight": 3.4028234663852886e38, "reference": 1.0}


class Outcome(Operator):
    """A label, a weight or a reference probability as float32; null, NaN and values out of range are errors."""

    def __init__(self, role: Role, column: str) -> None:
        self.name = self.column = column
        self.role = role

    def expressions(self, schema: Schema) -> list[pl.Expr]:
        """[B] Float32."""
        value = self._number(schema[self.column]).cast(pl.Float32)
        for problem in self.problems(schema):
            value = problem.guard(value)
        return [value]

    def problems(self, schema: Schema) -> list[Problem]:
        """Values that are missing or out of range."""
        value = self._number(schema[self.column])
        if self.role == "label":
            good = (value == 0) | (value == 1)
        else:
            # A comparison with NaN is true above every number, so both ends reject it.
            good = value.is_between(0.0, _HIGHEST[self.role]) & value.is_not_nan()
        bad = pl.col(self.column).is_not_null() & ~good.fill_null(False)
        return [self._missing(), self._wrong(bad)]

    def encoder(self) -> Encoder:
        """Value -> float."""
        role, high = self.role, _HIGHEST.get(self.role, 1.0)

        def encode(value: Any) -> float:
            value = plain(value)
            if value is None:
                raise self._missing().error(value)
            given = value
            if isinstance(value, str):
                words = role == "label" and value in (*TRUE, *FALSE)
                value = value in TRUE if words else number_of(value)
            allowed: tuple[type, ...] = (int, float, bool) if role == "label" else (int, float)
            if type(value) in allowed and (value in (0, 1) if role == "label" else 0 <= value <= high):
                return float(value)
            raise self._wrong(pl.lit(True)).error(given)

        return encode

    def _number(self, dtype: pl.DataType) -> pl.Expr:
        value = pl.col(self.column)
        if is_text(dtype):
            number = number_expr(value)
            if self.role != "label":
                return number
            text = value.cast(pl.String)
            return pl.when(text.is_in(TRUE)).then(1.0).when(text.is_in(FALSE)).then(0.0).otherwise(number)
        booleans = self.role == "label" and dtype == pl.Boolean
        if not (booleans or dtype.is_integer() or dtype.is_float() or dtype == pl.Null):
            raise wrong_dtype(
                self.column, dtype, f"{_EXPECTED[self.role]}, as a number or its text", "cast the column to a number"
            )
        return value.cast(pl.Float64)

    def _missing(self) -> Problem:
        missing = pl.col(self.column).is_null()
        what = f"{_NAME[self.role]} is missing"
        return Problem(self.column, missing, what, f"{_EXPECTED[self.role]} in every row", _MEND[self.role])

    def _wrong(self, bad: pl.Expr) -> Problem:
        return Problem(self.column, bad, _WHAT[self.role], _EXPECTED[self.role], _MEND[self.role])


class EventTime(Operator):
    """The time of the event in microseconds since 1970-01-01 UTC."""

    def __init__(self, column: str, unit: TimeUnit) -> None:
        self.name = self.column = column
        self.unit = unit

    def expressions(self, schema: Schema) -> list[pl.Expr]:
        """[B] Int64 microseconds."""
        time, _ = microseconds_expr(self.column, schema[self.column], self.unit)
        for problem in self.problems(schema):
            time = problem.guard(time)
        return [time]

    def problems(self, schema: Schema) -> list[Problem]:
        """Times that are missing or too large."""
        return [*microseconds_expr(self.column, schema[self.column], self.unit)[1], self._missing()]

    def encoder(self) -> Encoder:
        """Value -> int."""
        read, missing = microseconds_encoder(self.column, self.unit), self._missing()

        def encode(value: Any) -> int:
            time = read(value)
            if time is None:
                raise missing.error(value)
            return time

        return encode

    def _missing(self) -> Problem:
        return Problem(
            self.column,
            pl.col(self.column).is_null(),
            "time is missing",
            "a time in every row",
            "drop the rows or the spec's time",
        )
