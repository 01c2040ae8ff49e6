"""NDCG@k, recall@k and the reciprocal rank of each request, in one sort over all requests.

Rows of equal score have no order among them: each figure is its mean over all their orders, as scikit-learn's
`ndcg_score` has it, so that no figure depends on the order of the rows.  Requests without a relevant row have no value;
they are left out and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.errors import DataError, UndefinedMetricError
from recsys.evaluation.auc import group_codes
from recsys.evaluation.intervals import LEVEL, Interval, mean_interval
from recsys.evaluation.rows import columns, first_task, require


@dataclass(frozen=True)
class RequestMetrics:
    """Figures of each of R requests that have a relevant row, in the order of their first appearance."""

    k: int
    ndcg: np.ndarray
    """[R] at k."""
    recall: np.ndarray
    """[R] at k."""
    reciprocal_rank: np.ndarray
    """[R] of the first relevant row, however far down."""
    without_relevant: int
    """Requests that are left out."""

    def means(self) -> dict[str, float | int]:
        """The mean of each figure over requests, and how many requests there are.

        Raises:
            UndefinedMetricError: No request has a relevant row.
        """
        self._require_requests()
        means = {name: float(values.mean()) for name, values in self._figures().items()}
        return {**means, "requests": len(self.ndcg), "requests_without_relevant": self.without_relevant}

    def intervals(self, level: float = LEVEL) -> dict[str, Interval]:
        """The mean of each figure with its interval, requests taken for independent.

        Raises:
            UndefinedMetricError: Fewer than two requests have a relevant row.
        """
        self._require_requests()
        return {name: mean_interval(values, level=level) for name, values in self._figures().items()}

    def _figures(self) -> dict[str, np.ndarray]:
        return {f"ndcg@{self.k}": self.ndcg, f"recall@{self.k}": self.recall, "mrr": self.reciprocal_rank}

    def _require_requests(self) -> None:
        if len(self.ndcg) == 0:
            raise UndefinedMetricError(f"none of {self.without_relevant} requests has a relevant row")


def rank_requests(labels: np.ndarray, scores: np.ndarray, request: np.ndarray, k: int = 10) -> RequestMetrics:
    """How well each request is ordered.

    With g_i the label of the row at place i from 1, `DCG@k = sum over i <= k of g_i / log2(i + 1)`, and NDCG@k is that
    over the DCG@k of the best order (Jarvelin and Kekalainen 2002, gains linear).  Recall@k is the share of the
    request's relevant rows, those of label above 0, that are among the first k.  The reciprocal rank is 1 over the
    place of the first relevant row; its mean over requests is the MRR.

    Args:
        labels: [N] relevance from 0, such as clicks.
        scores: [N], any scale.
        request: [N] keys.
        k: how many places are looked at.

    Raises:
        DataError: A label is negative or not finite, a score is not finite, a key is missing, or k is below 1.

    >>> clicks, scores = np.array([0, 1, 1, 0, 0]), np.array([0.9, 0.8, 0.1, 0.2, 0.3])
    >>> found = rank_requests(clicks, scores, np.array(list("aaabb")), k=2)
    >>> {name: round(value, 3) for name, value in found.means().items()}
    {'ndcg@2': 0.387, 'recall@2': 0.5, 'mrr': 0.5, 'requests': 1, 'requests_without_relevant': 1}
    """
    if k < 1:
        raise DataError("k is below 1", field="k", found=k, expected="1 or more")
    gains = first_task(labels).astype(np.float64)
    good = np.isfinite(gains) & (gains >= 0)
    require(good, gains, "labels are negative or not finite", "labels", "numbers from 0", "leave these rows out")
    _, s, _ = columns(np.zeros(len(gains)), scores)
    codes, requests = group_codes(request)
    if len(codes) != len(gains):
        raise DataError("not one key a row", field="request", found=f"{len(codes)} keys for {len(gains)} rows")
    if len(gains) == 0:
        return RequestMetrics(k, np.empty(0), np.empty(0), np.empty(0), 0)

    order = np.lexsort((-s, codes))
    g, ordered = codes[order], s[order]
    gains = gains[order]
    begins = np.searchsorted(g, np.arange(requests))
    new_request = np.zeros(len(g), dtype=bool)
    new_request[begins] = True
    tie = np.flatnonzero(new_request | np.r_[True, ordered[1:] != ordered[:-1]])
    owner = g[tie]
    start = tie - begins[owner]
    size = np.diff(np.r_[tie, len(g)])
    relevant = np.add.reduceat((gains > 0).astype(np.int64), tie)
    among_first = (np.minimum(start + size, k) - np.minimum(start, k)) / size

    total = np.bincount(owner, relevant, requests)
    kept = total > 0
    recall = np.bincount(owner, relevant * among_first, requests)[kept] / total[kept]
    lengths = np.diff(np.r_[begins, len(g)])
    discounts = np.r_[0.0, np.cumsum(1 / np.log2(np.arange(2, lengths.max() + 2)))]
    discounts[k + 1 :] = discounts[min(k, len(discounts) - 1)]
    per_place = (discounts[start + size] - discounts[start]) / size
    gained = np.bincount(owner, np.add.reduceat(gains, tie) * per_place, requests)[kept]
    best_gains = gains[np.lexsort((-gains, g))]
    place = np.arange(len(g)) - begins[g]
    best = np.bincount(g, best_gains * (discounts[place + 1] - discounts[place]), requests)[kept]

    hits = np.flatnonzero(relevant > 0)
    first = hits[np.r_[True, owner[hits][1:] != owner[hits][:-1]]] if len(hits) else hits
    ranks = _reciprocal_rank(start[first], size[first], relevant[first])
    return RequestMetrics(k, gained / best, recall, ranks, int((~kept).sum()))


def _reciprocal_rank(start: np.ndarray, size: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Mean of 1 / place of the first relevant row, over all orders of the `size` rows that begin after `start` others.

    Row j of them, from 0, is the first relevant one if it is relevant and the j before are not:
    `relevant / (size - j)` times the product of `(size - relevant - i) / (size - i)` over i below j.
    """
    mean = np.zeros(len(start))
    none_before = np.ones(len(start))
    active = np.arange(len(start))
    step = 0
    while len(active):
        left = size[active] - step
        mean[active] += none_before[active] * relevant[active] / left / (start[active] + step + 1)
        none_before[active] *= (left - relevant[active]) / left
        active = active[left > relevant[active]]
        step += 1
    return mean
