"""Tables on huge pages: zeroed as any tensor, and on Linux marked for them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from recsys.embeddings.formats import RowFormat
from recsys.hugepages import zeros

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.parametrize("size", [(0,), (0, 4), (3,), (1_500_001, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bfloat16])
def test_zeros_are_zeros(size: tuple[int, ...], dtype: torch.dtype) -> None:
    out = zeros(*size, dtype=dtype)
    assert torch.equal(out, torch.zeros(size, dtype=dtype))
    assert out.dtype == dtype


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not THP.exists() or "[never]" in THP.read_text(),
    reason="this system has no huge pages to give",
)
def test_the_rows_of_a_large_table_are_marked_for_huge_pages() -> None:
    table = RowFormat("int8", 16).empty(4_000_000)
    middle = table.data_ptr() + table.numel() // 2
    assert "hg" in flags_of(middle)


def flags_of(address: int) -> list[str]:
    """The kernel's flags of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    return []


def test_elsewhere_than_on_a_cpu_nothing_is_asked() -> None:
    with torch.device("meta"):
        assert zeros(10_000_000).device.type == "meta"
