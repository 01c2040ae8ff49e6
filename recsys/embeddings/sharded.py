"""The embedding table divided over processes by TorchRec: the same rows, the same updates, a part on each process.

The table is one `EmbeddingBagConfig` whose features are named `feature#chunk`; which rows they read is still ours to
say (`recsys.embeddings.addressing`), and goes to TorchRec as a `KeyedJaggedTensor`.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from features.errors import ConfigError
from recsys.embeddings.multiplexed import MultiplexedEmbedding
from recsys.embeddings.plan import EmbeddingPlan
from recsys.embeddings.table import Table, TableOptimizer
from recsys.processes import Processes

if TYPE_CHECKING:
    from torch.distributed._shard.sharded_tensor import ShardedTensor

Sharding = Literal["auto", "row_wise", "column_wise", "table_wise"]

_TABLE = "table"
_BLOCK_FLOATS = 1 << 22
"""Floats of the initial table drawn at a time; every process draws them all and keeps its own."""


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


class ShardedTable(Table):
    """A table in FBGEMM's kernels on several processes; its optimizer step happens inside `backward`.

    Gradients are averaged over the processes.  Width a multiple of 4; SGD, or row-wise Adagrad where rows are whole.

    Args:
        plan: rows, width and lookups.
        optimizer: how a step updates.
        sharding: how it is divided.
        batch_size: examples a process and step, for the planner's estimates.
        processes: who shares it.

    Raises:
        ConfigError: the parts do not fit into the processes' memory.
    """

    clips = False

    def __init__(
        self, plan: EmbeddingPlan, optimizer: TableOptimizer, sharding: Sharding, batch_size: int, processes: Processes
    ) -> None:
        super().__init__(plan.rows, plan.width, optimizer)
        self.names = lookup_names(plan)
        self._processes = processes
        self._bags = _shard(plan, self.names, optimizer, sharding, batch_size, processes)

    def weights(self) -> ShardedTensor:
        """The table: a view of the parts of all processes, of which this one holds its own."""
        (weights,) = self._bags.state_dict().values()
        out: ShardedTensor = weights
        return out

    def whole(self) -> Tensor:
        """The [rows, width] table in the first process, nothing in the others; all take part."""
        out = torch.empty(self.rows, self.width) if self._processes.rank == 0 else None
        self.weights().gather(0, out)
        return torch.empty(0, self.width) if out is None else out

    def optimizer_state(self) -> dict[str, Tensor]:
        """As the table, in parts; nothing in a process without a part."""
        if self.optimizer.name == "sgd":
            return {}
        state = self._bags.fused_optimizer.state_dict()["state"]
        return {name.partition(".")[2][:-1]: t for tensors in state.values() for name, t in tensors.items()}

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
        out: Tensor = self._bags(KeyedJaggedTensor(self.names, rows.to(torch.int64), lengths=lengths)).values()
        return out if torch.is_grad_enabled() and self.training else out.detach()

    def set_learning_rate(self, learning_rate: float) -> None:
        optimizer = self._bags.fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad()  # which is when the kernels are told

    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        if scale != 1.0:
            raise ValueError("the kernels have already stepped: their gradients cannot be scaled")

    @torch.no_grad()
    def initialise(self, scale: float, generator: torch.Generator) -> None:
        """Draws what a single process would draw."""
        size = max(_BLOCK_FLOATS // self.width, 1)
        for start in range(0, self.rows, size):
            stop = min(start + size, self.rows)
            block = torch.empty(stop - start, self.width).uniform_(-scale, scale, generator=generator)
            for shard in self.weights().local_shards():
                (first, left), (count, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
                low, high = max(start, first), min(stop, first + count)
                if low < high:
                    part = block[low - start : high - start, left : left + columns]
                    shard.tensor[low - first : high - first].copy_(part)

    def report(self) -> list[dict[str, Any]]:
        """What lies where: a line a process and part, with the bytes of rows and of optimizer state."""
        state = 4 if self.optimizer.name == "rowwise_adagrad" else 0
        parts: dict[int, list[dict[str, Any]]] = {rank: [] for rank in range(self._processes.count)}
        for shard in self.weights().metadata().shards_metadata:
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
    memory = min(processes.each(psutil.virtual_memory().total // on_this_machine))
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

    return processes.first(planned)
