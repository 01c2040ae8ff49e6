"""One file of named tensors with a JSON object in its header (safetensors), written atomically."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
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


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote.

    Returns:
        The tensors by name, and the JSON object.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(
            "cannot be read: missing or damaged",
            field=str(path),
            found=str(error),
            mend="remove it and resume from an earlier checkpoint, or train again",
        ) from error


def _free(path: Path) -> str | None:
    try:
        return f"{shutil.disk_usage(path.parent).free:,} bytes free"
    except OSError:
        return None
