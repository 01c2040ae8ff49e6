"""id: one categorical value a row becomes its fingerprint; a missing value has a fingerprint of its own."""

from __future__ import annotations

import polars as pl

from features.ops.base import ColumnEncoder, Encoder, Operator, Problem, Schema
from features.ops.cast import hash_column_encoder, hash_encoder, hash_expr
from features.spec import IdDtype


class Id(Operator):
    """Casts to the declared dtype and hashes."""

    def __init__(self, name: str, column: str, dtype: IdDtype = "string") -> None:
        self.name, self.column, self.dtype = name, column, dtype

    def expressions(self, schema: Schema) -> list[pl.Expr]:
        """[B] Int64 fingerprints."""
        return [hash_expr(pl.col(self.column), schema[self.column], self.dtype, self.column)[0]]

    def problems(self, schema: Schema) -> list[Problem]:
        """Values that cannot be cast."""
        return hash_expr(pl.col(self.column), schema[self.column], self.dtype, self.column)[1]

    def encoder(self) -> Encoder:
        """Value -> int."""
        return hash_encoder(self.dtype, self.column)

    def column_encoder(self) -> ColumnEncoder:
        """Values -> ints; texts are hashed together."""
        return hash_column_encoder(self.dtype, self.column)
