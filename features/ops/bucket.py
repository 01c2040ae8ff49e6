"""bucket: a number becomes the id of the bucket it falls in, by given edges or by quantiles of the training rows."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
import polars as pl

from features.fingerprint import NULL_FINGERPRINT, fingerprint, fingerprint_expr
from features.ops.base import Encoder, FittedOperator, Problem, Schema
from features.ops.number import float_encoder, float_expr, float_problems
from features.ops.quantiles import QuantileSample
from features.spec import BucketFeature


class Bucket(FittedOperator):
    """Bucket i holds the numbers from edge i-1 (included) up to edge i (not included).

    The id is the fingerprint of the decimal bucket number. NaN and null have the id of null.
    """

    def __init__(self, feature: BucketFeature) -> None:
        self.name, self.column, self.quantiles = feature.name, feature.column, feature.quantiles
        self.edges: list[float] | None = feature.edges
        self._sample = QuantileSample()

    def fitted_expressions(self, value: pl.Expr) -> list[pl.Expr]:
        """[B] Int64 fingerprints."""
        above = pl.sum_horizontal([(value >= edge).cast(pl.Int32) for edge in self.edges or []] or [pl.lit(0)])
        index = pl.when(value.is_null()).then(None).otherwise(above)
        return [fingerprint_expr(index.cast(pl.String))]

    def problems(self, schema: Schema) -> list[Problem]:
        """Text that is no number."""
        return float_problems(self.column, schema[self.column])

    def encoder(self) -> Encoder:
        """Value -> int."""
        read, edges = float_encoder(self.column), self.edges or []
        fingerprints = [fingerprint(str(index)) for index in range(len(edges) + 1)]

        def encode(value: Any) -> int:
            number = read(value)
            return NULL_FINGERPRINT if number is None else fingerprints[bisect_right(edges, number)]

        return encode

    @property
    def fitted(self) -> bool:
        """Whether the edges are known."""
        return self.edges is not None

    def fit_expression(self, schema: Schema) -> pl.Expr:
        """The number."""
        return float_expr(self.column, schema[self.column])

    def start(self) -> None:
        """Starts with no rows."""
        self._sample = QuantileSample()

    def update(self, values: np.ndarray) -> None:
        """Adds to the sample."""
        self._sample.update(values)

    def finish(self) -> None:
        """Edges at the quantiles: values that occur, each once, the smallest left out."""
        if self.quantiles is None:
            return
        values = self._sample.finite()
        if not len(values):
            self.edges = []
            return
        shares = np.arange(1, self.quantiles) / self.quantiles
        edges = np.unique(np.quantile(values, shares, method="inverted_cdf"))
        self.edges = [float(edge) for edge in edges if edge > values.min()]
        self._sample = QuantileSample()

    def state(self) -> dict[str, Any] | None:
        """{"edges": [...]} if they were fitted."""
        return {"edges": self.edges} if self.quantiles is not None and self.fitted else None

    def restore(self, state: dict[str, Any]) -> None:
        """Takes the edges."""
        self.edges = [float(edge) for edge in state["edges"]]
