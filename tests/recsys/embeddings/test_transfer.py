"""Which old rows each new row is made of, against brute force over values and over hash space."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, MultiplexedEmbedding, TableOptimizer, plan_embedding, transfer
from recsys.embeddings.formats import RowFormat
from recsys.embeddings.kernel import KernelName, is_installed
from recsys.embeddings.plan import IdCounts
from recsys.embeddings.torch_table import TorchTable
from recsys.embeddings.transfer import RowMap, carry_rows, keep_owners, overlaps

SIZES = {"user": 60, "item": 25, "city": 4}
LAYOUT = Layout(id_names=("user", "item"), bag_names=("city",), bag_poolings=("sum",))
spans = st.integers(1, 40) | st.integers(1, 2**31 - 1)


def counts_of(seed: int = 0, **sizes: int) -> IdCounts:
    """Distinct values, and how often each was seen."""
    rng = np.random.default_rng(seed)
    return {
        name: (np.sort(rng.integers(-(2**63), 2**63 - 1, size)), rng.integers(1, 50, size))
        for name, size in {**SIZES, **sizes}.items()
    }


def build(counts: IdCounts, seed: int = 1, kernel: str = "torch", **config: Any) -> MultiplexedEmbedding:
    plan = plan_embedding(LAYOUT, EmbeddingConfig.model_validate({"width": 4, "rows": 30, **config}), counts)
    module = MultiplexedEmbedding(plan, LAYOUT.bag_poolings, optimizer=TableOptimizer(), kernel=kernel)
    module.table.initialise(0.05, torch.Generator().manual_seed(seed))
    return module


def values_of(module: MultiplexedEmbedding, counts: IdCounts, name: str) -> torch.Tensor:
    """[n, chunks, width]: what a feature's values read."""
    rows = module.rows_of(name, torch.from_numpy(counts[name][0]))
    return module.table.stored()[rows.long()]


def first_hash(row: int, span: int) -> int:
    return next(h for h in range(row * 2**32 // span, 2**32 + 1) if h == 2**32 or h * span >> 32 >= row)


@given(spans, spans, st.data())
def test_overlaps_are_the_hashes_two_rows_have_in_common(old_span: int, new_span: int, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, new_span - 1))
    if old_span > 1000 * new_span:
        return  # too many pairs for a test
    new, old, shared = (t.tolist() for t in overlaps(torch.tensor([row + 7]), 3, old_span, 7, new_span))
    begin, end = first_hash(row, new_span), first_hash(row + 1, new_span)
    assert set(new) == {row + 7}
    assert [r - 3 for r in old] == list(range(begin * old_span >> 32, ((end - 1) * old_span >> 32) + 1))
    for r, size in zip(old[:3] + old[-3:], shared[:3] + shared[-3:], strict=True):
        assert size == min(end, first_hash(r - 2, old_span)) - max(begin, first_hash(r - 3, old_span))
    assert sum(shared) == end - begin


def test_rows_outside_of_a_segment_have_no_overlap() -> None:
    new, _, _ = overlaps(torch.tensor([4, 5, 7, 8]), 0, 10, 5, 3)
    assert set(new.tolist()) == {5, 7}


CONFIGS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["multiplexed", "hashed", "collisionless"]),
        "rows": st.integers(3, 90),
        "exact": st.fixed_dictionaries({"max_values": st.sampled_from([0, 10, 30, 100])}),
        "chunks": st.fixed_dictionaries(
            {"features": st.fixed_dictionaries({name: st.integers(0, 3) for name in SIZES})}
        ),
    }
)


