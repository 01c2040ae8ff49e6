"""An allocation as a file: how many chunks each feature has. A search writes it, a training reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features.errors import ArtifactError, ConfigError, list_names, nearest
from features.files import read_json, write_json
from features.layout import Layout

ALLOCATION_VERSION = 1
MEND = "give the allocation.json of a search, or a file of that form"


def write_allocation(path: Path, chunks: Mapping[str, int], about: Mapping[str, Any]) -> None:
    """Writes an allocation.

    Args:
        path: The file.
        chunks: By feature name.
        about: Where it comes from and what it costs, for people.
    """
    write_json(path, {"allocation_version": ALLOCATION_VERSION, "chunks": dict(chunks), "about": dict(about)})


def read_allocation(path: Path, layout: Layout) -> dict[str, int]:
    """Reads the chunks of every feature with ids.

    Raises:
        ArtifactError: The file is missing, damaged or of another version.
        ConfigError: It names a feature that is none, leaves one out, or a count is wrong.
    """
    data = read_json(path, mend=MEND)
    if not isinstance(data, dict) or not isinstance(data.get("chunks"), dict):
        raise ArtifactError("the file is no allocation", field=str(path), expected='{"chunks": {...}}', mend=MEND)
    version = data.get("allocation_version")
    if version != ALLOCATION_VERSION:
        raise ArtifactError(
            "the allocation is of another version",
            field=str(path),
            found=version,
            expected=ALLOCATION_VERSION,
            mend="search again with this release",
        )
    chunks, known = data["chunks"], (*layout.id_names, *layout.bag_names)
    for name, count in chunks.items():
        if name not in known:
            close = nearest(name, known)
            raise ConfigError(
                "the allocation names a feature that the spec does not have ids for",
                field=f"{path}: chunks.{name}",
                expected=f"one of {list_names(known)}",
                mend=f"did you mean {close!r}?" if close else "search again with this spec",
            )
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 64:
            raise ConfigError(
                "not a number of chunks",
                field=f"{path}: chunks.{name}",
                found=count,
                expected="a whole number, 0 to 64",
            )
    missing = [name for name in known if name not in chunks]
    if missing:
        raise ConfigError(
            "the allocation leaves features out",
            field=str(path),
            found=f"nothing about {list_names(missing)}",
            mend="give each its chunks (0 drops it), or search again with this spec",
        )
    return dict(chunks)
