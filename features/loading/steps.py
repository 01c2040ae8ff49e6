"""Steps: how the rows of an epoch are cut into batches, which part a rank takes, and how far ahead they are taken."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from features.batch import Batch
from features.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Steps:
    """How rows are cut into steps, each rank's part of them, and the way of a batch to the caller.

    In every step a rank takes its block, as even as can be: side by side the ranks' batches are the batch of a
    single process. In a step of fewer rows than ranks some batches are empty.

    Attributes:
        batch_size: Rows a step, over all ranks; the last one may have fewer.
        rank: Which part of the rows this process takes.
        world_size: Number of processes.
        prefetch: Batches that a thread takes ahead while the caller works; with 0 there is no thread.
        pin_memory: Whether batches lie in page-locked memory, from which a GPU copies while it computes. Without
            CUDA it has no effect.

    Raises:
        ConfigError: Sizes or ranks that make no sense.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    prefetch: int = 0
    pin_memory: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("prefetch", 0)):
            if (found := getattr(self, name)) < least:
                raise ConfigError(
                    f"{name.replace('_', ' ')} is too small", field=name, found=found, expected=f"{least} or more"
                )
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                "rank is out of range", field="rank", found=self.rank, expected=f"0 to {self.world_size - 1}"
            )

    def part(self, step: int, rows: int) -> tuple[int, int]:
        """Returns the places, among `rows` in order, of this rank's rows in a step: first, and one after the last."""
        base = step * self.batch_size
        share, more = divmod(min(self.batch_size, rows - base), self.world_size)
        start = base + self.rank * share + min(self.rank, more)
        return start, start + share + (1 if self.rank < more else 0)

    def iterate(self, take: Callable[[int], Batch], first: int, last: int) -> Generator[tuple[int, Batch]]:
        """Yields each step from `first` up to `last` with its batch; an error of `take` comes in its step's turn."""
        if not self.prefetch:
            for step in range(first, last):
                yield step, self._ready(take(step))
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
            waiting = deque(
                pool.submit(self._take, take, step) for step in range(first, min(first + self.prefetch, last))
            )
            try:
                for step in range(first, last):
                    batch = waiting.popleft().result()
                    if step + self.prefetch < last:
                        waiting.append(pool.submit(self._take, take, step + self.prefetch))
                    yield step, batch
            finally:
                for future in waiting:
                    future.cancel()

    def _take(self, take: Callable[[int], Batch], step: int) -> Batch:
        return self._ready(take(step))

    def _ready(self, batch: Batch) -> Batch:
        if not (self.pin_memory and torch.cuda.is_available()):
            return batch
        values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        pinned: dict[str, Any] = {name: None if value is None else value.pin_memory() for name, value in values.items()}
        return Batch(**pinned)