@settings(max_examples=60, deadline=None)
@given(CONFIGS, CONFIGS, st.sets(st.sampled_from(sorted(SIZES)), max_size=1), st.integers(0, 1))
def test_rows_are_averages_by_traffic_and_by_hash_space_where_there_is_none(
    before: dict[str, Any], after: dict[str, Any], reset: set[str], other_data: int
) -> None:
    """Against a plain loop, between any two plans; the new data may have other values than the old."""
    counts = counts_of(other_data)
    old, new = build(counts_of(), seed=1, **before), build(counts, seed=2, **after)
    fresh = new.table.values().double().clone()
    row_map = RowMap(old, new, counts, reset)

    amounts: dict[int, dict[int, Fraction]] = defaultdict(lambda: defaultdict(Fraction))
    was = {f.name: f for f in old.plan.features if f.chunks and f.name not in reset}
    now = [f for f in new.plan.features if f.chunks and f.name in was]
    for f in now:
        fingerprints = torch.from_numpy(counts[f.name][0])
        for old_rows, new_rows, count in zip(
            old.rows_of(f.name, fingerprints).tolist(),
            new.rows_of(f.name, fingerprints).tolist(),
            counts[f.name][1].tolist(),
            strict=True,
        ):
            for old_row, new_row in zip(old_rows, new_rows):  # noqa: B905 - chunks that both have
                amounts[new_row][old_row] += count
    read = set(amounts)
    for segment in {(was[f.name].base, was[f.name].span, f.base, f.span) for f in now}:
        old_base, old_span, new_base, new_span = segment
        for r in range(new_span):
            if new_base + r not in read:
                for o in range(old_span):
                    begin = max(Fraction(r, new_span), Fraction(o, old_span))
                    size = min(Fraction(r + 1, new_span), Fraction(o + 1, old_span)) - begin
                    if size > 0:
                        amounts[new_base + r][old_base + o] += size

    single, several = carry_rows(row_map, old.table, new.table)
    assert single == sum(len(sources) == 1 for sources in amounts.values())
    assert several == sum(len(sources) > 1 for sources in amounts.values())
    for row in range(new.plan.rows):
        sources = amounts.get(row)
        if sources is None:
            expected = fresh[row]
        else:
            total = sum(sources.values())
            expected = sum(float(a / total) * old.table.stored()[o].double() for o, a in sources.items())  # type: ignore[assignment]
        torch.testing.assert_close(new.table.stored()[row].double(), expected, atol=1e-7, rtol=1e-5)
    for f in new.plan.features:
        if f.chunks:
            carried = row_map.carried[f.name]
            assert carried.kept + carried.merged + carried.anew == pytest.approx(1)
            assert min(carried.kept, carried.merged, carried.anew) >= -1e-12
            if f.name not in was:
                assert carried.anew == 1


@pytest.mark.parametrize(
    ("kernel", "format"),
    [
        *(("torch", name) for name in ("fp32", "bf16", "fp16", "int8", "int4", "int2")),
        pytest.param("numba", "int4", marks=pytest.mark.skipif(not is_installed("numba"), reason="no numba")),
        pytest.param("fbgemm", "fp32", marks=pytest.mark.skipif(not is_installed("fbgemm_gpu"), reason="no fbgemm")),
    ],
)
@pytest.mark.parametrize("kind", ["multiplexed", "hashed", "collisionless"])
@pytest.mark.parametrize("factor", [1, 2, 7])
def test_growing_by_a_whole_factor_keeps_every_bit(kind: str, factor: int, kernel: KernelName, format: str) -> None:
    """Also of values that were never seen."""
    counts = counts_of(user=31, item=31)
    config = {"kind": kind, "exact": {"max_values": 10}, "chunks": {"default": 2}, "split": "equal", "format": format}
    old = build(counts, seed=1, rows=30, kernel=kernel, **config)
    new = build(counts, seed=2, rows=30 * factor, kernel=kernel, **config)
    row_map = RowMap(old, new, counts)
    assert carry_rows(row_map, old.table, new.table) == (new.plan.rows, 0)
    for name in SIZES:
        assert row_map.carried[name].kept == 1
        for seen in (counts, counts_of(seed=9)):
            assert torch.equal(values_of(old, seen, name), values_of(new, seen, name))


