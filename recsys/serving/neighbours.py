"""Nearest neighbours among vectors, by inner product or cosine, through FAISS (Douze et al. 2024)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from features.errors import ConfigError

Similarity = Literal["cosine", "dot"]
IndexKind = Literal["exact", "ivf"]

SIMILARITIES: tuple[Similarity, ...] = ("cosine", "dot")
INDICES: tuple[IndexKind, ...] = ("exact", "ivf")
CELLS_VISITED = 1 / 8
"""Share of the cells that a query of the inverted file looks into."""
_TRAINING_A_CELL = 64
"""Vectors a cell that its centre is learned from, at most."""
_CELLS = 4
"""An inverted file of n vectors has so many times sqrt(n) cells."""


class Neighbours:
    """Finds the vectors most similar to others.

    `exact` compares with every vector.  `ivf`, an inverted file, parts them into `4 sqrt(n)` cells by k-means and looks
    into the eighth of the cells whose centres are most similar to the query: for many queries to a million vectors and
    more, at the price of missing some.  Both give the same answer every time.

    Args:
        vectors: [n, d] fp32, one at least.
        similarity: cosine (of a vector of zeros it is 0), or dot for inner products.
        index: exact or ivf.

    Raises:
        ConfigError: FAISS is not installed, or there are no vectors.

    >>> found = Neighbours(np.array([[1, 0], [3, 4], [0, 2]], np.float32))
    >>> similarities, rows = found.of(np.array([[0, 1]], np.float32), 2)
    >>> rows.tolist(), similarities.round(2).tolist()
    ([[2, 1]], [[1.0, 0.800000011920929]])
    """

    def __init__(self, vectors: np.ndarray, *, similarity: Similarity = "cosine", index: IndexKind = "exact") -> None:
        faiss = _faiss()
        if not len(vectors):
            raise ConfigError("there are no vectors to search among", mend="give data that holds some values")
        self._similarity = similarity
        self._vectors = self._prepared(vectors)
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        if index == "ivf":
            cells = min(int(_CELLS * len(vectors) ** 0.5), len(vectors))
            self._index = faiss.IndexIVFFlat(self._index, vectors.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
            self._index.nprobe = max(round(cells * CELLS_VISITED), 1)
            self._index.cp.max_points_per_centroid = _TRAINING_A_CELL
            self._index.cp.min_points_per_centroid = 1
            self._index.train(self._vectors)
        self._index.add(self._vectors)

    def of(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar vectors of each query.

        Args:
            queries: [q, d] fp32.
            k: at least 1.

        Returns:
            [q, k] fp32 similarities, the highest first, and [q, k] int64 rows of the vectors; of equals the earlier row
            comes first. Where there are fewer than k, or `ivf` found fewer, the rest is -inf and -1.
        """
        return _ordered(*self._index.search(self._prepared(queries), min(k, len(self._vectors))))

    def of_rows(self, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar vectors of each of these rows [q] of the vectors, leaving out the row itself; see `of`."""
        similarities, found = self.of(self._vectors[rows], k + 1)
        # of many equals the row itself may be missing: then the last one goes
        self_or_last = found == rows[:, None]
        self_or_last[~self_or_last.any(1), -1] = True
        shape = len(rows), found.shape[1] - 1
        return similarities[~self_or_last].reshape(shape), found[~self_or_last].reshape(shape)

    def _prepared(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if self._similarity == "dot":
            return vectors
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(norms > 0, norms, 1)


def _ordered(similarities: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    similarities = np.where(rows < 0, -np.inf, similarities).astype(np.float32)
    order = np.lexsort((rows, -similarities), axis=1)
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(rows, order, 1)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            "FAISS is not installed",
            field="neighbours",
            mend="pip install 'recsys-embeddings[neighbours]'",
        ) from None
    return faiss
