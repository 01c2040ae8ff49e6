"""Tells the C allocator to keep the memory of a training step for the next one."""

from __future__ import annotations

import ctypes
import functools
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 1 << 30


@functools.cache
def keep_freed_memory() -> bool:
    """Lets blocks below 1 GiB come from memory that was freed before, instead of fresh pages at every step.

    By default glibc maps every large block anew and gives it back when freed, and the kernel zeroes it page by page:
    a fifth of a step in a network of a few hundred units.  The price is that the process keeps its largest footprint.
    Only on Linux with glibc; once a process.

    Returns:
        Whether the allocator took it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(mallopt(option, _KEPT_BYTES) == 1 for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
