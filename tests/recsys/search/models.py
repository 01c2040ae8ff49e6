"""Models with everything that a layout may hold, and batches for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from features.batch import Batch
from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.plan import IdCounts
from recsys.models import CTRModel, ModelConfig

WIDTH = 4
LAYOUT = Layout(
    id_names=("user", "item", "city"),
    bag_names=("tags", "words"),
    bag_poolings=("sum", "mean"),
    dense_names=("price", "price:missing"),
    vector_names=("image",),
    vector_sizes=(3,),
    label_names=("click", "buy"),
)
NAMES = (*LAYOUT.id_names, *LAYOUT.bag_names)
COUNTS: IdCounts = {name: (np.arange(60), np.arange(1, 61)) for name in NAMES}
LARGEST = {"user": 4, "item": 2, "city": 1, "tags": 3, "words": 2}
NETWORKS: list[dict[str, Any]] = [
    {"interaction": "mlp"},
    {"interaction": "mlp", "hidden": []},
    {"interaction": "dcn"},
    {"interaction": "dcn", "structure": "stacked"},
    {"interaction": "dcnv2"},
    {"interaction": "dcnv2", "low_rank": 3},
    {"interaction": "dcnv2", "structure": "stacked"},
    {"interaction": "dcnv2", "hidden": []},
    {"interaction": "fm"},
    {"interaction": "fm", "hidden": []},
    {"interaction": "ipnn"},
    {"interaction": "ipnn", "hidden": []},
]
networks = pytest.mark.parametrize("network", NETWORKS, ids=lambda n: "-".join(str(v) for v in n.values()))


def build(
    network: dict[str, Any] | None = None,
    *,
    layout: Layout = LAYOUT,
    chunks: dict[str, int] | None = None,
    seed: int = 0,
    trained: bool = True,
    **table: Any,
) -> CTRModel:
    """A model; `trained` puts noise on its network, where zeros and ones would hide mistakes."""
    names = (*layout.id_names, *layout.bag_names)
    per_feature = {name: (chunks or LARGEST)[name] for name in names}
    table = {"width": WIDTH, "rows": 50, "init_scale": 1.0, "exact": {"max_values": 0}, **table}
    config = EmbeddingConfig.model_validate({**table, "chunks": {"features": per_feature}})
    plan = plan_embedding(layout, config, {name: COUNTS[name] for name in names})
    model = CTRModel(layout, plan, ModelConfig.model_validate({"hidden": [8, 5], **(network or {})}), seed=seed)
    if trained:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.dense_parameters().values():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def batch(layout: Layout = LAYOUT, rows: int = 20, seed: int = 1) -> Batch:
    """Random rows with labels of both classes and weights."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (len(layout.bag_names), rows), generator=g)
    return Batch(
        ids=torch.randint(0, 90, (rows, len(layout.id_names)), generator=g),
        bag_values=torch.randint(0, 90, (int(lengths.sum()),), generator=g),
        bag_lengths=lengths,
        dense=torch.randn(rows, len(layout.dense_names), generator=g),
        vectors=torch.randn(rows, layout.vector_width, generator=g),
        labels=((torch.arange(rows).unsqueeze(1) + torch.arange(len(layout.label_names))) % 2).float(),
        weight=torch.randint(1, 4, (rows,), generator=g).float(),
    )
