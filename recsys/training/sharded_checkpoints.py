"""Checkpoints that several processes write together, each its own parts; they load into any number of processes."""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from features.errors import ArtifactError
from features.files import cannot_write, write_json
from recsys.embeddings.sharded import copy_parts
from recsys.processes import Processes
from recsys.tensorfile import read_into, read_part
from recsys.training.checkpoints import STATE, Checkpoints, cause, load_parts, reading


class ShardedCheckpoints(Checkpoints):
    """The checkpoints in a folder that all processes see.

    Every method is called by all processes together.

    Args:
        folder: on storage that all of them share.
        processes: who they are.
    """

    def __init__(self, folder: Path, processes: Processes) -> None:
        super().__init__(folder)
        self._processes = processes

    def clear(self, *, unfinished_only: bool) -> None:
        """As `Checkpoints.clear`."""
        self._processes.first(lambda: super(ShardedCheckpoints, self).clear(unfinished_only=unfinished_only))

    def newest(self) -> Path | None:
        """As `Checkpoints.newest`."""
        return self._processes.first(super().newest)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """As `Checkpoints.save`: every process writes its parts, of what all have alike one does.

        The folder gets its name when all parts are written: a process killed before leaves the older checkpoints.
        """
        from torch.distributed import checkpoint

        path = self.folder / f"step-{step:09d}"
        aside = path.with_name(f".{path.name}.tmp")
        self._processes.first(lambda: _make_anew(aside))
        writer = checkpoint.HuggingFaceStorageWriter(str(aside), save_distributed=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch deprecates the ShardedTensor that TorchRec hands out
                checkpoint.save(dict(tensors), storage_writer=writer)
        except checkpoint.CheckpointException as error:
            self._processes.first(lambda: shutil.rmtree(aside, ignore_errors=True))
            raise ArtifactError(
                f"could not be written ({cause(error)})",
                field=str(path),
                mend="free some disk, or choose another folder; what was saved before is untouched",
            ) from error
        self._processes.first(lambda: self._finish(aside, path, state))

    def restore(self, path: Path, into: Mapping[str, Tensor]) -> None:
        """As `Checkpoints.restore`; of a sharded tensor every process reads its own parts."""
        if path.is_dir():
            with reading(path):
                load_parts(path, dict(into), alone=False)
            return
        read_into(path, {name: t for name, t in into.items() if not isinstance(t, ShardedTensor)})
        for name, t in into.items():
            if isinstance(t, ShardedTensor):
                copy_parts(t, functools.partial(read_part, path, name))

    def _finish(self, aside: Path, path: Path, state: Mapping[str, Any]) -> None:
        write_json(aside / STATE, state)
        try:
            shutil.rmtree(path, ignore_errors=True)
            os.replace(aside, path)
        except OSError as error:
            raise cannot_write(path, error) from error
        self._prune()


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
