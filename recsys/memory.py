"""Whether something will fit into memory, asked before it is allocated.

Linux hands out memory that it does not have and ends the process when it is written to: an estimate in time is the only
place for a clear error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from features.errors import ConfigError

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class MemoryPart:
    """A part of what is about to be allocated."""

    name: str
    bytes: int
    field: str
    """The config key that decides it."""
    mend: str
    """How to make it smaller."""


def require_memory(parts: Sequence[MemoryPart]) -> None:
    """Refuses what does not fit.

    Raises:
        ConfigError: together the parts need more than there is; names the largest, and the figures of all.
    """
    needed, available = sum(part.bytes for part in parts), available_memory()
    if needed <= available:
        return
    largest = max(parts, key=lambda part: part.bytes)
    figures = ", ".join(f"{part.name} {_gigabytes(part.bytes)}" for part in parts if part.bytes)
    raise ConfigError(
        "it would not fit into memory",
        field=largest.field,
        found=f"about {_gigabytes(needed)} ({figures})",
        expected=f"at most {_gigabytes(available)}, which is what is available",
        mend=largest.mend,
    )


def available_memory() -> int:
    """Bytes that this process could take now: what the machine has left, or its control groups if that is less."""
    machine = int(psutil.virtual_memory().available)
    group = cgroup_available(CGROUPS, MEMBERSHIP)
    return machine if group is None else min(machine, group)


def cgroup_available(root: Path, membership: Path) -> int | None:
    """Bytes left below the tightest memory limit of the process's control groups; None without a limit.

    Both versions are read; pages that only cache files count as free.  In a container the groups named by the
    kernel may lie outside of what is mounted, so every group on the way up is tried.

    Args:
        root: where control groups are mounted.
        membership: lines of `number:controllers:path`.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    left: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            left += _rooms(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            left += _rooms(root / "memory", path, *names)
    return min(left) if left else None


def _rooms(mount: Path, path: str, limit: str, usage: str, cache: str) -> list[int]:
    """Bytes below the limit of each group from `path` up to the mount that is there and has one."""
    group = mount / path.strip("/")
    folders = [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]
    rooms = (_room(folder, limit, usage, cache) for folder in folders)
    return [room for room in rooms if room is not None]


def _room(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # "max" is no number
        return None
    return max(most - used + int(statistics.get(cache, 0)), 0)


def _gigabytes(count: int) -> str:
    """
    >>> _gigabytes(7_340_000_000), _gigabytes(2_000_000)
    ('7.34 GB', '0.002 GB')
    """
    return f"{count / 1e9:,.3g} GB" if count < 1e12 else f"{count / 1e9:,.0f} GB"
