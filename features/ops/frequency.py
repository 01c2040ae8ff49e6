"""frequency: how often a value occurs in the training rows, as the id of a bucket on a logarithmic scale.

It looks at no label, so that it tells a value's weight and nothing of the answer.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import polars as pl

from features.fingerprint import NULL_FINGERPRINT, fingerprint
from features.ops.base import Encoder, FittedOperator, Problem, Schema
from features.ops.cast import hash_encoder, hash_expr
from features.spec import FrequencyFeature

_NOTHING = np.empty(0, dtype=np.int64)


class Frequency(FittedOperator):
    """Bucket 0 holds all values that are not kept: unseen ones and rare ones. A missing value has the id of null.

    Kept are the `max_values` most frequent values that occur `min_count` times. Counting holds twice as many in
    memory; if more occur it forgets the rarest, whose later occurrences then count from zero.
    """

    def __init__(self, feature: FrequencyFeature) -> None:
        self.name, self.column, self.dtype = feature.name, feature.column, feature.dtype
        self.min_count, self.max_values = feature.min_count, feature.max_values
        self.ids = np.array([fingerprint(str(bucket)) for bucket in range(feature.buckets)])
        self._values, self._counts = _NOTHING, _NOTHING
        self._kept: np.ndarray | None = None
        self._buckets = np.empty(0, dtype=np.uint8)

    def fitted_expressions(self, value: pl.Expr) -> list[pl.Expr]:
        """[B] Int64 fingerprints."""
        return [value.map_batches(self._lookup, return_dtype=pl.Int64(), is_elementwise=True)]

    def problems(self, schema: Schema) -> list[Problem]:
        """Values that cannot be cast."""
        return hash_expr(pl.col(self.column), schema[self.column], self.dtype, self.column)[1]

    def encoder(self) -> Encoder:
        """Value -> int."""
        read, ids = hash_encoder(self.dtype, self.column), self.ids.tolist()
        kept, buckets = self._known(), self._buckets
        size = len(kept)

        def encode(value: Any) -> int:
            code = read(value)
            if code == NULL_FINGERPRINT:
                return code
            place = int(kept.searchsorted(code))
            found: int = ids[buckets[place]] if place < size and kept[place] == code else ids[0]
            return found

        return encode

    @property
    def fitted(self) -> bool:
        """Whether the counts are known."""
        return self._kept is not None

    def fit_expression(self, schema: Schema) -> pl.Expr:
        """The value's fingerprint."""
        return hash_expr(pl.col(self.column), schema[self.column], self.dtype, self.column)[0]

    def start(self) -> None:
        """Starts with no rows."""
        self._values, self._counts = _NOTHING, _NOTHING

    def update(self, values: np.ndarray) -> None:
        """Adds the counts of these rows; forgets the rarest values if there are too many."""
        here, counts = np.unique(values[values != NULL_FINGERPRINT], return_counts=True)
        merged, place = np.unique(np.concatenate([self._values, here]), return_inverse=True)
        total = np.zeros(len(merged), dtype=np.int64)
        np.add.at(total, place, np.concatenate([self._counts, counts]))
        self._values, self._counts = merged, total
        if len(merged) > 2 * self.max_values:
            self._keep_most_frequent()

    def finish(self) -> None:
        """Drops the rare values and turns the counts of the others into buckets."""
        often = self._counts >= self.min_count
        self._values, self._counts = self._values[often], self._counts[often]
        self._keep_most_frequent()
        most = int(self._counts.max()) if len(self._counts) else self.min_count
        steps = len(self.ids) - 1
        edges = self.min_count * (most / self.min_count) ** (np.arange(1, steps) / steps)
        self._kept = self._values
        self._buckets = (1 + np.searchsorted(edges, self._counts, side="right")).astype(np.uint8)
        self._values, self._counts = _NOTHING, _NOTHING

    def state(self) -> dict[str, Any] | None:
        """{"values": how many are kept, "table": SHA-256 of `table`}."""
        if not self.fitted:
            return None
        digest = hashlib.sha256(self._known().tobytes() + self._buckets.tobytes()).hexdigest()
        return {"values": len(self._known()), "table": digest}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes nothing: all there is stands in the table, and the state tells whether it is the right one."""

    def table(self) -> pl.DataFrame | None:
        """Fingerprints in rising order (Int64) and their buckets (UInt8)."""
        return pl.DataFrame({"value": self._known(), "bucket": self._buckets}) if self.fitted else None

    def restore_table(self, table: pl.DataFrame) -> None:
        """Takes what `table` returned."""
        if dict(table.schema) != {"value": pl.Int64, "bucket": pl.UInt8}:
            raise ValueError("a table of frequencies has other columns")
        self._kept, self._buckets = table["value"].to_numpy(), table["bucket"].to_numpy()

    def _known(self) -> np.ndarray:
        return _NOTHING if self._kept is None else self._kept

    def _keep_most_frequent(self) -> None:
        # Of equal counts the smaller fingerprint stays: the same rows give the same state.
        order = np.argsort(-self._counts, kind="stable")[: self.max_values]
        order.sort()
        self._values, self._counts = self._values[order], self._counts[order]

    def _lookup(self, codes: pl.Series) -> pl.Series:
        kept, wanted = self._known(), codes.to_numpy()
        found = np.zeros(len(wanted), dtype=np.uint8)
        if len(kept):
            place = np.minimum(np.searchsorted(kept, wanted), len(kept) - 1)
            found = np.where(kept[place] == wanted, self._buckets[place], 0)
        return pl.Series(codes.name, np.where(wanted == NULL_FINGERPRINT, NULL_FINGERPRINT, self.ids[found]))