def test_a_low_bit_row_is_copied_as_it_is_stored() -> None:
    """Trained, its scale is no longer the one that its values would be given anew."""
    counts = counts_of()
    old, new = (build(counts, seed=seed, rows=30 * seed, exact={"max_values": 0}, format="int4") for seed in (1, 2))
    stored = old.table.stored()
    stored[:, :-2] = 0x77  # codes in the middle of the range, under the scale of a wider row
    carry_rows(RowMap(old, new, counts), old.table, new.table)
    assert torch.equal(new.table.stored(), stored.repeat_interleave(2, 0))


@pytest.mark.parametrize(("was", "now"), [("fp32", "int8"), ("int4", "fp32"), ("bf16", "int4")])
def test_rows_change_their_format_on_the_way(was: str, now: str) -> None:
    counts = counts_of()
    old, new = build(counts, seed=1, format=was), build(counts, seed=2, format=now)
    carry_rows(RowMap(old, new, counts), old.table, new.table)
    assert torch.equal(new.table.values(), new.table.format.round(old.table.values()))


@pytest.mark.parametrize("now", ["fp32", "int8"])
def test_rows_of_a_shared_step_are_carried_into_ones_with_a_scale(now: str) -> None:
    counts = counts_of()
    old, new = (build(counts, seed=seed, format=form) for seed, form in ((1, "fp32"), (2, now)))
    shared = TorchTable(old.plan.rows, RowFormat("int8", 4, 0.0005), TableOptimizer("sgd"))
    shared.assign(None, old.table.values())
    carry_rows(RowMap(old, new, counts), shared, new.table)
    assert torch.equal(new.table.values(), new.table.format.round(shared.values()))
    assert (new.table.values() - old.table.values()).abs().max() < 0.0005


def hot(counts: IdCounts, seed: int = 1, slots: int = 8, start: str = "counts", **config: Any) -> MultiplexedEmbedding:
    return build(counts, seed, exact={"max_values": 0}, hot={"features": {"user": slots}, "start": start}, **config)


def owners(module: MultiplexedEmbedding, counts: IdCounts) -> set[int]:
    f = next(f for f in module.plan.features if f.name == "user")
    row = module.rows_of("user", torch.from_numpy(counts["user"][0]))[:, 0].numpy()
    return set(counts["user"][0][(row >= f.hot_base) & (row < f.hot_base + f.hot_slots * f.chunks)].tolist())


def trained_hot(counts: IdCounts) -> MultiplexedEmbedding:
    """Owners that frequency alone would not have chosen."""
    module = hot(counts, chunks={"default": 2})
    rare = {name: (values, 51 - seen) for name, (values, seen) in counts.items()}
    keep_owners(hot(rare), module, counts)
    assert owners(module, counts) == owners(hot(rare), counts) != owners(hot(counts), counts)
    return module


@pytest.mark.parametrize("start", ["counts", "empty"])
@pytest.mark.parametrize("rows", [30, 60])
def test_owners_of_hot_rows_stay_and_every_bit_with_them(start: str, rows: int) -> None:
    counts = counts_of()
    old = trained_hot(counts)
    new = hot(counts, seed=2, start=start, rows=rows, chunks={"default": 2})
    keep_owners(old, new, counts)
    row_map = RowMap(old, new, counts)
    carry_rows(row_map, old.table, new.table)
    assert owners(new, counts) == owners(old, counts)
    for name in SIZES:
        assert torch.equal(values_of(old, counts, name), values_of(new, counts, name))
        assert row_map.carried[name].kept == 1
    # what an owner has gathered is its share of the traffic
    assert new.hot is not None
    seen = dict(zip(counts["user"][0].tolist(), (counts["user"][1] / counts["user"][1].sum()).tolist(), strict=True))
    share = torch.from_numpy(new.plan.hot_shares)
    assert sorted(share.tolist()) == pytest.approx(sorted(seen[owner] for owner in owners(new, counts)))
    torch.testing.assert_close(new.hot.scores / share, (new.hot.scores / share)[:1].expand(8))


