"""Regions, sizes and rows of the plan; what one feature's rows depend on."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import ArtifactError, ConfigError
from features.layout import Layout
from features.validation import validate
from recsys import memory
from recsys.embeddings import EmbeddingConfig, EmbeddingPlan, MultiplexedEmbedding, plan_embedding
from recsys.embeddings.addressing import mix64, salt
from recsys.embeddings.plan import exact_index
from recsys.tensorfile import write_tensors

SIZES = {"user": 500, "item": 300, "zip": 80, "age": 7, "gender": 2}
NO_BAGS = (torch.empty(0, dtype=torch.int64), torch.empty(0, 1, dtype=torch.int64))


def counts_of(names: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    out = {}
    for name in names:
        rng = np.random.default_rng(len(name) * 1000 + ord(name[0]))
        values = np.sort(rng.integers(-(2**63), 2**63 - 1, SIZES[name]))
        out[name] = (values, np.ones(len(values), np.int64))
    return out


def make(names: list[str], **config: object) -> tuple[EmbeddingPlan, MultiplexedEmbedding]:
    settings_ = {"width": 4, "rows": 1000, **config}
    plan = plan_embedding(Layout(id_names=tuple(names)), EmbeddingConfig.model_validate(settings_), counts_of(names))
    return plan, MultiplexedEmbedding(plan)


def rows_of(module: MultiplexedEmbedding, names: list[str], name: str, values: np.ndarray) -> np.ndarray:
    """[len(values), chunks] rows of one feature."""
    ids = torch.zeros(len(values), len(names), dtype=torch.int64)
    ids[:, names.index(name)] = torch.from_numpy(values)
    rows, _ = module.rows(ids, NO_BAGS[0], NO_BAGS[1][:0])
    start = sum(f.chunks for f in module.plan.features[: names.index(name)])
    chunks = module.plan.features[names.index(name)].chunks
    return rows[:, start : start + chunks].numpy()


def test_small_fields_are_exact_and_large_ones_shared() -> None:
    plan, _ = make(list(SIZES), exact={"max_values": 10})
    assert {f.name: f.region for f in plan.features} == {
        "user": "shared",
        "item": "shared",
        "zip": "shared",
        "age": "exact",
        "gender": "exact",
    }
    assert plan.rows == 1000 + 7 + 2
    assert plan.table_bytes == (1000 + 9) * 4 * 4 + 9 * 4


def test_overrides_of_the_exact_rule_and_of_chunks() -> None:
    plan, _ = make(
        list(SIZES),
        exact={"max_values": 10, "features": {"zip": True, "age": False}},
        chunks={"default": 1, "features": {"user": 3, "zip": 2, "gender": 0}},
    )
    regions = {f.name: (f.region, f.chunks) for f in plan.features}
    assert regions == {
        "user": ("shared", 3),
        "item": ("shared", 1),
        "zip": ("exact", 2),
        "age": ("shared", 1),
        "gender": ("dropped", 0),
    }
    assert plan.lookups == 7
    assert plan.rows == 1000 + 80 * 2


def test_every_exact_value_has_rows_of_its_own() -> None:
    names = list(SIZES)
    plan, module = make(names, exact={"max_values": 100}, chunks={"default": 2})
    seen: set[int] = set()
    for name in ("zip", "age", "gender"):
        rows = rows_of(module, names, name, counts_of(names)[name][0])
        assert rows.min() >= 1000
        seen.update(rows.flatten().tolist())
    assert len(seen) == (80 + 7 + 2) * 2
    assert max(seen) == plan.rows - 1


def test_unseen_values_of_an_exact_field_fall_through_to_the_shared_region() -> None:
    names = list(SIZES)
    _, module = make(names, exact={"max_values": 100})
    rows = rows_of(module, names, "zip", np.arange(1000))
    assert rows.max() < 1000
    assert len(np.unique(rows)) > 500


def test_collisionless_gives_one_row_a_value_and_one_for_unseen_values() -> None:
    names = list(SIZES)
    plan, module = make(names, kind="collisionless")
    assert plan.rows == sum(SIZES.values()) + len(SIZES)
    all_rows = np.concatenate([rows_of(module, names, n, counts_of(names)[n][0]).flatten() for n in names])
    assert len(np.unique(all_rows)) == sum(SIZES.values())
    unseen = [np.unique(rows_of(module, names, n, np.arange(100))) for n in names]
    assert [len(u) for u in unseen] == [1] * len(names)
    assert len(np.unique(np.concatenate(unseen))) == len(names)
    assert not set(np.concatenate(unseen)) & set(all_rows)


@pytest.mark.parametrize("split", ["proportional", "sqrt", "equal"])
def test_hashed_tables_are_disjoint_and_sized_by_the_split(split: str) -> None:
    names = list(SIZES)
    plan, module = make(names, kind="hashed", split=split, exact={"max_values": 0})
    power = {"proportional": 1.0, "sqrt": 0.5, "equal": 0.0}[split]
    total = sum(n**power for n in SIZES.values())
    ranges = []
    for f in plan.features:
        assert f.span == max(int(1000 * SIZES[f.name] ** power / total), 1)
        rows = rows_of(module, names, f.name, np.arange(5000))
        assert f.base <= rows.min()
        assert rows.max() < f.base + f.span
        ranges.append((f.base, f.base + f.span))
    ranges.sort()
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))


@settings(max_examples=25, deadline=None)
@given(st.permutations(list(SIZES)), st.sets(st.sampled_from(list(SIZES)), max_size=4), st.integers(0, 2**32))
def test_other_features_move_no_rows(order: list[str], dropped: set[str], seed: int) -> None:
    """Adding, dropping and reordering features leaves a feature's rows where they were."""
    names, config = list(SIZES), {"exact": {"max_values": 10}, "chunks": {"default": 2}}
    before, module = make(names, **config)
    kept = [n for n in order if n not in dropped]
    after, changed = make(kept, **config)
    probe = np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, 20)
    for name in kept:
        values = np.concatenate([probe, counts_of(names)[name][0][:20]])
        old, new = rows_of(module, names, name, values), rows_of(changed, kept, name, values)
        base = {f.name: f.exact_base for f in before.features}[name]
        moved = {f.name: f.exact_base for f in after.features}[name]
        exact = old >= 1000
        np.testing.assert_array_equal(np.where(exact, old - base, old), np.where(exact, new - moved, new))


