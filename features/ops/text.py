"""Numbers, booleans and times written as text, as CSV gives them: one grammar, in Polars and in Python.

Blanks, digit groups and other alphabets' digits are refused, so that a text has one reading or none.
"""

from __future__ import annotations

import datetime
import re

import polars as pl

TRUE = ("true", "True")
FALSE = ("false", "False")
TIME_EXAMPLE = "2024-01-02 03:04:05"

_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf|infinity|nan)", re.I | re.A)
_WHOLE = re.compile(r"([+-]?[0-9]+)(?:\.0*)?")
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
_TIME = re.compile(rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[ T]{_CLOCK}Z?")
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


def is_text(dtype: pl.DataType) -> bool:
    """Whether a column of this dtype holds text."""
    return isinstance(dtype, pl.String | pl.Categorical | pl.Enum)


def number_of(text: str) -> float | None:
    """Returns the number that a text writes, or None.

    Example:
        >>> number_of("1.5e3"), number_of("nan"), number_of(" 1"), number_of("1_0")
        (1500.0, nan, None, None)
    """
    return float(text) if _NUMBER.fullmatch(text) else None


def number_expr(text: pl.Expr) -> pl.Expr:
    """Polars form of `number_of`: text -> Float64."""
    return text.cast(pl.String).cast(pl.Float64, strict=False)


def whole_of(text: str) -> int | None:
    """Returns the 64-bit integer that a text writes, or None.

    Example:
        >>> whole_of("007"), whole_of("7.0"), whole_of("7.5")
        (7, 7, None)
    """
    # A text of many digits costs a lot to read as a number; none longer than this is right without zeros.
    match = _WHOLE.fullmatch(text) if len(text) <= 4000 else None
    number = int(match[1]) if match else None
    return number if number is not None and _LOWEST <= number <= _HIGHEST else None


def whole_expr(text: pl.Expr) -> pl.Expr:
    """Polars form of `whole_of`: text -> Int64."""
    return text.cast(pl.String).str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)


def time_of(text: str) -> datetime.datetime | None:
    """Returns the time that an ISO text writes, without a zone (a Z says UTC, as its absence does), or None.

    Example:
        >>> time_of("2024-01-02T03:04:05.25Z")
        datetime.datetime(2024, 1, 2, 3, 4, 5, 250000)
        >>> time_of("2024-02-30 00:00:00") is time_of("2024-01-02") is None
        True
    """
    if not _TIME.fullmatch(text):
        return None
    try:
        return datetime.datetime.fromisoformat(text.removesuffix("Z"))
    except ValueError:
        return None


def time_expr(text: pl.Expr) -> pl.Expr:
    """Polars form of `time_of`: text -> Int64 microseconds since 1970-01-01."""
    text = text.cast(pl.String)
    # Python knows no year 0.
    written = text.str.contains(rf"^{_TIME.pattern}$") & ~text.str.starts_with("0000")
    plain = pl.when(written).then(text).otherwise(None).str.strip_suffix("Z").str.replace("T", " ", literal=True)
    return plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False).to_physical()
