"""time: a part of a time, such as the hour, as an id. Times without a zone are UTC; others are turned into UTC."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import polars as pl

from features.fingerprint import NULL_FINGERPRINT, fingerprint, fingerprint_expr
from features.ops.base import Encoder, Operator, Problem, Schema, plain, shown, wrong_dtype
from features.ops.text import TIME_EXAMPLE, is_text, time_expr, time_of, whole_expr, whole_of
from features.spec import TimeFeature, TimePart, TimeUnit

HOUR = 3_600_000_000
DAY = 24 * HOUR
_EPOCH = datetime.datetime(1970, 1, 1)
_EPOCH_UTC = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_STEP = datetime.timedelta(microseconds=1)
_FACTOR = {"s": 1_000_000, "ms": 1_000, "us": 1}
_MOST = 2**63 - 1


PARTS: dict[TimePart, range] = {
    "hour": range(24),
    "weekday": range(7),
    "hour_of_week": range(168),
    "day": range(1, 32),
    "month": range(1, 13),
}
"""The values of each part; weekday 0 is Monday, hour of week 0 its first."""


class Time(Operator):
    """The id is the fingerprint of the decimal part."""

    def __init__(self, feature: TimeFeature) -> None:
        self.name, self.column, self.part, self.unit = feature.name, feature.column, feature.part, feature.unit

    def expressions(self, schema: Schema) -> list[pl.Expr]:
        """[B] Int64 fingerprints."""
        time, problems = microseconds_expr(self.column, schema[self.column], self.unit)
        for problem in problems:
            time = problem.guard(time)
        return [fingerprint_expr(part_of(time, self.part).cast(pl.String))]

    def problems(self, schema: Schema) -> list[Problem]:
        """Integers so large that they are no time, and text that is none."""
        return microseconds_expr(self.column, schema[self.column], self.unit)[1]

    def encoder(self) -> Encoder:
        """Value -> int."""
        read, part = microseconds_encoder(self.column, self.unit), self.part
        fingerprints = [fingerprint(str(value)) for value in range(PARTS[part].stop)]

        def encode(value: Any) -> int:
            time = read(value)
            if time is None:
                return NULL_FINGERPRINT
            return fingerprints[part_of(time, part)]

        return encode


def part_of(time: Any, part: TimePart) -> Any:
    """Returns a part of a time, see `PARTS`.

    Args:
        time: Microseconds since 1970-01-01 UTC: an int, or an Int64 expression.
        part: Which part.

    Example:
        >>> [part_of(1_709_251_199_000_000, part) for part in PARTS]  # Thursday 2024-02-29 23:59:59
        [23, 3, 95, 29, 2]
    """
    # 1970-01-01 was a Thursday.
    if part == "hour":
        return time // HOUR % 24
    if part == "weekday":
        return (time // DAY + 3) % 7
    if part == "hour_of_week":
        return (time // HOUR + 72) % 168
    # Years that begin in March, in eras of 400 of them (Hinnant, "chrono-compatible low-level date algorithms").
    day = (time // DAY + 719_468) % 146_097
    year = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
    day = day - (365 * year + year // 4 - year // 100)
    month = (5 * day + 2) // 153
    return day - (153 * month + 2) // 5 + 1 if part == "day" else (month + 2) % 12 + 1


def microseconds_expr(
    column: str, dtype: pl.DataType, unit: TimeUnit | None, value: pl.Expr | None = None
) -> tuple[pl.Expr, list[Problem]]:
    """Returns the time in microseconds since 1970-01-01 UTC (Int64), rounded down, and the tests for bad values.

    Args:
        column: The column.
        dtype: Its dtype, or that of `value`.
        unit: What one step of an integer is.
        value: The times, if they are not the column itself but the elements of its lists.

    Raises:
        DataError: The column holds no times, or integers without a declared unit.
    """
    value = pl.col(column) if value is None else value
    if dtype == pl.Null:
        return pl.lit(None, dtype=pl.Int64), []
    if isinstance(dtype, pl.Date):
        return value.cast(pl.Int64) * DAY, []
    if isinstance(dtype, pl.Datetime):
        steps, unit = value.to_physical(), dtype.time_unit
        return (steps // 1000 if unit == "ns" else steps * _FACTOR[unit]), []
    if is_text(dtype):
        time = time_expr(value)
        problems: list[Problem] = []
        if unit is not None:
            steps, problems = _steps_expr(column, whole_expr(value), unit)
            time = time.fill_null(steps)
        return time, [_no_time(column, value.is_not_null() & time.is_null()), *problems]
    if dtype.is_integer():
        if unit is None:
            raise _no_unit(column, dtype)
        steps = value.cast(pl.Int64, strict=False)
        time, problems = _steps_expr(column, steps, unit)
        return time, [_too_large(column, value.is_not_null() & steps.is_null()), *problems]
    raise wrong_dtype(column, dtype, "dates, times, ISO text or integers", "parse the column to a Datetime before")


def microseconds_encoder(column: str, unit: TimeUnit | None) -> Callable[[Any], int | None]:
    """Python form of `microseconds_expr`."""

    def encode(value: Any) -> int | None:
        if value is None:
            return None
        value = plain(value)
        if isinstance(value, str):
            steps = None if unit is None else whole_of(value)
            read = time_of(value) if steps is None else steps
            if read is None:
                raise _no_time(column, pl.lit(True)).error(value)
            value = read
        if type(value) is int:
            if unit is None:
                raise _no_unit(column, shown(value))
            if not -(2**63) <= value <= _MOST or (unit != "ns" and abs(value) > _MOST // _FACTOR[unit]):
                raise _too_large(column, pl.lit(True)).error(value)
            return value // 1000 if unit == "ns" else value * _FACTOR[unit]
        if isinstance(value, datetime.datetime):
            return (value - (_EPOCH if value.tzinfo is None else _EPOCH_UTC)) // _STEP
        if isinstance(value, datetime.date):
            return (value - _EPOCH.date()).days * DAY
        raise wrong_dtype(
            column, shown(value), "a date, a time, ISO text or an integer", "parse the value to a datetime before"
        )

    return encode


def _steps_expr(column: str, steps: pl.Expr, unit: TimeUnit) -> tuple[pl.Expr, list[Problem]]:
    if unit == "ns":
        return steps // 1000, []
    limit = _MOST // _FACTOR[unit]
    bad = (steps > limit).fill_null(False) | (steps < -limit).fill_null(False)
    return steps * _FACTOR[unit], [_too_large(column, bad)]


def _no_time(column: str, bad: pl.Expr) -> Problem:
    return Problem(
        column,
        bad,
        "text that is no time",
        f"such as {TIME_EXAMPLE}, 2024-01-02T03:04:05 or 2024-01-02T03:04:05.123456Z, or an integer with a unit",
        "write all times in this form, or declare the unit of integer times: s, ms, us or ns",
    )


def _no_unit(column: str, found: object) -> Exception:
    return wrong_dtype(column, found, "a date or a time", "declare the unit of integer times: s, ms, us or ns")


def _too_large(column: str, bad: pl.Expr) -> Problem:
    return Problem(column, bad, "too large for a time", "a time within 64-bit microseconds", "check the declared unit")
