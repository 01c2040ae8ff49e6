"""The supernet: one model at the largest widths, trained so that it also works with fewer chunks of any feature.

Chunks beyond an allocation are masked before the network reads them.  No interaction tells a masked chunk from one that
is not there, so the supernet under a mask *is* the smaller model with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from features.batch import Batch
from recsys.models import CTRModel
from recsys.search.config import SupernetConfig
from recsys.search.fitness import SubNetworks, predict_allocations
from recsys.search.space import SearchSpace, uniform
from recsys.training import TrainConfig, Trainer, TrainingListener
from recsys.training.teacher import distilled
from recsys.training.trainer import weighted_loss

if TYPE_CHECKING:
    from features.loading.loader import Loader

MONITORED = 3
"""Random allocations on which a supernet is validated, beside the full one."""


class ChunkMasks:
    """Turns chunk counts into what the network's input is multiplied by.

    Args:
        model: at the largest widths.
    """

    def __init__(self, model: CTRModel) -> None:
        features = model.plan.features
        self._feature = torch.tensor([i for i, f in enumerate(features) for _ in range(f.chunks)], dtype=torch.int64)
        self._chunk = torch.tensor([c for f in features for c in range(f.chunks)], dtype=torch.int64)
        self._width = model.plan.width
        self._others = model.network.input_width - model.plan.output_width

    def __call__(self, chunks: Tensor) -> Tensor:
        """[N, F] int64 chunk counts in plan order -> [N, I] float32 of zeros and ones."""
        kept = (self._chunk < chunks[:, self._feature]).float().repeat_interleave(self._width, 1)
        return torch.cat([kept, kept.new_ones(len(kept), self._others)], 1) if self._others else kept


class SupernetTrainer(Trainer):
    """Trains a model at the largest widths so that it predicts well at smaller ones too.

    The best epoch is the one with the best mean metric over the full model and some random allocations, the same in
    every epoch: judged at full width alone, an epoch says nothing about the small ones.

    Args:
        model: made with the chunks of `space.largest`.
        config: how, as for any model.
        space: the chunk counts of every feature.
        supernet: the recipe.
        seed: of dropout and of the allocations drawn.
        folder: where checkpoints go.
        listener: told about progress.
    """

    def __init__(
        self,
        model: CTRModel,
        config: TrainConfig,
        *,
        space: SearchSpace,
        supernet: SupernetConfig,
        seed: int,
        folder: Path,
        listener: TrainingListener | None = None,
    ) -> None:
        super().__init__(model, config, seed=seed, folder=folder, listener=listener)
        space.check_order([f.name for f in model.plan.features])
        self.space = space
        self.supernet = supernet
        self._masks = ChunkMasks(model)
        self._levels = [torch.tensor(f.levels) for f in space.features]
        self._recipe: Callable[[Tensor, Batch], tuple[Tensor, float]] = getattr(self, f"_{supernet.recipe}")
        generator = np.random.Generator(np.random.PCG64(seed))
        drawn = [space.repair(genes, None, generator) for genes in space.random(generator, MONITORED)]
        self._monitored = space.chunks(np.stack([space.largest, *drawn]))

    def _loss(self, batch: Batch) -> tuple[Tensor, float, float, int]:
        loss, weight = self._recipe(self.model.inputs_of(batch), batch)
        return loss, float(loss.detach()), weight, len(batch)

    def _mixed(self, x: Tensor, batch: Batch) -> tuple[Tensor, float]:
        """Half of the loss from the full model, half from a random allocation an example.

        An example draws how full its allocation is, then its features climb their levels with that probability: sparse
        and full allocations are as frequent as middling ones, which independent draws would never leave.
        """
        full = self.model.network(x)
        loss, weight = weighted_loss(full, batch)
        fullness = torch.rand(len(x), 1)
        steps = [(torch.rand(len(x), len(levels) - 1) < fullness).sum(1) for levels in self._levels]
        mixed = self.model.network(x, self._mask(steps))
        return 0.5 * (loss + weighted_loss(mixed, self._distilled(batch, full))[0]), weight

    def _uniform(self, x: Tensor, batch: Batch) -> tuple[Tensor, float]:
        """A random allocation an example, every level of a feature as likely as the others (Lyu et al., 2022)."""
        places = [torch.randint(len(levels), (len(x),)) for levels in self._levels]
        return weighted_loss(self.model.network(x, self._mask(places)), batch)

    def _nested(self, x: Tensor, batch: Batch) -> tuple[Tensor, float]:
        """Every level for all features at once, in every step (Kusupati et al., 2022; Zhuang et al., 2024).

        All examples have the same chunks, so a level is computed at its own size.
        """
        full = self.model.network(x)
        loss, weight = weighted_loss(full, batch)
        target = self._distilled(batch, full)
        for level in self._nested_levels:
            loss = loss + weighted_loss(level(x), target)[0]
        return loss / (len(self._nested_levels) + 1), weight

    @cached_property
    def _nested_levels(self) -> list[Callable[[Tensor], Tensor]]:
        """The networks of all levels but the largest."""
        counts = sorted({count for f in self.space.features for count in f.levels} - {0})[:-1]
        smaller = SubNetworks(self.model)
        return [smaller.trained(self.space.chunks(uniform(self.space, count)).tolist()) for count in counts]

    def _truncated(self, x: Tensor, batch: Batch) -> tuple[Tensor, float]:
        """One feature of every example at a random level, the others full (after Horváth et al., 2023)."""
        feature = torch.randint(len(self._levels), (len(x),))
        places = [
            torch.where(feature == i, torch.randint(len(levels), (len(x),)), len(levels) - 1)
            for i, levels in enumerate(self._levels)
        ]
        return weighted_loss(self.model.network(x, self._mask(places)), batch)

    def _lasso(self, x: Tensor, batch: Batch) -> tuple[Tensor, float]:
        """The full model, with the sum over chunks of the norm of all weights that read that chunk or a later one."""
        loss, weight = weighted_loss(self.model.network(x), batch)
        return loss + self.supernet.lasso * chunk_lasso(self.model), weight

    def _mask(self, places: list[Tensor]) -> Tensor:
        return self._masks(torch.stack([levels[place] for levels, place in zip(self._levels, places, strict=True)], 1))

    def _distilled(self, batch: Batch, full: Tensor) -> Batch:
        """The batch with labels drawn towards what the full model predicts."""
        assert batch.labels is not None
        return replace(batch, labels=distilled(batch.labels, full.detach(), self.supernet.distill))

    def _metrics(self, valid: Loader) -> dict[str, float]:
        reports = [self._report(p) for p in predict_allocations(self.model, valid, self._monitored)]
        return {name: float(np.mean([report[name] for report in reports])) for name in reports[0]}

    def _settings(self) -> dict[str, Any]:
        return {
            **super()._settings(),
            "supernet": self.supernet.model_dump(mode="json"),
            "levels": {f.name: list(f.levels) for f in self.space.features},
        }


def chunk_lasso(model: CTRModel) -> Tensor:
    """The hierarchical group lasso over chunks: a later chunk goes before an earlier one does.

    The sum, over the layers that read the embeddings, over features f and chunks c, of the norm of all weights that
    read chunk c of f or a later one (Horváth et al., 2023).

    Returns:
        A scalar with a gradient.
    """
    counts = [f.chunks for f in model.plan.features]
    total = torch.zeros(())
    for weight in model.network.first_layers().values():
        squares = weight.square().sum(0)[: model.plan.output_width].view(-1, model.plan.width).sum(1)
        for own in squares.split(counts):
            total = total + (own.flip(0).cumsum(0) + 1e-12).sqrt().sum()
    return total
