"""What an allocation is worth: a trained supernet judged under it, on rows whose embeddings are looked up once.

A candidate reads columns of the cached embeddings and the same columns of the supernet's weights: it is evaluated at
its own size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from features.batch import Batch
from features.errors import UndefinedMetricError
from recsys.evaluation.metrics import auc, logloss
from recsys.models import CTRModel
from recsys.models.axes import Axis
from recsys.models.network import Network
from recsys.search.space import SearchSpace
from recsys.training import Predictions

if TYPE_CHECKING:
    from features.loading.loader import Loader

METRICS: dict[str, Callable[..., float]] = {"auc": auc, "logloss": lambda *rows: -logloss(*rows)}
"""Fitness by name; higher is better."""


class SubNetworks:
    """The networks of all smaller allocations, with the weights that a model at the largest widths has for them.

    Args:
        model: at the largest widths.
    """

    def __init__(self, model: CTRModel) -> None:
        self._model = model
        self._features = [[replace(f, chunks=count) for count in range(f.chunks + 1)] for f in model.plan.features]
        """By feature, then chunk count."""
        self._places = {name: tuple(_numbered(axis) for axis in axes) for name, axes in model.network.axes().items()}
        self._inputs = _numbered(model.network.input_axis())

    def of(self, chunks: Sequence[int]) -> tuple[Network, Callable[[Tensor], Tensor]]:
        """The network of some chunk counts, in plan order, and what picks its input [B, I'] from the full [B, I]."""
        network, cuts = self._outline(chunks)
        whole = dict(self._model.network.named_parameters())
        for name, own in cuts.items():
            module, _, parameter = name.rpartition(".")
            value = nn.Parameter(_cut(whole[name].detach(), own), requires_grad=False)
            setattr(network.get_submodule(module), parameter, value)
        spans = _spans([self._inputs[name] for name in network.input_axis()])
        return network.eval(), lambda x: torch.cat([x[:, first:end] for first, end in spans], 1)

    def trained(self, chunks: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """The same as a function from the full input [B, I] to logits [B, T]; the model's weights learn through it."""
        network, cuts = self._outline(chunks)
        columns = torch.tensor([self._inputs[name] for name in network.input_axis()], dtype=torch.int64)
        whole = self._model.network

        def logits(x: Tensor) -> Tensor:
            network.train(whole.training)
            network.autocast = whole.autocast
            weights = dict(whole.named_parameters())
            smaller = {name: _cut(weights[name], own) for name, own in cuts.items()}
            out: Tensor = functional_call(network, smaller, x.index_select(1, columns))
            return out

        return logits

    def _outline(self, chunks: Sequence[int]) -> tuple[Network, dict[str, list[tuple[int, Tensor]]]]:
        """The network without weights, and by parameter the dimensions that are smaller, with the places kept."""
        model = self._model
        features = tuple(own[count] for own, count in zip(self._features, chunks, strict=True))
        with torch.device("meta"):
            network = Network(model.layout, replace(model.plan, features=features), model.config)
        kept: dict[int, Tensor] = {}  # by axis; parameters share them
        cuts: dict[str, list[tuple[int, Tensor]]] = {}
        for name, axes in network.axes().items():
            cuts[name] = []
            for dimension, (axis, places) in enumerate(zip(axes, self._places[name], strict=True)):
                if len(axis) < len(places):
                    if id(axis) not in kept:
                        kept[id(axis)] = torch.tensor([places[unit] for unit in axis], dtype=torch.int64)
                    cuts[name].append((dimension, kept[id(axis)]))
        return network, cuts


def _cut(value: Tensor, cuts: Sequence[tuple[int, Tensor]]) -> Tensor:
    for dimension, places in cuts:
        value = value.index_select(dimension, places)
    return value


@dataclass(frozen=True)
class Sample:
    """Rows with their embeddings at the largest widths."""

    inputs: Tensor
    """[N, I] float32."""
    labels: np.ndarray
    """[N, T]"""
    weight: np.ndarray | None
    """[N]"""

    @classmethod
    @torch.no_grad()
    def of(cls, model: CTRModel, batches: Iterable[Batch], places: np.ndarray | None = None) -> Sample:
        """Looks rows up.

        Args:
            model: at the largest widths.
            batches: a loader without shuffling.
            places: numbers of the rows that are wanted, ascending; all when left out. See `drawn_places`.

        Raises:
            UndefinedMetricError: they lack one of the classes, so no allocation can be judged on them.
        """
        inputs, labels, weights, start = [], [], [], 0
        for batch in batches:
            rows = len(batch)
            if places is not None:
                first, last = np.searchsorted(places, [start, start + rows])
                batch = batch.rows(torch.from_numpy(places[first:last] - start))
            start += rows
            if not len(batch):
                continue
            inputs.append(model.inputs_of(batch))
            assert batch.labels is not None
            labels.append(batch.labels.numpy())
            if batch.weight is not None:
                weights.append(batch.weight.numpy())
        sample = cls(torch.cat(inputs), np.concatenate(labels), np.concatenate(weights) if weights else None)
        check_classes(sample.labels)
        return sample


def check_classes(labels: np.ndarray) -> None:
    """Refuses the labels [N, T] of a sample on which no allocation could be judged.

    Raises:
        UndefinedMetricError: those of the first task are of one class.
    """
    positive = labels[:, 0] > 0
    if positive.all() or not positive.any():
        raise UndefinedMetricError(
            "no allocation can be judged on rows of one class",
            field="search.sample_rows",
            found=f"{int(positive.sum())} of {len(positive)} validation rows are positive",
            mend="raise search.sample_rows, or split the data so that validation holds both classes",
        )


def drawn_places(rows: int, wanted: int, seed: int) -> np.ndarray:
    """So many of the numbers of some rows, drawn at random, ascending; all of them if there are not so many.

    >>> drawn_places(10, 3, seed=0).tolist(), len(drawn_places(10, 30, seed=0))
    ([2, 4, 6], 10)
    """
    return np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(rows)[:wanted])


class Fitness:
    """Judges allocations on a sample, at their own size.

    Args:
        model: the trained supernet.
        space: what genes mean.
        sample: the rows.
        metric: auc or logloss.
    """

    def __init__(self, model: CTRModel, space: SearchSpace, sample: Sample, metric: str) -> None:
        space.check_order([f.name for f in model.plan.features])
        self._networks = SubNetworks(model)
        self._space = space
        self._sample = sample
        self._metric = METRICS[metric]

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        """Genes [N, F] -> fitness [N] float64, higher is better."""
        sample = self._sample
        out = []
        for chunks in self._space.chunks(genes):
            network, pick = self._networks.of(chunks)
            with torch.no_grad():
                logits = network(pick(sample.inputs))
            probabilities = torch.sigmoid(logits[:, 0].double()).numpy()
            out.append(self._metric(sample.labels[:, 0], probabilities, sample.weight))
        return np.array(out)


@torch.no_grad()
def predict_allocations(model: CTRModel, batches: Iterable[Batch], chunks: np.ndarray) -> list[Predictions]:
    """Scores every batch under several allocations, its embeddings looked up once.

    Args:
        model: at the largest widths; left in the mode it was in.
        batches: a loader without shuffling.
        chunks: [K, F] chunk counts in plan order.

    Returns:
        The predictions of each allocation.
    """
    networks = SubNetworks(model)
    smaller = [networks.of(own) for own in chunks]
    probabilities: list[list[np.ndarray]] = [[] for _ in smaller]
    labels, weights = [], []
    for batch in batches:
        x = model.inputs_of(batch)
        for (network, pick), own in zip(smaller, probabilities, strict=True):
            own.append(torch.sigmoid(network(pick(x)).double()).numpy())
        assert batch.labels is not None
        labels.append(batch.labels.numpy().copy())
        if batch.weight is not None:
            weights.append(batch.weight.numpy().copy())
    truth, weight = np.concatenate(labels), np.concatenate(weights) if weights else None
    return [Predictions(np.concatenate(own), truth, weight, None, None) for own in probabilities]


def judge(model: CTRModel, loader: Loader, space: SearchSpace, genes: np.ndarray, metric: str) -> np.ndarray:
    """The fitness [N] of genes [N, F] on all rows of a split."""
    predictions = predict_allocations(model, loader, space.chunks(genes))
    values = []
    for p in predictions:
        assert p.labels is not None
        values.append(METRICS[metric](p.labels[:, 0], p.probabilities[:, 0], p.weight))
    return np.array(values)


def _numbered(axis: Axis) -> dict[Hashable, int]:
    return {name: place for place, name in enumerate(axis)}


def _spans(places: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending places as ranges, each without its end: neighbours are copied together, faster than one by one."""
    cuts = [i for i in range(1, len(places)) if places[i] != places[i - 1] + 1]
    return [(places[first], places[end - 1] + 1) for first, end in zip([0, *cuts], [*cuts, len(places)], strict=True)]
