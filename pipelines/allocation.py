"""An allocation as a file: how many chunks each feature has. A search writes it, a training reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import ArtifactError, ConfigError, did_you_mean, list_names, unknown_name
from features.files import read_json, write_json
from features.layout import Layout
from recsys.embeddings.formats import FormatName
from recsys.models.convert import FORMATS

ALLOCATION_VERSION = 1
MEND = "give the allocation.json of a search, or a file of that form"


@dataclass(frozen=True)
class Allocation:
    """What a search decides about a table."""

    chunks: Mapping[str, int]
    """Of every feature with ids, by name."""
    format: FormatName | None = None
    """Of the rows; None leaves the config's."""


def write_allocation(path: Path, allocation: Allocation, about: Mapping[str, Any]) -> None:
    """Writes an allocation.

    Args:
        path: The file.
        allocation: What to write.
        about: Where it comes from and what it costs, for people.
    """
    chosen = {"format": allocation.format} if allocation.format else {}
    data = {"allocation_version": ALLOCATION_VERSION, "chunks": dict(allocation.chunks), **chosen}
    write_json(path, {**data, "about": dict(about)})


def read_allocation(path: Path, layout: Layout) -> Allocation:
    """Reads an allocation for the features of a layout.

    Raises:
        ArtifactError: The file is missing, damaged or of another version.
        ConfigError: It names a feature that is none, leaves one out, or a count or the format is wrong.
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
            what = "the allocation names a feature that the spec does not have ids for"
            otherwise = "search again with this spec"
            raise unknown_name(what, name, known, field=f"{path}: chunks.{name}", otherwise=otherwise)
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
    return Allocation(chunks, _format(path, data.get("format")))


def _format(path: Path, found: Any) -> FormatName | None:
    if found is None:
        return None
    for name in FORMATS:
        if name == found:
            return name
    raise ConfigError(
        "there is no such row format",
        field=f"{path}: format",
        found=repr(found),
        expected=", ".join(FORMATS),
        mend=did_you_mean(str(found), FORMATS, "leave it out: the table then has embedding.format"),
    )
