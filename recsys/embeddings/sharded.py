"""The embedding table divided over processes by TorchRec: the same rows, the same updates, a part on each process.

The table is one `EmbeddingBagConfig` whose features are named `feature#chunk`; which rows they read is still ours to
say (`recsys.embeddings.addressing`), and goes to TorchRec as a `KeyedJaggedTensor`.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from features.errors import ConfigError
from recsys.embeddings.fused_table import FusedTable
from recsys.embeddings.multiplexed import MultiplexedEmbedding
from recsys.embeddings.plan import EmbeddingPlan
from recsys.embeddings.table import TableOptimizer
from recsys.memory import MemoryPart, available_memory, require_memory
from recsys.processes import Processes

Sharding = Literal["auto", "row_wise", "column_wise", "table_wise"]

GATHERED_COPIES = 2
"""Of the table in the first process when it writes the best weights: its parts as they arrive, and the whole."""

_TABLE = "table"


class ShardedEmbedding(MultiplexedEmbedding):
    """`MultiplexedEmbedding` on a table that is divided over processes.

    Every process looks up its own part of a batch; all must call it together.

    Args:
        plan: where every feature's rows lie.
        poolings: "sum" or "mean" for each bag feature, in order.
        table: made for this plan.
        processes: who shares it.
    """

    def __init__(
        self, plan: EmbeddingPlan, poolings: tuple[str, ...], table: ShardedTable, processes: Processes
    ) -> None:
        super().__init__(plan, poolings, table=table)
        self._processes = processes

    def forward(self, ids: Tensor, bag_values: Tensor, bag_lengths: Tensor) -> Tensor:
        """As `MultiplexedEmbedding.forward`; B may differ from process to process, and be 0."""
        batch, width = ids.shape[0], self.plan.width
        rows, bag_rows = self.rows(ids, bag_values, bag_lengths)
        chunks = torch.tensor([f.chunks for f in self.bags], dtype=torch.int64)
        lengths = torch.cat(
            [bag_lengths.new_ones(self.single_lookups, batch), bag_lengths.repeat_interleave(chunks, 0)]
        )
        # Row-wise exchange needs batches of one size: the smaller ones are filled up with empty bags.
        lengths = F.pad(lengths, (0, self._processes.largest(batch) - batch))
        values = torch.cat([r.t().flatten() for r in (rows, *bag_rows)])
        summed: Tensor = self.table(values, lengths.flatten())[:batch]
        if "mean" not in self.poolings:
            return summed
        parts = list(summed.split([self.single_lookups * width, *(chunks * width).tolist()], 1))
        for place, (pooling, counts) in enumerate(zip(self.poolings, bag_lengths, strict=True), 1):
            if pooling == "mean":
                parts[place] = parts[place] / counts.clamp(min=1).unsqueeze(1)
        return torch.cat(parts, 1)


class ShardedTable(FusedTable):
    """A table in FBGEMM's kernels on several processes, which update themselves inside their own `backward`.

    That backward runs in `step`, in all processes or in none.  Gradients are averaged over the processes.  fp32; width
    a multiple of 4; SGD, or row-wise Adagrad where rows are whole.

    Args:
        plan: rows, width and lookups.
        optimizer: how a step updates.
        sharding: how it is divided.
        batch_size: examples a process and step, for the planner's estimates.
        processes: who shares it.

    Raises:
        ConfigError: the parts do not fit into the processes' memory.
    """

    def __init__(
        self, plan: EmbeddingPlan, optimizer: TableOptimizer, sharding: Sharding, batch_size: int, processes: Processes
    ) -> None:
        super().__init__(plan.rows, plan.row_format, optimizer)
        self.names = lookup_names(plan)
        self._processes = processes
        self._bags = _shard(plan, self.names, optimizer, sharding, batch_size, processes)

    def values(self, rows: Tensor | None = None) -> Tensor:
        """As `Table.values` in the first process, an empty tensor in the others; all take part."""
        whole = torch.empty(self.rows, self.width) if self._processes.rank == 0 else None
        self.stored().gather(0, whole)
        if whole is None:
            return torch.empty(0, self.width)
        return whole if rows is None else whole.index_select(0, rows)

    @torch.no_grad()
    def assign(self, rows: Tensor | None, values: Tensor) -> None:
        """As `Table.assign`: every process is given all values and keeps its own."""
        for shard in self.stored().local_shards():
            (first, left), (count, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
            if rows is None:
                shard.tensor.copy_(values[first : first + count, left : left + columns])
            else:
                own = ((rows >= first) & (rows < first + count)).nonzero().flatten()
                places = rows.index_select(0, own).to(torch.int64) - first
                shard.tensor.index_copy_(0, places, values[:, left : left + columns].index_select(0, own))

    def stored(self) -> ShardedTensor:
        """The table: a live view of the parts of all processes, of which this one holds its own."""
        (weights,) = self._bags.state_dict().values()
        out: ShardedTensor = weights
        return out

    @torch.no_grad()
    def load_stored(self, stored: Tensor) -> None:
        """Takes in what `stored` gave, part by part."""
        assert isinstance(stored, ShardedTensor)
        for own, given in zip(self.stored().local_shards(), stored.local_shards(), strict=True):
            own.tensor.copy_(given.tensor)

    def optimizer_state(self) -> dict[str, Tensor]:
        """As the table, in parts (none in a process without a part), and the number of steps."""
        out = {"step": self._steps}
        if self.optimizer.name != "sgd":
            for tensors in self._bags.fused_optimizer.state_dict()["state"].values():
                out.update({name.partition(".")[2][:-1]: t for name, t in tensors.items()})
        return out

    def forward(self, rows: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Sums bags of rows, in all processes together.

        Args:
            rows: [N] int32, lookup by lookup, example by example.
            lengths: [lookups * B] int64 rows of each bag; one each when left out.

        Returns:
            [B, lookups * width].
        """
        from torchrec import KeyedJaggedTensor

        if lengths is None:
            lengths = torch.ones(len(rows), dtype=torch.int64)
        bags = KeyedJaggedTensor(self.names, rows.to(torch.int64), lengths=lengths)
        return self._hand_out(self._bags(bags).values())

    def set_learning_rate(self, learning_rate: float) -> None:
        """The rate of the next step; FBGEMM takes it in at the lookup, so it is told before."""
        optimizer = self._bags.fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad()  # which is when the kernels are told

    def report(self) -> list[dict[str, Any]]:
        """What lies where: a line a process and part, with the bytes of rows and of optimizer state."""
        state = 4 if self.optimizer.name == "rowwise_adagrad" else 0
        parts: dict[int, list[dict[str, Any]]] = {rank: [] for rank in range(self._processes.count)}
        for shard in self.stored().metadata().shards_metadata:
            (first, left), (count, columns) = shard.shard_offsets, shard.shard_sizes
            parts[_rank(shard)].append(
                {
                    "rows": f"{first:,} to {first + count - 1:,}" if count else "none",
                    "columns": f"{left} to {left + columns - 1}",
                    "table_bytes": count * columns * 4,
                    "optimizer_bytes": count * state,
                }
            )
        nothing = {"rows": "none", "columns": "none", "table_bytes": 0, "optimizer_bytes": 0}
        return [{"process": rank, **part} for rank, own in parts.items() for part in own or [nothing]]