def test_more_hot_slots_go_to_the_next_or_to_nobody_and_fewer_to_the_most_frequent() -> None:
    counts = counts_of()
    old = trained_hot(counts)
    more, empty, fewer = hot(counts, slots=24), hot(counts, slots=24, start="empty"), hot(counts, slots=8)
    for new in (more, empty, fewer):
        keep_owners(old, new, counts)
    assert owners(more, counts) > owners(old, counts)
    assert len(owners(more, counts)) == 24
    assert owners(empty, counts) == owners(old, counts)
    keep_owners(more, fewer, counts)
    frequent = sorted(owners(more, counts), key=lambda i: -counts["user"][1][counts["user"][0].tolist().index(i)])
    assert len(owners(fewer, counts) & set(frequent[:8])) >= 6  # a bucket may be full


def test_owners_that_are_gone_or_reset_make_room() -> None:
    counts, other = counts_of(), counts_of(seed=3)
    old = trained_hot(counts)
    for new_counts, reset in ((other, ()), (counts, ("user",))):
        new = hot(new_counts, seed=2)
        keep_owners(old, new, new_counts, reset)
        assert owners(new, new_counts) == owners(hot(new_counts), new_counts)


def test_values_that_become_exact_take_the_rows_they_hashed_to() -> None:
    counts = counts_of()
    old = build(counts, seed=1, exact={"max_values": 0})
    new = build(counts, seed=2, exact={"max_values": 100})
    row_map = RowMap(old, new, counts)
    carry_rows(row_map, old.table, new.table)
    for name in SIZES:
        assert torch.equal(values_of(old, counts, name), values_of(new, counts, name))
        assert row_map.carried[name].kept == 1


def test_exact_rows_follow_their_values_when_other_fields_come_and_go() -> None:
    counts = counts_of()
    old = build(counts, seed=1, exact={"max_values": 30}, chunks={"features": {"city": 0}})
    new = build(counts, seed=2, exact={"max_values": 30}, chunks={"features": {"city": 2}})
    carry_rows(RowMap(old, new, counts), old.table, new.table)
    assert torch.equal(values_of(old, counts, "item"), values_of(new, counts, "item"))
    fresh = build(counts, seed=2, exact={"max_values": 30}, chunks={"features": {"city": 2}})
    assert torch.equal(values_of(new, counts, "city"), values_of(fresh, counts, "city"))


def test_a_reset_field_has_fresh_rows_of_its_own() -> None:
    counts = counts_of()
    old, new, fresh = (build(counts, seed=seed, exact={"max_values": 30}) for seed in (1, 2, 2))
    row_map = RowMap(old, new, counts, {"item"})
    carry_rows(row_map, old.table, new.table)
    assert torch.equal(values_of(new, counts, "item"), values_of(fresh, counts, "item"))
    assert row_map.carried["item"].anew == 1
    assert torch.equal(values_of(new, counts, "city"), values_of(old, counts, "city"))


def test_the_size_of_a_block_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, results = counts_of(), []
    for block in (7, 1 << 20):
        monkeypatch.setattr(transfer, "BLOCK", block)
        old, new = build(counts, seed=1, rows=30), build(counts, seed=2, rows=47)
        parts = carry_rows(RowMap(old, new, counts), old.table, new.table)
        results.append((parts, new.table.values().clone()))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_shares_count_by_traffic() -> None:
    """30 rows become 15: what a value read is kept only if no other value's row was merged into it."""
    counts = counts_of()
    old, new = build(counts, rows=30, exact={"max_values": 10}), build(counts, rows=15, exact={"max_values": 10})
    carried = RowMap(old, new, counts).carried
    assert carried["city"].kept == 1
    assert carried["user"].merged > 0.5
    assert carried["user"].lookups == counts["user"][1].sum()
