"""Loader: the rows of a split as batches, in file order or shuffled by a seed, resumable at any batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing

import torch

from features.batch import Batch
from features.columns import Columns
from features.errors import ArtifactError, ConfigError
from features.loading.steps import Steps
from features.storage.store import Store


class EpochLoader(ABC):
    """The position in a number of epochs of equal length; a subclass says what a step of an epoch holds."""

    def __init__(self, steps: Steps, length: int) -> None:
        self.steps = steps
        self._length = length
        self._epoch = 0
        self._batch = 0
        self._ended = False

    @abstractmethod
    def _taker(self, epoch: int) -> Callable[[int], Batch]:
        """Returns the function from a step of that epoch to this rank's batch."""

    def __len__(self) -> int:
        """Batches an epoch, the same on every rank."""
        return self._length

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
        with closing(self.steps.iterate(self._taker(self._epoch), self._batch, len(self))) as batches:
            for step, batch in batches:
                # Before the hand-over: a state taken while the caller works on this batch counts it as done.
                self._batch = step + 1
                yield batch
        self._ended = True


class Loader(EpochLoader):
    """Iterates over one epoch of a split.

    With a seed the order of an epoch is a function of seed and epoch alone: shards are visited in a random
    order and the rows within a shard are permuted, so that data of one shard is fully shuffled.

    Args:
        store: The data.
        split: train, valid or test.
        batch_size: Rows a step, over all ranks; the last one may have fewer.
        shuffle_seed: None for file order.
        rank: Which part of the rows this process takes, see `Steps`.
        world_size: Number of processes.
        drop_last: Whether to leave out a last step that is not full.
        prefetch: Batches taken ahead, see `Steps`.
        pin_memory: Whether batches are page-locked, see `Steps`.

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
        prefetch: int = 0,
        pin_memory: bool = False,
    ) -> None:
        steps = Steps(batch_size, rank, world_size, prefetch, pin_memory)
        rows = store.rows(split)
        super().__init__(steps, rows // batch_size if drop_last else -(-rows // batch_size))
        self.store, self.split, self.batch_size, self.shuffle_seed = store, split, batch_size, shuffle_seed
        self.rank, self.world_size = rank, world_size
        self.layout = store.layout
        if not len(self):
            raise ConfigError(
                f"the {split} split has too few rows for one batch",
                field="batch_size",
                found=f"{batch_size}, {rows} rows",
                mend="lower the batch size",
            )
        self._source = SplitRows(store, split)

    @property
    def rows(self) -> int:
        """Rows of the split, over all ranks."""
        return self._source.rows

    def positions(self) -> torch.Tensor:
        """Returns where this rank's rows stand in the order of an epoch, batch after batch: int64, ascending."""
        return torch.cat([torch.arange(*self.steps.part(step, self.rows)) for step in range(len(self))])

    def _taker(self, epoch: int) -> Callable[[int], Batch]:
        order = self._source.order(self.shuffle_seed, epoch)
        return lambda step: order.take(*self.steps.part(step, self.rows))


class SplitRows:
    """The rows of a split, in one order or another; its shards are opened when they are needed.

    Attributes:
        rows: How many there are.
        shard_rows: How many each shard has.
    """

    def __init__(self, store: Store, split: str) -> None:
        self.store, self.split = store, split
        self.shard_rows = store.shard_rows(split)
        self.rows = sum(self.shard_rows)
        self._shards: dict[int, Columns] = {}

    def shard(self, number: int) -> Columns:
        """Returns a shard."""
        if number not in self._shards:
            self._shards[number] = self.store.shard(self.split, number)
        return self._shards[number]

    def order(self, seed: int | None, epoch: int) -> EpochOrder:
        """Returns the order of an epoch; without a seed it is that of the files."""
        return EpochOrder(self, seed, epoch)


class EpochOrder:
    """The order of the rows of one epoch: shards in some order, each with a permutation of its rows."""

    def __init__(self, source: SplitRows, seed: int | None, epoch: int) -> None:
        self.source, self.seed, self.epoch = source, seed, epoch
        self.shards = list(range(len(source.shard_rows)))
        if seed is not None:
            self.shards = torch.randperm(len(self.shards), generator=generator_of(seed, epoch, 0)).tolist()
        self._current: tuple[int, torch.Tensor] | None = None

    def take(self, start: int, stop: int) -> Batch:
        """Returns the rows from place `start` of the order up to `stop`."""
        pieces, offset = [], 0
        for number in self.shards:
            rows = self.source.shard_rows[number]
            first, last = max(start - offset, 0), min(stop - offset, rows)
            if first < last:
                pieces.append(self._piece(number, first, last))
            offset += rows
        return Batch.cat(pieces or [self._piece(self.shards[0], 0, 0)])

    def _piece(self, number: int, first: int, last: int) -> Batch:
        shard = self.source.shard(number)
        if self.seed is None:
            return shard.slice(first, last)
        if self._current is None or self._current[0] != number:
            generator = generator_of(self.seed, self.epoch, number + 1)
            self._current = (number, torch.randperm(shard.rows, generator=generator))
        return shard.take(self._current[1][first:last])


def generator_of(seed: int, epoch: int, number: int) -> torch.Generator:
    """Returns a generator of its own for each (seed, epoch, number)."""
    state = seed & (2**64 - 1)
    for part in (epoch, number):
        # splitmix64: seeds that are near each other must not give streams that are.
        state = (state + (part + 1) * 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return torch.Generator().manual_seed(state >> 1)
