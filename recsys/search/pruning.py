"""Which rows of a trained table matter: importances by row, and the choice of the rows to keep at a budget.

Of rows that were left untouched a norm tells their initial values and of frequent ones how often they moved, so
magnitude is the plain yardstick (Han et al., 2015; PEP and magnitude pruning hold their own against learned methods in
arXiv 2406.17335).  The first-order Taylor term asks what the loss would do (Molchanov et al., 2017).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from features.batch import Batch
from features.errors import ConfigError, DataError, did_you_mean
from recsys.embeddings.plan import EmbeddingPlan
from recsys.models.compact import check_not_pruned, exact_rows, values_kept
from recsys.models.ctr import CTRModel
from recsys.training.trainer import weighted_loss

ImportanceName = Literal["magnitude", "gradient"]
IMPORTANCES: tuple[ImportanceName, ...] = ("magnitude", "gradient")
_ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class FeatureKept:
    """What pruning leaves of one feature."""

    feature: str
    region: str
    of: str
    """What is counted: values (of an exact feature) or rows (that it hashes to, which others may share)."""
    before: int
    kept: int

    @property
    def share(self) -> float:
        """Kept of those before; 1 of none."""
        return self.kept / self.before if self.before else 1.0


@torch.no_grad()
def magnitude(model: CTRModel) -> Tensor:
    """The L2 norm of every row of the table, [rows] float64."""
    table = model.embedding.table
    parts = [
        table.values(torch.arange(start, min(start + _ROWS_AT_ONCE, table.rows))).double().norm(dim=1)
        for start in range(0, table.rows, _ROWS_AT_ONCE)
    ]
    return torch.cat([torch.empty(0, dtype=torch.float64), *parts])


@torch.enable_grad()
def gradient(model: CTRModel, batches: Iterable[Batch]) -> Tensor:
    """What the loss of every example would change by if the row were zeros, to first order, summed over the data.

    For every lookup of a row with value v, whose example's loss has the gradient g there: |g . v|.  Absolute values are
    taken lookup by lookup, so that the batch size has no say and effects on different examples do not cancel.  Nothing
    is updated.

    Args:
        model: trained; evaluated as it is served.
        batches: with labels.

    Returns:
        [rows] float64, in nats.

    Raises:
        DataError: there is no row, or the rows have no labels.
    """
    out = torch.zeros(model.embedding.table.rows, dtype=torch.float64)
    training, seen = model.training, 0
    model.eval()
    try:
        for batch in batches:
            if batch.labels is None:
                raise DataError("the gradient of the loss needs labels", mend="give rows with labels")
            for rows, effect in _effects(model, batch):
                out.index_add_(0, rows.flatten().to(torch.int64), effect.flatten().double())
            seen += len(batch)
    finally:
        model.train(training)
    if not seen:
        raise DataError("there are no rows to look at", mend="give a file or a split that has some")
    return out


def choose(plan: EmbeddingPlan, importance: Tensor, keep: float) -> Tensor:
    """The rows to keep: the most important ones, as many as the share allows.

    The rows of an exact value stay or go together, by the mean of their importances.  Hot rows stay; so do, in kinds
    other than multiplexed, the single rows that stand for unseen values of exact fields.  Neither count.

    Args:
        plan: not pruned before.
        importance: [rows].
        keep: share of the other rows.

    Returns:
        [rows] bool.

    Raises:
        ConfigError: the share is not in (0, 1], or the plan was pruned before.
    """
    check_keep(keep)
    check_not_pruned(plan)
    kept = torch.ones(plan.rows, dtype=torch.bool)
    rows, costs, worth = [], [], []
    hashing = prunable(plan)
    if hashing.any():
        rows.append(hashing.nonzero().flatten())
        costs.append(torch.ones(len(rows[0]), dtype=torch.int64))
        worth.append(importance[rows[0]].double())
    for f in plan.features:
        if f.region == "exact" and f.values:
            own = exact_rows(f)
            rows.append(torch.arange(own.start, own.stop, f.chunks))
            costs.append(torch.full((f.values,), f.chunks))
            worth.append(importance[own].double().view(f.values, f.chunks).mean(1))
    if not rows:
        return kept
    row, cost = torch.cat(rows), torch.cat(costs)
    order = torch.sort(torch.cat(worth), descending=True, stable=True).indices
    budget = round(keep * int(cost.sum()))
    lost = order[cost[order].cumsum(0) > budget]
    # one place a row, the rows of a value side by side
    first, number = row[lost], cost[lost]
    step = torch.arange(int(number.sum())) - (number.cumsum(0) - number).repeat_interleave(number)
    kept[first.repeat_interleave(number) + step] = False
    return kept


def prunable(plan: EmbeddingPlan) -> Tensor:
    """Which rows are hashed into by known ids, [rows] bool: those that unseen values of one exact field have to
    themselves are not."""
    out = torch.zeros(plan.rows, dtype=torch.bool)
    for f in plan.features:
        if f.chunks and (plan.kind == "multiplexed" or f.region != "exact"):
            out[f.base : f.base + f.span] = True
    return out


def features_kept(plan: EmbeddingPlan, kept: Tensor) -> list[FeatureKept]:
    """What rows that stay [rows] bool leave of every feature that reads the table, in plan order."""
    lines = []
    for f in plan.features:
        if f.region == "exact":
            lines.append(FeatureKept(f.name, f.region, "values", f.values, int(values_kept(f, kept).sum())))
        elif f.chunks:
            lines.append(FeatureKept(f.name, f.region, "rows", f.span, int(kept[f.base : f.base + f.span].sum())))
    return lines


def check_keep(keep: float) -> None:
    """Raises a ConfigError if it is no share that can be kept."""
    if not 0 < keep <= 1:
        raise ConfigError(
            "no share of the rows that can be kept",
            field="keep",
            found=keep,
            expected="above 0, at most 1",
            mend="give such as 0.5",
        )


def check_importance(name: str) -> ImportanceName:
    """The importance of that name.

    Raises:
        ConfigError: there is none.

    >>> check_importance("gradient")
    'gradient'
    """
    for known in IMPORTANCES:
        if known == name:
            return known
    raise ConfigError(
        "there is no such importance",
        field="by",
        found=name,
        expected=" or ".join(IMPORTANCES),
        mend=did_you_mean(name, IMPORTANCES),
    )


def _effects(model: CTRModel, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Rows of the table, and |g . v| of every lookup of them; of the single-valued features, then of each bag."""
    embedding, plan = model.embedding, model.plan
    with torch.no_grad():
        rows, bag_rows = embedding.rows(batch.ids, batch.bag_values, batch.bag_lengths)
        x = model.inputs_of(batch)
    x.requires_grad_()
    loss, weight = weighted_loss(model.network(x), batch)
    (grad,) = torch.autograd.grad(loss * weight, x)
    with torch.no_grad():
        single = embedding.single_lookups * plan.width
        product = (x[:, :single] * grad[:, :single]).view(len(batch), embedding.single_lookups, plan.width)
        out = [(rows, product.sum(2).abs())]
        blocks = grad[:, single : plan.output_width].split([f.chunks * plan.width for f in embedding.bags], 1)
        for row, lengths, block, pooling in zip(bag_rows, batch.bag_lengths, blocks, embedding.poolings, strict=True):
            own = block / lengths.clamp(min=1).unsqueeze(1) if pooling == "mean" else block
            own = own.repeat_interleave(lengths, 0).view(*row.shape, plan.width)
            vectors = embedding.table.values(row.flatten()).view(*row.shape, plan.width)
            out.append((row, (vectors * own).sum(2).abs()))
    return out
