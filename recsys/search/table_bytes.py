"""The bytes of a table under any allocation, as the plan of each would tell them, without making it."""

from __future__ import annotations

import math

import numpy as np

from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.addressing import WAYS
from recsys.embeddings.config import ChunksConfig
from recsys.embeddings.formats import FormatName, RowFormat
from recsys.embeddings.plan import HOT_KEY_BYTES, SPLITS, IdCounts, exact_index


class TableBytes:
    """Bytes by allocation.

    Which features have chunks decides how many rows there are to hash into, whose ids are hot and how long the keys of
    exact values are; exact values and hot ids then have as many rows as their feature has chunks.

    Args:
        layout: the features.
        embedding: the table; its chunks and its format are not minded.
        id_counts: distinct training fingerprints of every feature.
    """

    def __init__(self, layout: Layout, embedding: EmbeddingConfig, id_counts: IdCounts) -> None:
        plan = plan_embedding(layout, embedding.model_copy(update={"chunks": ChunksConfig()}), id_counts)
        names = [f.name for f in plan.features]
        self._embedding = embedding
        self._exact = np.array([f.region == "exact" for f in plan.features])
        self._values = np.array([f.values for f in plan.features])
        self._key_bytes = np.array(
            [
                exact_index({f.name: id_counts[f.name][0]}, plan.hash_seed).itemsize if exact and f.values else 0
                for f, exact in zip(plan.features, self._exact, strict=True)
            ]
        )
        named = np.array([name in embedding.hot.features for name in names])
        self._named_slots = np.where(named, [f.hot_slots for f in plan.features], 0)
        self._by_frequency = np.empty(0, np.int64)
        """The features of all ids that `hot.slots` are for, the most frequent id first."""
        if embedding.hot.slots:
            among = [i for i in np.argsort(names) if not named[i] and not self._exact[i] and self._values[i]]
            owner = np.repeat(np.array(among, np.int64), self._values[among])
            nothing = np.empty(0, np.int64)
            ids, seen = (np.concatenate([nothing, *(id_counts[names[i]][part] for i in among)]) for part in (0, 1))
            self._by_frequency = owner[np.lexsort((ids, -seen))]
        self._known: dict[bytes, tuple[int, np.ndarray, int]] = {}

    def __call__(self, chunks: np.ndarray, format: FormatName) -> int:
        """Of chunk counts [F] in plan order, with rows in a format."""
        used = chunks > 0
        if used.tobytes() not in self._known:
            self._known[used.tobytes()] = self._parts(used)
        hashed, own, index_bytes = self._known[used.tobytes()]
        return (hashed + int(chunks @ own)) * RowFormat(format, self._embedding.width).row_bytes + index_bytes

    def _parts(self, used: np.ndarray) -> tuple[int, np.ndarray, int]:
        """Of the features with chunks [F] bool: hashed rows, rows for every chunk [F], bytes of the indices."""
        values = np.where(self._exact & used, self._values, 0)
        slots = self._slots(used)
        key_bytes = int(self._key_bytes[used].max(initial=0))
        return self._hashed(used), values + slots, key_bytes * int(values.sum()) + HOT_KEY_BYTES * int(slots.sum())

    def _slots(self, used: np.ndarray) -> np.ndarray:
        """The hot slots of every feature [F]."""
        head = self._by_frequency[used[self._by_frequency]][: self._embedding.hot.slots]
        divided = np.bincount(head, minlength=len(used))
        return np.where(used, self._named_slots, 0) + -(-divided // WAYS) * WAYS

    def _hashed(self, used: np.ndarray) -> int:
        """The rows that ids hash into: of kinds other than multiplexed, one for the unseen values of an exact field."""
        rows = self._embedding.rows
        if self._embedding.kind == "multiplexed":
            return rows if used.any() else 0
        power = SPLITS[self._embedding.split]
        weights = [max(int(values), 1) ** power for values in self._values[used & ~self._exact]]
        total = math.fsum(weights)
        return int((used & self._exact).sum()) + sum(max(int(rows * weight / total), 1) for weight in weights)
