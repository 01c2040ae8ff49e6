"""The divided table against the plain one, in a group of one process: same rows, same sums, same updates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist

from features.errors import ConfigError
from features.layout import Layout
from recsys import memory
from recsys.embeddings import EmbeddingConfig, MultiplexedEmbedding, TableOptimizer, plan_embedding
from recsys.embeddings import table as table_module
from recsys.embeddings.plan import EmbeddingPlan
from recsys.embeddings.sharded import ShardedEmbedding, ShardedTable, Sharding, lookup_names, torchrec_available
from recsys.processes import Processes

pytestmark = pytest.mark.skipif(not torchrec_available(), reason="torchrec is not installed")

LAYOUT = Layout(id_names=("user", "kind"), bag_names=("tags", "words"), bag_poolings=("mean", "sum"))
ALONE = Processes(0, 1, connected=True)


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def plan_of(**config: object) -> EmbeddingPlan:
    config = {"width": 4, "rows": 50, "chunks": {"default": 2, "features": {"kind": 1}}, **config}
    counts = {name: (np.arange(n), np.ones(n, np.int64)) for name, n in (("user", 200), ("kind", 3), ("tags", 9))}
    return plan_embedding(LAYOUT, EmbeddingConfig.model_validate({"exact": {"max_values": 5}, **config}), counts)


def table(plan: EmbeddingPlan, optimizer: TableOptimizer | None = None, kind: Sharding = "auto") -> ShardedTable:
    out = ShardedTable(plan, optimizer or TableOptimizer(), kind, 64, ALONE)
    out.initialise(0.1, torch.Generator().manual_seed(7))
    return out


def batch(seed: int, rows: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (2, rows), generator=random)
    ids = torch.stack([torch.randint(0, n, (rows,), generator=random) for n in (300, 5)], 1)
    return ids, torch.randint(0, 12, (int(lengths.sum()),), generator=random), lengths


def test_every_lookup_has_a_name() -> None:
    assert lookup_names(plan_of())[:3] == ["user#0", "user#1", "kind#0"]
    assert len(lookup_names(plan_of())) == plan_of().lookups


@pytest.mark.parametrize("block", [1 << 20, 12])
def test_initial_weights_are_those_of_one_process(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "_INITIALISED_AT_ONCE", block)
    plan = plan_of()
    plain = MultiplexedEmbedding(plan).table
    drawn = torch.Generator().manual_seed(7)
    plain.initialise(0.1, drawn)
    divided = ShardedTable(plan, TableOptimizer(), "row_wise", 64, ALONE)
    random = torch.Generator().manual_seed(7)
    divided.initialise(0.1, random)
    assert torch.equal(divided.values(), plain.values())
    assert torch.equal(random.get_state(), drawn.get_state())  # what is drawn next is the same too


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])
@pytest.mark.parametrize("poolings", [("mean", "sum"), ("sum", "sum")])
def test_forward_and_update_are_those_of_one_process(optimizer: str, poolings: tuple[str, str]) -> None:
    plan, settings = plan_of(), TableOptimizer(optimizer)  # type: ignore[arg-type]
    plain = MultiplexedEmbedding(plan, poolings, optimizer=settings)
    plain.table.initialise(0.1, torch.Generator().manual_seed(7))
    divided = ShardedEmbedding(plan, poolings, table(plan, settings), ALONE)
    for step in range(3):
        inputs, rate = batch(step), 0.1 / (step + 1)
        outputs = []
        for module in (plain, divided):
            module.table.set_learning_rate(rate)
            out = module(*inputs)
            out.sin().sum().backward()
            module.table.step(rate)
            outputs.append(out.detach())
        torch.testing.assert_close(outputs[1], outputs[0], atol=1e-6, rtol=1e-5)
    assert isinstance(divided.table, ShardedTable)
    torch.testing.assert_close(divided.table.values(), plain.table.values(), atol=1e-6, rtol=1e-5)


def test_a_smaller_batch_than_the_others_is_filled_up_with_empty_bags() -> None:
    """What a process sees that has fewer rows than another one, down to none."""

    class OneMore(Processes):
        def largest(self, value: int) -> int:
            return value + 1

    plan = plan_of()
    own = table(plan)
    exact = ShardedEmbedding(plan, LAYOUT.bag_poolings, own, ALONE).eval()
    filled = ShardedEmbedding(plan, LAYOUT.bag_poolings, own, OneMore(0, 1, True)).eval()
    assert torch.equal(filled(*batch(1, 7)), exact(*batch(1, 7)))
    assert filled(*batch(1, 0)).shape == (0, plan.output_width)


def test_the_report_counts_rows_and_optimizer_state() -> None:
    plan = plan_of()
    (part,) = table(plan, kind="row_wise").report()
    assert part == {
        "process": 0,
        "rows": f"0 to {plan.rows - 1}",
        "columns": "0 to 3",
        "table_bytes": plan.rows * 16,
        "optimizer_bytes": plan.rows * 4,
    }
    (part,) = table(plan, TableOptimizer("sgd"), "column_wise").report()
    assert part["optimizer_bytes"] == 0


def test_a_table_beyond_the_memory_is_refused_before_it_is_made() -> None:
    with pytest.raises(ConfigError, match=r"embedding.rows: .* do not fit .*2,000,000,000 rows x 1024 floats"):
        ShardedTable(
            plan_of(rows=2_000_000_000, width=1024, exact={"max_values": 0}), TableOptimizer(), "auto", 64, ALONE
        )


def test_the_first_process_must_hold_the_whole_table_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(rows=100_000)
    monkeypatch.setattr(memory, "available_memory", lambda: plan.rows * plan.width * 4)
    with pytest.raises(ConfigError, match=r"embedding.rows: it would not fit .*the whole table, gathered"):
        table(plan)