def lookup_names(plan: EmbeddingPlan) -> list[str]:
    """The name of every lookup, `feature#chunk`, in output order."""
    return [f"{f.name}#{chunk}" for f in plan.features for chunk in range(f.chunks)]


def divisible(rows: int, processes: int) -> bool:
    """Whether blocks of equal size, the last one smaller, leave no process without a row: FBGEMM takes no empty part.

    >>> divisible(6, 4), divisible(7, 4), divisible(5, 4)
    (False, True, False)
    """
    return rows > -(-rows // processes) * (processes - 1)


def columns_of_a_part(width: int, processes: int) -> int:
    """Columns of a part, column-wise: the most that give every process one, in the multiples of 4 FBGEMM asks for.

    >>> [columns_of_a_part(width, 2) for width in (4, 8, 12, 16)]
    [4, 4, 4, 8]
    """
    return max((c for c in range(4, width + 1, 4) if width % c == 0 and width // c >= processes), default=4)


@functools.cache
def torchrec_available() -> bool:
    """Whether torchrec and FBGEMM can be imported."""
    try:
        import fbgemm_gpu  # noqa: F401
        import torchrec  # noqa: F401
    except ImportError:
        return False
    return True


def copy_parts(tensor: ShardedTensor, read: Callable[[tuple[slice, ...]], Tensor]) -> None:
    """Fills this process's parts of a tensor from `read`, which is given the place of a part in the whole."""
    for shard in tensor.local_shards():
        spans = zip(shard.metadata.shard_offsets, shard.metadata.shard_sizes, strict=True)
        shard.tensor.copy_(read(tuple(slice(first, first + count) for first, count in spans)))


def _rank(shard: Any) -> int:
    return int(shard.placement.rank())


def _shard(
    plan: EmbeddingPlan,
    names: list[str],
    optimizer: TableOptimizer,
    sharding: Sharding,
    batch_size: int,
    processes: Processes,
) -> Any:
    """The table as one EmbeddingBagConfig under DistributedModelParallel; only its parts are ever in memory."""
    import torchrec
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

    kinds: list[str] = [sharding]
    if sharding == "auto":
        possible = {
            "row_wise": divisible(plan.rows, processes.count),
            "column_wise": optimizer.name == "sgd",
            "table_wise": True,
        }
        kinds = [kind for kind, is_possible in possible.items() if is_possible]

    class Sharder(EmbeddingBagCollectionSharder):
        def sharding_types(self, compute_device_type: str) -> list[str]:
            # TorchRec itself offers no row-wise sharding on a CPU, though it works.
            return kinds

    config = torchrec.EmbeddingBagConfig(
        name=_TABLE,
        num_embeddings=plan.rows,
        embedding_dim=plan.width,
        feature_names=names,
        pooling=torchrec.PoolingType.SUM,
    )
    bags = torchrec.EmbeddingBagCollection([config], device=torch.device("meta"))
    kind, settings = {
        "sgd": (torch.optim.SGD, {"lr": 0.0}),
        "rowwise_adagrad": (torchrec.optim.RowWiseAdagrad, {"lr": 0.0, "eps": optimizer.eps}),
    }[optimizer.name]
    apply_optimizer_in_backward(kind, bags.parameters(), settings)
    # rows are in range by construction
    sharders = [Sharder(fused_params={"bounds_check_mode": BoundsCheckMode.NONE})]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layout = _plan_of_parts(bags, sharders, plan, sharding, batch_size, processes)
        return DistributedModelParallel(
            bags, device=torch.device("cpu"), plan=layout, sharders=sharders, init_data_parallel=False
        )


def _plan_of_parts(
    bags: Any, sharders: list[Any], plan: EmbeddingPlan, sharding: Sharding, batch_size: int, processes: Processes
) -> Any:
    """Where TorchRec's planner puts the parts, by what the processes' memory holds."""
    from torchrec.distributed.embedding_types import EmbeddingComputeKernel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import ParameterConstraints, PlannerError

    count, on_this_machine = processes.count, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    memory = min(processes.each(available_memory() // on_this_machine))
    planner = EmbeddingShardingPlanner(
        topology=Topology(
            world_size=count, local_world_size=on_this_machine, compute_device="cpu", hbm_cap=0, ddr_cap=memory
        ),
        batch_size=batch_size,
        constraints={
            _TABLE: ParameterConstraints(
                compute_kernels=[EmbeddingComputeKernel.FUSED.value],
                min_partition=columns_of_a_part(plan.width, count),
            )
        },
        storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
        debug=False,
    )

    def planned() -> Any:
        try:
            return planner.plan(bags, sharders)
        except PlannerError as error:
            raise ConfigError(
                "the table's parts do not fit into the processes' memory",
                field="embedding.rows",
                found=f"{plan.rows:,} rows x {plan.width} floats: {plan.rows * plan.width * 4:,} bytes over {count} "
                f"processes of {memory:,} bytes",
                mend="lower embedding.rows or embedding.width, or start processes on more machines"
                + ("" if sharding == "auto" else ", or set train.distributed.sharding to auto"),
            ) from error

    whole = MemoryPart(
        "the whole table, gathered for the best weights",
        GATHERED_COPIES * plan.rows * plan.width * 4,
        "embedding.rows",
        "lower embedding.rows or embedding.width, or start the first process on a larger machine",
    )
    layout = processes.first(planned)
    processes.first(lambda: require_memory([whole]))
    return layout
