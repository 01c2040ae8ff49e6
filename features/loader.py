"""Loader: the rows of a split as batches, in file order or shuffled by a seed, resumable at any batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from features.batch import Batch
from features.columns import Columns
from features.errors import ArtifactError, ConfigError
from features.store import Store


class Loader:
    """Iterates over one epoch of a split.

    With a seed the order of an epoch is a function of seed and epoch alone: shards are visited in a random
    order and the rows within a shard are permuted, so that data of one shard is fully shuffled.

    With several ranks, each takes its block of every step, as even as can be: side by side the ranks' batches are
    the batch of a single process. In a step of fewer rows than ranks some batches are empty.

    Args:
        store: The data.
        split: train, valid or test.
        batch_size: Rows a step, over all ranks; the last one may have fewer.
        shuffle_seed: None for file order.
        rank: Which part of the rows this process takes.
        world_size: Number of processes.
        drop_last: Whether to leave out a last step that is not full.

    Raises:
        ConfigError: Sizes or ranks that make no sense, or no batch at all.

    Example:
        A run that stopped goes on where it was::

            loader.load_state_dict(state)   # {"epoch": 3, "batch": 120}
            for batch in loader:            # starts with batch 120 of epoch 3
                ...
    """

    def __init__(
        self,
        store: Store,
        split: str,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ConfigError("batch size is not positive", field="batch_size", found=batch_size, expected="1 or more")
        if not 0 <= rank < world_size:
            raise ConfigError("rank is out of range", field="rank", found=rank, expected=f"0 to {world_size - 1}")
        self.store, self.split, self.batch_size = store, split, batch_size
        self.shuffle_seed, self.rank, self.world_size = shuffle_seed, rank, world_size
        self.layout = store.layout
        self._shard_rows = store.shard_rows(split)
        self._rows = sum(self._shard_rows)
        self._steps = self._rows // batch_size if drop_last else -(-self._rows // batch_size)
        if not self._steps:
            raise ConfigError(
                f"the {split} split has too few rows for one batch",
                field="batch_size",
                found=f"{batch_size}, {self._rows} rows",
                mend="lower the batch size",
            )
        self._epoch = 0
        self._batch = 0
        self._ended = False
        self._shards: dict[int, Columns] = {}

    def __len__(self) -> int:
        """Batches an epoch, the same on every rank."""
        return self._steps

    @property
    def rows(self) -> int:
        """Rows of the split, over all ranks."""
        return self._rows

    def positions(self) -> torch.Tensor:
        """Returns where this rank's rows stand in the order of an epoch, batch after batch: int64, ascending."""
        return torch.cat([torch.arange(*self._bounds(step)) for step in range(len(self))])

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch."""
        self._epoch, self._batch, self._ended = epoch, 0, False

    def state_dict(self) -> dict[str, int]:
        """Returns the position: the batches of this epoch that have been handed out."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a position that `state_dict` returned.

        Raises:
            ArtifactError: There is no such position.
        """
        epoch, batch = int(state["epoch"]), int(state["batch"])
        if epoch < 0 or not 0 <= batch <= len(self):
            raise ArtifactError(
                "position is not in the data", field="loader", found=state, expected=f"batch 0 to {len(self)}"
            )
        self._epoch, self._batch, self._ended = epoch, batch, False

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches from the current position to the end of the epoch.

        After the last one the position is the end of the epoch; `set_epoch` starts the next. Iterating anew after
        that starts the same epoch again, but a position loaded from the end of an epoch yields nothing first.
        """
        if self._ended:
            self._batch, self._ended = 0, False
        order = _EpochOrder(self._shard_rows, self.shuffle_seed, self._epoch)
        while self._batch < len(self):
            start, stop = self._bounds(self._batch)
            pieces = [self._piece(order, *piece) for piece in order.pieces(start, stop)]
            pieces = pieces or [self._piece(order, 0, 0, 0)]
            # Before the hand-over: a state taken while the caller works on this batch counts it as done.
            self._batch += 1
            yield Batch.cat(pieces)
        self._ended = True

    def _bounds(self, step: int) -> tuple[int, int]:
        """Returns the places, in the epoch's order, of this rank's rows in a step."""
        base = step * self.batch_size
        size = min(self.batch_size, self._rows - base)
        share, more = divmod(size, self.world_size)
        start = base + self.rank * share + min(self.rank, more)
        return start, start + share + (1 if self.rank < more else 0)

    def _piece(self, order: _EpochOrder, place: int, first: int, last: int) -> Batch:
        shard = self._shard(order.shards[place])
        permutation = order.permutation(place)
        return shard.slice(first, last) if permutation is None else shard.take(permutation[first:last])

    def _shard(self, number: int) -> Columns:
        if number not in self._shards:
            self._shards[number] = self.store.shard(self.split, number)
        return self._shards[number]


class _EpochOrder:
    """The order of the rows of one epoch: shards in some order, each with a permutation of its rows."""

    def __init__(self, shard_rows: list[int], seed: int | None, epoch: int) -> None:
        self.seed, self.epoch = seed, epoch
        self.shards = list(range(len(shard_rows)))
        if seed is not None:
            self.shards = torch.randperm(len(shard_rows), generator=_generator(seed, epoch, 0)).tolist()
        self.rows = [shard_rows[number] for number in self.shards]
        self._current: tuple[int, torch.Tensor] | None = None

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yields (place of the shard, first row, last row) of the rows from `start` up to `stop`."""
        offset = 0
        for place, rows in enumerate(self.rows):
            first, last = max(start - offset, 0), min(stop - offset, rows)
            if first < last:
                yield place, first, last
            offset += rows

    def permutation(self, place: int) -> torch.Tensor | None:
        """Returns the permutation of the rows of the shard at that place, or None for file order."""
        if self.seed is None:
            return None
        if self._current is None or self._current[0] != place:
            generator = _generator(self.seed, self.epoch, self.shards[place] + 1)
            self._current = (place, torch.randperm(self.rows[place], generator=generator))
        return self._current[1]


def _generator(seed: int, epoch: int, number: int) -> torch.Generator:
    """Returns a generator of its own for each (seed, epoch, number)."""
    state = seed & (2**64 - 1)
    for part in (epoch, number):
        # splitmix64: seeds that are near each other must not give streams that are.
        state = (state + (part + 1) * 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return torch.Generator().manual_seed(state >> 1)
