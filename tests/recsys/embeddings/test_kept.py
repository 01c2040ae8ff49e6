"""The index of rows that pruning left is the rank of a bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.embeddings.kept import WORD_BYTES, KeptRows, popcount


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50))
def test_popcount_counts_bits(numbers: list[int]) -> None:
    assert popcount(torch.tensor(numbers)).tolist() == [(n % 2**64).bit_count() for n in numbers]


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 128, 1000])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99, 1.0])
def test_rows_keep_their_order_and_the_others_are_the_row_of_zeros(rows: int, share: float) -> None:
    bits = torch.rand(rows, generator=torch.Generator().manual_seed(rows)) < share
    left = int(bits.sum())
    kept = KeptRows(rows, left)
    kept.fill(bits)
    places = iter(range(left))
    expected = [next(places) if bit else left for bit in bits.tolist()]
    assert kept(torch.arange(rows)).tolist() == expected
    assert kept(torch.arange(rows).view(-1, 1)).shape == (rows, 1)
    assert sum(b.numel() * b.element_size() for b in kept.buffers()) == -(-rows // 64) * WORD_BYTES


def test_the_index_is_exported_as_torch_operations() -> None:
    kept = KeptRows(100, 50)
    kept.fill(torch.arange(100) % 2 == 0)
    rows = torch.arange(100)
    program = torch.export.export(kept, (rows,))
    assert torch.equal(program.module()(rows), kept(rows))
