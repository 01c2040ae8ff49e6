"""The processes that train one model together: who is who, what they tell one another, and what if one is lost.

One process alone is the plain case; `torchrun` starts several.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from features.errors import RecsysError

T = TypeVar("T")


class ProcessLostError(RecsysError):
    """A process of the group is gone, or does not answer."""


@dataclass(frozen=True)
class Processes:
    """This process among all of them.

    Every method is called by all processes, in the same order.
    """

    rank: int = 0
    """Number of this process, from 0."""
    count: int = 1
    """How many there are."""
    connected: bool = False
    """Whether there is a process group; without one this process is alone."""

    def first(self, do: Callable[[], T]) -> T:
        """Calls `do` in the first process, whatever the others still do; all get what it returns, or its error."""
        if not self.connected:
            return do()
        said: list[Any] = [None, None]
        if self.rank == 0:
            try:
                said[0] = do()
            except RecsysError as error:
                said[1] = error
        dist.broadcast_object_list(said, src=0)
        if said[1] is not None:
            raise said[1]
        value: T = said[0]
        return value

    def each(self, value: T) -> list[T]:
        """What every process gives, in order of rank."""
        if not self.connected:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.connected:
            dist.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """The largest value of any process."""
        if not self.connected:
            return value
        values = torch.tensor([value])
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return int(values)

    def rows_of_all(self, rows: Tensor) -> Tensor:
        """Everyone's rows, one process's after another's.

        Args:
            rows: [n, ...], n differing from process to process.

        Returns:
            [sum of n, ...].
        """
        if not self.connected:
            return rows
        counts = self.each(len(rows))
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def launched() -> bool:
    """Whether `torchrun` started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def launched_count() -> int:
    """How many processes `torchrun` started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def restarted() -> bool:
    """Whether `torchrun` has started the processes anew, as it does up to `--max-restarts` times."""
    return launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def leave(code: int) -> NoReturn:
    """Ends a process of a group that has done its work.

    Threads of the group's C++ parts may still run then, and an interpreter that tears itself down meanwhile aborts.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def joined(timeout_seconds: float) -> Iterator[Processes]:
    """Within, the processes that `torchrun` started form a group (gloo); without it this process is alone.

    Args:
        timeout_seconds: how long a process waits for another one before it gives up.

    Raises:
        ProcessLostError: another process died or did not answer in time.
    """
    if not launched():
        yield Processes()
        return
    everyone: list[tuple[str, int]] = []
    try:
        processes = _meet(timedelta(seconds=timeout_seconds))
        everyone += processes.each((socket.gethostname(), os.getpid()))
        with _quiet():
            yield processes
    except (dist.DistError, RuntimeError) as error:
        if not _is_of_connection(error):
            raise
        raise ProcessLostError(
            "another process is gone or does not answer, so this one ends",
            field=f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}",
            found="; ".join([*_gone(everyone), _first_line(error)]),
            mend="see what ended it, or raise train.distributed.timeout_seconds if it was slow; the last checkpoint is "
            "whole, and the same command with --resume goes on from it",
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(timeout: timedelta) -> Processes:
    """Forms the group of the processes that torchrun started."""
    store, rank, count = next(dist.rendezvous("env://", timeout=timeout))
    # torchrun's store outlives a restart, and with it the addresses of the processes that are gone.
    attempt = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("gloo", store=attempt, rank=rank, world_size=count, timeout=timeout)
    return Processes(rank, count, connected=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings that are for the authors of torch and TorchRec."""
    loggers = [logging.getLogger(name) for name in ("torchrec", "torch.fx._symbolic_trace")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _is_of_connection(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or any(
        sign in text for sign in ("gloo", "Connection closed by peer", "Connection reset by peer", "Timed out")
    )


def _gone(everyone: list[tuple[str, int]]) -> list[str]:
    """The processes of this machine that have ended or stand still: after a lost connection, or a moment later."""
    host = socket.gethostname()
    here = [(rank, pid) for rank, (where, pid) in enumerate(everyone) if where == host and pid != os.getpid()]
    for _ in range(50):
        gone = [f"process {rank} (pid {pid}) {how}" for rank, pid in here if (how := _how_gone(pid))]
        if gone or not here:
            return gone
        time.sleep(0.01)
    return []


def _how_gone(pid: int) -> str | None:
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return "has ended"
    return {
        psutil.STATUS_ZOMBIE: "has ended",
        psutil.STATUS_DEAD: "has ended",
        psutil.STATUS_STOPPED: "is stopped",
    }.get(status)


def _first_line(error: Exception) -> str:
    """The message without the place in gloo's source before it and the advice behind it."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[[^]]*\]\s*", "", text).partition(". ")[0]
