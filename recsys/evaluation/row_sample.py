"""A uniform sample of the rows of a stream of batches, drawn while somebody else reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from features.batch import Batch


class RowSample:
    """So many rows of a stream, or all if it has no more; in their order.

    Every row draws a number and the rows with the smallest are kept, so that the length of the stream need not be known
    and each set of rows is as likely as any other.  Memory holds at most twice the rows.

    Args:
        rows: how many to keep.
        seed: of the draws; they depend on it and on the places of rows alone, not on where batches end.

    Example:
        >>> batches = [Batch(ids=torch.arange(4)[:, None], bag_values=torch.empty(0, dtype=torch.int64),
        ...     bag_lengths=torch.empty(0, 4, dtype=torch.int64), dense=torch.empty(4, 0), vectors=torch.empty(4, 0))]
        >>> sample = RowSample(2, seed=0)
        >>> _ = list(sample.watch(batches))
        >>> sample.seen, sample.places.tolist(), sample.batch.ids.tolist()
        (4, [2, 3], [[2], [3]])
    """

    def __init__(self, rows: int, seed: int = 0) -> None:
        self._wanted = rows
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._bound = 1.0
        self._kept: list[tuple[np.ndarray, np.ndarray, Batch]] = []
        self.seen = 0
        """Rows that went by."""

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Hands the batches on, and keeps some of their rows."""
        for batch in batches:
            draws = self._generator.random(len(batch))
            chosen = np.flatnonzero(draws < self._bound)
            part = batch if len(chosen) == len(batch) else batch.rows(torch.from_numpy(chosen))
            self._kept.append((self.seen + chosen, draws[chosen], part))
            self.seen += len(batch)
            if sum(len(places) for places, _, _ in self._kept) > 2 * self._wanted:
                self._cut()
            yield batch

    @property
    def places(self) -> np.ndarray:
        """[n] int64: where the rows stand in the stream, ascending."""
        self._cut()
        return self._kept[0][0] if self._kept else np.empty(0, np.int64)

    @property
    def batch(self) -> Batch:
        """The rows.

        Raises:
            DataError: No batch went by.
        """
        self._cut()
        return Batch.cat([batch for _, _, batch in self._kept])

    def _cut(self) -> None:
        """Keeps the rows with the smallest draws, as one batch."""
        if not self._kept:
            return
        places, draws = (np.concatenate([part[i] for part in self._kept]) for i in (0, 1))
        batch = Batch.cat([part[2] for part in self._kept])
        if len(places) > self._wanted:
            self._bound = float(np.partition(draws, self._wanted)[self._wanted])
            chosen = np.flatnonzero(draws < self._bound)
            places, draws, batch = places[chosen], draws[chosen], batch.rows(torch.from_numpy(chosen))
        self._kept = [(places, draws, batch)]
