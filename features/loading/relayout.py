"""Batches of one layout as a model of another layout reads them."""

from __future__ import annotations

import torch

from features.batch import Batch
from features.layout import Layout


def missing_features(wanted: Layout, have: Layout) -> list[str]:
    """Names of the features that a model of layout `wanted` reads and batches of layout `have` lack.

    >>> missing_features(Layout(id_names=("user", "zip")), Layout(id_names=("zip", "ad")))
    ['user']
    """
    parts = ("id_names", "bag_names", "dense_names", "vector_names")
    return [name for part in parts for name in getattr(wanted, part) if name not in getattr(have, part)]


def relayout(batch: Batch, have: Layout, wanted: Layout) -> Batch:
    """A batch with the features that a model of another layout reads, in its order; labels and weight stay.

    Args:
        batch: of layout `have`.
        have: names of its columns.
        wanted: of the model; nothing of it is missing (`missing_features`).
    """
    if have.feature_names == wanted.feature_names:
        return batch
    ids = [have.id_names.index(name) for name in wanted.id_names]
    bags = [have.bag_names.index(name) for name in wanted.bag_names]
    dense = [have.dense_names.index(name) for name in wanted.dense_names]
    values = batch.bag_values.split(batch.bag_lengths.sum(1).tolist())
    vectors = dict(zip(have.vector_names, batch.vectors.split(list(have.vector_sizes), 1), strict=True))
    return Batch(
        ids=batch.ids[:, ids],
        bag_values=torch.cat([batch.bag_values[:0], *(values[bag] for bag in bags)]),
        bag_lengths=batch.bag_lengths[bags],
        dense=batch.dense[:, dense],
        vectors=torch.cat([batch.vectors[:, :0], *(vectors[name] for name in wanted.vector_names)], 1),
        labels=batch.labels,
        weight=batch.weight,
    )
