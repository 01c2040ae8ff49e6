"""The checkpoints of one training: written aside and renamed, the newest two kept, found and read again.

step-N.safetensors   all tensors and the state, written by one process (`recsys.tensorfile`)
step-N/              the same by several: a safetensors file a process with its parts of the tensors, and state.json
best.safetensors     the best epoch's weights, always whole
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from features.errors import ArtifactError
from features.files import read_json
from recsys.tensorfile import read_into, read_state, read_tensors, write_tensors

KEPT = 2
STATE = "state.json"
MEND = "remove it and resume from an earlier checkpoint, or train again"


class Checkpoints:
    """The checkpoints in a folder, as one process writes and reads them.

    Args:
        folder: made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best = folder / "best.safetensors"

    def clear(self, *, unfinished_only: bool) -> None:
        """Removes what killed processes left half written, and unless told otherwise every checkpoint."""
        _remove(self.folder.glob(".*.tmp"))
        if not unfinished_only:
            _remove([*self._steps(), *self.folder.glob(self.best.name)])

    def newest(self) -> Path | None:
        """The checkpoint to resume from."""
        return max(self._steps(), key=_step, default=None)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Writes a checkpoint and removes the oldest ones.

        Raises:
            ArtifactError: it cannot be written; the older ones are untouched.
        """
        write_tensors(self.folder / f"step-{step:09d}.safetensors", tensors, state)
        self._prune()

    def state(self, path: Path) -> dict[str, Any]:
        """The state stored in a checkpoint.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        return dict(read_json(path / STATE, mend=MEND)) if path.is_dir() else read_state(path)

    def read(self, path: Path, prefix: str) -> dict[str, Tensor]:
        """The tensors of a checkpoint whose names begin so, whole, in this process alone.

        Raises:
            ArtifactError: it is damaged.
        """
        if not path.is_dir():
            return read_tensors(path, prefix)[0]
        with reading(path):
            return _whole(path, prefix)

    def restore(self, path: Path, into: Mapping[str, Tensor]) -> None:
        """Copies tensors out of a checkpoint or the best weights; from a folder, those that it holds.

        Args:
            path: what `newest` gave, or `best`.
            into: live tensors by name.

        Raises:
            ArtifactError: it is damaged, or belongs to another model.
        """
        if not path.is_dir():
            read_into(path, into)
            return
        with reading(path):
            # The random state of one process is no part of what several have written.
            load_parts(path, {name: t for name, t in into.items() if name != "random_state"}, alone=True)

    def _steps(self) -> list[Path]:
        return list(self.folder.glob("step-*"))

    def _prune(self) -> None:
        _remove(sorted(self._steps(), key=_step)[:-KEPT])


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong in reading a folder into one clear error."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except (CheckpointException, OSError, SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(
            "cannot be read: damaged, or of another model",
            field=str(path),
            found=cause(error),
            mend="resume with the config it was written under; or else " + MEND,
        ) from error


def load_parts(path: Path, into: dict[str, Tensor], *, alone: bool) -> None:
    """Fills tensors, whole or sharded, from a folder's parts, however these were cut (`torch.distributed.checkpoint`).

    Args:
        path: the folder.
        into: live tensors by name.
        alone: false where all processes of the group take part.
    """
    from torch.distributed import checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the ShardedTensor that TorchRec hands out
        checkpoint.load(into, storage_reader=checkpoint.HuggingFaceStorageReader(str(path)), no_dist=alone)


def cause(error: BaseException) -> str:
    """What a failure came down to, with the process it happened in if several took part."""
    failures = getattr(error, "failures", None)
    if not failures:
        return str(error)
    rank, (first, _) = next(iter(failures.items()))
    return f"{first} (in process {rank})"


def _whole(path: Path, prefix: str) -> dict[str, Tensor]:
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    stored = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    out = {
        name: torch.empty(t.size, dtype=t.properties.dtype)
        for name, t in stored.items()
        if name.startswith(prefix) and isinstance(t, TensorStorageMetadata)
    }
    load_parts(path, out, alone=True)
    return out


def _step(path: Path) -> str:
    return path.name.partition(".")[0]


def _remove(paths: Any) -> None:
    for path in paths:
        if path.is_dir():
            # Under another name first: no half of it must look like a checkpoint.
            aside = path if path.name.startswith(".") else path.rename(path.with_name(f".{path.name}.tmp"))
            shutil.rmtree(aside, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