def test_a_plan_survives_json_and_its_index_comes_from_the_weights() -> None:
    plan, module = make(list(SIZES), exact={"max_values": 100})
    again = EmbeddingPlan.from_json(plan.to_json())
    assert again == plan
    restored = MultiplexedEmbedding(again)
    restored.exact_keys.copy_(module.exact_keys)
    values = counts_of(list(SIZES))["zip"][0]
    np.testing.assert_array_equal(
        rows_of(restored, list(SIZES), "zip", values), rows_of(module, list(SIZES), "zip", values)
    )


def test_table_bytes_are_the_serialised_bytes(tmp_path: Path) -> None:
    """A small table of narrow rows with a large index: what the disk holds is what the plan says, to 2 %."""
    plan, module = make(list(SIZES), width=4, rows=1000, exact={"max_values": 500})
    write_tensors(tmp_path / "table", {"table": module.table.stored(), "exact_keys": module.exact_keys}, {})
    assert (tmp_path / "table").stat().st_size == pytest.approx(plan.table_bytes, rel=0.02)


def test_values_that_share_32_bits_make_the_index_64_bits_wide() -> None:
    """The first 32 bits of the mixed hash of 0 and `twin` are equal."""
    zero = mix64(torch.tensor(0) ^ salt("zip", 0))
    twin = int(unmix64(int(zero) ^ 1)) ^ salt("zip", 0)
    few = {"zip": np.array([0, twin]), "age": np.arange(7)}
    keys = exact_index(few)
    assert (keys.dtype, len(keys)) == (np.int64, 9)
    assert exact_index({**few, "zip": np.array([0, 1])}).dtype == np.int32
    layout = Layout(id_names=("zip", "age"))
    config = EmbeddingConfig.model_validate({"width": 4, "rows": 100})
    plan = plan_embedding(layout, config, {n: (v, np.ones_like(v)) for n, v in few.items()})
    assert (plan.key_bits, plan.table_bytes) == (64, (100 + 9) * 16 + 9 * 8)
    assert EmbeddingPlan.from_json(plan.to_json()).exact_keys.dtype == np.int64
    rows, _ = MultiplexedEmbedding(plan).rows(torch.tensor([[0, 0], [twin, 1]]), NO_BAGS[0], NO_BAGS[1][:0])
    assert len(rows.unique()) == 4
    assert int(rows.min()) >= 100


