"""TimeLoader: the rows of a split period by period in the order of time, for progressive training."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import numpy as np
import torch

from features.batch import Batch
from features.errors import ArtifactError, ConfigError
from features.loading.loader import SplitRows, generator_of
from features.loading.steps import Steps
from features.storage.store import Store
from features.times import length_of, origin_of


class TimeLoader:
    """Iterates over (start of the period, its batches), the oldest period first, whatever the order in the files.

    A period without a row is left out. Rows of a period come in the order of time (ties in the order of the files),
    or shuffled by a seed. A batch never holds rows of two periods, so the last of a period may be smaller.

    Memory holds the numbers of one period's rows. Finding them reads the times of the shards that have rows of it:
    quick if the store was prepared in the order of time, a pass over all times a period if not.

    Args:
        store: The data; its spec names a time.
        split: train, valid or test.
        every: Length of a period: a number and s, m, h, d or w. Periods begin at whole multiples of it since
            1970-01-01 UTC, weeks on Mondays.
        batch_size: Rows a step, over all ranks; the last of a period may have fewer.
        shuffle_seed: None for the order of time within a period.
        rank: Which part of the rows this process takes, see `Steps`.
        world_size: Number of processes.
        prefetch: Batches taken ahead within a period, see `Steps`.
        pin_memory: Whether batches are page-locked, see `Steps`.

    Raises:
        ConfigError: The spec has no time, the period is none, or sizes or ranks make no sense.

    Example:
        Learn a day, then be judged by the next::

            for day, batches in TimeLoader(store, "train", "1d", 4096):
                for batch in batches:
                    ...
    """

    def __init__(
        self,
        store: Store,
        split: str,
        every: str,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if not store.layout.has_time:
            raise ConfigError(
                "the spec has no time, so there is no order of time",
                field="time",
                mend="name the column with the time of the event as `time` in the spec and prepare the data again",
            )
        self._every, self._origin = _period(every)
        self.steps = Steps(batch_size, rank, world_size, prefetch, pin_memory)
        self.shuffle_seed, self.layout = shuffle_seed, store.layout
        self._source = SplitRows(store, split)
        self._shards: dict[int, list[int]] = {}
        counts: dict[int, int] = {}
        for number in range(len(self._source.shard_rows)):
            starts, rows = np.unique(self._starts(number), return_counts=True)
            for start, count in zip(starts.tolist(), rows.tolist(), strict=True):
                self._shards.setdefault(start, []).append(number)
                counts[start] = counts.get(start, 0) + count
        self._rows = dict(sorted(counts.items()))
        self._position = {"period": next(iter(self._rows), 0), "batch": 0}

    def __len__(self) -> int:
        """Periods with a row."""
        return len(self._rows)

    @property
    def periods(self) -> list[tuple[np.datetime64, int]]:
        """The start of every period with a row, in UTC, and its rows over all ranks."""
        return [(_datetime(start), rows) for start, rows in self._rows.items()]

    def state_dict(self) -> dict[str, int]:
        """Returns the position: the period's start in microseconds since 1970-01-01, and its batches handed out."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a position that `state_dict` returned.

        Raises:
            ArtifactError: There is no such position.
        """
        period, batch = int(state["period"]), int(state["batch"])
        if period not in self._rows or not 0 <= batch <= self._batches(period):
            raise ArtifactError("position is not in the data", field="loader", found=state)
        self._position = {"period": period, "batch": batch}

    def __iter__(self) -> Iterator[tuple[np.datetime64, Iterator[Batch]]]:
        """Yields the periods from the current position on; one that is already done is left out.

        What is not taken of a period's batches is passed over when the next period is asked for. After the last
        period the position is its end; iterating again then yields nothing, until `load_state_dict` or `restart`.
        """
        begin = dict(self._position)
        for period in self._rows:
            if period < begin["period"]:
                continue
            first = begin["batch"] if period == begin["period"] else 0
            if first >= self._batches(period):
                continue
            self._position = {"period": period, "batch": first}
            batches = self._iterate(period, first)
            yield _datetime(period), batches
            batches.close()
            self._position = {"period": period, "batch": self._batches(period)}

    def restart(self) -> None:
        """Goes to the start of the first period."""
        self._position = {"period": next(iter(self._rows), 0), "batch": 0}

    def _iterate(self, period: int, first: int) -> Generator[Batch]:
        with closing(self.steps.iterate(self._taker(period), first, self._batches(period))) as batches:
            for step, batch in batches:
                # Before the hand-over: a state taken while the caller works on this batch counts it as done.
                self._position = {"period": period, "batch": step + 1}
                yield batch

    def _batches(self, period: int) -> int:
        return -(-self._rows[period] // self.steps.batch_size)

    def _starts(self, number: int) -> np.ndarray:
        """Returns the start of the period of every row of a shard, in microseconds."""
        times = self._source.shard(number).wide["time"].numpy()
        return (times - self._origin) // self._every * self._every + self._origin

    def _taker(self, period: int) -> Callable[[int], Batch]:
        """Returns the function from a step of the period to this rank's batch."""
        numbers = self._shards[period]
        rows = [torch.from_numpy(np.flatnonzero(self._starts(number) == period)) for number in numbers]
        total = self._rows[period]
        if self.shuffle_seed is None:
            times = [self._source.shard(number).wide["time"][here] for number, here in zip(numbers, rows, strict=True)]
            order = torch.cat(times).argsort(stable=True)
        else:
            order = torch.randperm(total, generator=generator_of(self.shuffle_seed, 0, period))
        ends = torch.tensor([len(here) for here in rows]).cumsum(0)

        def take(step: int) -> Batch:
            start, stop = self.steps.part(step, total)
            places = order[start:stop]
            owner = torch.searchsorted(ends, places, right=True)
            pieces, found = [], []
            for index, (number, here) in enumerate(zip(numbers, rows, strict=True)):
                mine = (owner == index).nonzero().flatten()
                if len(mine) or not (len(places) or index):
                    picked = here[places[mine] - (ends[index] - len(here))]
                    pieces.append(self._source.shard(number).take(picked))
                    found.append(mine)
            batch = Batch.cat(pieces)
            # The pieces stand shard after shard; this brings the rows back into the order of the period.
            return batch if len(pieces) == 1 else batch.rows(torch.cat(found).argsort())

        return take


def _period(every: str) -> tuple[int, int]:
    """Returns the length of a period and where one begins, in microseconds."""
    length = length_of(every, field="every")
    if not length:
        raise ConfigError("a period has some length", field="every", found=repr(every), expected="such as 1d")
    return length, origin_of(every)


def _datetime(microseconds: int) -> np.datetime64:
    return np.datetime64(microseconds, "us")
