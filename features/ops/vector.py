"""vector: a list of floats of fixed size a row, used as it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from features.ops.base import Encoder, Operator, Problem, Schema, shown, wrong_dtype
from features.ops.number import FLOAT32_MAX, float_encoder
from features.spec import VectorFeature


class Vector(Operator):
    """A missing vector is all zeros; so is each element that is missing, NaN or infinite."""

    kind = "vector"

    def __init__(self, feature: VectorFeature) -> None:
        self.name, self.column, self.size = feature.name, feature.column, feature.size
        self.outputs = self.size

    def expressions(self, schema: Schema) -> list[pl.Expr]:
        """[B] Array(Float32, size)."""
        lists = self._lists(schema[self.column])
        for problem in self.problems(schema):
            lists = problem.guard(lists)
        element = pl.element().cast(pl.Float64)
        element = pl.when(element.is_finite()).then(element).otherwise(0.0)
        element = pl.when(element > FLOAT32_MAX).then(FLOAT32_MAX).otherwise(element)
        element = pl.when(element < -FLOAT32_MAX).then(-FLOAT32_MAX).otherwise(element)
        zeros = pl.lit([0.0] * self.size, dtype=pl.List(pl.Float32))
        return [lists.list.eval(element.cast(pl.Float32)).fill_null(zeros).list.to_array(self.size)]

    def problems(self, schema: Schema) -> list[Problem]:
        """Vectors of another size."""
        bad = (self._lists(schema[self.column]).list.len() != self.size).fill_null(False)
        return [Problem(self.column, bad, "vector of another size", f"{self.size} numbers", "set the feature's size")]

    def encoder(self) -> Encoder:
        """Value -> list of float."""
        column, size, read = self.column, self.size, float_encoder(self.column, text=False)
        zeros = [0.0] * size

        def encode(value: Any) -> list[float]:
            if value is None:
                return zeros
            if not isinstance(value, list | tuple | np.ndarray):
                raise wrong_dtype(column, shown(value), f"a list of {size} numbers")
            if len(value) != size:
                raise self.problems({column: pl.List(pl.Float64())})[0].error(value)
            numbers = [read(element) for element in value]
            return [0.0 if x is None or math.isinf(x) else min(max(x, -FLOAT32_MAX), FLOAT32_MAX) for x in numbers]

        return encode

    def _lists(self, dtype: pl.DataType) -> pl.Expr:
        value = pl.col(self.column)
        if dtype == pl.Null:
            return pl.lit(None, dtype=pl.List(pl.Float64))
        if isinstance(dtype, pl.Array):
            value, inner = value.arr.to_list(), dtype.inner
        elif isinstance(dtype, pl.List):
            inner = dtype.inner
        else:
            raise wrong_dtype(self.column, dtype, f"a list of {self.size} numbers")
        if not (inner.is_integer() or inner.is_float() or inner == pl.Null):
            raise wrong_dtype(self.column, dtype, f"a list of {self.size} numbers")
        return value
