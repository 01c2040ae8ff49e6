"""ids: a list of categorical values a row, or a text with a separator, becomes a list of fingerprints.

An empty list gives no id at all (the model sees a zero vector); a missing list gives the one id of null.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl

from features.fingerprint import NULL_FINGERPRINT
from features.ops.base import Encoder, Operator, Problem, Schema, shown, wrong_dtype
from features.ops.cast import hash_encoder, hash_expr
from features.ops.lists import list_expr
from features.spec import IdsFeature


class Ids(Operator):
    """Splits if there is a separator, cuts to the maximum length, hashes each element.

    Empty pieces of a separated text are no elements; an empty string inside a list is one.
    """

    kind = "bag"

    def __init__(self, feature: IdsFeature) -> None:
        self.name, self.column = feature.name, feature.column
        self.dtype, self.separator, self.max_length = feature.dtype, feature.separator, feature.max_length

    def expressions(self, schema: Schema) -> list[pl.Expr]:
        """[B] List(Int64) fingerprints."""
        return [self._elements(schema[self.column])[0]]

    def problems(self, schema: Schema) -> list[Problem]:
        """Lists with an element that cannot be cast."""
        lists, inner = self._lists(schema[self.column])
        return [
            dataclasses.replace(problem, bad=lists.list.eval(problem.bad).list.any().fill_null(False))
            for problem in hash_expr(pl.element(), inner, self.dtype, self.column)[1]
        ]

    def encoder(self) -> Encoder:
        """Value -> list of int."""
        encode, separator, limit, column = (
            hash_encoder(self.dtype, self.column),
            self.separator,
            self.max_length,
            self.column,
        )

        def encode_list(value: Any) -> list[int]:
            if value is None:
                return [NULL_FINGERPRINT]
            if separator is not None:
                if not isinstance(value, str):
                    raise wrong_dtype(column, shown(value), f"text with the separator {separator!r}")
                value = [piece for piece in value.split(separator) if piece]
            elif not isinstance(value, list | tuple | np.ndarray):
                raise wrong_dtype(column, shown(value), "a list", "give a separator if the column is text")
            return [encode(element) for element in value[:limit]]

        return encode_list

    def _elements(self, dtype: pl.DataType) -> tuple[pl.Expr, list[Problem]]:
        lists, inner = self._lists(dtype)
        hashed, problems = hash_expr(pl.element(), inner, self.dtype, self.column)
        null_list = pl.lit([NULL_FINGERPRINT], dtype=pl.List(pl.Int64))
        return lists.list.eval(hashed).fill_null(null_list), problems

    def _lists(self, dtype: pl.DataType) -> tuple[pl.Expr, pl.DataType]:
        inner: pl.DataType = pl.String()
        if self.separator is not None and dtype != pl.Null:
            if not isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
                raise wrong_dtype(
                    self.column, dtype, f"text with the separator {self.separator!r}", "drop the separator"
                )
            pieces = pl.col(self.column).cast(pl.String).str.split(self.separator)
            lists = pieces.list.eval(pl.element().filter(pl.element() != ""))
        else:
            lists, inner = list_expr(self.column, dtype, "a list", "give a separator if the column is text")
        return (lists if self.max_length is None else lists.list.head(self.max_length)), inner
