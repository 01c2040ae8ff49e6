"""A trained model's weights carried into a model of another shape: other rows, other features, other tasks.

What both models have keeps its weights, by name.  What is new joins in silence: nothing that was there reads it yet,
so the prediction starts as it was.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch

from features.errors import ConfigError, unknown_name
from recsys.embeddings.plan import IdCounts
from recsys.embeddings.transfer import Carried, RowMap, carry_rows, keep_owners
from recsys.models.axes import Axis, features_of
from recsys.models.ctr import CTRModel
from recsys.models.fm import FactorisationMachine

SAME = ("interaction", "cross_layers", "low_rank", "structure", "hidden")
"""What two networks must share."""


@dataclass(frozen=True)
class FeatureChange:
    """What a warm start did to one feature."""

    feature: str
    change: str
    """kept, new, dropped or reset."""
    chunks_before: int | None
    """None where the feature is no id, or was not there."""
    chunks: int | None
    rows: Carried | None
    """None without chunks."""


@dataclass(frozen=True)
class WarmStartReport:
    """What a warm start carried over."""

    features: tuple[FeatureChange, ...]
    """Those of the new model in its order, then those that are gone."""
    rows: int
    """Of the new table."""
    rows_kept: int
    """Made of one old row."""
    rows_merged: int
    """Made of several."""

    @property
    def lookups_kept(self) -> float:
        """Share of the training data's lookups whose row holds what it held before."""
        carried = [change.rows for change in self.features if change.rows]
        lookups = sum(rows.lookups for rows in carried)
        return sum(rows.kept * rows.lookups for rows in carried) / lookups if lookups else 1.0

    def lines(self) -> list[dict[str, Any]]:
        """A line a feature, for a table."""
        return [
            {
                "feature": f.feature,
                "change": f.change,
                "chunks": f.chunks if f.chunks == f.chunks_before else f"{f.chunks_before or 0} -> {f.chunks or 0}",
                "kept": f.rows.kept if f.rows else None,
                "merged": f.rows.merged if f.rows else None,
                "anew": f.rows.anew if f.rows else None,
            }
            for f in self.features
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return asdict(self) | {"lookups_kept": self.lookups_kept}


def warm_start(new: CTRModel, old: CTRModel, id_counts: IdCounts, *, reset: Collection[str] = ()) -> WarmStartReport:
    """Fills a fresh model from a trained one.

    Rows of the table: see `RowMap`.  In the network every output that was there reads what it read before and nothing
    else; outputs and tasks that are new keep their fresh weights.  With no feature dropped or reset and the rows kept
    whole, the new model predicts what the old one does: bit for bit if only the rows grew, else but for rounding.
    Optimizers are no part of a model: they start anew.

    Args:
        new: freshly made; changed in place.
        old: trained.
        id_counts: distinct training fingerprints of the new model's features, and how often each was seen.
        reset: features that are to forget: treated as if they were new.

    Raises:
        ConfigError: width, hash seed or network differ, or a feature to reset is not there; nothing was changed.
    """
    check_warm_start(new, old, reset)
    keep_owners(old.embedding, new.embedding, id_counts, reset)
    new.plan = new.embedding.plan
    row_map = RowMap(old.embedding, new.embedding, id_counts, reset)
    kept, merged = carry_rows(row_map, old.embedding.table, new.embedding.table)
    _carry_network(new, old, reset)
    return WarmStartReport(_changes(new, old, row_map, reset), new.plan.rows, kept, merged)


def check_warm_start(new: CTRModel, old: CTRModel, reset: Collection[str] = ()) -> None:
    """Raises what `warm_start` would raise."""
    for field, ours, theirs in (
        ("embedding.width", new.plan.width, old.plan.width),
        ("embedding.hash_seed", new.plan.hash_seed, old.plan.hash_seed),
        *((f"model.{key}", getattr(new.config, key), getattr(old.config, key)) for key in SAME),
    ):
        if ours != theirs:
            raise ConfigError(
                "a model can only be taken over with what it was trained with",
                field=field,
                found=ours,
                expected=theirs,
                mend=f"set {field} to {theirs}, or leave train.warm_start out",
            )
    known = _features(new)
    for name in reset:
        if name not in known:
            what = "there is no such feature to reset"
            raise unknown_name(what, name, known, field="train.reset", found=name, otherwise="leave it out")


@torch.no_grad()
def _carry_network(new: CTRModel, old: CTRModel, reset: Collection[str]) -> None:
    for (target, now), (source, was) in zip(_shared(new, old), _shared(old, new), strict=True):
        outputs, out_of = _places(now[0], was[0], reset)
        if target.ndim == 1:
            target[outputs] = source[out_of]
        else:
            inputs, in_of = _places(now[1], was[1], reset)
            target[outputs] = 0.0
            target[outputs.unsqueeze(1), inputs] = source[out_of.unsqueeze(1), in_of]
    if isinstance(new.network.cross, FactorisationMachine):
        new.network.cross.wake(new.network.head.weight)


def _shared(model: CTRModel, other: CTRModel) -> list[tuple[torch.Tensor, tuple[Axis, ...]]]:
    """The parameters that both models have, in order, with their axes.

    A factorisation machine has more of them with more chunks.  Nothing of the other model reads what they put out.
    """
    axes, others = model.network.axes(), other.dense_parameters()
    return [(p, axes[n]) for n, p in model.dense_parameters().items() if n in others or not n.startswith("cross.")]


def _places(now: Axis, was: Axis, reset: Collection[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of a new axis whose names the old one has, and where it has them."""
    before = {name: place for place, name in enumerate(was)}
    both = [
        (place, before[name])
        for place, name in enumerate(now)
        if name in before and features_of(name).isdisjoint(reset)
    ]
    pairs = torch.tensor(both, dtype=torch.int64).view(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _features(model: CTRModel) -> dict[str, int | None]:
    """Every feature with a part in a model's input, and its chunks if it is an id."""
    numbers = {name.partition(":")[0]: None for name in model.layout.dense_names}
    ids = {f.name: f.chunks for f in model.plan.features}
    return {**ids, **numbers, **dict.fromkeys(model.layout.vector_names)}


def _changes(new: CTRModel, old: CTRModel, row_map: RowMap, reset: Collection[str]) -> tuple[FeatureChange, ...]:
    now, was = _features(new), _features(old)
    changes = []
    for name, chunks in (now | {name: None for name in was if name not in now}).items():
        # an id without chunks has no part in the model
        before, here = name in was and was[name] != 0, name in now and chunks != 0
        if not before and not here:
            continue
        change = "dropped" if not here else "new" if not before else "reset" if name in reset else "kept"
        changes.append(FeatureChange(name, change, was.get(name), chunks, row_map.carried.get(name)))
    return tuple(changes)
