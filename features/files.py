"""Small files written whole or not at all, as JSON or Arrow, and digests of large ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import xxhash

from features.errors import ArtifactError

_BLOCK = 1 << 20


def write_json(path: Path, data: object) -> None:
    """Writes `data` as JSON beside `path` and then renames it, so that no reader meets half a file.

    Raises:
        ArtifactError: It cannot be written, such as on a full disk.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def read_json(path: Path, *, mend: str) -> Any:
    """Reads a JSON file that `write_json` wrote.

    Args:
        path: The file.
        mend: What the user should do when it is missing or damaged.

    Raises:
        ArtifactError: It is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError("file is missing", field=str(path), mend=mend) from None
    except (ValueError, OSError) as error:
        raise ArtifactError("file cannot be read", field=str(path), found=error, mend=mend) from error


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Writes a table as an uncompressed Arrow file, whole or not at all.

    Raises:
        ArtifactError: It cannot be written, such as on a full disk.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.write_ipc(partial, compression="uncompressed")
        os.replace(partial, path)
    except (OSError, pl.exceptions.PolarsError) as error:
        partial.unlink(missing_ok=True)
        raise cannot_write(path, error if isinstance(error, OSError) else OSError(str(error))) from error


def read_table(path: Path, *, mend: str) -> pl.DataFrame:
    """Reads a table that `write_table` wrote.

    Args:
        path: The file.
        mend: What the user should do when it is missing or damaged.

    Raises:
        ArtifactError: It is missing or is no Arrow file.
    """
    if not path.is_file():
        raise ArtifactError("file is missing", field=str(path), mend=mend)
    try:
        return pl.read_ipc(path.read_bytes())
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError("file cannot be read", field=str(path), found=error, mend=mend) from error


def cannot_write(path: Path, error: OSError) -> ArtifactError:
    """Returns the error for a file that could not be written."""
    return ArtifactError(
        "cannot be written", field=str(path), found=error.strerror or error, mend="free space or choose another folder"
    )


def digest_of(path: Path) -> str:
    """Returns the hex xxh3-128 of a file's bytes: against damage and confusion, not against an attacker.

    Raises:
        OSError: It cannot be read.
    """
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return str(state.hexdigest())


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if it is not there, since whoever owns it removed it meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
