"""What rows are worth, and which of them a budget keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from features.batch import Batch
from features.errors import ConfigError, DataError
from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.models.compact import compact, exact_rows
from recsys.search.pruning import choose, features_kept, gradient, magnitude
from recsys.training.trainer import weighted_loss

LAYOUT = Layout(
    id_names=("user", "kind"),
    bag_names=("tags", "words"),
    bag_poolings=("mean", "sum"),
    dense_names=("price",),
    label_names=("click", "buy"),
)
SIZES = {"user": 300, "kind": 9, "tags": 20, "words": 200}


def build(**config: Any) -> CTRModel:
    settings = {"width": 4, "rows": 100, "exact": {"max_values": 30}, "chunks": {"default": 2}, "init_scale": 0.5}
    counts = {name: (np.arange(n), np.ones(n, np.int64)) for name, n in SIZES.items()}
    plan = plan_embedding(LAYOUT, EmbeddingConfig.model_validate({**settings, **config}), counts)
    return CTRModel(LAYOUT, plan, ModelConfig(interaction="dcnv2", hidden=(8,), dropout=0.5), seed=1, kernel="torch")


def batch(rows: int = 40, seed: int = 1) -> Batch:
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(0, SIZES[n], (rows,), generator=g) for n in LAYOUT.id_names], 1)
    lengths = torch.randint(0, 4, (2, rows), generator=g)
    bags = [
        torch.randint(0, SIZES[n], (int(length.sum()),), generator=g)
        for n, length in zip(LAYOUT.bag_names, lengths, strict=True)
    ]
    labels = torch.randint(0, 2, (rows, 2), generator=g).float()
    dense = torch.randn(rows, 1, generator=g)
    return Batch(ids, torch.cat(bags), lengths, dense, torch.empty(rows, 0), labels, torch.rand(rows, generator=g))


def test_magnitude_is_the_norm_of_a_row() -> None:
    model = build(format="int8")
    values = model.embedding.table.values()
    torch.testing.assert_close(magnitude(model), values.double().square().sum(1).sqrt())


def test_importances_of_a_tiny_model_by_hand() -> None:
    # logistic regression on one value: p = sigmoid(w . v), the gradient of the loss at v is (p - y) w
    layout = Layout(id_names=("a",), label_names=("click",))
    config = EmbeddingConfig.model_validate({"width": 2, "rows": 3, "exact": {"features": {"a": True}}})
    plan = plan_embedding(layout, config, {"a": (np.arange(2), np.ones(2, np.int64))})
    model = CTRModel(layout, plan, ModelConfig(interaction="mlp", hidden=()), kernel="torch")
    with torch.no_grad():
        model.network.head.weight.copy_(torch.tensor([[1.0, 2.0]]))
        model.network.head.bias.zero_()
        rows = model.embedding.rows_of("a", torch.arange(2)).flatten().long()
        model.embedding.table.assign(rows, torch.tensor([[3.0, -1.0], [-1.0, 0.5]]))
    empty = torch.empty(0, dtype=torch.int64)
    ids = torch.tensor([[0], [0], [1]])
    labels = torch.tensor([[1.0], [0.0], [1.0]])
    rest = (empty, torch.empty(0, 3, dtype=torch.int64), torch.empty(3, 0), torch.empty(3, 0))
    p = 1 / (1 + np.exp(-1.0))  # of the first value, whose logit is 1; that of the second is 0
    found = gradient(model, [Batch(ids, *rest, labels)])
    np.testing.assert_allclose(found[rows], [(1 - p) * 1.0 + p * 1.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(magnitude(model)[rows], [10**0.5, 1.25**0.5], rtol=1e-6)


def test_the_gradient_is_that_of_autograd_lookup_by_lookup() -> None:
    model = build().eval()
    expected = torch.zeros(model.plan.rows, dtype=torch.float64)
    whole = batch()
    starts = torch.cat([torch.zeros(2, 1, dtype=torch.int64), whole.bag_lengths.cumsum(1)], 1)
    tags, words = whole.bag_values.split(whole.bag_lengths.sum(1).tolist())
    assert whole.weight is not None
    assert whole.labels is not None
    for i in range(len(whole)):
        bags = [values[int(s[i]) : int(s[i + 1])] for values, s in zip((tags, words), starts, strict=True)]
        one = Batch(
            whole.ids[i : i + 1],
            torch.cat(bags),
            whole.bag_lengths[:, i : i + 1],
            whole.dense[i : i + 1],
            whole.vectors[i : i + 1],
            whole.labels[i : i + 1],
            whole.weight[i : i + 1],
        )
        rows, bag_rows = model.embedding.rows(one.ids, one.bag_values, one.bag_lengths)
        row = torch.cat([rows.flatten(), *(r.flatten() for r in bag_rows)]).long()
        vectors = model.embedding.table.values(row).requires_grad_()
        parts = vectors.split([rows.numel(), *(r.numel() for r in bag_rows)])
        pooled = [parts[0].flatten()]
        for part, r, pooling in zip(parts[1:], bag_rows, LAYOUT.bag_poolings, strict=True):
            flat = part.reshape(r.shape[0], 8)
            pooled.append(flat.sum(0) / max(len(flat), 1) if pooling == "mean" else flat.sum(0))
        x = torch.cat([*pooled, one.dense[0]]).unsqueeze(0)
        loss, weight = weighted_loss(model.network(x), one)
        (grad,) = torch.autograd.grad(loss * weight, vectors)
        expected.index_add_(0, row, (grad * vectors).sum(1).abs().detach().double())
    found = gradient(model, [whole])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert all(p.grad is None for p in model.network.parameters())


def test_the_gradient_leaves_the_model_as_it_was_and_knows_no_batches() -> None:
    model = build(hot={"features": {"user": 8}}).train()
    before = {name: tensor.clone() for name, tensor in model.tensors().items()}
    first, second = batch(seed=1), batch(seed=2)
    together = gradient(model, [first, second])
    torch.testing.assert_close(together, gradient(model, [first]) + gradient(model, [second]))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tensors().items())


def test_the_gradient_without_rows_or_labels_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        gradient(build(), [])
    with pytest.raises(DataError, match="labels"):
        gradient(build(), [replace(batch(), labels=None)])


@pytest.mark.parametrize("kind", ["multiplexed", "hashed", "collisionless"])
@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 1.0])
def test_a_budget_keeps_the_most_important_rows_and_whole_values(kind: str, keep: float) -> None:
    model = build(kind=kind, hot={} if kind == "collisionless" else {"features": {"user": 8}})
    plan = model.plan
    importance = torch.rand(plan.rows, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    kept = choose(plan, importance, keep)
    counted = torch.zeros(plan.rows, dtype=torch.bool)
    worth = importance.clone()
    for f in plan.features:
        if f.region == "exact":
            own = exact_rows(f)
            counted[own] = True
            mean = importance[own].view(-1, f.chunks).mean(1)
            worth[own] = mean.repeat_interleave(f.chunks)
            values = kept[own].view(-1, f.chunks)
            assert (values == values[:, :1]).all()
        if kind == "multiplexed" or f.region != "exact":
            counted[f.base : f.base + f.span] = True
    assert kept[~counted].all()
    budget = round(keep * int(counted.sum()))
    assert budget - 1 <= int(kept[counted].sum()) <= budget
    if keep < 1 and int(kept[counted].sum()):
        assert worth[counted & kept].min() >= worth[counted & ~kept].max()
    lines = {line.feature: line for line in features_kept(plan, kept)}
    assert set(lines) == set(SIZES)
    for f in compact(model, kept).plan.features:
        if f.region == "exact":
            assert lines[f.name].kept == f.values


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5, float("nan")])
def test_shares_that_make_no_sense_are_refused(keep: float) -> None:
    model = build()
    with pytest.raises(ConfigError, match="no share"):
        choose(model.plan, magnitude(model), keep)


def test_a_pruned_model_is_not_pruned_again() -> None:
    model = build()
    small = compact(model, choose(model.plan, magnitude(model), 0.5))
    with pytest.raises(ConfigError, match="pruned already"):
        choose(small.plan, magnitude(small), 0.5)


def test_importance_costs_less_than_chance() -> None:
    # what is left predicts more like the whole model than a random choice of rows does
    model = build(rows=400).eval()
    data = batch(2000, seed=4)
    g = torch.Generator().manual_seed(5)
    rows = torch.arange(400)
    scale = torch.exp(2 * torch.randn(400, 1, generator=g))
    model.embedding.table.assign(rows, model.embedding.table.values(rows) * scale)
    errors = {}
    with torch.no_grad():
        for name, importance in {
            "magnitude": magnitude(model),
            "gradient": gradient(model, [data]),
            "chance": torch.rand(model.plan.rows, generator=g),
        }.items():
            small = compact(model, choose(model.plan, importance, 0.5))
            errors[name] = float((small.logits(data) - model.logits(data)).abs().mean())
    assert errors["magnitude"] < 0.5 * errors["chance"]
    assert errors["gradient"] < 0.5 * errors["chance"]
