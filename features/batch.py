"""Batch: a number of encoded rows as torch tensors, the one thing that passes from data to model.

A tensor for which the spec has no feature has width 0 and is never None; labels and the like may be None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from features.errors import DataError


@dataclasses.dataclass
class Batch:
    """B encoded rows.

    The bags are feature-major. With G = 2 bags and B = 3 rows::

                    row 0   row 1   row 2
        bag 0       a b     -       c          bag_lengths = [[2, 0, 1],
        bag 1       d       e f     -                         [1, 2, 0]]
        bag_values = [a, b, c, d, e, f]

    Attributes:
        ids: [B, F] int64 fingerprints of the single-valued id features.
        bag_values: [N] int64 fingerprints of all bags.
        bag_lengths: [G, B] int64.
        dense: [B, N] float32 numbers.
        vectors: [B, V] float32, vectors side by side.
        labels: [B, T] float32 in {0, 1}, or None.
        weight: [B] float32, or None.
        group: [B] int64 fingerprint of the group key, or None.
        time: [B] int64 microseconds since 1970-01-01, or None.
        reference: [B] float32 probability, or None.
    """

    ids: torch.Tensor
    bag_values: torch.Tensor
    bag_lengths: torch.Tensor
    dense: torch.Tensor
    vectors: torch.Tensor
    labels: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    group: torch.Tensor | None = None
    time: torch.Tensor | None = None
    reference: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch with every tensor on `device`."""
        moved: dict[str, Any] = {name: None if value is None else value.to(device) for name, value in self._tensors()}
        return Batch(**moved)

    def rows(self, index: torch.Tensor | slice | Sequence[int]) -> Batch:
        """Returns the rows named by `index`, in its order.

        Args:
            index: int64 [K], a slice, a list of row numbers or a boolean mask [B].
        """
        if isinstance(index, slice):
            index = torch.arange(len(self))[index]
        index = torch.as_tensor(index, device=self.ids.device)
        index = index.nonzero().flatten() if index.dtype == torch.bool else index.long()
        index = torch.where(index < 0, index + len(self), index)
        bags, rows = self.bag_lengths.shape
        offsets = torch.zeros(bags * rows + 1, dtype=torch.int64, device=self.ids.device)
        torch.cumsum(self.bag_lengths.flatten(), 0, out=offsets[1:])
        flat = (torch.arange(bags, device=self.ids.device)[:, None] * rows + index[None, :]).flatten()
        values, lengths = gather_ragged(self.bag_values, offsets, flat)
        picked: dict[str, Any] = {
            name: None if value is None else value.index_select(0, index)
            for name, value in self._tensors()
            if name not in ("bag_values", "bag_lengths")
        }
        return Batch(bag_values=values, bag_lengths=lengths.reshape(bags, len(index)), **picked)

    @staticmethod
    def cat(batches: Sequence[Batch]) -> Batch:
        """Joins batches of one layout, row after row.

        Raises:
            DataError: There is no batch, or labels, weight, group, time or reference are in some only.
        """
        if not batches:
            raise DataError("there is no batch to join")
        if len(batches) == 1:
            return batches[0]
        joined: dict[str, Any] = {}
        for name, first in batches[0]._tensors():
            if name in ("bag_values", "bag_lengths"):
                continue
            values = [value for batch in batches if (value := getattr(batch, name)) is not None]
            if len(values) not in (0, len(batches)):
                raise DataError("is in some batches and not in others", field=name)
            joined[name] = None if first is None else torch.cat(values)
        # Feature-major: all rows of bag 0 of every batch come before bag 1.
        per_bag = [torch.split(batch.bag_values, batch.bag_lengths.sum(dim=1).tolist()) for batch in batches]
        values = [parts[bag] for bag in range(batches[0].bag_lengths.shape[0]) for parts in per_bag]
        joined["bag_values"] = torch.cat(values) if values else batches[0].bag_values
        joined["bag_lengths"] = torch.cat([batch.bag_lengths for batch in batches], dim=1)
        return Batch(**joined)

    def equal(self, other: Batch) -> bool:
        """Whether all tensors hold the same bits (floats are compared as they are; NaN never occurs)."""
        for name, value in self._tensors():
            there = getattr(other, name)
            if (value is None) != (there is None):
                return False
            if value is not None and (value.dtype != there.dtype or not torch.equal(value, there)):
                return False
        return True

    def _tensors(self) -> list[tuple[str, torch.Tensor | None]]:
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]


def gather_ragged(
    values: torch.Tensor, offsets: torch.Tensor, index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Picks lists out of a ragged array.

    Args:
        values: [N], all lists one after another.
        offsets: int64 [R + 1]; list r is values[offsets[r]:offsets[r + 1]].
        index: int64 [K], the lists to pick.

    Returns:
        Their values one after another, and their lengths [K].

    Example:
        >>> values, offsets = torch.tensor([5, 6, 7]), torch.tensor([0, 2, 2, 3])
        >>> gather_ragged(values, offsets, torch.tensor([2, 0]))
        (tensor([7, 5, 6]), tensor([1, 2]))
    """
    starts = offsets.index_select(0, index)
    lengths = offsets.index_select(0, index + 1) - starts
    ends = torch.cumsum(lengths, 0)
    total = int(ends[-1]) if len(ends) else 0
    shift = torch.repeat_interleave(starts - (ends - lengths), lengths, output_size=total)
    return values.index_select(0, shift + torch.arange(total, device=values.device)), lengths
