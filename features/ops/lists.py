"""Columns of lists, of whatever form Polars holds them in."""

from __future__ import annotations

from typing import Any

import polars as pl

from features.ops.base import wrong_dtype


def list_expr(column: str, dtype: pl.DataType, expected: str, mend: str) -> tuple[pl.Expr, pl.DataType]:
    """Returns a column of lists, and the dtype of the elements; elements that are all missing are taken for text.

    Raises:
        DataError: The column holds no lists.
    """
    value = pl.col(column)
    inner: Any = pl.Null()
    if dtype == pl.Null:
        return pl.lit(None, dtype=pl.List(pl.String)), pl.String()
    if isinstance(dtype, pl.Array):
        value, inner = value.arr.to_list(), dtype.inner
    elif isinstance(dtype, pl.List):
        inner = dtype.inner
    else:
        raise wrong_dtype(column, dtype, expected, mend)
    inner = inner() if isinstance(inner, type) else inner
    return (value.cast(pl.List(pl.String)), pl.String()) if inner == pl.Null else (value, inner)
