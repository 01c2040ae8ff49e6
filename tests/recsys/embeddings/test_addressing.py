"""Rows are golden, independent of other features, and spread evenly."""

from __future__ import annotations

import numpy as np
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from recsys.embeddings.addressing import Addresser, Lookup, exact_key, mix64, range_reduce, salt

MASK = (1 << 64) - 1
NO_KEYS, NO_ROWS = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int32)
fingerprints = st.integers(-(2**63), 2**63 - 1)


def reference_row(name: str, chunk: int, fingerprint: int, span: int) -> int:
    """The address in Python's own integers."""
    x = (fingerprint & MASK) ^ xxhash.xxh64_intdigest(f"{name}#{chunk}".encode(), seed=1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    x ^= x >> 31
    return ((x >> 32) * span) >> 32


@given(fingerprints, st.text(min_size=1, max_size=8), st.integers(0, 7), st.integers(1, 2**31 - 1))
def test_rows_equal_big_integer_arithmetic(fingerprint: int, name: str, chunk: int, span: int) -> None:
    address = Addresser([Lookup(0, name, chunk, 0, span, False)])
    row = address(torch.tensor([[fingerprint]]), NO_KEYS, NO_ROWS)
    assert row.item() == reference_row(name, chunk, fingerprint, span)


def test_rows_are_golden() -> None:
    """These numbers may only change together with HASH_VERSION."""
    values = torch.tensor([0, 1, -1, 2**62, -(2**63)])
    address = Addresser([Lookup(0, "user", 0, 0, 1_000_000, False), Lookup(0, "user", 1, 10, 1000, False)])
    rows = address(values.unsqueeze(1), NO_KEYS, NO_ROWS)
    assert rows.tolist() == [[731044, 150], [156578, 949], [292671, 125], [359548, 766], [85390, 148]]


def test_salts_differ_by_feature_and_chunk() -> None:
    names = [f"f{i}" for i in range(200)]
    assert len({salt(n, c) for n in names for c in range(8)}) == 1600
    assert salt("a#1", 0) != salt("a", 1)


def test_mix64_is_injective_on_a_sample() -> None:
    x = torch.arange(-50_000, 50_000)
    assert mix64(x).unique().numel() == x.numel()


@given(st.integers(1, 2**31 - 1))
def test_range_reduce_stays_in_range(span: int) -> None:
    rows = range_reduce(mix64(torch.arange(1000)), span)
    assert int(rows.min()) >= 0
    assert int(rows.max()) < span


def test_rows_are_spread_evenly() -> None:
    """Chi-square of 100,000 consecutive ids over 1,000 rows, for 20 features: mean near its 999 degrees."""
    address = Addresser([Lookup(0, f"f{i}", 0, 0, 1000, False) for i in range(20)])
    rows = address(torch.arange(100_000).unsqueeze(1), NO_KEYS, NO_ROWS)
    statistics = [((np.bincount(column, minlength=1000) - 100) ** 2 / 100).sum() for column in rows.T.numpy()]
    assert 999 - 40 < np.mean(statistics) < 999 + 40  # 4 standard errors of the mean of 20
    assert max(statistics) < 999 + 6 * np.sqrt(2 * 999)


def test_chunks_collide_independently() -> None:
    """Ids that share a row in one chunk share one in the other no more often than chance."""
    address = Addresser([Lookup(0, "f", c, 0, 100, False) for c in range(2)])
    rows = address(torch.arange(20_000).unsqueeze(1), NO_KEYS, NO_ROWS).long()
    pairs = torch.bincount(rows[:, 0] * 100 + rows[:, 1], minlength=10_000).float()
    assert abs(float(pairs.var()) - 2.0) < 0.2  # Poisson with mean 2


def test_exact_values_get_their_own_rows_and_others_fall_through() -> None:
    known = torch.tensor([5, -7, 11])
    keys, order = torch.sort(exact_key("f", known))
    rows = (100 + 2 * torch.arange(3))[order].to(torch.int32)
    lookups = [Lookup(0, "f", c, 0, 100, True) for c in range(2)] + [Lookup(1, "g", 0, 0, 100, False)]
    values = torch.tensor([[5, 5], [-7, 5], [11, 5], [12, 5]])
    got = Addresser(lookups)(values, keys, rows)
    assert got[:3, :2].tolist() == [[100, 101], [102, 103], [104, 105]]
    hashed = [reference_row("f", c, 12, 100) for c in range(2)]
    assert got[3, :2].tolist() == hashed
    assert got[:, 2].tolist() == [reference_row("g", 0, 5, 100)] * 4
