"""One file of named tensors with a JSON object in its header (safetensors), written atomically."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from features.errors import ArtifactError


def write_tensors(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes the file beside its place, then renames it there: a reader sees the old file or the new one.

    Equal tensors and state give equal bytes.

    Args:
        path: where to.
        tensors: by name; their memory must not overlap.
        state: a JSON object.

    Raises:
        ArtifactError: it cannot be written (a full disk, no permission); nothing is left behind.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a single entry: the header's order of several would not be fixed
        metadata = {"state": json.dumps(state, sort_keys=True, allow_nan=False)}
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, aside, metadata=metadata)
        with open(aside, "rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        raise ArtifactError(
            f"could not be written ({error})",
            field=str(path),
            found=_free(path),
            expected=f"about {size:,} bytes to write",
            mend="free some disk, or choose another folder; what was saved before is untouched",
        ) from error


def read_tensors(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote.

    Returns:
        The tensors by name, those whose names begin with the prefix; and the JSON object.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    with _opened(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name: file.get_tensor(name) for name in names}, _state(file)


def read_state(path: Path) -> dict[str, Any]:
    """Reads the JSON object alone.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    with _opened(path) as file:
        return _state(file)


def read_into(path: Path, into: Mapping[str, Tensor]) -> None:
    """Copies the tensors of these names into live ones, one at a time; none unless all fit.

    Raises:
        ArtifactError: the file is missing or damaged, or a tensor is missing or has another shape.
    """
    with _opened(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        for name, own in into.items():
            if shapes.get(name) != tuple(own.shape):
                raise ArtifactError(
                    "the tensors belong to another model",
                    field=f"{path}: {name}",
                    found=f"shape {shapes[name]}" if name in shapes else "nothing",
                    expected=f"shape {tuple(own.shape)}",
                    mend="use the config they were written under",
                )
        for name, own in into.items():
            own.copy_(file.get_tensor(name))


def read_part(path: Path, name: str, part: tuple[slice, ...]) -> Tensor:
    """Reads a part of one tensor, and no more of the file than that.

    Raises:
        ArtifactError: the file is missing or damaged, or has no such tensor.
    """
    with _opened(path) as file:
        out: Tensor = file.get_slice(name)[part]
        return out


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(
            "cannot be read: missing or damaged",
            field=str(path),
            found=str(error),
            mend="remove it and resume from an earlier checkpoint, or train again",
        ) from error


def _state(file: Any) -> dict[str, Any]:
    return dict(json.loads((file.metadata() or {})["state"]))


def _free(path: Path) -> str | None:
    try:
        return f"{shutil.disk_usage(path.parent).free:,} bytes free"
    except OSError:
        return None
