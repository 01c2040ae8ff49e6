"""Thresholds below which a value's vector counts for nothing, one a feature, learned with the model.

A value with the vector e of feature f is read as `e * 1[s(e) > t_f]`.  OptEmbed (Lyu et al., CIKM 2022) takes the L1
norm for s; its dense Adam with coupled weight decay shrinks every vector that is not touched to 0, so that any
threshold prunes by frequency.  Our tables move touched rows only, and `table_l2` pulls on those alone: a vector that
the loss does not hold up sinks because it is read, not because it is rare.  Here s is the root mean square of the
vector over that of all the vectors that the model reads: a number about 1, whatever the width, the chunks and the
rates, so that one rate and one pressure suit every table, and the straight-through derivative, which is 0 further than
1 from the threshold, reaches the values it is about.

An experiment: 160,000 examples, three fields of 200 equally skewed values; all values of one tell something, none of
another's, every second of a third's.  Widths 2, 8 and 64 keep .89, .94 and .83 of the first, .01, .07 and .04 of the
second, and of the third all that tell something and at most .01 of the others, frequent or rare.  With the L1 norm
nothing of the third goes at width 2.  With the norm over that of the own feature's vectors .27 of the second stay at
width 8, since there a field of noise is judged by noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from features.batch import Batch
from features.errors import ConfigError
from recsys.embeddings.plan import IdCounts
from recsys.models import CTRModel
from recsys.models.compact import compact
from recsys.search.config import ThresholdConfig
from recsys.search.pruning import FeatureKept
from recsys.tensorfile import write_tensors
from recsys.training import TrainConfig, Trainer
from recsys.training.trainer import TrainResult

if TYPE_CHECKING:
    from features.loading.loader import Loader

DECAY = 0.99
"""A step, of the mean square of what is read."""
_VALUES_AT_ONCE = 1 << 16


class ThresholdGate(nn.Module):
    """Multiplies vectors by a step: 1 above their feature's threshold, else 0.

    Args:
        features: how many there are.
    """

    square: Tensor
    """[F]: decayed sum of the mean square of the floats that a feature's lookups read."""
    weight: Tensor
    """[F]: the weight gathered in it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.thresholds = nn.Parameter(torch.zeros(features))
        self.register_buffer("square", torch.zeros(features))
        self.register_buffer("weight", torch.zeros(features))

    def forward(self, feature: int, vectors: Tensor) -> Tensor:
        """The vectors [n, chunks * D] of n lookups of a feature, in plan order -> the same with zeros for the rest."""
        if not vectors.numel():
            return vectors
        if self.training:
            with torch.no_grad():
                self.square[feature].lerp_(vectors.square().mean(), 1 - DECAY)
                self.weight[feature].lerp_(torch.ones(()), 1 - DECAY)
        step: Tensor = _Step.apply(self.importance(vectors) - self.thresholds[feature])
        return vectors * step.unsqueeze(1)

    def importance(self, vectors: Tensor) -> Tensor:
        """[n, chunks * D] -> [n]: root mean squares over that of all features, each of which counts the same."""
        typical = (self.square.sum() / self.weight.sum().clamp(min=1e-12)).sqrt().clamp(min=1e-12)
        return torch.linalg.vector_norm(vectors, dim=1) / (typical * vectors.shape[1] ** 0.5)

    def tensors(self) -> dict[str, Tensor]:
        """All there is to be stored, by name; live tensors."""
        return {"thresholds": self.thresholds.detach(), "square": self.square, "weight": self.weight}


class _Step(torch.autograd.Function):
    """1 above 0, else 0, with OptEmbed's straight-through derivative."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return grad * step_derivative(x)


def step_derivative(x: Tensor) -> Tensor:
    """What stands in for the derivative of the step.

    >>> step_derivative(torch.tensor([0.0, 0.25, -0.25, 2.0])).tolist()
    [2.0, 1.0, 1.0, 0.0]
    """
    far = x.abs()
    return torch.where(far <= 0.4, 2 - 4 * far, torch.where(far <= 1, 0.4, 0.0))


