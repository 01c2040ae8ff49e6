"""Rows of a trained table carried into a table of another plan: which old rows each new row is made of.

A training value is looked up in both tables: the row it reads now is made of the row it read before.  Where several
old rows meet in one, they are averaged by their traffic; a row that no training value reads is the average of the
old rows with which it shares hash space.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from recsys.embeddings.addressing import NO_OWNER
from recsys.embeddings.hot import most_frequent
from recsys.embeddings.multiplexed import MultiplexedEmbedding
from recsys.embeddings.plan import IdCounts
from recsys.embeddings.table import Table

BLOCK = 1 << 20
"""New rows made at a time; a block holds, beside the two tables, the old rows that they are made of."""


@dataclass(frozen=True)
class Sources:
    """The old rows that new rows are made of: P pairs."""

    new: Tensor
    """[P] int64."""
    old: Tensor
    """[P] int64."""
    weight: Tensor
    """[P] float32; those of one new row sum to 1, and a single one is exactly 1."""


@dataclass(frozen=True)
class Carried:
    """What became of the rows that a feature's training values read; the shares sum to 1."""

    lookups: float
    """Rows read in one pass over the training data."""
    kept: float
    """Share of them that hold what the value's row held before."""
    merged: float
    """Share of them that are an average in which the value's old row has a part."""
    anew: float
    """Share of them that the value did not have before: drawn anew, or left there by other values."""


