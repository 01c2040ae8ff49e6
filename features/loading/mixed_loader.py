"""MixedLoader: batches of rows from several splits or stores, in given proportions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from features.batch import Batch
from features.errors import ConfigError, DataError
from features.loading.loader import EpochLoader, EpochOrder, SplitRows, generator_of
from features.loading.steps import Steps
from features.storage.store import Store


@dataclasses.dataclass(frozen=True)
class Source:
    """One of the splits to mix.

    Attributes:
        store: The data.
        split: train, valid or test.
        weight: Its share of the rows, relative to the others' weights.
    """

    store: Store
    split: str = "train"
    weight: float = 1.0


class MixedLoader(EpochLoader):
    """Iterates over batches whose rows come from several sources.

    Of B rows of a batch a source with share s of the weights has B x s, rounded up or down by the seed such that it is
    right on average. A source's rows come in a shuffled order of their own, each once before any comes again; a large
    source with a small share is not read to its end in one epoch, and each epoch starts with other rows. The rows of
    a batch are in random order. Everything is a function of seed and epoch, whatever the rank.

    Args:
        sources: What to mix.
        batch_size: Rows a step, over all ranks. Every batch is full.
        length: Batches an epoch; by default as many as all sources' rows fill.
        seed: Another seed, another order.
        rank: Which part of the rows this process takes, see `Steps`.
        world_size: Number of processes.
        prefetch: Batches taken ahead, see `Steps`.
        pin_memory: Whether batches are page-locked, see `Steps`.

    Raises:
        ConfigError: There is no source, a weight is not positive, sizes or ranks make no sense.
        DataError: The sources are not encoded alike, or one is empty.

    Example:
        Nine rows of the past for each of today::

            loader = MixedLoader([Source(past, weight=9), Source(today, weight=1)], 4096)
    """

    def __init__(
        self,
        sources: Sequence[Source],
        batch_size: int,
        *,
        length: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 0,
        pin_memory: bool = False,
    ) -> None:
        steps = Steps(batch_size, rank, world_size, prefetch, pin_memory)
        _check(sources)
        self._sources = [SplitRows(source.store, source.split) for source in sources]
        rows = sum(source.rows for source in self._sources)
        super().__init__(steps, max(1, rows // batch_size) if length is None else length)
        if len(self) < 1:
            raise ConfigError("an epoch has no batch", field="length", found=length, expected="1 or more")
        self.seed, self.layout = seed, sources[0].store.layout
        self._ends = torch.tensor([source.weight for source in sources], dtype=torch.float64).cumsum(0)
        self._ends /= self._ends[-1].item()

    @property
    def rows(self) -> int:
        """Rows of an epoch, over all ranks."""
        return len(self) * self.steps.batch_size

    def _taker(self, epoch: int) -> Callable[[int], Batch]:
        size = self.steps.batch_size
        # One number a step moves all the bounds between sources together: each source's rows differ from its share
        # by less than one, and they sum to the batch.
        shift = torch.rand(len(self), 1, dtype=torch.float64, generator=generator_of(self.seed, epoch, 0))
        bounds = (self._ends * size + shift).floor().long()
        bounds[:, -1] = size
        counts = torch.cat([bounds[:, :1], bounds.diff(dim=1)], dim=1)
        starts = counts.cumsum(0) - counts
        streams = [_Stream(source, self.seed, number, epoch) for number, source in enumerate(self._sources)]

        def take(step: int) -> Batch:
            parts = zip(streams, starts[step].tolist(), counts[step].tolist(), strict=True)
            whole = Batch.cat([stream.take(start, start + count) for stream, start, count in parts])
            order = torch.randperm(size, generator=generator_of(self.seed, epoch, step + 1))
            return whole.rows(order[slice(*self.steps.part(0, size))])

        return take


class _Stream:
    """The rows of source `number` without end: one shuffled pass after another."""

    def __init__(self, source: SplitRows, seed: int, number: int, epoch: int) -> None:
        self.source, self.seed, self.number, self.epoch = source, seed, number, epoch
        self._order = self._pass(0)
        self._current = 0

    def take(self, start: int, stop: int) -> Batch:
        """Returns the rows from `start` up to `stop` of the stream."""
        pieces: list[Batch] = []
        while start < stop or not pieces:
            done, first = divmod(start, self.source.rows)
            if done != self._current:
                self._order, self._current = self._pass(done), done
            last = min(self.source.rows, first + stop - start)
            pieces.append(self._order.take(first, last))
            start += last - first
        return Batch.cat(pieces)

    def _pass(self, done: int) -> EpochOrder:
        # Sources and passes have seeds of their own: one split twice among the sources gives two orders.
        return self.source.order(generator_of(self.seed, self.number, done).initial_seed(), self.epoch)


def _check(sources: Sequence[Source]) -> None:
    if not sources:
        raise ConfigError("there is nothing to mix", field="sources", expected="one source or more")
    first = sources[0].store
    for number, source in enumerate(sources):
        where = f"sources.{number}"
        if not 0 < source.weight < float("inf"):
            raise ConfigError(
                "weight is not positive", field=f"{where}.weight", found=source.weight, expected="a number above 0"
            )
        if not source.store.rows(source.split):
            raise DataError(f"the {source.split} split is empty", field=where, mend="leave the source out")
        if source.store.pipeline.digest() != first.pipeline.digest():
            alike = source.store.spec.digest() == first.spec.digest()
            difference = "other statistics" if alike else "another spec"
            raise DataError(
                "the sources are encoded in different ways, and a model can serve one way only",
                field=where,
                found=f"{source.store.folder} has {difference} than {first.folder}",
                mend="prepare them as one store" if alike else "prepare them with one spec",
            )
