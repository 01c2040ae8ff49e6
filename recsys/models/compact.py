"""A trained model without the rows that do not matter: the same network over a smaller table."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from features.errors import ConfigError
from recsys.embeddings.plan import EmbeddingPlan, FeaturePlan, Pruned
from recsys.models.ctr import CTRModel


@torch.no_grad()
def compact(model: CTRModel, kept: Tensor, without: Collection[str] = ()) -> CTRModel:
    """A model for serving whose table has lost rows.

    What read a row that is gone reads zeros.  A value of an exact field leaves the index with its rows; the index can
    then not tell it from a value that training never saw, so those read zeros too, in this field.  Hot rows stay.

    Args:
        model: left as it is; not pruned before.
        kept: [rows] bool, the rows of the table that stay. The rows of one exact value stay or go together.
        without: features that are to read zeros altogether, but for their hot ids.

    Raises:
        ConfigError: the model was pruned before.
    """
    plan = model.plan
    check_not_pruned(plan)
    kept = kept.clone()
    for f in plan.features:
        if f.name in without:
            kept[exact_rows(f)] = False
    hot = sum(f.hot_slots * f.chunks for f in plan.features)
    kept[plan.rows - hot :] = True
    exact = [f for f in plan.features if f.region == "exact"]
    values = {f.name: values_kept(f, kept) for f in exact}
    for f in exact:
        kept[exact_rows(f)] = values[f.name].repeat_interleave(f.chunks)
    zeroed = {f.name for f in plan.features if f.chunks and f.name in without} | {
        name for name, own in values.items() if not own.all()
    }
    hashed = kept[: plan.hashed] & _read(plan, zeroed)
    new = _plan(plan, hashed, values, zeroed, model.embedding.exact_keys)
    converted = CTRModel(model.layout, new, model.config, kernel="torch")
    stored = model.embedding.table.stored()
    zeros = converted.embedding.table.format.encode(torch.zeros(1, plan.width))
    rows = torch.cat([stored[: plan.hashed][hashed], zeros, stored[plan.hashed :][kept[plan.hashed :]]])
    if converted.embedding.kept is not None:
        converted.embedding.kept.fill(torch.cat([hashed, torch.zeros(1, dtype=torch.bool)]))
    indices = {**converted.embedding.indices(), "hot_keys": model.embedding.hot_keys}
    converted.load_tensors({**model.tensors(), **indices, "table": rows})
    return converted.eval()


def check_not_pruned(plan: EmbeddingPlan) -> None:
    """Raises a ConfigError if the plan is of a table that was pruned."""
    if plan.pruned is not None:
        raise ConfigError(
            "the model is pruned already",
            field="model",
            found=f"{plan.pruned.left:,} of {plan.pruned.hashed:,} hashed rows",
            mend="prune the model that it was made from",
        )


def exact_rows(f: FeaturePlan) -> slice:
    """The rows of the exact values of a feature."""
    return slice(f.exact_base, f.exact_base + (f.values * f.chunks if f.region == "exact" else 0))


def values_kept(f: FeaturePlan, kept: Tensor) -> Tensor:
    """Which values of an exact feature stay, [values] bool in order of their keys: those whose rows all do."""
    return kept[exact_rows(f)].view(f.values, f.chunks).all(1)


def _read(plan: EmbeddingPlan, zeroed: Collection[str]) -> Tensor:
    """Which of the hashed rows some feature still hashes to, [hashed] bool."""
    read = torch.zeros(plan.hashed, dtype=torch.bool)
    for f in plan.features:
        if f.chunks and f.name not in zeroed:
            read[f.base : f.base + f.span] = True
    return read


def _plan(
    plan: EmbeddingPlan, hashed: Tensor, values: dict[str, Tensor], zeroed: Collection[str], keys: Tensor
) -> EmbeddingPlan:
    left = int(hashed.sum())
    end, entries = left + 1, 0
    exact_keys = [keys[:0]]
    moved: dict[str, FeaturePlan] = {f.name: f for f in plan.features}
    for f in sorted((f for f in plan.features if f.region == "exact"), key=lambda f: f.name):
        number = int(values[f.name].sum())
        exact_keys.append(keys[f.exact_start : f.exact_start + f.values][values[f.name]])
        moved[f.name] = replace(f, values=number, exact_base=end, exact_start=entries)
        end += number * f.chunks
        entries += number
    for f in sorted((f for f in plan.features if f.hot_slots), key=lambda f: f.hot_base):
        moved[f.name] = replace(moved[f.name], hot_base=end)
        end += f.hot_slots * f.chunks
    in_reach = {
        f.name: 0 if f.name in zeroed else int(hashed[f.base : f.base + f.span].sum())
        for f in plan.features
        if f.chunks
    }
    return replace(
        plan,
        rows=end,
        features=tuple(
            replace(moved[f.name], base=plan.hashed, span=1) if f.name in zeroed else moved[f.name]
            for f in plan.features
        ),
        exact_keys=torch.cat(exact_keys).numpy(),
        pruned=Pruned(plan.hashed, left, in_reach),
    )