class RowMap:
    """For every row of a new table the rows of the old one that it is made of.

    A row to which no old row leads has no sources: those that new features, reset features and new chunks have to
    themselves.

    Args:
        old: the trained embedding.
        new: the embedding to be filled.
        id_counts: distinct training fingerprints of the new one's features, and how often each was seen.
        reset: features whose old rows do not count.

    Attributes:
        carried: what became of the rows of each feature with chunks.
    """

    def __init__(
        self, old: MultiplexedEmbedding, new: MultiplexedEmbedding, id_counts: IdCounts, reset: Collection[str] = ()
    ) -> None:
        before = {f.name: f for f in old.plan.features if f.chunks and f.name not in reset}
        both = [(before[f.name], f) for f in new.plan.features if f.chunks and f.name in before]
        self._kept = old.kept
        # fields that pruning left to read zeros have nothing to give to what they share with others now
        hashing = [(was, now) for was, now in both if not (old.plan.pruned and was.base == old.plan.hashed)]
        self._segments = sorted({(was.base, was.span, now.base, now.span) for was, now in hashing})
        pairs, traffic = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.float64)]
        for was, now in both:
            values, counts = (torch.from_numpy(array) for array in id_counts[now.name])
            chunks = min(was.chunks, now.chunks)
            old_row, new_row = (m.rows_of(now.name, values)[:, :chunks].to(torch.int64) for m in (old, new))
            pairs.append((new_row * old.plan.rows + old_row).flatten())
            traffic.append(counts.double().repeat_interleave(chunks))
        pair, place = torch.unique(torch.cat(pairs), return_inverse=True)
        seen = torch.zeros(len(pair), dtype=torch.float64).index_add_(0, place, torch.cat(traffic))
        old_rows = max(old.plan.rows, 1)
        self._read = _weighted(pair // old_rows, pair % old_rows, seen)
        single = (self._read.weight == 1)[place].split([len(part) for part in pairs])
        self.carried = {
            f.name: Carried(float(id_counts[f.name][1].sum()) * f.chunks, 0.0, 0.0, 1.0)
            for f in new.plan.features
            if f.chunks
        }
        for (was, now), lookups, kept in zip(both, traffic[1:], single[1:], strict=True):
            same = min(was.chunks, now.chunks) / now.chunks
            share = same * float(lookups[kept].sum() / lookups.sum()) if len(lookups) else same
            self.carried[now.name] = replace(self.carried[now.name], kept=share, merged=same - share, anew=1 - same)

    def sources(self, start: int, stop: int) -> Sources:
        """The pairs of the new rows from `start` up to `stop` (not included)."""
        first, last = torch.searchsorted(self._read.new, torch.tensor([start, stop])).tolist()
        new, old, weight = (part[first:last] for part in (self._read.new, self._read.old, self._read.weight))
        unread = torch.ones(stop - start, dtype=torch.bool)
        unread[new - start] = False
        rows = unread.nonzero().flatten() + start
        parts = [(new, old, weight.double())]
        for segment in self._segments:
            unseen, hashed, shared = overlaps(rows, *segment)
            parts.append((unseen, hashed if self._kept is None else self._kept(hashed), shared))
        return _weighted(*(torch.cat(column) for column in zip(*parts, strict=True)))


def keep_owners(
    old: MultiplexedEmbedding, new: MultiplexedEmbedding, id_counts: IdCounts, reset: Collection[str] = ()
) -> None:
    """Lets the ids that own hot rows of the old table own some of the new one, as far as the data still has them.

    If there are fewer slots than owners the most frequent stay.  If there are more, the others begin as the plan has
    it: with the most frequent of the other ids, or empty.

    Args:
        old: the trained embedding.
        new: the embedding to be filled, before its rows are.
        id_counts: distinct training fingerprints of the new one's features, and how often each was seen.
        reset: features whose old owners do not count.
    """
    before = {f.name: f for f in old.plan.features if f.hot_slots and f.name not in reset}
    keys, shares = new.plan.hot_keys.copy(), new.plan.hot_shares.copy()
    for f in (f for f in new.plan.features if f.hot_slots and f.name in before):
        was, (values, counts) = before[f.name], id_counts[f.name]
        row = old.rows_of(f.name, torch.from_numpy(values))[:, 0].numpy()
        owned = (row >= was.hot_base) & (row < was.hot_base + was.hot_slots * was.chunks)
        own = slice(f.hot_start, f.hot_start + f.hot_slots)
        candidates = owned if (keys[own] == NO_OWNER).all() else np.ones(len(values), bool)
        if owned.any():
            given = values[candidates], counts[candidates]
            keys[own], share = most_frequent(f.name, f.hot_slots, *given, new.plan.hash_seed, owned[candidates])
            shares[own] = share * (counts[candidates].sum() / counts.sum())
    new.set_owners(keys, shares)


@torch.no_grad()
def carry_rows(row_map: RowMap, old: Table, new: Table) -> tuple[int, int]:
    """Fills the new table's rows from the old one's; rows without sources stay as they are.

    Returns:
        The number of rows made of one old row, and of several.
    """
    single = several = 0
    for start in range(0, new.rows, BLOCK):
        size = min(BLOCK, new.rows - start)
        sources = row_map.sources(start, start + size)
        place = sources.new - start
        values = torch.zeros(size, new.width)
        values.index_add_(0, place, old.values(sources.old) * sources.weight.unsqueeze(1))
        number = torch.bincount(place, minlength=size)
        filled = number.nonzero().flatten()
        new.assign(filled + start, values[filled])
        if old.format.same_as(new.format) and not old.optimizer.master and not new.optimizer.master:
            # not by way of values, which would round the row once more
            alone = number[place] == 1
            new.stored()[sources.new[alone]] = old.stored()[sources.old[alone]]
        single += int((number == 1).sum())
        several += int((number > 1).sum())
    return single, several


def overlaps(rows: Tensor, old_base: int, old_span: int, new_base: int, new_span: int) -> tuple[Tensor, Tensor, Tensor]:
    """The old rows that share hash space with new ones, under the range reduction of the `Addresser`.

    Row r of a segment of `span` rows has the hashes whose upper half h satisfies `h * span >> 32 == r`: those from
    `ceil(r * 2**32 / span)` up to that of the next row.

    Args:
        rows: [N] int64 rows of the new table; those outside of its segment are left out.
        old_base, old_span: first row and length of the segment in the old table.
        new_base, new_span: the same in the new table.

    Returns:
        New rows and old rows [P] int64, and how many of the 2**32 values of h each pair shares [P] float64.

    >>> [t.tolist() for t in overlaps(torch.arange(3), 0, 2, 0, 3)]
    [[0, 1, 1, 2], [0, 0, 1, 1], [1431655766.0, 715827882.0, 715827883.0, 1431655765.0]]
    """
    place = rows - new_base
    place = place[(place >= 0) & (place < new_span)]
    begin, end = _first_hash(place, new_span), _first_hash(place + 1, new_span)
    lowest = (begin * old_span) >> 32
    number = (((end - 1) * old_span) >> 32) - lowest + 1
    new, begin, end = (part.repeat_interleave(number) for part in (place, begin, end))
    before = (number.cumsum(0) - number).repeat_interleave(number)
    old = lowest.repeat_interleave(number) + torch.arange(len(new)) - before
    shared = torch.minimum(end, _first_hash(old + 1, old_span)) - torch.maximum(begin, _first_hash(old, old_span))
    return new + new_base, old + old_base, shared.double()


def _first_hash(row: Tensor, span: int) -> Tensor:
    return -(-(row << 32) // span)


def _weighted(new: Tensor, old: Tensor, amount: Tensor) -> Sources:
    """Pairs with their amounts [P] float64 as shares of all that their new row has."""
    _, place = torch.unique(new, return_inverse=True)
    total = torch.zeros(int(place.max()) + 1 if len(place) else 0, dtype=torch.float64).index_add_(0, place, amount)
    return Sources(new, old, (amount / total[place]).float())
