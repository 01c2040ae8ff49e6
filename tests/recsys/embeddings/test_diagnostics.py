"""Overlap against known geometry, norms and ages against a table whose past is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, TableOptimizer, plan_embedding
from recsys.embeddings.average import RowAverage
from recsys.embeddings.diagnostics import Diagnostics, Overlap, diagnose, overlap_of, update_state
from recsys.models import CTRModel, ModelConfig

NAMES = ("user", "item", "zip", "age")
SIZES = dict(zip(NAMES, (400, 300, 50, 6), strict=True))


def counts() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        n: (np.sort(rng.integers(-(2**63), 2**63 - 1, size)), rng.integers(1, 30, size)) for n, size in SIZES.items()
    }


def build(
    optimizer: TableOptimizer | None = None, model: dict[str, object] | None = None, **config: object
) -> CTRModel:
    layout = Layout(id_names=NAMES, dense_names=("price",), label_names=("click",))
    settings = {"width": 4, "rows": 300, "exact": {"max_values": 10}, "chunks": {"features": {"user": 2}}, **config}
    plan = plan_embedding(layout, EmbeddingConfig.model_validate(settings), counts())
    return CTRModel(layout, plan, ModelConfig.model_validate(model or {"hidden": [8]}), optimizer=optimizer)


def pair(a: torch.Tensor, b: torch.Tensor) -> Overlap:
    width = a.shape[1]
    return overlap_of("x", torch.cat([a, b], 1), {"a": slice(0, width), "b": slice(width, 2 * width)}, width)


def test_overlap_is_0_for_orthogonal_readers_and_1_for_one_direction() -> None:
    basis = torch.eye(4)
    apart = pair(basis[:2], basis[2:])
    assert (apart.mean, apart.rms, apart.effective_rank) == (0, 0, pytest.approx([2, 2]))
    line = torch.randn(5, 1, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    same = pair(line, -2 * line.flip(0))
    assert same.mean == pytest.approx(1)
    assert same.effective_rank == pytest.approx([1, 1])
    assert pair(torch.zeros(2, 4), basis[:2]).mean == 0


def test_overlap_is_the_formula() -> None:
    a, b = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1)).unbind()
    assert pair(a, b).mean == pytest.approx(float((a @ b.T).norm() / (a.norm() * b.norm())))


def test_overlap_of_chunks_is_that_of_blocks_below_one_another() -> None:
    weights = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    found = overlap_of("x", weights, {"two": slice(0, 6), "one": slice(6, 9)}, 3)
    stacked = torch.cat([weights[:, :3], weights[:, 3:6]])
    expected = (stacked @ weights[:, 6:].T).norm() / (stacked.norm() * weights[:, 6:].norm())
    assert found.matrix[0][1] == found.matrix[1][0] == pytest.approx(float(expected))
    assert found.effective_rank[0] == pytest.approx(1 / found.matrix[0][0] ** 2)


def test_independent_readers_overlap_by_the_random_value_and_equal_ones_by_more() -> None:
    """Blocks of 32 x 30: .183 and .26, the calibration of the replication of Coleman et al."""
    weights = torch.randn(32, 30 * 60, generator=torch.Generator().manual_seed(2))
    found = overlap_of("x", weights, {str(i): slice(30 * i, 30 * i + 30) for i in range(60)}, 30)
    assert found.random == pytest.approx(0.183, abs=5e-4)
    assert found.rms == pytest.approx(found.random, rel=0.01)
    assert np.mean(found.effective_rank) ** -0.5 == pytest.approx(0.256, abs=2e-3)
    same = pair(weights[:, :30], weights[:, :30])
    assert same.mean == pytest.approx(0.256, abs=0.01)


def test_least_overlap_is_reached_by_evenly_spread_lines() -> None:
    """Three lines in a plane, 60 degrees apart."""
    angles = [0, math.pi / 3, 2 * math.pi / 3]
    weights = torch.tensor([[x for a in angles for x in (math.cos(a), math.sin(a))]])
    found = overlap_of("x", weights, {str(i): slice(2 * i, 2 * i + 2) for i in range(3)}, 2)
    assert found.rms == pytest.approx(0.5) == found.least
    assert pair(torch.eye(2)[:1], torch.eye(2)[1:]).least == 0


def test_blocks_are_the_columns_that_read_each_sharing_feature() -> None:
    model = build()
    blocks = {"user": slice(0, 8), "item": slice(8, 12), "zip": slice(12, 16)}  # age is exact
    found = {o.layer: o for o in diagnose(model, counts()).overlaps}
    assert list(found) == ["cross", "deep"]
    assert model.network.cross is not None
    assert model.network.deep is not None
    for name, layer in (("cross", model.network.cross.layers[0]), ("deep", model.network.deep.layers[0])):
        assert found[name] == overlap_of(name, layer.weight.detach(), blocks, 4)


def test_features_that_share_no_rows_have_no_overlap() -> None:
    assert diagnose(build(kind="hashed"), counts()).overlaps == ()
    assert diagnose(build(kind="collisionless"), counts()).overlaps == ()


def test_norms_are_those_of_the_rows() -> None:
    model = build()
    found = diagnose(model, counts()).norms
    assert found is not None
    norms = model.embedding.table.values().norm(dim=1).numpy()
    assert found.rows == len(norms) == 306
    assert (found.mean, found.median, found.maximum) == pytest.approx((norms.mean(), np.median(norms), norms.max()))
    assert sum(bin_["shared"] for bin_ in found.histogram) == 300
    assert sum(bin_["exact"] for bin_ in found.histogram) == 6
    assert np.sqrt(np.mean(norms**2)) == pytest.approx(found.initial, rel=0.05)


def test_norms_by_load_see_a_table_whose_norms_are_the_load() -> None:
    model = build(rows=200)
    weights = model.embedding.table.values()
    ids = rows_by_hand(model)
    weights[:] = 0
    weights[:, 0] = torch.tensor([len(x) for x in ids], dtype=torch.float32)
    found = diagnose(model, counts()).norms
    assert found is not None
    load = np.array([len(x) for x in ids[:200]])
    for bin_ in found.by_load:
        mine = load[(load >= bin_["from"]) & (load <= bin_["to"])]
        assert (bin_["rows"], bin_["mean"]) == (len(mine), pytest.approx(mine.mean()))
    assert sum(bin_["rows"] for bin_ in found.by_load) == 200


def rows_by_hand(model: CTRModel) -> list[set[tuple[str, int]]]:
    """The ids in every row of the table."""
    ids: list[set[tuple[str, int]]] = [set() for _ in range(model.plan.rows)]
    none = torch.empty(0, dtype=torch.int64), torch.empty(0, 1, dtype=torch.int64)
    lookup = 0
    for column, f in enumerate(model.plan.features):
        columns = torch.zeros(SIZES[f.name], len(NAMES), dtype=torch.int64)
        columns[:, column] = torch.from_numpy(counts()[f.name][0])
        rows = model.embedding.rows(columns, *none)[0][:, lookup : lookup + f.chunks]
        for i, own in enumerate(rows.tolist()):
            for row in own:
                ids[row].add((f.name, i))
        lookup += f.chunks
    return ids


def train(model: CTRModel, steps: list[list[int]]) -> None:
    """One step after another that touches the rows of these ids of `user`."""
    model.train()
    for ids in steps:
        columns = torch.zeros(len(ids), len(NAMES), dtype=torch.int64)
        columns[:, 0] = torch.from_numpy(counts()["user"][0][ids])
        lengths = torch.empty(0, len(ids), dtype=torch.int64)
        out = model.embedding(columns, torch.empty(0, dtype=torch.int64), lengths)
        out[:, :8].sum().backward()
        model.embedding.table.step(0.1)


def touched_by(model: CTRModel, ids: list[int]) -> set[int]:
    columns = torch.zeros(len(ids), len(NAMES), dtype=torch.int64)
    columns[:, 0] = torch.from_numpy(counts()["user"][0][ids])
    rows = model.embedding.rows(columns, torch.empty(0, dtype=torch.int64), torch.empty(0, len(ids), dtype=torch.int64))
    # the zeros in the other columns read rows too
    return set(rows[0].flatten().tolist())


def test_ages_are_the_steps_since_rows_were_touched() -> None:
    model = build()
    table = model.embedding.table
    table.average = RowAverage(table.rows, table.width, 0.9)
    steps = [list(range(100))] + [list(range(10))] * 14
    train(model, steps)
    found = diagnose(model, counts(), state=update_state(table)).updates
    assert found is not None
    first, last = touched_by(model, steps[0]), touched_by(model, steps[-1])
    assert found.steps == 15
    assert found.never["shared"] == pytest.approx(1 - len(first) / 300)
    assert found.never["exact"] == 1
    assert [(bin_["from"], bin_["to"], bin_["rows"]) for bin_ in found.ages] == [
        (0, 9, len(last)),
        (10, 99, len(first - last)),
    ]


@pytest.mark.parametrize("name", ["rowwise_adagrad", "adam"])
def test_the_optimizer_remembers_which_rows_were_touched(name: str) -> None:
    model = build(TableOptimizer(name))
    assert diagnose(model, counts(), state=update_state(model.embedding.table)).updates is None
    table = model.embedding.table
    model.train()
    columns = torch.from_numpy(np.stack([counts()[n][0][:6] for n in NAMES], 1))
    out = model.embedding(columns, torch.empty(0, dtype=torch.int64), torch.empty(0, 6, dtype=torch.int64))
    out[:, ::2].sum().backward()  # half of a row's values have no gradient
    table.step(0.1)
    rows = model.embedding.rows(columns, torch.empty(0, dtype=torch.int64), torch.empty(0, 6, dtype=torch.int64))[0]
    found = diagnose(model, counts(), state=update_state(table)).updates
    assert found is not None
    assert found.never == {
        "shared": pytest.approx(1 - len(set(rows.flatten().tolist()) - set(range(300, 306))) / 300),
        "exact": 0,
    }
    assert (found.steps, found.ages) == (None, [])


def test_scalars_are_weighted_by_lookups_and_everything_is_json() -> None:
    found = diagnose(build(), counts())
    rates = [(f.measured.intra, f.lookups) for f in found.features if f.measured is not None]
    lookups = sum(n for _, n in rates)
    assert found.scalars()["intra"] == pytest.approx(sum(rate * n for rate, n in rates) / lookups)
    assert all(math.isfinite(value) for value in found.scalars().values())
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["table_bytes"] == build().plan.table_bytes


def test_an_outline_tells_what_the_whole_table_would() -> None:
    """Before training only what follows from addresses is told; no table of that size is made."""
    whole = build()
    outline = CTRModel(whole.layout, replace(whole.plan, rows=1), ModelConfig(hidden=(8,)))
    a, b = diagnose(outline, counts(), plan=whole.plan), diagnose(whole, counts())
    assert a == replace(b, overlaps=(), norms=None)


def test_a_model_without_lookups_has_nothing_to_tell() -> None:
    found = diagnose(build(chunks={"default": 0}), counts())
    assert found == Diagnostics(4, 0, (), (), None, (), None, None)
    assert found.scalars()["intra"] == 0
