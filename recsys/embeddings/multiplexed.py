"""The embedding module: fingerprints of a batch -> one vector an example, from one lookup in one table."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.embeddings.addressing import Addresser, Lookup
from recsys.embeddings.plan import EmbeddingPlan, FeaturePlan
from recsys.embeddings.table import Table, TableOptimizer, make_table


class MultiplexedEmbedding(nn.Module):
    """All features' embeddings from one table (Unified Embedding, Coleman et al. 2023), laid out by a plan.

    Per-feature hashed tables and collisionless tables are other plans of the same module.

    Args:
        plan: where every feature's rows lie.
        poolings: "sum" or "mean" for each bag feature, in order.
        optimizer: the table's optimizer.
        kernel: auto, torch or fbgemm.
        table: made for this plan; made here when left out.
    """

    exact_keys: Tensor
    exact_rows: Tensor

    def __init__(
        self,
        plan: EmbeddingPlan,
        poolings: tuple[str, ...] = (),
        *,
        optimizer: TableOptimizer | None = None,
        kernel: str = "auto",
        table: Table | None = None,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.poolings = poolings
        self.register_buffer("exact_keys", torch.from_numpy(plan.exact_keys.copy()))
        self.register_buffer("exact_rows", torch.from_numpy(plan.exact_rows.copy()))
        singles = [f for f in plan.features if not f.bag]
        self.bags = [f for f in plan.features if f.bag]
        self.single_lookups = sum(f.chunks for f in singles)
        self.address = Addresser([x for i, f in enumerate(singles) for x in _lookups(f, i)], plan.hash_seed)
        self.address_bags = nn.ModuleList(Addresser(_lookups(f, 0), plan.hash_seed) for f in self.bags)
        self.table: Table = table or make_table(plan.rows, plan.width, optimizer or TableOptimizer(), kernel)

    def forward(self, ids: Tensor, bag_values: Tensor, bag_lengths: Tensor) -> Tensor:
        """Looks all features up.

        Args:
            ids: [B, F] int64 fingerprints of the single-valued features.
            bag_values: [N] int64 fingerprints of the bags, feature by feature, row by row.
            bag_lengths: [G, B] int64 values of each bag in each row.

        Returns:
            [B, lookups * width]: features in plan order, each feature's chunks side by side; an empty bag is zeros.
        """
        batch, width = ids.shape[0], self.plan.width
        rows, bag_rows = self.rows(ids, bag_values, bag_lengths)
        flat = [rows.flatten(), *(r.flatten() for r in bag_rows)]
        vectors = self.table(torch.cat(flat) if len(flat) > 1 else flat[0])
        if not bag_rows:
            return vectors.view(batch, self.single_lookups * width)
        sizes = [part.numel() for part in flat]
        single, *bags = vectors.split(sizes)
        parts = [single.view(batch, self.single_lookups * width)]
        for vector, bag_row, lengths, pooling in zip(bags, bag_rows, bag_lengths, self.poolings, strict=True):
            parts.append(pool(vector.reshape(bag_row.shape[0], bag_row.shape[1] * width), lengths, pooling))
        return torch.cat(parts, 1)

    def rows(self, ids: Tensor, bag_values: Tensor, bag_lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The rows each lookup reads: [B, lookups] int32 of single-valued features, and [N_g, chunks] of each bag."""
        rows = self.address(ids, self.exact_keys, self.exact_rows)
        if not self.bags:
            return rows, []
        values = bag_values.split(bag_lengths.sum(1).tolist())
        return rows, [
            address(v.unsqueeze(1), self.exact_keys, self.exact_rows)
            for address, v in zip(self.address_bags, values, strict=True)
        ]


class _SegmentSum(torch.autograd.Function):
    """Sums consecutive rows; the gradient of a row is its segment's."""

    @staticmethod
    def forward(ctx, vectors: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(lengths)
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=lengths.device)
        torch.cumsum(lengths, 0, out=offsets[1:])
        index = torch.arange(len(vectors), device=lengths.device)
        return F.embedding_bag(index, vectors, offsets, mode="sum", include_last_offset=True)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (lengths,) = ctx.saved_tensors
        return grad.repeat_interleave(lengths, 0), None


def pool(vectors: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """Pools consecutive vectors into one an example.

    Args:
        vectors: [N, D], row by row.
        lengths: [B] int64, summing to N; 0 gives zeros.
        pooling: "sum" or "mean".

    Returns:
        [B, D].

    >>> pool(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([2, 0, 1]), "mean").tolist()
    [[2.0], [0.0], [5.0]]
    """
    summed: Tensor = _SegmentSum.apply(vectors, lengths)
    return summed / lengths.clamp(min=1).unsqueeze(1) if pooling == "mean" else summed


def _lookups(f: FeaturePlan, column: int) -> list[Lookup]:
    return [Lookup(column, f.name, chunk, f.base, f.span, f.region == "exact") for chunk in range(f.chunks)]
