"""A model in another row format: every row rounded to nearest, all else the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from features.batch import Batch
from features.errors import ConfigError
from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.formats import FormatName, RowFormat
from recsys.embeddings.plan import EmbeddingPlan
from recsys.models import CTRModel, ModelConfig
from recsys.models.convert import FORMATS, convert, rounding_error

LAYOUT = Layout(id_names=("user", "item"), dense_names=("price",), label_names=("click",))


def build(format: FormatName = "fp32", chunks: int = 2) -> CTRModel:
    config = EmbeddingConfig.model_validate(
        {
            "width": 6,
            "rows": 100,
            "format": format,
            "chunks": {"default": chunks},
            "hot": {"features": {"user": 8} if chunks else {}},
            "init_scale": 0.5,
        }
    )
    values = np.arange(40, dtype=np.int64)
    counts = {"user": (np.arange(500), np.arange(500)[::-1] + 1), "item": (values, np.ones_like(values))}
    plan = plan_embedding(LAYOUT, config, counts)
    return CTRModel(LAYOUT, plan, ModelConfig(interaction="dcnv2", hidden=(8,)), seed=1).eval()


def batch(rows: int = 50) -> Batch:
    g = torch.Generator().manual_seed(1)
    empty = torch.empty(0, dtype=torch.int64)
    ids = torch.randint(0, 60, (rows, 2), generator=g)
    dense = torch.randn(rows, 1, generator=g)
    return Batch(ids, empty, torch.empty(0, rows, dtype=torch.int64), dense, torch.empty(rows, 0))


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "fp32"])
def test_rows_are_rounded_to_nearest_and_all_else_is_kept(name: FormatName) -> None:
    model = build()
    before = {key: tensor.clone() for key, tensor in model.tensors().items()}
    converted = convert(model, name)
    after = converted.tensors()
    expected = RowFormat(name, 6).encode(before["table"])
    assert torch.equal(after["table"], expected)
    assert all(torch.equal(after[key], before[key]) for key in before if key != "table")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.tensors().items())
    assert len(before["exact_keys"]) > 0
    assert len(before["hot_keys"]) > 0
    assert converted.plan.to_json() == {**model.plan.to_json(), "format": name}
    assert converted.plan.table_bytes < model.plan.table_bytes
    wanted = (RowFormat(name, 6).decode(expected) - before["table"]).norm() / before["table"].norm()
    assert rounding_error(model, converted) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "fp32"])
def test_fp32_keeps_every_prediction(name: FormatName) -> None:
    model = build(name)
    converted = convert(model, "fp32")
    assert torch.equal(converted.logits(batch()), model.logits(batch()))
    assert rounding_error(model, converted) == 0


@pytest.mark.parametrize("name", ["int4", "int8-table"])
def test_a_model_without_lookups_is_converted_too(name: str) -> None:
    converted = convert(build(chunks=0), name)
    assert converted.plan.rows == 0
    assert torch.isfinite(converted.logits(batch())).all()


@pytest.mark.parametrize("name", FORMATS)
def test_int8_rows_share_a_step_that_holds_the_largest_value(name: FormatName) -> None:
    model = build(name)
    values = model.embedding.table.values().clone()
    converted = convert(model, "int8-table")
    plan, table = converted.plan, converted.embedding.table
    assert plan.step == pytest.approx(float(values.abs().max()) / 127, rel=1e-6)
    assert (table.values() - values).abs().max() <= plan.step * 0.5001
    assert table.stored().shape == (plan.rows, 6)
    assert (plan.format, plan.format_name) == ("int8", "int8-table")
    assert plan.to_json() == {**model.plan.to_json(), "format": "int8", "step": plan.step}
    assert EmbeddingPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    tensors = {key: tensor for key, tensor in converted.tensors().items() if not key.startswith("network.")}
    assert plan.table_bytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert all(torch.equal(tensor, model.tensors()[key]) for key, tensor in tensors.items() if key != "table")


@pytest.mark.parametrize("name", FORMATS)
def test_from_a_shared_step_every_format_is_reached(name: FormatName) -> None:
    shared = convert(build(), "int8-table")
    back = convert(shared, name)
    assert back.plan.step is None
    assert "step" not in back.plan.to_json()
    assert torch.equal(back.embedding.table.stored(), RowFormat(name, 6).encode(shared.embedding.table.values()))
    if name == "fp32":
        assert torch.equal(back.logits(batch()), shared.logits(batch()))
    with pytest.raises(ConfigError, match="in this format already"):
        convert(shared, "int8-table")


def test_formats_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="in this format already"):
        convert(build("bf16"), "bf16")
    with pytest.raises(ConfigError, match=r"Expected: fp32.*, int8-table.*did you mean 'int8'"):
        convert(build(), "int-8")
