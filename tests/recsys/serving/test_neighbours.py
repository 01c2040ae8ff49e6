"""What FAISS finds is what comparing with every vector finds, in a fixed order."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from features.errors import ConfigError
from recsys.serving.neighbours import INDICES, SIMILARITIES, Neighbours, Similarity


def clustered(rows: int, width: int = 16, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(50, width))
    return (centres[rng.integers(0, 50, rows)] + 0.5 * rng.normal(size=(rows, width))).astype(np.float32)


def brute_force(vectors: np.ndarray, queries: np.ndarray, similarity: Similarity) -> np.ndarray:
    """[q, n] similarities in double precision."""
    a, b = queries.astype(np.float64), vectors.astype(np.float64)
    if similarity == "cosine":
        a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300) for x in (a, b))
    return np.asarray(a @ b.T)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("width", [1, 3, 40])
def test_exact_search_is_brute_force(similarity: Similarity, width: int) -> None:
    vectors, queries = clustered(500, width), clustered(20, width, seed=1)
    similarities, rows = Neighbours(vectors, similarity=similarity).of(queries, 7)
    every = brute_force(vectors, queries, similarity)
    np.testing.assert_allclose(similarities, -np.sort(-every, axis=1)[:, :7], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(every, rows, 1), similarities, rtol=1e-4, atol=1e-5)
    assert all(len(set(row)) == 7 for row in rows.tolist())


def test_a_row_is_not_its_own_neighbour_though_others_equal_it() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    similarities, rows = Neighbours(vectors).of_rows(np.array([5, 0, 11]), 3)
    assert np.sort(rows).tolist() == [[4, 6, 7], [1, 2, 3], [8, 9, 10]]
    assert (similarities == 1).all()


def test_a_row_of_many_equals_has_as_many_neighbours_as_were_asked_for() -> None:
    similarities, rows = Neighbours(np.ones((100, 4), np.float32)).of_rows(np.arange(100), 5)
    assert rows.shape == similarities.shape == (100, 5)
    assert not (rows == np.arange(100)[:, None]).any()


def test_equals_come_in_the_order_of_their_rows_and_zeros_have_no_direction() -> None:
    vectors = np.array([[0, 0], [2, 0], [1, 0], [-1, 0]], np.float32)
    similarities, rows = Neighbours(vectors).of(vectors[1:2], 4)
    assert rows.tolist() == [[1, 2, 0, 3]]
    assert similarities.tolist() == [[1, 1, 0, -1]]
    assert Neighbours(vectors, similarity="dot").of(vectors[1:2], 2)[1].tolist() == [[1, 2]]


def test_fewer_vectors_than_asked_for() -> None:
    assert Neighbours(np.eye(3, dtype=np.float32)).of_rows(np.array([0]), 10)[1].tolist() == [[1, 2]]


def test_an_inverted_file_finds_most_and_the_same_every_time() -> None:
    vectors, queries = clustered(4000), np.arange(0, 4000, 20)
    _, truth = Neighbours(vectors).of_rows(queries, 10)
    first, second = (Neighbours(vectors, index="ivf").of_rows(queries, 10) for _ in range(2))
    assert (first[1] == second[1]).all()
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth.tolist(), first[1].tolist(), strict=True)])
    assert recall > 0.95


@pytest.mark.parametrize("index", INDICES)
def test_no_vectors(index: str) -> None:
    with pytest.raises(ConfigError, match="there are no vectors"):
        Neighbours(np.empty((0, 4), np.float32), index=index)  # type: ignore[arg-type]


def test_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"FAISS is not installed.*recsys-embeddings\[neighbours\]"):
        Neighbours(np.eye(2, dtype=np.float32))
