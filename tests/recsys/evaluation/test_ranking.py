"""Metrics of requests: against scikit-learn, against all orders of equal scores, and on requests without a click."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from features.errors import DataError, UndefinedMetricError
from recsys.evaluation.ranking import rank_requests


def by_all_orders(labels: list[int], scores: list[int], k: int) -> tuple[float, float, float]:
    """NDCG, recall and reciprocal rank of one request as means over all orders that the scores allow."""
    figures = []
    ideal = sum(g / np.log2(i + 2) for i, g in enumerate(sorted(labels, reverse=True)[:k]))
    for order in itertools.permutations(range(len(labels))):
        if any(scores[a] < scores[b] for a, b in itertools.pairwise(order)):
            continue
        row = [labels[i] for i in order]
        dcg = sum(g / np.log2(i + 2) for i, g in enumerate(row[:k]))
        recall = sum(g > 0 for g in row[:k]) / sum(g > 0 for g in row)
        figures.append((dcg / ideal, recall, 1 / (next(i for i, g in enumerate(row) if g > 0) + 1)))
    return tuple(np.mean(figures, axis=0))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6), st.integers(1, 7))
def test_equal_scores_give_the_mean_over_their_orders(rows: list[tuple[int, int]], k: int) -> None:
    labels, scores = [r[0] for r in rows], [r[1] for r in rows]
    found = rank_requests(np.array(labels), np.array(scores), np.zeros(len(rows)), k)
    if not any(labels):
        assert found.without_relevant == 1
        with pytest.raises(UndefinedMetricError, match="none of 1 requests has a relevant row"):
            found.means()
        return
    expected = by_all_orders(labels, scores, k)
    assert (found.ndcg[0], found.recall[0], found.reciprocal_rank[0]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 5, 100])
def test_requests_do_not_see_each_other(k: int) -> None:
    rng = np.random.default_rng(0)
    request, scores = rng.integers(0, 50, 1000), rng.integers(0, 9, 1000) / 9
    labels = rng.integers(0, 4, 1000) * (rng.random(1000) < 0.2) * (request != 7)
    found = rank_requests(labels, scores, request, k)
    expected = []
    for key in dict.fromkeys(request.tolist()):
        rows = request == key
        if labels[rows].any():
            expected.append(ndcg_score(labels[rows][None], scores[rows][None], k=k))
    np.testing.assert_allclose(found.ndcg, expected, atol=1e-12)
    assert found.without_relevant == 50 - len(expected) > 0
    shuffled = rng.permutation(1000)
    again = rank_requests(labels[shuffled], scores[shuffled], request[shuffled], k)
    assert again.means() == pytest.approx(found.means())


def test_interval_is_that_of_a_mean_over_requests() -> None:
    rng = np.random.default_rng(0)
    found = rank_requests(rng.random(900) < 0.3, rng.random(900), np.arange(900) // 3, 2)
    interval = found.intervals()["mrr"]
    ranks = found.reciprocal_rank
    assert interval.value == pytest.approx(ranks.mean())
    assert interval.error == pytest.approx(ranks.std(ddof=1) / np.sqrt(len(ranks)))


def test_bad_input_is_named() -> None:
    y, s, r = np.array([0, 1]), np.array([0.1, 0.2]), np.array([0, 0])
    with pytest.raises(DataError, match="k is below 1"):
        rank_requests(y, s, r, 0)
    with pytest.raises(DataError, match="labels are negative"):
        rank_requests(y - 1, s, r)
    with pytest.raises(DataError, match="scores are not finite"):
        rank_requests(y, s * np.nan, r)
    with pytest.raises(DataError, match="not one key a row"):
        rank_requests(y, s, r[:1])
    assert rank_requests(y[:0], s[:0], r[:0]).without_relevant == 0
