"""Rows are golden, independent of other features, and spread evenly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from recsys.embeddings.addressing import (
    NO_OWNER,
    WAYS,
    Addresser,
    Lookup,
    Segment,
    exact_key,
    hot_buckets,
    hot_key,
    mix64,
    range_reduce,
    salt,
)
from recsys.embeddings.kept import KeptRows

MASK = (1 << 64) - 1
NO_KEYS = torch.empty(0, dtype=torch.int32)
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
    address = Addresser([Lookup(0, name, chunk, 0, span)])
    row = address(torch.tensor([[fingerprint]]), NO_KEYS, NO_KEYS)
    assert row.item() == reference_row(name, chunk, fingerprint, span)


def test_rows_are_golden() -> None:
    """These numbers may only change together with HASH_VERSION."""
    values = torch.tensor([0, 1, -1, 2**62, -(2**63)])
    address = Addresser([Lookup(0, "user", 0, 0, 1_000_000), Lookup(0, "user", 1, 10, 1000)])
    rows = address(values.unsqueeze(1), NO_KEYS, NO_KEYS)
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
    address = Addresser([Lookup(0, f"f{i}", 0, 0, 1000) for i in range(20)])
    rows = address(torch.arange(100_000).unsqueeze(1), NO_KEYS, NO_KEYS)
    statistics = [((np.bincount(column, minlength=1000) - 100) ** 2 / 100).sum() for column in rows.T.numpy()]
    assert 999 - 40 < np.mean(statistics) < 999 + 40  # 4 standard errors of the mean of 20
    assert max(statistics) < 999 + 6 * np.sqrt(2 * 999)


def test_chunks_collide_independently() -> None:
    """Ids that share a row in one chunk share one in the other no more often than chance."""
    address = Addresser([Lookup(0, "f", c, 0, 100) for c in range(2)])
    rows = address(torch.arange(20_000).unsqueeze(1), NO_KEYS, NO_KEYS).long()
    pairs = torch.bincount(rows[:, 0] * 100 + rows[:, 1], minlength=10_000).float()
    assert abs(float(pairs.var()) - 2.0) < 0.2  # Poisson with mean 2


@pytest.mark.parametrize("bits", [32, 64])
def test_exact_values_get_their_own_rows_and_others_fall_through(bits: int) -> None:
    """Two exact features of one index: each finds its own values in its own segment, in order of key."""
    f, g = torch.tensor([5, -7, 11]), torch.tensor([5, 6])
    f_keys, f_order = torch.sort(exact_key("f", f, bits))
    g_keys, g_order = torch.sort(exact_key("g", g, bits))
    assert f_keys.dtype == (torch.int32 if bits == 32 else torch.int64)
    in_f, in_g = Segment(0, 3, 100, 2), Segment(3, 2, 106, 1)
    lookups = [Lookup(0, "f", c, 0, 100, in_f) for c in range(2)] + [Lookup(1, "h", 0, 0, 100)]
    lookups += [Lookup(1, "g", 0, 0, 100, in_g)]
    values = torch.tensor([[5, 5], [-7, 6], [11, -7], [12, 11]])
    rows = Addresser(lookups)(values, torch.cat([f_keys, g_keys]), NO_KEYS)
    slot = {int(v): i for i, v in enumerate(f[f_order])}
    assert rows[:3, :2].tolist() == [[100 + 2 * slot[v], 101 + 2 * slot[v]] for v in (5, -7, 11)]
    assert rows[3, :2].tolist() == [reference_row("f", c, 12, 100) for c in range(2)]
    assert rows[:, 2].tolist() == [reference_row("h", 0, v, 100) for v in (5, 6, -7, 11)]
    assert rows[:2, 3].tolist() == [106 + g[g_order].tolist().index(v) for v in (5, 6)]
    assert rows[2:, 3].tolist() == [reference_row("g", 0, v, 100) for v in (-7, 11)]


def test_exact_keys_are_golden() -> None:
    """Stored models hold them: they may only change together with HASH_VERSION."""
    assert exact_key("user", torch.tensor([0, 1, -1])).tolist() == [-1155153399, 672498639, 1257014565]
    assert exact_key("user", torch.tensor([0, 1, -1]), bits=64).tolist() == [
        -4961346067409019827,
        2888359662188344525,
        5398836450791459734,
    ]


@st.composite
def lookups_and_keys(draw: st.DrawFn) -> tuple[list[Lookup], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lookups of features of all kinds, the exact and the hot index, and fingerprints of which many have own rows."""
    bits, columns = draw(st.sampled_from([32, 64])), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randint(-40, 40, (draw(st.integers(0, 60)), columns), generator=generator)
    lookups: list[Lookup] = []
    exact, hot = [torch.empty(0, dtype=torch.int32 if bits == 32 else torch.int64)], [NO_KEYS]
    for number in range(draw(st.integers(0, 5))):
        name, chunks = f"f{number}", draw(st.integers(1, 3))
        kind, size = draw(st.sampled_from(["hashed", "exact", "hot"])), draw(st.integers(1, 30))
        own: dict[str, Segment] = {}
        if kind == "exact":
            keys = torch.sort(exact_key(name, torch.randperm(80, generator=generator)[:size] - 40, bits))[0]
            own["exact"] = Segment(sum(map(len, exact)), size, 5000, chunks)
            exact.append(keys)
        elif kind == "hot":
            slots = torch.full((size * WAYS,), NO_OWNER, dtype=torch.int32)
            own["hot"] = Segment(sum(map(len, hot)), len(slots), 9000, chunks)
            hashes = mix64(torch.arange(-40, 40, 2) ^ salt(name, 0))
            for bucket, key in zip(hot_buckets(hashes, 0, size)[:, 0].tolist(), hot_key(hashes).tolist(), strict=True):
                slots[bucket * WAYS + key % WAYS] = key
            hot.append(slots)
        column = draw(st.integers(0, columns - 1))
        span = draw(st.integers(1, 4000))
        lookups += [Lookup(column, name, chunk, draw(st.integers(0, 50)), span, **own) for chunk in range(chunks)]
    return lookups, torch.cat(exact), torch.cat(hot), values


@given(lookups_and_keys(), st.booleans())
def test_the_compiled_call_gives_the_rows_of_the_torch_operations(
    drawn: tuple[list[Lookup], torch.Tensor, torch.Tensor, torch.Tensor], pruned: bool
) -> None:
    lookups, exact, hot, values = drawn
    kept = None
    if pruned:
        bits = torch.rand(4051, generator=torch.Generator().manual_seed(1)) < 0.4
        kept = KeptRows(len(bits), int(bits.sum()))
        kept.fill(bits)
    given = values.t().contiguous().t()  # as a view of columns, too
    rows = Addresser(lookups, 3, compiled=True)(given, exact, hot, kept)
    assert rows.dtype == torch.int32
    assert torch.equal(rows, Addresser(lookups, 3)(values, exact, hot, kept))


def test_the_compiled_call_leads_outside_of_nothing() -> None:
    values = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(IndexError, match="columns"):
        Addresser([Lookup(1, "f", 0, 0, 9)], compiled=True)(values, NO_KEYS, NO_KEYS)
    with pytest.raises(IndexError, match="segments"):
        Addresser([Lookup(0, "f", 0, 0, 9, Segment(0, 3, 0, 1))], compiled=True)(values, NO_KEYS, NO_KEYS)
    with pytest.raises(IndexError, match="kept"):
        Addresser([Lookup(0, "f", 0, 0, 99)], compiled=True)(values, NO_KEYS, NO_KEYS, KeptRows(10, 2))
