"""Casts a value to its declared dtype and writes it as the text that is hashed.

string takes text, integers and booleans. integer takes 64-bit integers, whole floats and their text.
boolean takes booleans, 0 and 1, and their text. NaN is null. Anything else is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from features.fingerprint import NULL_FINGERPRINT, fingerprint, fingerprint_expr, fingerprints
from features.ops.base import Problem, plain, wrong_dtype
from features.ops.text import FALSE, TRUE, is_text, whole_expr, whole_of
from features.spec import IdDtype

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_MANY = 10
"""From so many values on it pays to hash them together."""
_TEXT_OR_NULL = {str, type(None)}

_EXPECTED = {
    "string": "text, integers or booleans",
    "integer": "whole numbers of 64 bits, or their decimal text",
    "boolean": "booleans, 0 or 1, or the text true, false, True, False, 0 or 1",
}
_WRONG_VALUE = {
    "string": "not a text",
    "integer": "not a whole number of 64 bits",
    "boolean": "not a boolean",
}
_MEND = {
    "string": "declare dtype: integer for whole floats, or a number or bucket feature",
    "integer": "declare dtype: string, or mend the column",
    "boolean": "declare dtype: string, or mend the column",
}
_MEND_LIST = "declare type: ids, which takes a list of plain values"


def text_expr(value: pl.Expr, dtype: pl.DataType, declared: IdDtype, column: str) -> tuple[pl.Expr, list[Problem]]:
    """Returns `value` (a column or a list's element) as text, null for missing, and the tests for bad values.

    Raises:
        DataError: No value of this dtype can be cast to the declared one.
    """
    text, bad = _text_expr(value, dtype, declared, column)
    if bad is None:
        return text, []
    problem = Problem(column, bad, _WRONG_VALUE[declared], _EXPECTED[declared], _MEND[declared])
    return problem.guard(text), [problem]


def text_encoder(declared: IdDtype, column: str) -> Callable[[Any], str | None]:
    """Python form of `text_expr`."""
    cast = {"string": _string_of, "integer": _integer_of, "boolean": _boolean_of}[declared]

    def encode(value: Any) -> str | None:
        value = plain(value)
        if value is None or (type(value) is float and value != value and declared != "string"):
            return None
        text = cast(value)
        if text is None or not _is_unicode(text):
            mend = _MEND_LIST if isinstance(value, list | tuple | np.ndarray) else _MEND[declared]
            raise Problem(column, pl.lit(False), _WRONG_VALUE[declared], _EXPECTED[declared], mend).error(value)
        return text

    return encode


def hash_expr(value: pl.Expr, dtype: pl.DataType, declared: IdDtype, column: str) -> tuple[pl.Expr, list[Problem]]:
    """Returns the fingerprint of `value` and the tests for bad values, as `text_expr` does."""
    text, problems = text_expr(value, dtype, declared, column)
    return fingerprint_expr(text), problems


def hash_encoder(declared: IdDtype, column: str) -> Callable[[Any], int]:
    """Python form of `hash_expr`."""
    read = text_encoder(declared, column)

    def encode(value: Any) -> int:
        text = read(value)
        return NULL_FINGERPRINT if text is None else fingerprint(text)

    def encode_string(value: Any) -> int:
        # The common case without a second call.
        if type(value) is str:
            try:
                return fingerprint(value)
            except UnicodeEncodeError:
                pass
        return encode(value)

    return encode_string if declared == "string" else encode


def hash_column_encoder(declared: IdDtype, column: str) -> Callable[[list[Any]], list[int]]:
    """`hash_encoder` for many values at once."""
    encode = hash_encoder(declared, column)

    def encode_all(values: list[Any]) -> list[int]:
        if declared == "string" and len(values) >= _MANY and set(map(type, values)) <= _TEXT_OR_NULL:
            try:
                codes = fingerprints([value or "" for value in values])
            except UnicodeEncodeError:
                pass  # said below, with the value
            else:
                return [NULL_FINGERPRINT if value is None else code for value, code in zip(values, codes, strict=True)]
        return list(map(encode, values))

    return encode_all


def _string_of(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else None


def _integer_of(value: Any) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = whole_of(value)
    elif isinstance(value, float):
        if not value.is_integer():
            return None
        value = int(value)
    return str(value) if isinstance(value, int) and _LOWEST <= value <= _HIGHEST else None


def _boolean_of(value: Any) -> str | None:
    if isinstance(value, str):
        return "true" if value in (*TRUE, "1") else "false" if value in (*FALSE, "0") else None
    if isinstance(value, bool | int | float) and value in (0, 1):
        return "true" if value else "false"
    return None


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can write it: a lone surrogate it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_expr(value: pl.Expr, dtype: pl.DataType, declared: IdDtype, column: str) -> tuple[pl.Expr, pl.Expr | None]:
    """Returns the text to hash, null for missing, and where the value is bad (None: nowhere)."""
    if dtype == pl.Null:
        return pl.lit(None, dtype=pl.String), None
    if is_text(dtype):
        value, dtype = value.cast(pl.String), pl.String()
    if dtype.is_float() and declared != "string":
        value = value.fill_nan(None)
    if declared == "string":
        if dtype == pl.String:
            return value, None
        if dtype.is_integer() or dtype == pl.Boolean:
            return value.cast(pl.String), None
    elif declared == "integer":
        if dtype.is_integer() and dtype not in (pl.UInt64, pl.Int128, pl.UInt128):
            return value.cast(pl.String), None
        if dtype == pl.String or dtype.is_numeric():
            number = whole_expr(value) if dtype == pl.String else value.cast(pl.Int64, strict=False)
            bad = value.is_not_null() & number.is_null()
            if dtype.is_float():
                bad = bad | (number.cast(pl.Float64) != value.cast(pl.Float64)).fill_null(False)
            return number.cast(pl.String), bad
    elif declared == "boolean":
        if dtype == pl.Boolean:
            return value.cast(pl.String), None
        if dtype == pl.String:
            yes, no = value.is_in([*TRUE, "1"]), value.is_in([*FALSE, "0"])
            text = pl.when(yes).then(pl.lit("true")).when(no).then(pl.lit("false"))
            return text.otherwise(None), value.is_not_null() & ~(yes | no)
        if dtype.is_integer() or dtype.is_float():
            text = pl.when(value == 1).then(pl.lit("true")).when(value == 0).then(pl.lit("false"))
            return text.otherwise(None), value.is_not_null() & ~((value == 0) | (value == 1))
    mend = _MEND_LIST if isinstance(dtype, pl.List | pl.Array) else _MEND[declared]
    raise wrong_dtype(column, dtype, _EXPECTED[declared], mend)
