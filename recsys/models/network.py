"""The network above the embeddings: an interaction, a feed-forward network and a head, from vectors to logits."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from features.errors import ConfigError
from features.layout import Layout
from recsys.embeddings.plan import EmbeddingPlan
from recsys.models.axes import Axes, Axis
from recsys.models.config import ModelConfig
from recsys.models.dcn import VectorCross
from recsys.models.dcnv2 import MatrixCross
from recsys.models.fm import FactorisationMachine
from recsys.models.ipnn import InnerProducts
from recsys.models.linear import Linear, thin_product
from recsys.models.mlp import MLP


class Network(nn.Module):
    """What crosses the features (if anything) and the feed-forward network run side by side on the input, or one after
    the other; the head is linear, one logit a task.

    The input [B, I] is the embeddings of all features in plan order, a feature's chunks side by side, then the numbers,
    then the vectors.  No interaction tells a masked chunk from one that is not there.  Nor one of zeros, but for dcn,
    whose biases still speak for it.

    Args:
        layout: the encoded features.
        plan: their chunks.
        config: what the network is made of.

    Attributes:
        input_width: I.

    Raises:
        ConfigError: there is no input.
    """

    def __init__(self, layout: Layout, plan: EmbeddingPlan, config: ModelConfig) -> None:
        super().__init__()
        self.layout, self.plan, self.config = layout, plan, config
        self.autocast = False
        """Whether the products are computed in bf16 while it trains; set by the trainer."""
        self.input_width = inputs = plan.output_width + len(layout.dense_names) + sum(layout.vector_sizes)
        if inputs == 0:
            raise ConfigError(
                "the model has no input",
                field="embedding.chunks",
                found="every feature dropped",
                mend="give some feature a chunk, or add a number feature",
            )
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

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, I] -> [B, tasks] logits; of places where a mask [B or 1, I] is 0 nothing is read."""
        if mask is not None:
            x = x * mask
        if self.autocast and self.training:
            with torch.autocast(x.device.type, dtype=torch.bfloat16):
                streams = self._interact(x, mask)
        else:
            streams = self._interact(x, mask)
        # the head's weights are divided, not the streams joined: a copy of them would cost more than the product
        weights = self.head.weight.split([stream.shape[1] for stream in streams], 1)
        return self.head.bias + sum(thin_product(s.float(), w) for s, w in zip(streams, weights, strict=True))

    def _interact(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """What the head reads, side by side [B, head inputs], from the embeddings and the dense inputs [B, inputs]."""
        streams: list[Tensor] = []
        if self.cross is not None:
            crossed = self.cross(x, mask) if isinstance(self.cross, VectorCross) else self.cross(x)
            if self._stacked:
                x = crossed
            else:
                streams.append(crossed)
        if self.deep is not None:
            streams.append(self.deep(x))
        return streams

    def first_layers(self) -> dict[str, Tensor]:
        """The weights [O, inputs] of the layers that read the embeddings, by name: cross, deep; head if it does."""
        layers: dict[str, Tensor] = {}
        network = isinstance(self.cross, VectorCross | MatrixCross)
        if self.cross is not None and network:
            layers["cross"] = _first_linear(self.cross)
        if self.deep is not None and self.config.hidden and not (network and self._stacked):
            layers["deep"] = _first_linear(self.deep)
        if not layers or isinstance(self.cross, FactorisationMachine):
            layers["head"] = self.head.weight
        # products come after the inputs
        return {name: weight[:, : self.input_width] for name, weight in layers.items()}

    def input_axis(self) -> Axis:
        """Names of the places of the input: by feature, chunk and position, so the same in every network."""
        inputs: list[Hashable] = [
            (f.name, chunk, i) for f in self.plan.features for chunk in range(f.chunks) for i in range(self.plan.width)
        ]
        inputs += [(name,) for name in self.layout.dense_names]
        sizes = zip(self.layout.vector_names, self.layout.vector_sizes, strict=True)
        return inputs + [(name, i) for name, size in sizes for i in range(size)]

    def axes(self) -> Axes:
        """Names of the places along the axes of every parameter, in their order."""
        parts: dict[str, Axes] = {}
        outputs: list[Hashable] = []
        x = self.input_axis()
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
        return {name: axes[name] for name, _ in self.named_parameters()}


def _stacked(config: ModelConfig) -> bool:
    """Whether the feed-forward network reads what the cross network puts out, in place of the input."""
    if config.interaction in ("dcn", "dcnv2"):
        return bool(config.hidden) and config.structure == "stacked"
    return bool(config.hidden) and config.interaction == "ipnn"


def _first_linear(part: nn.Module) -> Tensor:
    return next(m for m in part.modules() if isinstance(m, nn.Linear)).weight
