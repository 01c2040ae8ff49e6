"""semantic_id: a list of integer codes, coarse to fine, becomes the fingerprints of its prefixes.

Items that share their first codes share the first ids (Singh et al. 2024, "Better Generalization with Semantic IDs").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from features.fingerprint import NULL_FINGERPRINT, fingerprint, fingerprint_expr
from features.ops.base import Encoder, Operator, Problem, Schema, shown, wrong_dtype
from features.ops.cast import text_encoder, text_expr
from features.ops.lists import list_expr
from features.spec import SemanticIdFeature

_MEND = "give the codes as a list of integers"


class SemanticId(Operator):
    """Codes 12, 5, 7 give the fingerprints of "12", "12,5" and "12,5,7"; codes after `depth` are left out.

    An empty list has no id at all; a missing list has the one id of null; a missing code is an error.
    """

    kind = "bag"

    def __init__(self, feature: SemanticIdFeature) -> None:
        self.name, self.column, self.depth = feature.name, feature.column, feature.depth

    def expressions(self, schema: Schema) -> list[pl.Expr]:
        """[B] List(Int64) fingerprints."""
        lists, inner = self._lists(schema[self.column])
        codes = lists.list.eval(text_expr(pl.element(), inner, "integer", self.column)[0])
        for problem in self.problems(schema):
            codes = problem.guard(codes)
        prefixes = [
            pl.when(codes.list.len() >= size).then(codes.list.head(size).list.join(","))
            for size in range(1, self.depth + 1)
        ]
        found = pl.concat_list(prefixes).list.drop_nulls().list.eval(fingerprint_expr(pl.element()))
        missing = pl.lit([NULL_FINGERPRINT], dtype=pl.List(pl.Int64))
        return [pl.when(codes.is_null()).then(missing).otherwise(found)]

    def problems(self, schema: Schema) -> list[Problem]:
        """Lists with a code that is missing or no integer."""
        lists, inner = self._lists(schema[self.column])
        tests = text_expr(pl.element(), inner, "integer", self.column)[1]
        bad = pl.element().is_null()
        if inner.is_float():
            bad = bad | pl.element().is_nan()
        for test in tests:
            bad = bad | test.bad
        return [self._bad(lists.list.eval(bad).list.any().fill_null(False))]

    def encoder(self) -> Encoder:
        """Value -> list of int."""
        column, depth, read = self.column, self.depth, text_encoder("integer", self.column)

        def encode(value: Any) -> list[int]:
            if value is None:
                return [NULL_FINGERPRINT]
            if not isinstance(value, list | tuple | np.ndarray):
                raise wrong_dtype(column, shown(value), "a list of integers", _MEND)
            codes = [read(code) for code in value[:depth]]
            if None in codes:
                raise self._bad(pl.lit(True)).error(value)
            return [fingerprint(",".join(map(str, codes[:size]))) for size in range(1, len(codes) + 1)]

        return encode

    def _bad(self, bad: pl.Expr) -> Problem:
        return Problem(self.column, bad, "a code is missing or no integer", "a list of integers", _MEND)

    def _lists(self, dtype: pl.DataType) -> tuple[pl.Expr, pl.DataType]:
        lists, inner = list_expr(self.column, dtype, "a list of integers", _MEND)
        return lists.list.head(self.depth), inner
