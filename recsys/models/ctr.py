"""CTRModel: embeddings, dense inputs, an interaction and a head, from a batch to logits."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from features.batch import Batch
from features.errors import ArtifactError, ConfigError
from features.layout import Layout
from recsys.embeddings.baselines.base import BaselineEmbedding
from recsys.embeddings.kernel import KernelName
from recsys.embeddings.multiplexed import MultiplexedEmbedding
from recsys.embeddings.plan import EmbeddingPlan
from recsys.embeddings.table import TableOptimizer
from recsys.models.axes import Axes, Axis
from recsys.models.config import ModelConfig
from recsys.models.dcn import VectorCross
from recsys.models.dcnv2 import MatrixCross
from recsys.models.fm import FactorisationMachine
from recsys.models.ipnn import InnerProducts
from recsys.models.linear import Linear, thin_product
from recsys.models.mlp import MLP


class CTRModel(nn.Module):
    """A click-through-rate model.

    What crosses the features (if anything) and the feed-forward network run side by side on the concatenated input, or
    one after the other; the head is linear, one logit a task.

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
        self.autocast = False
        """Whether the products of the network are computed in bf16 while it trains; set by the trainer."""
        inputs = plan.output_width + len(layout.dense_names) + sum(layout.vector_sizes)
        if inputs == 0:
            raise ConfigError(
                "the model has no input",
                field="embedding.chunks",
                found="every feature dropped",
                mend="give some feature a chunk, or add a number feature",
            )
        self._input_width = inputs
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
            self.cross: VectorCross | MatrixCross | FactorisationMachine | InnerProducts | None = None
            if config.interaction == "dcn":
                self.cross = VectorCross(inputs, config.cross_layers)
            elif config.interaction == "dcnv2":
                self.cross = MatrixCross(inputs, config.cross_layers, config.low_rank)
            elif config.interaction == "fm":
                self.cross = FactorisationMachine(inputs, plan)
            elif config.interaction == "ipnn":
                self.cross = InnerProducts(inputs, plan)
            crossed = self.cross.output_width if self.cross is not None else 0
            self._stacked = _stacked(config)
            # without a cross network an empty feed-forward network passes the input on: logistic regression
            self.deep: MLP | None = None
            if config.hidden or self.cross is None:
                self.deep = MLP(crossed if self._stacked else inputs, config.hidden, config.dropout)
            width = (0 if self._stacked else crossed) + (self.deep.output_width if self.deep is not None else 0)
            self.head = Linear(width, max(len(layout.label_names), 1))
            if isinstance(self.cross, FactorisationMachine):
                self.cross.start(self.head.weight)

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
        parts = [self.embedding(ids, bag_values, bag_lengths)] if self.plan.lookups else []
        parts += [part for part in (dense, vectors) if part.shape[1]]
        x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        if self.autocast and self.training:
            with torch.autocast(x.device.type, dtype=torch.bfloat16):
                streams = self._interact(x)
        else:
            streams = self._interact(x)
        # the head's weights are divided, not the streams joined: a copy of them would cost more than the product
        weights = self.head.weight.split([stream.shape[1] for stream in streams], 1)
        return self.head.bias + sum(thin_product(s.float(), w) for s, w in zip(streams, weights, strict=True))

    def _interact(self, x: Tensor) -> list[Tensor]:
        """What the head reads, side by side [B, head inputs], from the embeddings and the dense inputs [B, inputs]."""
        streams: list[Tensor] = []
        if self.cross is not None:
            crossed = self.cross(x)
            if self._stacked:
                x = crossed
            else:
                streams.append(crossed)
        if self.deep is not None:
            streams.append(self.deep(x))
        return streams

    def logits(self, batch: Batch) -> Tensor:
        """[B, tasks] logits of a batch."""
        out: Tensor = self(batch.ids, batch.bag_values, batch.bag_lengths, batch.dense, batch.vectors)
        return out

    def dense_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the network, without the table, by name."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("embedding.")}

    def first_layers(self) -> dict[str, Tensor]:
        """The weights [O, inputs] of the layers that read the embeddings, by name: cross, deep; head if it does."""
        layers: dict[str, Tensor] = {}
        network = isinstance(self.cross, VectorCross | MatrixCross)
        if self.cross is not None and network:
            layers["cross"] = _first_linear(self.cross)
        if self.deep is not None and self.config.hidden and not (network and self._stacked):
            layers["deep"] = _first_linear(self.deep)
        if not layers or isinstance(self.cross, FactorisationMachine):
            layers["head"] = self.head.weight.detach()
        # products come after the inputs
        return {name: weight[:, : self._input_width] for name, weight in layers.items()}

    def axes(self) -> Axes:
        """Names of the places along the axes of every parameter of the network, in the order of `dense_parameters`.

        A place of the input is named by its feature, chunk and position, so that it is the same in every model.
        """
        inputs: list[Hashable] = [
            (f.name, chunk, i) for f in self.plan.features for chunk in range(f.chunks) for i in range(self.plan.width)
        ]
        inputs += [(name,) for name in self.layout.dense_names]
        sizes = zip(self.layout.vector_names, self.layout.vector_sizes, strict=True)
        inputs += [(name, i) for name, size in sizes for i in range(size)]
        parts: dict[str, Axes] = {}
        outputs: list[Hashable] = []
        x: Axis = inputs
        if self.cross is not None:
            parts["cross"], crossed = self.cross.axes(x)
            if self._stacked:
                x = crossed
            else:
                outputs += crossed
        if self.deep is not None:
            parts["deep"], hidden = self.deep.axes(x)
            outputs += hidden
        tasks = self.layout.label_names or ("",)
        parts["head"] = {"weight": (tasks, outputs), "bias": (tasks,)}
        axes = {f"{part}.{name}": names for part, own in parts.items() for name, names in own.items()}
        return {name: axes[name] for name in self.dense_parameters()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that make up the model, by name: network, table as it is stored, exact and hot index."""
        out: dict[str, Tensor] = {f"network.{name}": p.detach() for name, p in self.dense_parameters().items()}
        out["table"] = self.embedding.table.stored()
        out["exact_keys"] = self.embedding.exact_keys
        out["hot_keys"] = self.embedding.hot_keys
        return out

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


def _stacked(config: ModelConfig) -> bool:
    """Whether the feed-forward network reads what the cross network puts out, in place of the input."""
    if config.interaction in ("dcn", "dcnv2"):
        return bool(config.hidden) and config.structure == "stacked"
    return bool(config.hidden) and config.interaction == "ipnn"


def _first_linear(part: nn.Module) -> Tensor:
    return next(m for m in part.modules() if isinstance(m, nn.Linear)).weight.detach()
