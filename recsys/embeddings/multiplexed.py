"""The embedding module: fingerprints of a batch -> one vector an example, from one lookup in one table."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features.errors import ConfigError
from recsys.embeddings.addressing import Addresser, Lookup, Segment
from recsys.embeddings.hot import HotRegion
from recsys.embeddings.kept import KeptRows
from recsys.embeddings.kernel import KernelName, make_table
from recsys.embeddings.plan import EmbeddingPlan, FeaturePlan
from recsys.embeddings.table import Table, TableOptimizer
from recsys.embeddings.torch_table import TorchTable


class MultiplexedEmbedding(nn.Module):
    """All features' embeddings from one table (Unified Embedding, Coleman et al. 2023), laid out by a plan.

    Per-feature hashed tables and collisionless tables are other plans of the same module.

    Args:
        plan: where every feature's rows lie.
        poolings: "sum" or "mean" for each bag feature, in order.
        optimizer: the table's optimizer.
        kernel: auto, torch, numba or fbgemm.
        table: made for this plan; made here, from optimizer and kernel, when left out.
    """

    exact_keys: Tensor
    hot_keys: Tensor

    def __init__(
        self,
        plan: EmbeddingPlan,
        poolings: tuple[str, ...] = (),
        *,
        optimizer: TableOptimizer | None = None,
        kernel: KernelName = "auto",
        table: Table | None = None,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.poolings = poolings
        self.register_buffer("exact_keys", torch.from_numpy(plan.exact_keys.copy()))
        self.register_buffer("hot_keys", torch.from_numpy(plan.hot_keys.copy()))
        pruned = plan.pruned
        self.kept = KeptRows(pruned.hashed + 1, pruned.left) if pruned and pruned.indexed else None
        self.singles = [f for f in plan.features if not f.bag]
        self.bags = [f for f in plan.features if f.bag]
        self.single_lookups = sum(f.chunks for f in self.singles)
        if table is None:
            table = make_table(plan.rows, plan.row_format, optimizer or TableOptimizer(), kernel)
        self.table: Table = table
        singles = [x for i, f in enumerate(self.singles) for x in _lookups(f, i)]
        self.address = Addresser(singles, plan.hash_seed, compiled=table.compiled)
        bags = [_lookups(f, 0) for f in self.bags]
        self.address_bags = nn.ModuleList(Addresser(x, plan.hash_seed, compiled=table.compiled) for x in bags)
        if plan.hot_slots and not isinstance(self.table, TorchTable):
            raise ConfigError(
                "the hot region needs the gradient of every lookup, which the fbgemm kernel keeps to itself",
                field="embedding.hot",
                found=", ".join(f.name for f in plan.features if f.hot_slots),
                mend="leave it empty, or set embedding.kernel to auto",
            )
        self._watched: list[_Watched] = []
        self.gate: nn.Module | None = None
        """Takes the number of a feature in plan order and the vectors [n, chunks * D] of n lookups, and gives what is
        read in their place; set by those who train one."""

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
        if self.plan.hot_slots and self.training and torch.is_grad_enabled():
            vectors.retain_grad()
            self._watched.append(_Watched(vectors, ids, bag_values, bag_lengths))
        sizes = [part.numel() for part in flat]
        single, *bags = vectors.split(sizes) if bag_rows else (vectors,)
        parts = [single.view(batch, self.single_lookups * width)]
        if self.gate is not None:
            own = parts[0].split([f.chunks * width for f in self.singles], 1)
            parts = [self.gate(number, vector) for number, vector in enumerate(own)]
        for i, (vector, bag_row, lengths) in enumerate(zip(bags, bag_rows, bag_lengths, strict=True)):
            values = vector.reshape(bag_row.shape[0], bag_row.shape[1] * width)
            if self.gate is not None:
                values = self.gate(len(self.singles) + i, values)
            parts.append(pool(values, lengths, self.poolings[i]))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def rows(self, ids: Tensor, bag_values: Tensor, bag_lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The rows each lookup reads: [B, lookups] int32 of single-valued features, and [N_g, chunks] of each bag."""
        rows = self.address(ids, self.exact_keys, self.hot_keys, self.kept)
        if not self.bags:
            return rows, []
        values = bag_values.split(bag_lengths.sum(1).tolist())
        return rows, [
            address(v.unsqueeze(1), self.exact_keys, self.hot_keys, self.kept)
            for address, v in zip(self.address_bags, values, strict=True)
        ]

    def rows_of(self, feature: str, fingerprints: Tensor) -> Tensor:
        """The rows [n, chunks] int32 that values [n] int64 of one feature read."""
        f = next(f for f in self.plan.features if f.name == feature)
        address = Addresser(_lookups(f, 0), self.plan.hash_seed, compiled=self.table.compiled)
        return cast(Tensor, address(fingerprints.unsqueeze(1), self.exact_keys, self.hot_keys, self.kept))

    def indices(self) -> dict[str, Tensor]:
        """All that leads from ids to rows and is no hash, by name; the live tensors."""
        kept = {"kept_words": self.kept.words, "kept_before": self.kept.before} if self.kept is not None else {}
        return {"exact_keys": self.exact_keys, "hot_keys": self.hot_keys, **kept}

    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        """One optimizer step of the table, then one of the hot region: ids that earned a slot take it over.

        Args:
            learning_rate: of the table.
            scale: factor of the gradients, of clipping.
        """
        self.table.step(learning_rate, scale)
        if self.hot is None:
            return
        watched = [w for w in self._watched if w.vectors.grad is not None]
        self._watched = []
        source, target = self.hot.step(self.hot_keys, [self._evidence(f, watched) for f in self.hot.features])
        if len(source):
            assert isinstance(self.table, TorchTable)
            self.table.hand_over(source, target)

    def discard(self) -> None:
        """Forgets the lookups since the last step: neither table nor hot region change."""
        self.table.discard()
        self._watched = []

    @functools.cached_property
    def hot(self) -> HotRegion | None:
        """Who owns the hot slots and why; made when training first asks for it, for serving needs only the index."""
        return HotRegion(self.plan) if self.plan.hot_slots else None

    @property
    def training_bytes(self) -> int:
        """Bytes of all that training keeps by row or id: the table with its optimizer's state and moving average, the
        indices, and the hot region's scores, ages and sketch."""
        tensors = [*self.indices().values(), *(self.hot.state().values() if self.hot else ())]
        return self.table.training_bytes + sum(t.numel() * t.element_size() for t in tensors)

    def set_owners(self, keys: np.ndarray, shares: np.ndarray) -> None:
        """Begins with other owners of the hot slots than the plan's.

        Args:
            keys: [S] int32, the hot index.
            shares: [S] float32, share of the feature's training values that each took.
        """
        self.plan = replace(self.plan, hot_keys=keys, hot_shares=shares)
        self.hot_keys.copy_(torch.from_numpy(keys))
        self.__dict__.pop("hot", None)  # made anew from the plan

    def _evidence(self, feature: FeaturePlan, watched: list[_Watched]) -> tuple[Tensor, Tensor]:
        """The values of a feature looked up since the last step, [n], and the norms of their gradients, [n]."""
        number = (self.bags if feature.bag else self.singles).index(feature)
        before = sum(f.chunks for f in self.singles[:number])
        values, norms = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
        for w in watched:
            assert w.vectors.grad is not None
            sizes = w.bag_lengths.sum(1).tolist()
            lookups = [f.chunks * n for f, n in zip(self.bags, sizes, strict=True)]
            single, *bags = w.vectors.grad.split([len(w.ids) * self.single_lookups, *lookups])
            if feature.bag:
                value, grad = w.bag_values.split(sizes)[number], bags[number]
            else:
                of_row = single.view(len(w.ids), self.single_lookups, self.plan.width)
                value, grad = w.ids[:, number], of_row[:, before : before + feature.chunks]
            values.append(value)
            norms.append(grad.reshape(len(value), feature.chunks * self.plan.width).norm(dim=1))
        return torch.cat(values), torch.cat(norms)


class _Watched(NamedTuple):
    """A lookup of the training step under way."""

    vectors: Tensor
    """[n, width] of all lookups; backward leaves the gradient of each in its `.grad`."""
    ids: Tensor
    bag_values: Tensor
    bag_lengths: Tensor


class _SegmentSum(torch.autograd.Function):
    """Sums consecutive rows; the gradient of a row is its segment's."""

    @staticmethod
    def forward(ctx, vectors: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(lengths)
        if not vectors.shape[1]:
            return vectors.new_empty(lengths.shape[0], 0)  # a dropped bag, which `embedding_bag` would not take
        offsets = torch.zeros(lengths.shape[0] + 1, dtype=torch.int64, device=lengths.device)
        torch.cumsum(lengths, 0, out=offsets[1:])
        index = torch.arange(vectors.shape[0], device=lengths.device)
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
    filled = f.region == "exact" and f.values > 0
    exact = Segment(f.exact_start, f.values, f.exact_base, f.chunks) if filled else None
    hot = Segment(f.hot_start, f.hot_slots, f.hot_base, f.chunks) if f.hot_slots else None
    return [Lookup(column, f.name, chunk, f.base, f.span, exact, hot) for chunk in range(f.chunks)]
