"""A compact model is the old one with zeros in the rows that are gone, bit for bit, in fewer bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from features.batch import Batch
from features.errors import ArtifactError, ConfigError
from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.diagnostics import diagnose
from recsys.embeddings.formats import FormatName
from recsys.embeddings.plan import EmbeddingPlan, IdCounts
from recsys.models import CTRModel, ModelConfig
from recsys.models.compact import compact, exact_rows
from recsys.models.convert import convert
from recsys.models.warm_start import warm_start
from recsys.tensorfile import write_tensors
from recsys.training import TrainConfig, Trainer

LAYOUT = Layout(
    id_names=("user", "item", "kind"),
    bag_names=("tags",),
    bag_poolings=("mean",),
    dense_names=("price",),
    label_names=("click",),
)
SIZES = {"user": 500, "item": 300, "kind": 9, "tags": 20}
COUNTS: IdCounts = {name: (np.arange(n), np.arange(n)[::-1] + 1) for name, n in SIZES.items()}
ARMS: list[dict[str, Any]] = [
    {},
    {"hot": {"features": {"user": 16}}},
    {"kind": "hashed"},
    {"kind": "collisionless"},
    {"chunks": {"default": 2, "features": {"item": 3, "kind": 0}}},
    {"exact": {"max_values": 0}},
    {"exact": {"max_values": 1000}},
]


def build(seed: int = 1, **config: Any) -> CTRModel:
    settings = {"width": 6, "rows": 150, "exact": {"max_values": 30}, "chunks": {"default": 2}, "init_scale": 0.5}
    plan = plan_embedding(LAYOUT, EmbeddingConfig.model_validate({**settings, **config}), COUNTS)
    return CTRModel(LAYOUT, plan, ModelConfig(interaction="dcnv2", hidden=(8,)), seed=seed, kernel="torch").eval()


def batch(rows: int = 64, unseen: int = 0) -> Batch:
    """Values that training saw, or none of them."""
    g = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randint(0, SIZES[n], (rows,), generator=g) for n in LAYOUT.id_names], 1) + unseen
    lengths = torch.randint(0, 4, (1, rows), generator=g)
    tags = torch.randint(0, SIZES["tags"], (int(lengths.sum()),), generator=g) + unseen
    return Batch(ids, tags, lengths, torch.randn(rows, 1, generator=g), torch.empty(rows, 0))


def some_rows(plan: EmbeddingPlan, share: float = 0.5) -> torch.Tensor:
    """A random choice of rows, whole values of exact fields, all hot ones."""
    g = torch.Generator().manual_seed(2)
    kept = torch.ones(plan.rows, dtype=torch.bool)
    for f in plan.features:
        if plan.kind == "multiplexed" or f.region != "exact":
            kept[f.base : f.base + f.span] = torch.rand(f.span, generator=g) < share
    for f in plan.features:
        if f.region == "exact":
            kept[exact_rows(f)] = (torch.rand(f.values, generator=g) < share).repeat_interleave(f.chunks)
    return kept


def zeroed(model: CTRModel, kept: torch.Tensor) -> CTRModel:
    """The same model with zeros in the place of rows, at its full size."""
    other = CTRModel(model.layout, model.plan, model.config, kernel="torch").eval()
    table = model.tensors()["table"].clone()
    table[~kept] = other.embedding.table.format.encode(torch.zeros(1, model.plan.width))
    other.load_tensors({**model.tensors(), "table": table})
    return other


@pytest.mark.parametrize("config", ARMS, ids=str)
@pytest.mark.parametrize("format", ["fp32", "bf16", "int4"])
def test_a_compact_model_predicts_as_the_one_with_zeros_in_it(config: dict[str, Any], format: FormatName) -> None:
    model = build(format=format, **config)
    before = {name: tensor.clone() for name, tensor in model.tensors().items()}
    kept = some_rows(model.plan)
    small = compact(model, kept)
    assert torch.equal(small.logits(batch()), zeroed(model, kept).logits(batch()))
    assert not torch.equal(small.logits(batch()), model.logits(batch()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tensors().items())
    assert small.plan.table_bytes < model.plan.table_bytes


@pytest.mark.parametrize("config", ARMS, ids=str)
def test_rows_of_a_shared_step_are_left_out_too(config: dict[str, Any]) -> None:
    model = convert(build(**config), "int8-table")
    kept = some_rows(model.plan)
    small = compact(model, kept)
    assert small.plan.step == model.plan.step
    assert torch.equal(small.logits(batch()), zeroed(model, kept).logits(batch()))


@pytest.mark.parametrize("config", ARMS, ids=str)
def test_what_is_written_is_what_is_counted(config: dict[str, Any], tmp_path: Path) -> None:
    model = build(width=16, rows=2000, **{k: v for k, v in config.items() if k != "chunks"})
    small = compact(model, some_rows(model.plan))
    tensors = {k: v for k, v in small.tensors().items() if not k.startswith("network.")}
    assert small.plan.table_bytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert small.embedding.table.rows == small.plan.rows == len(tensors["table"])
    write_tensors(tmp_path / "table", tensors, {})
    assert (tmp_path / "table").stat().st_size == pytest.approx(small.plan.table_bytes, rel=0.02)
    read = EmbeddingPlan.from_json(json.loads(json.dumps(small.plan.to_json())))
    assert read == small.plan
    assert read.table_bytes == small.plan.table_bytes
    again = CTRModel(small.layout, read, small.config, kernel="torch").eval()
    again.load_tensors(small.tensors())
    assert torch.equal(again.logits(batch()), small.logits(batch()))


def test_values_that_are_gone_and_unseen_ones_read_zeros_but_only_in_their_field() -> None:
    model = build()
    kept = torch.ones(model.plan.rows, dtype=torch.bool)
    kind = next(f for f in model.plan.features if f.name == "kind")
    kept[exact_rows(kind)] = (torch.arange(kind.values) != 3).repeat_interleave(kind.chunks)
    small = compact(model, kept)
    new = {f.name: f for f in small.plan.features}
    assert (new["kind"].values, new["tags"].values) == (8, 20)
    assert small.embedding.kept is None
    assert small.plan.pruned is not None
    assert small.plan.pruned.index_bytes == 0
    assert small.plan.rows == model.plan.rows + 1 - kind.chunks
    values = torch.arange(-50, 50)
    for name, gone in (("kind", 1), ("tags", 0), ("user", 0)):
        read = {m: e.table.values(e.rows_of(name, values).flatten()) for m, e in _both(model, small)}
        zeros = (read["small"].view(len(values), -1) == 0).all(1)
        known = (values >= 0) & (values < SIZES[name])
        if gone:
            assert int(zeros[known].sum()) == 1
            assert bool(zeros[~known].all())
        else:
            assert torch.equal(read["small"], read["model"])


def _both(model: CTRModel, small: CTRModel) -> list[tuple[str, Any]]:
    return [("model", model.embedding), ("small", small.embedding)]


def test_a_value_some_of_whose_rows_go_goes_whole() -> None:
    model = build()
    kind = next(f for f in model.plan.features if f.name == "kind")
    kept = torch.ones(model.plan.rows, dtype=torch.bool)
    kept[kind.exact_base] = False
    small = compact(model, kept)
    assert next(f for f in small.plan.features if f.name == "kind").values == 8
    assert small.plan.rows == model.plan.rows + 1 - kind.chunks


@pytest.mark.parametrize("config", [{}, {"kind": "hashed"}, {"kind": "collisionless"}], ids=str)
def test_features_can_go_altogether(config: dict[str, Any]) -> None:
    model = build(**config)
    small = compact(model, torch.ones(model.plan.rows, dtype=torch.bool), without=("user", "tags"))
    x, y = model.inputs_of(batch()), small.inputs_of(batch())
    names = [name[0] for name in model.network.input_axis()]
    gone = torch.tensor([name in ("user", "tags") for name in names])
    assert (y[:, gone] == 0).all()
    assert torch.equal(y[:, ~gone], x[:, ~gone])
    lines = {line["feature"]: line for line in small.plan.summary()}
    if config:  # nobody else reads the rows of the feature
        assert small.plan.rows < model.plan.rows
        assert lines["user"]["bytes"] == 0


def test_a_model_of_which_nothing_is_left_reads_zeros() -> None:
    model = build()
    small = compact(model, torch.zeros(model.plan.rows, dtype=torch.bool))
    assert (small.plan.rows, small.plan.exact_values) == (1, 0)
    assert (small.inputs_of(batch())[:, : small.plan.output_width] == 0).all()


def test_what_can_be_done_with_a_compact_model(tmp_path: Path) -> None:
    model = build()
    small = compact(model, some_rows(model.plan))
    low = convert(small, "int8")
    assert float((low.logits(batch()) - small.logits(batch())).detach().abs().max()) < 0.1
    assert low.embedding.table.values(torch.tensor([small.plan.pruned.left])).abs().max() == 0  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="pruned already"):
        compact(small, torch.ones(small.plan.rows, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"train\.warm_start"):
        Trainer(small, TrainConfig(), seed=0, folder=tmp_path)
    with pytest.raises(ArtifactError, match="another model"):
        small.load_tensors(model.tensors())


@pytest.mark.parametrize(
    ("config", "factor"), [*((arm, 1) for arm in ARMS[:5]), *((arm, 2) for arm in ARMS if arm != {"kind": "hashed"})]
)
def test_a_fresh_model_starts_from_a_compact_one_where_it_was(config: dict[str, Any], factor: int) -> None:
    model = build(**config)
    small = compact(model, some_rows(model.plan))
    fresh = build(seed=5, rows=150 * factor, **config)
    report = warm_start(fresh, small, COUNTS)
    torch.testing.assert_close(fresh.logits(batch()), small.logits(batch()))
    assert report.lookups_kept > 0.9
    assert fresh.plan.pruned is None
    if not config:  # values that training never saw read what they read before, too
        unseen = torch.arange(10_000, 10_500)
        read = [m.table.values(m.rows_of("user", unseen).flatten()) for m in (fresh.embedding, small.embedding)]
        assert torch.equal(*read)


def test_diagnostics_count_the_rows_that_are_there() -> None:
    model = build(hot={"features": {"user": 16}})
    small = compact(model, some_rows(model.plan))
    found = diagnose(small, COUNTS)
    assert {r.region: r.rows for r in found.regions if r.region != "index"} == {
        "shared": small.plan.pruned.left + 1,  # type: ignore[union-attr]
        "exact": small.plan.exact_values * 2,
        "hot": 32,
    }
    index = next(r for r in found.regions if r.region == "index")
    assert index.bytes == small.plan.exact_values * 4 + 16 * 4 + small.plan.pruned.index_bytes  # type: ignore[union-attr]
    assert sum(r.traffic or 0 for r in found.regions) == pytest.approx(1)
    assert sum(r.bytes for r in found.regions) == small.plan.table_bytes
