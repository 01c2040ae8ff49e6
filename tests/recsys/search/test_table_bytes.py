"""The bytes of an allocation's table are those of its plan, and every allocation that the space allows has one."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from features.errors import ConfigError
from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.config import ChunksConfig
from recsys.embeddings.plan import IdCounts
from recsys.search.config import SearchConfig
from recsys.search.space import space_of
from recsys.search.table_bytes import TableBytes

LAYOUT = Layout(id_names=("user", "city", "day"), bag_names=("tags",), bag_poolings=("sum",), label_names=("click",))
COUNTS: IdCounts = {
    name: (np.arange(1, values + 1) * 7919, np.arange(values, 0, -1) + base)
    for name, values, base in (("user", 300, 0), ("city", 40, 280), ("day", 7, 0), ("tags", 90, 200))
}
NO_EXACT = {"exact": {"max_values": 0}}


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"exact": {"max_values": 40}, "hot": {"slots": 100}},
        {**NO_EXACT, "hot": {"slots": 64}},
        {**NO_EXACT, "hot": {"slots": 64, "features": {"tags": 9}}},
        {"hot": {"features": {"user": 20}}},
        {"kind": "hashed"},
        {"kind": "hashed", **NO_EXACT},
        {"kind": "hashed", "split": "sqrt", "hot": {"slots": 50}},
        {"kind": "hashed", "split": "equal", "rows": 3},
        {"kind": "collisionless"},
    ],
    ids=str,
)
def test_bytes_are_those_of_the_tables_that_are_made(table: dict[str, Any]) -> None:
    embedding = EmbeddingConfig.model_validate({"width": 4, "rows": 500, **table})
    space = space_of(LAYOUT, embedding, COUNTS, SearchConfig(levels=(0, 3)), {})
    table_bytes = TableBytes(LAYOUT, embedding, COUNTS)
    for genes in map(np.array, product(*map(range, space.sizes))):
        chunks = ChunksConfig(default=0, features=space.allocation(genes))
        own = embedding.model_copy(update={"chunks": chunks, "format": "int4"})
        if space.lacks_a_chunk(genes) and embedding.hot.slots:
            with pytest.raises(ConfigError, match="no feature whose ids could be hot"):
                plan_embedding(LAYOUT, own, COUNTS)
        else:
            assert table_bytes(space.chunks(genes), "int4") == plan_embedding(LAYOUT, own, COUNTS).table_bytes


def test_keys_are_as_long_as_the_features_that_are_left_need() -> None:
    many = np.arange(1, 200_001) * 7919
    counts: IdCounts = {**COUNTS, "user": (many, np.ones_like(many))}
    embedding = EmbeddingConfig(kind="collisionless", width=4)
    for chunks in ([1, 1, 1, 1], [0, 1, 1, 1]):
        allocation = ChunksConfig(features=dict(zip(("user", "city", "day", "tags"), chunks, strict=True)))
        plan = plan_embedding(LAYOUT, embedding.model_copy(update={"chunks": allocation}), counts)
        assert plan.key_bits == (64 if chunks[0] else 32)
        assert TableBytes(LAYOUT, embedding, counts)(np.array(chunks), "fp32") == plan.table_bytes


def test_hot_slots_that_no_allocation_could_use_are_refused() -> None:
    embedding = EmbeddingConfig.model_validate({"width": 4, "exact": {"max_values": 100}, "hot": {"slots": 8}})
    with pytest.raises(ConfigError, match=r"search.levels: no allocation has.*0 alone for user"):
        space_of(LAYOUT, embedding, COUNTS, SearchConfig(features={"user": (0,)}), {})
