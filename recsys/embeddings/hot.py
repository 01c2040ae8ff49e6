"""The hot region: which ids of a giant field own rows, decided while training by what they do to the loss.

An id's score is the decayed sum of its share of the feature's gradient norm, step by step: frequency times gradient
norm, as in CAFE (Zhang et al. 2024) and AdaEmbed (Lai et al. 2023).  Owners have exact scores; all other ids share a
count-min sketch with conservative update (Estan and Varghese 2002), so memory is bounded however many ids there are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recsys.embeddings.addressing import (
    NO_OWNER,
    WAYS,
    find_hot,
    hashed_rows,
    hot_buckets,
    hot_key,
    hot_slot,
    mix64,
    range_reduce,
    salt,
)
from recsys.memory import MemoryPart

if TYPE_CHECKING:
    from recsys.embeddings.plan import EmbeddingPlan, FeaturePlan

MARGIN = 1.2
"""A newcomer must beat the weakest owner's score by this factor: without it, equals would take turns, and every turn
throws away a trained row."""
SKETCH_ROWS = 4
"""Counters an id is counted in; its estimate is the least of them."""
SKETCH_COUNTERS = 8
"""Counters of the sketch for every slot; with 4, ids that collide get in in place of the head."""
_SLOT_BYTES = 12 + 8 + 4 * SKETCH_COUNTERS
"""Of a slot: its key and share in the plan and its key in the module; score and age; its part of the sketch."""
_RENORMALISE = 2.0**32


def hot_memory(slots: int) -> MemoryPart:
    """What the index and the training state of so many slots take; their rows are the table's.

    >>> hot_memory(1000).bytes
    52000
    """
    return MemoryPart("hot region", slots * _SLOT_BYTES, "embedding.hot", "fewer slots")


class HotRegion:
    """Scores, admission, eviction and expiry of the hot slots of all features.

    A missed id may own any slot of two buckets.  It takes the one with the weakest owner, if its own score exceeds
    that owner's by `MARGIN`; the owner's score goes to the sketch.  In one step a slot changes hands once at most: the
    best candidate wins and the others wait for their next sight.

    Decay is forward (Cormode et al. 2009): instead of shrinking every score in every step, later evidence weighs more.

    Args:
        plan: features with hot slots, their first owners, half-life and expiry.
    """

    def __init__(self, plan: EmbeddingPlan) -> None:
        self.features = [f for f in plan.features if f.hot_slots]
        self._hash_seed = plan.hash_seed
        self._growth = 2 ** (1 / plan.hot_half_life)
        self._expire = plan.hot_expire
        # what an id of this share of the feature's values has gathered when training has gone on for ever
        self.scores = torch.from_numpy(plan.hot_shares) / (1 - 1 / self._growth)
        self.seen = torch.zeros(plan.hot_slots, dtype=torch.int32)
        self.sketch = torch.zeros(plan.hot_slots * SKETCH_COUNTERS)
        self.unit = torch.ones((), dtype=torch.float64)
        self.steps = torch.zeros((), dtype=torch.int32)

    def state(self) -> dict[str, Tensor]:
        """The live state tensors by name: everything but the index."""
        return {
            "scores": self.scores,
            "seen": self.seen,
            "sketch": self.sketch,
            "unit": self.unit,
            "steps": self.steps,
        }

    @torch.no_grad()
    def step(self, keys: Tensor, evidence: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Takes in one training step and lets ids that earned a slot take it over.

        Args:
            keys: [S] int32, the hot index; changed in place.
            evidence: of each feature with hot slots, in plan order: the values looked up [n] int64, and the norm of
                the gradient each received [n].

        Returns:
            Rows to copy: [m] int64 those that the new owners shared until now, and [m] int64 those they own from now.
        """
        self.steps += 1
        moves = [self._contest(keys, f, *given) for f, given in zip(self.features, evidence, strict=True)]
        if self._expire and int(self.steps) % max(self._expire // 8, 1) == 0:
            dead = self.seen < self.steps - self._expire
            keys.masked_fill_(dead, NO_OWNER)
            self.scores.masked_fill_(dead, 0)
        self.unit *= self._growth
        if self.unit > _RENORMALISE:
            unit = self.unit.to(torch.float32)
            self.scores /= unit
            self.sketch /= unit
            self.unit.fill_(1)
        return torch.cat([source for source, _ in moves]), torch.cat([target for _, target in moves])

    def _contest(self, keys: Tensor, f: FeaturePlan, values: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        total = float(norms.sum())
        if not 0 < total < math.inf:  # nothing looked up, or gradients that say nothing
            return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        ids, inverse = torch.unique(values, return_inverse=True)
        share = torch.zeros(len(ids)).index_add_(0, inverse, norms * (float(self.unit) / total))
        hashes = mix64(ids ^ salt(f.name, 0, self._hash_seed))
        key, buckets = hot_key(hashes), hot_buckets(hashes, f.hot_start // WAYS, f.hot_slots // WAYS)
        slot, owned = find_hot(keys, buckets, key)
        self.scores.index_add_(0, slot[owned], share[owned])
        self.seen.index_fill_(0, slot[owned], int(self.steps))

        missed = ~owned
        ids, key, buckets = ids[missed], key[missed], buckets[missed]
        counters = self._counters(f, key)
        score = self.sketch[counters].amin(1) + share[missed]
        self._raise(counters, score)
        winner, lost = contest(self.scores, buckets, score, MARGIN)
        evicted = lost[keys[lost] != NO_OWNER]
        self._raise(self._counters(f, keys[evicted]), self.scores[evicted])
        keys[lost] = key[winner]
        self.scores[lost] = score[winner]
        self.seen.index_fill_(0, lost, int(self.steps))
        source = hashed_rows(f.name, ids[winner], f.chunks, f.base, f.span, self._hash_seed)
        target = f.hot_base + (lost - f.hot_start).unsqueeze(1) * f.chunks + torch.arange(f.chunks)
        return source.flatten(), target.flatten()

    def _counters(self, f: FeaturePlan, key: Tensor) -> Tensor:
        """[n] keys -> [n, SKETCH_ROWS] counters, one in each row of the feature's part of the sketch."""
        columns = f.hot_slots * SKETCH_COUNTERS // SKETCH_ROWS
        row = torch.arange(SKETCH_ROWS)
        place = range_reduce(mix64(key.to(torch.int64).unsqueeze(1) * SKETCH_ROWS + row), columns)
        return f.hot_start * SKETCH_COUNTERS + row * columns + place

    def _raise(self, counters: Tensor, score: Tensor) -> None:
        """Lifts the counters of ids to their scores; those that stand higher stay (conservative update)."""
        self.sketch.scatter_reduce_(0, counters.flatten(), score.repeat_interleave(SKETCH_ROWS), "amax")


def contest(scores: Tensor, buckets: Tensor, candidates: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Which candidates beat which owners.

    Args:
        scores: [S] of the owners; 0 where there is none.
        buckets: [n, 2] int64, where each candidate may lie.
        candidates: [n] their scores.
        margin: by what factor the weakest owner must be exceeded.

    Returns:
        [m] int64 positions of the winners, and [m] int64 the slots they take, ascending and distinct: of several
        candidates for one slot the one with the highest score, of equals the first.

    >>> scores = torch.tensor([5.0] * 7 + [1.0] + [0.0] * 8)
    >>> contest(scores, torch.tensor([[0, 0], [0, 0], [1, 0]]), torch.tensor([2.0, 3.0, 0.5]), margin=1.2)
    (tensor([1, 2]), tensor([7, 8]))
    """
    weakest, way = scores.view(-1, WAYS)[buckets].flatten(1).min(1)
    slot = hot_slot(buckets, way)
    able = (candidates > weakest * margin).nonzero().squeeze(1)
    best_first = able[candidates[able].argsort(descending=True, stable=True)]
    ordered, permutation = slot[best_first].sort(stable=True)
    first = torch.ones(len(ordered), dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return best_first[permutation[first]], ordered[first]


def most_frequent(
    feature: str,
    slots: int,
    fingerprints: np.ndarray,
    counts: np.ndarray,
    hash_seed: int = 0,
    ahead: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The hot index of a feature with its most frequent ids as owners.

    Args:
        feature: its name.
        slots: a multiple of `WAYS`.
        fingerprints: [n] int64, distinct.
        counts: [n] how often each was seen.
        hash_seed: that of the plan.
        ahead: [n] ids that come before all others, however frequent those are; none when left out.

    Returns:
        [slots] int32 keys, and [slots] float32 the share of all counts each took, 0 for an empty slot.
    """
    ahead = np.zeros(len(counts), bool) if ahead is None else ahead
    order = np.lexsort((fingerprints, -counts, ~ahead))[: 2 * slots]  # as many again stand by for buckets with room
    hashes = mix64(torch.from_numpy(fingerprints[order]) ^ salt(feature, 0, hash_seed))
    share = torch.from_numpy(counts[order] / counts.sum()).to(torch.float32)
    rank = share.double() + 2.0 * torch.from_numpy(ahead[order])
    key, buckets = hot_key(hashes), hot_buckets(hashes, 0, slots // WAYS)
    keys, shares = torch.full((slots,), NO_OWNER, dtype=torch.int32), torch.zeros(slots)
    ranks = torch.zeros(slots, dtype=torch.float64)
    while True:
        without = (~find_hot(keys, buckets, key)[1]).nonzero().squeeze(1)
        winner, slot = contest(ranks, buckets[without], rank[without], margin=1.0)
        if not len(winner):
            return keys.numpy(), shares.numpy()
        chosen = without[winner]
        keys[slot], shares[slot], ranks[slot] = key[chosen], share[chosen], rank[chosen]