def unmix64(y: int) -> int:
    """The inverse of mix64, in Python's own integers, signed."""
    mask = (1 << 64) - 1
    y &= mask
    y ^= (y >> 31) ^ (y >> 62)
    y = y * pow(0x94D049BB133111EB, -1, 1 << 64) & mask
    y ^= (y >> 27) ^ (y >> 54)
    y = y * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & mask
    y ^= (y >> 30) ^ (y >> 60)
    return y - (1 << 64) if y >> 63 else y


def test_a_plan_of_another_hash_version_is_refused() -> None:
    plan, _ = make(["user"])
    with pytest.raises(ArtifactError, match="another hash"):
        EmbeddingPlan.from_json({**plan.to_json(), "hash_version": 99})


def test_a_misspelt_feature_gets_its_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gender'"):
        make(list(SIZES), chunks={"features": {"gendre": 2}})


def test_an_exact_field_that_training_never_filled_hashes() -> None:
    layout = Layout(bag_names=("tags",), bag_poolings=("sum",))
    config = EmbeddingConfig.model_validate({"width": 4, "rows": 100, "exact": {"features": {"tags": True}}})
    plan = plan_embedding(layout, config, {})
    module = MultiplexedEmbedding(plan, layout.bag_poolings)
    _, (rows,) = module.rows(torch.empty(2, 0, dtype=torch.int64), torch.arange(3), torch.tensor([[1, 2]]))
    assert plan.exact_values == 0
    assert 0 <= int(rows.min()) <= int(rows.max()) < 100


def test_a_model_without_lookups_has_no_table() -> None:
    plan, _ = make(list(SIZES), chunks={"default": 0})
    assert (plan.rows, plan.lookups, plan.table_bytes) == (0, 0, 0)


@pytest.mark.parametrize("chunks", [-1, 65])
def test_chunks_are_bounded_for_every_feature(chunks: int) -> None:
    with pytest.raises(ConfigError, match=r"chunks\.features\.user"):
        validate(EmbeddingConfig, {"chunks": {"features": {"user": chunks}}}, where="embedding")


def test_a_table_beyond_memory_is_refused_with_its_bytes() -> None:
    with pytest.raises(ConfigError, match=r"embedding\.rows: it would not fit into memory.*table 8,796 GB"):
        make(list(SIZES), rows=2**31 - 1000, width=1024, exact={"max_values": 0})


def test_a_table_too_large_to_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="more rows than can be addressed"):
        make(list(SIZES), rows=2**31 - 1, exact={"max_values": 100})


def test_fewer_rows_than_features_with_rows_of_their_own_are_refused() -> None:
    layout = Layout(id_names=("a", "b", "c"))
    config = validate(EmbeddingConfig, {"kind": "hashed", "rows": 2, "exact": {"max_values": 0}})
    with pytest.raises(ConfigError, match=r"embedding\.rows: there are fewer rows.*2 rows, 3 features"):
        plan_embedding(layout, config, {})


def test_hot_slots_beyond_memory_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1_000_000)
    config = validate(EmbeddingConfig, {"hot": {"features": {"a": 100_000}}})
    with pytest.raises(ConfigError, match=r"embedding\.hot: it would not fit into memory.*fewer slots"):
        plan_embedding(Layout(id_names=("a",)), config, {})
