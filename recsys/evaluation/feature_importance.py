"""What a trained model owes to each feature: its values shuffled among rows, its chunks of the table set to zero."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from features.batch import Batch
from features.errors import DataError
from features.layout import Layout
from recsys.embeddings.plan import EmbeddingPlan
from recsys.evaluation.intervals import LEVEL, Interval
from recsys.evaluation.metrics import auc
from recsys.evaluation.rows import columns, mean, row_losses
from recsys.models import CTRModel

ROWS = 5000
DRAWS = 3


@dataclass(frozen=True)
class Ablation:
    """How much worse the model is without a feature's vectors."""

    logloss: float
    """Rise of the logloss with all its chunks at zero."""
    auc: float | None
    """Fall of the AUC; None with one class."""
    by_chunk: tuple[float, ...]
    """Rise of the logloss with one chunk alone at zero, chunk by chunk."""


@dataclass(frozen=True)
class Importance:
    """What the model owes to one feature."""

    feature: str
    kind: str
    """id, bag, number or vector."""
    logloss: Interval
    """Rise of the logloss with its values shuffled."""
    logloss_spread: float
    """Standard deviation of the rise over draws."""
    auc: float | None
    """Fall of the AUC with its values shuffled, the mean over draws; None with one class."""
    auc_spread: float | None
    """Standard deviation of the fall over draws."""
    ablation: Ablation | None
    """None of a feature without chunks in the table."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


@torch.no_grad()
def feature_importance(model: CTRModel, batch: Batch, *, draws: int = DRAWS, seed: int = 0) -> list[Importance]:
    """Measures every feature on some rows, the most important first.

    Permutation (Breiman 2001): what the network reads of a feature is handed to other rows, so that it keeps its
    distribution and loses its meaning, and the logloss rises.  All that comes from one feature, such as a number and
    its missing flag, is shuffled together; a cross with it is a feature of its own and still tells of it, and so does
    whatever is correlated with it: the figures say what this model reads, not what the world knows.  The interval of
    the rise holds the chance of the rows and of the draws: its variance is that of a mean over rows, of each row's mean
    over draws, plus the variance between draws over their number.

    Ablation: a feature's vectors from the table are zeros, all of them or one chunk at a time.

    Args:
        model: trained.
        batch: N labelled rows; the first task is measured.
        draws: shuffles a feature, at least two.
        seed: of the shuffles.

    Raises:
        DataError: There are fewer than two rows, or they have no labels.
    """
    if batch.labels is None or len(batch) < 2:
        what = f"{len(batch)} rows" + (" without labels" if batch.labels is None else "")
        raise DataError("importance needs labelled rows", field="rows", found=what, expected="two or more")
    y, _, w = columns(
        batch.labels.numpy(), np.zeros(len(batch)), None if batch.weight is None else batch.weight.numpy()
    )
    inputs = model.inputs_of(batch)
    generator = torch.Generator().manual_seed(seed)
    shuffles = [torch.randperm(len(batch), generator=generator) for _ in range(draws)]
    base = _Scores(model, y, w, inputs)
    found = []
    for feature in read_places(model.layout, model.plan):
        own = feature.places
        losses, falls = [], []
        for shuffle in shuffles:
            loss, fall = base.without(own, functools.partial(torch.index_select, dim=0, index=shuffle))
            losses.append(loss)
            falls.append(fall)
        rises = np.array([mean(loss, w) for loss in losses])
        known = [fall for fall in falls if fall is not None]
        found.append(
            Importance(
                feature.name,
                feature.kind,
                _rise(np.array(losses), w),
                float(rises.std(ddof=1)),
                float(np.mean(known)) if known else None,
                float(np.std(known, ddof=1)) if known else None,
                _ablate(base, own, feature.chunks, w) if feature.chunks else None,
            )
        )
    return sorted(found, key=lambda one: (-one.logloss.value, one.feature))


@dataclass(frozen=True)
class ReadPlaces:
    """Where what the network reads comes from one feature."""

    name: str
    kind: str
    places: Tensor
    """int64 places in the network's input."""
    chunks: int
    """Of the table; they fill the first places, chunk by chunk."""


def read_places(layout: Layout, plan: EmbeddingPlan) -> list[ReadPlaces]:
    """The network's input by feature; a feature that was dropped is not there.

    `x:missing`, `x:sin`, `x:cos` and `x:gap` belong to x.
    """
    parts: dict[str, tuple[str, list[int], int]] = {}
    start = 0

    def add(name: str, kind: str, size: int, chunks: int = 0) -> None:
        nonlocal start
        own = parts.setdefault(name.partition(":")[0], (kind, [], 0))
        parts[name.partition(":")[0]] = own[0], [*own[1], *range(start, start + size)], own[2] + chunks
        start += size

    for f in plan.features:
        if f.chunks:
            add(f.name, "bag" if f.bag else "id", f.chunks * plan.width, f.chunks)
    for name in layout.dense_names:
        add(name, "number", 1)
    for name, size in zip(layout.vector_names, layout.vector_sizes, strict=True):
        add(name, "vector", size)
    return [ReadPlaces(name, kind, torch.tensor(places), chunks) for name, (kind, places, chunks) in parts.items()]


class _Scores:
    """Losses and AUC of what the network makes of some rows, and how they change with the rows."""

    def __init__(self, model: CTRModel, y: np.ndarray, w: np.ndarray, inputs: Tensor) -> None:
        self._network, self._y, self._w = model.network, y, w
        self._both = 0 < float((w * y).sum()) < float(w.sum())
        self._inputs = inputs
        self._losses, self._auc = self._of(inputs)

    def without(self, places: Tensor, change: Callable[[Tensor], Tensor]) -> tuple[np.ndarray, float | None]:
        """Rise of each row's loss [N] and fall of the AUC when the rows [N, n] of some places are changed."""
        inputs = self._inputs.clone()
        inputs[:, places] = change(self._inputs[:, places])
        losses, area = self._of(inputs)
        return losses - self._losses, None if area is None or self._auc is None else self._auc - area

    def _of(self, inputs: Tensor) -> tuple[np.ndarray, float | None]:
        p = torch.sigmoid(self._network(inputs)[:, 0].double()).numpy()
        return row_losses(self._y, p), auc(self._y, p, self._w) if self._both else None


def _ablate(base: _Scores, places: Tensor, chunks: int, w: np.ndarray) -> Ablation:
    width = len(places) // chunks
    whole, fall = base.without(places, torch.zeros_like)
    by_chunk: Sequence[float] = [mean(whole, w)]
    if chunks > 1:
        by_chunk = [mean(base.without(part, torch.zeros_like)[0], w) for part in places.split(width)]
    return Ablation(mean(whole, w), fall, tuple(by_chunk))


def _rise(losses: np.ndarray, w: np.ndarray) -> Interval:
    """The mean of rises [S, N] with its interval."""
    each = losses.mean(0)
    value = mean(each, w)
    rows = float(((w * (each - value)) ** 2).sum()) / float(w.sum()) ** 2
    draws = np.array([mean(loss, w) for loss in losses])
    error = math.sqrt(rows + float(draws.var(ddof=1)) / len(draws))
    half = float(ndtri((1 + LEVEL) / 2)) * error
    return Interval(value, value - half, value + half, LEVEL, "rows and draws", error)
