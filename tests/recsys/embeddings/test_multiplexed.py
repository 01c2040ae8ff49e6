"""The embedding module against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, MultiplexedEmbedding, TableOptimizer, plan_embedding
from recsys.embeddings.kernel import is_installed
from recsys.embeddings.multiplexed import pool

NAMES, BAGS, POOLINGS = ("user", "item"), ("tags", "genres"), ("sum", "mean")


def build(kernel: str = "torch", **config: object) -> MultiplexedEmbedding:
    layout = Layout(id_names=NAMES, bag_names=BAGS, bag_poolings=POOLINGS)
    settings = EmbeddingConfig.model_validate(
        {"width": 4, "rows": 100, "chunks": {"default": 1, "features": {"user": 2, "tags": 3}}, **config}
    )
    values = {n: np.arange(5, dtype=np.int64) for n in (*NAMES, *BAGS)}
    counts = {n: (v, np.ones_like(v)) for n, v in values.items()}
    module = MultiplexedEmbedding(
        plan_embedding(layout, settings, counts), POOLINGS, optimizer=TableOptimizer(), kernel=kernel
    )
    module.table.initialise(0.05, torch.Generator().manual_seed(3))
    return module


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Three rows; tags: [1 2], [], [3]; genres: [4], [0 9 1], []."""
    ids = torch.tensor([[1, 2], [3, 4], [70, 80]])
    return ids, torch.tensor([1, 2, 3, 4, 0, 9, 1]), torch.tensor([[2, 0, 1], [1, 3, 0]])


@pytest.mark.parametrize("exact", [0, 64])
def test_output_is_the_chunks_side_by_side_and_the_bags_pooled(exact: int) -> None:
    module = build(exact={"max_values": exact})
    ids, values, lengths = data()
    out, weights = module(ids, values, lengths), module.table.values()
    rows, (tags, genres) = module.rows(ids, values, lengths)
    assert out.shape == (3, module.plan.output_width) == (3, (2 + 1 + 3 + 1) * 4)
    single = weights[rows.long()].flatten(1)
    torch.testing.assert_close(out[:, :12], single)
    tag, genre = weights[tags.long()].flatten(1), weights[genres.long()].flatten(1)
    torch.testing.assert_close(out[:, 12:24], torch.stack([tag[0] + tag[1], torch.zeros(12), tag[2]]))
    torch.testing.assert_close(out[:, 24:], torch.stack([genre[0], genre[1:].mean(0), torch.zeros(4)]))


def test_a_dropped_bag_takes_no_part() -> None:
    module = build(chunks={"features": {"tags": 0}})
    ids, values, lengths = data()
    out = module(ids, values, lengths)
    assert out.shape == (3, module.plan.output_width) == (3, (1 + 1 + 0 + 1) * 4)
    out.sum().backward()
    other = module(ids, values + torch.tensor([9, 9, 9, 0, 0, 0, 0]), lengths)
    assert torch.equal(out, other)


def test_gradients_reach_the_table_through_pooling() -> None:
    """One SGD step equals the step of a dense table under plain autograd."""
    module = build()
    module.table.optimizer = TableOptimizer("sgd")
    ids, values, lengths = data()
    target = torch.randn(3, module.plan.output_width, generator=torch.Generator().manual_seed(1))
    dense = module.table.values().clone().requires_grad_(True)
    rows, (tags, genres) = module.rows(ids, values, lengths)
    tag, genre = dense[tags.long()].flatten(1), dense[genres.long()].flatten(1)
    parts = [
        dense[rows.long()].flatten(1),
        torch.stack([tag[0] + tag[1], torch.zeros(12), tag[2]]),
        torch.stack([genre[0], genre[1:].mean(0), torch.zeros(4)]),
    ]
    (torch.cat(parts, 1) * target).sum().backward()
    assert dense.grad is not None
    expected = (dense - 0.1 * dense.grad).detach()
    (module(ids, values, lengths) * target).sum().backward()
    module.table.step(0.1)
    torch.testing.assert_close(module.table.values(), expected)


@pytest.mark.skipif(not is_installed("fbgemm_gpu"), reason="fbgemm-gpu is not installed")
def test_kernels_agree() -> None:
    ids, values, lengths = data()
    ours, theirs = build("torch"), build("fbgemm")
    assert torch.equal(ours(ids, values, lengths).detach(), theirs(ids, values, lengths).detach())


def test_pool_has_the_gradient_of_a_sum() -> None:
    vectors = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([2, 0, 3])
    for pooling in POOLINGS:
        assert torch.autograd.gradcheck(lambda v, p=pooling: pool(v, lengths, p), vectors)
