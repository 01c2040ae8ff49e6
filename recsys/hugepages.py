"""Memory for large tables on huge pages, where Linux gives them.

Rows are read at random.  With pages of 4 kB nearly every row of a large table needs another page's address, which the
processor does not remember; with pages of 2 MB it does, and a step on a table of gigabytes takes a third less time.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable

import torch
from torch import Tensor

_WORTH_BYTES = 1 << 22
"""Two huge pages; smaller tensors stay in the processor's caches anyway."""


def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """`torch.zeros`, on huge pages if it is large, on the CPU and Linux allows it.

    >>> zeros(2, 3, dtype=torch.int32).tolist()
    [[0, 0, 0], [0, 0, 0]]
    """
    out = torch.empty(*size, dtype=dtype)
    size_bytes = out.numel() * out.element_size()
    madvise = _madvise()
    if madvise and out.device.type == "cpu" and size_bytes >= _WORTH_BYTES:
        # before anything is written: pages are chosen at the first touch
        start = -(-out.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        madvise(start, out.data_ptr() + size_bytes - start, mmap.MADV_HUGEPAGE)
    return out.zero_()


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The C library's `madvise`, whose advice may be refused without harm."""
    if not sys.platform.startswith("linux") or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    found: Callable[[int, int, int], int] = function
    return found
