"""CTRModel: the embedding table and the network above it, from a batch to logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from features.batch import Batch
from features.errors import ArtifactError
from features.layout import Layout
from recsys.embeddings.baselines.base import BaselineEmbedding
from recsys.embeddings.kernel import KernelName
from recsys.embeddings.multiplexed import MultiplexedEmbedding
from recsys.embeddings.plan import EmbeddingPlan
from recsys.embeddings.table import TableOptimizer
from recsys.models.config import ModelConfig
from recsys.models.network import Network


class CTRModel(nn.Module):
    """A click-through-rate model.

    One lookup in the table gives the embeddings of all features; with the numbers and vectors beside them they are what
    the network reads.

    Args:
        layout: the encoded features.
        plan: where their rows lie.
        config: the network.
        seed: of all initial weights.
        optimizer: the table's optimizer.
        kernel: the table's kernel.
        embedding: made for this plan, and given its initial weights here; made here, from optimizer and kernel, when
            left out.  Or a baseline, for comparison, in its place: of the same width, with its own initial weights.
    """

    def __init__(
        self,
        layout: Layout,
        plan: EmbeddingPlan,
        config: ModelConfig,
        *,
        seed: int = 0,
        optimizer: TableOptimizer | None = None,
        kernel: KernelName = "auto",
        embedding: MultiplexedEmbedding | BaselineEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.config = config
        self.plan = plan
        generator = torch.Generator().manual_seed(seed)
        if isinstance(embedding, BaselineEmbedding):
            self.embedding = cast(MultiplexedEmbedding, embedding)
        else:
            if embedding is None:
                embedding = MultiplexedEmbedding(plan, layout.bag_poolings, optimizer=optimizer, kernel=kernel)
            self.embedding = embedding
            self.embedding.table.initialise(plan.init_scale, generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device="cpu")))
            self.network = Network(layout, plan, config)

    def forward(self, ids: Tensor, bag_values: Tensor, bag_lengths: Tensor, dense: Tensor, vectors: Tensor) -> Tensor:
        """The logits of a batch, from the tensors of `features.batch.Batch`.

        Args:
            ids: [B, F] int64.
            bag_values: [N] int64.
            bag_lengths: [G, B] int64.
            dense: [B, numbers] float32.
            vectors: [B, floats] float32.

        Returns:
            [B, tasks] float32.
        """
        out: Tensor = self.network(self.inputs(ids, bag_values, bag_lengths, dense, vectors))
        return out

    def inputs(self, ids: Tensor, bag_values: Tensor, bag_lengths: Tensor, dense: Tensor, vectors: Tensor) -> Tensor:
        """What the network reads, [B, I]; see `forward`."""
        parts = [self.embedding(ids, bag_values, bag_lengths)] if self.plan.lookups else []
        parts += [part for part in (dense, vectors) if part.shape[1]]
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def inputs_of(self, batch: Batch) -> Tensor:
        """What the network reads of a batch, [B, I]."""
        return self.inputs(batch.ids, batch.bag_values, batch.bag_lengths, batch.dense, batch.vectors)

    def logits(self, batch: Batch) -> Tensor:
        """[B, tasks] logits of a batch."""
        out: Tensor = self(batch.ids, batch.bag_values, batch.bag_lengths, batch.dense, batch.vectors)
        return out

    def dense_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the network, without the table, by name."""
        return dict(self.network.named_parameters())

    def tensors(self, *, table: bool = True) -> dict[str, Tensor]:
        """The tensors that make up the model, by name: network, table as it is stored (unless left out), its indices.

        The live ones, but for the rows of a table with a master copy, which are made of it here.
        """
        out: dict[str, Tensor] = {f"network.{name}": p.detach() for name, p in self.dense_parameters().items()}
        if table:
            out["table"] = self.embedding.table.stored()
        return out | self.embedding.indices()

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies in what `tensors` gave.

        Raises:
            ArtifactError: a tensor is missing or has another shape or type: it belongs to another model.
        """
        for name, own in self.tensors().items():
            given = tensors.get(name)
            if given is None or given.shape != own.shape or given.dtype != own.dtype:
                raise ArtifactError(
                    "the weights belong to another model",
                    field=name,
                    found="nothing" if given is None else f"{given.dtype} {tuple(given.shape)}",
                    expected=f"{own.dtype} {tuple(own.shape)}",
                    mend="use the config the weights were trained with",
                )
            if name == "table":
                self.embedding.table.load_stored(given)
            else:
                own.copy_(given)