class ThresholdTrainer(Trainer):
    """Trains a model whose values have to pass a threshold, and the thresholds with it.

    The loss is the model's with `pressure * sum over f of exp(-t_f)`; thresholds take plain gradient steps, at a rate
    of their own under the schedule of the others.  Validation judges the model as it is masked.  The best epoch's
    thresholds are kept with its weights, and stay with the model until `compact_by_thresholds` makes a smaller one.

    Thresholds learn from data that the model has not memorised: to a model that sees a row a second time, what it has
    learned by heart looks useful.  So few epochs, and some `table_l2`.

    Args:
        model: trained in place. Without hot rows, which would change owners under the mask.
        config: how, as for any model.
        thresholds: rate and pressure.
        trainer: what every trainer takes.
    """

    def __init__(self, model: CTRModel, config: TrainConfig, *, thresholds: ThresholdConfig, **trainer: Any) -> None:
        super().__init__(model, config, **trainer)
        if model.plan.hot_slots:
            raise ConfigError(
                "thresholds know no hot region: an id that a threshold masks would keep its slot",
                field="embedding.hot",
                found=", ".join(f.name for f in model.plan.features if f.hot_slots),
                mend="leave it empty, or prune the trained model by gradient",
            )
        self.settings = thresholds
        self.gate = ThresholdGate(len(model.plan.features))
        self._used = torch.tensor([f.chunks > 0 for f in model.plan.features])
        model.embedding.gate = self.gate

    def fit(self, train: Loader, valid: Loader, *, resume: bool = False) -> TrainResult:
        result = super().fit(train, valid, resume=resume)
        self._checkpoints.restore(result.checkpoint, self._gate_tensors())
        return result

    def _step(self, batch: Batch, factor: float) -> tuple[float, float, int]:
        skipped = self._progress.skipped
        out = super()._step(batch, factor)
        thresholds = self.gate.thresholds
        if self._progress.skipped == skipped and thresholds.grad is not None:
            with torch.no_grad():
                thresholds.sub_(thresholds.grad, alpha=self.settings.rate * factor)
        thresholds.grad = None
        return out

    def _loss(self, batch: Batch) -> tuple[Tensor, float, float, int]:
        loss, value, weight, rows = super()._loss(batch)
        pressure = torch.exp(-self.gate.thresholds[self._used]).sum()
        return loss + self.settings.pressure * pressure, value, weight, rows

    def _save_best(self, state: dict[str, Any]) -> None:
        write_tensors(self._checkpoints.best, {**self.model.tensors(), **self._gate_tensors()}, state)

    def _tensors(self) -> dict[str, Tensor]:
        return {**super()._tensors(), **self._gate_tensors()}

    def _gate_tensors(self) -> dict[str, Tensor]:
        return {f"gate.{name}": t for name, t in self.gate.tensors().items()}

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "thresholds": self.settings.model_dump(mode="json")}


@dataclass(frozen=True)
class ThresholdReport:
    """What thresholds leave of a model."""

    features: tuple[FeatureKept, ...]
    """The training values of every feature that reads the table."""
    thresholds: dict[str, float]
    """By feature, in units of the root mean square of what is read."""

    @property
    def pruned_features(self) -> list[str]:
        """Features none of whose values passed: they do as well with no chunks."""
        return [f.feature for f in self.features if f.before and not f.kept]


@torch.no_grad()
def compact_by_thresholds(model: CTRModel, id_counts: IdCounts) -> tuple[CTRModel, ThresholdReport]:
    """A model for serving without the values that did not pass.

    An exact value that did not pass goes with its rows; a hashed row goes once no training value that passed reads it;
    a feature none of whose values passed reads zeros altogether.  On exact fields the new model therefore predicts as
    the masked one did.  A hashed value that did not pass may still read rows that others keep: pruning by value and
    sharing rows do not go together well, and then an importance by row (`recsys.search.pruning`) is the better choice.

    Args:
        model: that a `ThresholdTrainer` trained.
        id_counts: distinct training fingerprints of every feature.
    """
    gate, plan = model.embedding.gate, model.plan
    assert isinstance(gate, ThresholdGate)
    kept = torch.zeros(plan.rows, dtype=torch.bool)
    for f in plan.features:
        if f.chunks and f.region == "exact" and plan.kind != "multiplexed":
            kept[f.base] = True  # what unseen values read
    lines, without = [], []
    for number, f in enumerate(plan.features):
        if not f.chunks:
            continue
        values = torch.from_numpy(id_counts[f.name][0])
        passed = _passed(model, gate, number, values)
        kept[model.embedding.rows_of(f.name, values[passed]).flatten().to(torch.int64)] = True
        lines.append(FeatureKept(f.name, f.region, "values", len(values), int(passed.sum())))
        if len(values) and not passed.any():
            without.append(f.name)
    thresholds = {f.name: float(t) for f, t in zip(plan.features, gate.thresholds, strict=True) if f.chunks}
    return compact(model, kept, without), ThresholdReport(tuple(lines), thresholds)


def _passed(model: CTRModel, gate: ThresholdGate, number: int, values: Tensor) -> Tensor:
    """Which values [n] of a feature are above its threshold, [n] bool."""
    name = model.plan.features[number].name
    parts = [torch.empty(0, dtype=torch.bool)]
    for block in values.split(_VALUES_AT_ONCE):
        rows = model.embedding.rows_of(name, block)
        vectors = model.embedding.table.values(rows.flatten()).view(len(block), -1)
        parts.append(gate.importance(vectors) - gate.thresholds[number] > 0)
    return torch.cat(parts)
