"""What goes on inside a trained table: occupancy of its rows, overlap of its readers, norms and age of its rows.

docs/diagnostics.md says what each measure means, what a bad value looks like and what to change.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recsys.embeddings.occupancy import (
    HASHED,
    FeatureUse,
    Load,
    Occupancy,
    Rates,
    Region,
    RegionUse,
    in_regions,
    occupy,
    regions_of,
)
from recsys.embeddings.plan import EmbeddingPlan, FeaturePlan, IdCounts
from recsys.embeddings.table import Table

if TYPE_CHECKING:
    from recsys.models.ctr import CTRModel

NORM_ROWS = 1_000_000
"""Rows whose norms are taken; of a larger table as many, evenly spaced."""
_BLOCK = 65_536
_NORM_BINS = 40


@dataclass(frozen=True)
class Overlap:
    """How alike the directions are in which a first layer reads the features that share rows.

    The overlap of two features' blocks is `|A B^T| / (|A| |B|)` in Frobenius norms, A and B [outputs * chunks, width]:
    a feature's chunks read the same rows, so their blocks stand below one another. It is 0 if no gradient of one
    feature reaches the other through a shared row, and 1 if both read one and the same direction: the angle between
    readers of Coleman et al. (2023, figure 2) for layers with several outputs.
    """

    layer: str
    """cross, deep or head."""
    features: tuple[str, ...]
    """T features, in plan order."""
    matrix: list[list[float]]
    """[T, T]; the diagonal is a block's overlap with itself, `1 / sqrt(effective_rank)`."""
    effective_rank: list[float]
    """[T]: directions of the row a feature reads, `tr(G)**2 / tr(G**2)` with `G = A^T A`; at most the width."""
    mean: float
    """Over pairs of different features."""
    rms: float
    random: float
    """Root mean square for independent random readers, `1 / sqrt(width)`: E[B^T B / |B|^2] is the identity over the
    width, whatever the number of outputs."""
    least: float
    """The least root mean square there can be, `sqrt((T / width - 1) / (T - 1))` (the bound of Welch, 1974)."""


@dataclass(frozen=True)
class Norms:
    """Euclidean norms of rows."""

    rows: int
    """Rows measured."""
    initial: float
    """Root mean square of a row as it was initialised."""
    mean: float
    low: float
    """Tenth percentile."""
    median: float
    high: float
    """Ninetieth percentile."""
    maximum: float
    histogram: list[dict[str, float]]
    """`from` and `to`, and for each region the number of its rows between."""
    by_load: list[dict[str, float]]
    """Hashed rows by the ids of the sample they hold: `from` and `to` ids, `rows`, and `mean`, `low`, `high` norm."""


@dataclass(frozen=True)
class Updates:
    """When rows were last updated, from what the optimizer or the moving average of weights remembers."""

    never: dict[str, float]
    """Share of each region's rows that no step ever touched."""
    steps: int | None
    """Steps of the training; None if only whether, not when, is remembered."""
    ages: list[dict[str, float]]
    """Hashed rows by the steps since their last update: `from`, `to` and `rows`; rows never updated are left out."""


@dataclass(frozen=True)
class Diagnostics:
    """All measures of one table on one sample of ids."""

    width: int
    table_bytes: int
    regions: tuple[RegionUse, ...]
    features: tuple[FeatureUse, ...]
    load: Load | None
    overlaps: tuple[Overlap, ...]
    """Empty if fewer than two features share rows, or nothing was trained."""
    norms: Norms | None
    """None if nothing was trained."""
    updates: Updates | None
    """None if nothing is remembered."""

    def rate(self, name: str, of: str = "measured") -> float:
        """A collision rate over the lookups of all features.

        Args:
            name: intra, inter, confused or duplicate_chunks.
            of: measured, expected or trained.
        """
        rates: list[tuple[Rates | None, int]] = [(getattr(f, of), f.lookups) for f in self.features]
        total = sum(lookups for _, lookups in rates)
        return sum(getattr(r, name) * lookups for r, lookups in rates if r is not None) / total if total else 0.0

    def scalars(self) -> dict[str, float]:
        """The main figures, to be tracked from run to run."""
        out: dict[str, float] = {"bytes": self.table_bytes}
        out |= {f"traffic/{r.region}": r.traffic for r in self.regions if r.traffic is not None}
        out |= {name: self.rate(name) for name in ("intra", "inter", "confused", "duplicate_chunks")}
        if self.load is not None:
            out |= {
                "ids_a_row": self.load.measured.mean,
                "ids_a_row_trained": self.load.trained.mean,
                "ids_in_fullest_row": self.load.measured.maximum,
                "empty_rows": self.load.measured.empty,
                "busiest_hundredth": self.load.top_rows,
            }
        out |= {f"overlap/{overlap.layer}": overlap.mean for overlap in self.overlaps}
        if self.norms is not None:
            out |= {"row_norm": self.norms.mean}
        if self.updates is not None:
            out |= {f"never_updated/{name}": share for name, share in self.updates.never.items()}
        return out

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self)


def diagnose(
    model: CTRModel,
    counts: IdCounts,
    *,
    plan: EmbeddingPlan | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Diagnostics:
    """Looks into the table of a model.

    Memory follows the distinct ids of the sample; the table is read in blocks and never copied.

    Args:
        model: Its present weights are measured.
        counts: The sample: distinct ids of each feature and how often each occurs (`count_ids`, `Store.id_counts`).
        plan: Of a model that is an outline, made for fewer rows than it has and not trained: only what follows from
            addresses is told.
        state: What is known of the rows' updates, by name: `last` [rows] and `steps` of a `RowAverage`, or `momentum`
            or `second` of the table's optimizer.

    Raises:
        DataError: The sample lacks a feature of the model.
    """
    occupancy = occupy(model.embedding, counts, plan)
    trained = plan is None
    plan = plan or model.plan
    regions = regions_of(plan)
    return Diagnostics(
        width=plan.width,
        table_bytes=plan.table_bytes,
        regions=occupancy.regions,
        features=occupancy.features,
        load=occupancy.load,
        overlaps=_overlaps(model) if trained else (),
        norms=_norms(model.embedding.table, plan, regions, occupancy) if trained and plan.rows else None,
        updates=_updates(state or {}, plan.rows, regions),
    )


def update_state(table: Table) -> dict[str, Tensor]:
    """What a table that was trained in this process remembers of its rows' updates, for `diagnose`."""
    average = table.average.state() if table.average is not None else {}
    return {**table.optimizer_state(), **average}


def overlap_of(layer: str, weights: Tensor, blocks: Mapping[str, slice], width: int) -> Overlap:
    """The overlap of a layer's blocks.

    Args:
        layer: Its name.
        weights: [O, inputs].
        blocks: The columns of each of T features, chunks side by side.
        width: Floats in a row of the table.
    """
    grams = []
    for columns in blocks.values():
        block = weights[:, columns].double().reshape(-1, width)
        grams.append((block.T @ block).flatten())
    gram = torch.stack(grams)
    traces = gram[:, :: width + 1].sum(1)
    inner = gram @ gram.T
    scale = traces.unsqueeze(1) * traces
    # a block of zeros reads nothing, so it overlaps with nothing
    squares = torch.where(scale > 0, inner / scale, 0.0).clamp(0, 1)
    count = len(blocks)
    matrix = squares.sqrt()
    apart = ~torch.eye(count, dtype=torch.bool)
    diagonal = squares.diagonal()
    return Overlap(
        layer=layer,
        features=tuple(blocks),
        matrix=matrix.tolist(),
        effective_rank=torch.where(diagonal > 0, 1 / diagonal, 0.0).tolist(),
        mean=float(matrix[apart].mean()),
        rms=float(squares[apart].mean().sqrt()),
        random=1 / math.sqrt(width),
        least=math.sqrt(max(count / width - 1, 0.0) / (count - 1)),
    )


def _overlaps(model: CTRModel) -> tuple[Overlap, ...]:
    sharing = _sharing(model.plan)
    if len(sharing) < 2:
        return ()
    blocks, start, width = {}, 0, model.plan.width
    for f in model.plan.features:
        stop = start + f.chunks * width
        if f in sharing:
            blocks[f.name] = slice(start, stop)
        start = stop
    layers = model.network.first_layers().items()
    return tuple(overlap_of(name, weights.detach(), blocks, width) for name, weights in layers)


def _sharing(plan: EmbeddingPlan) -> list[FeaturePlan]:
    """Features whose ids meet ids of other features in rows."""
    hashing = [f for f in plan.features if f.region not in ("exact", "dropped")]
    tenants = Counter((f.base, f.span) for f in hashing)
    return [f for f in hashing if tenants[f.base, f.span] > 1]


@torch.no_grad()
def _norms(table: Table, plan: EmbeddingPlan, regions: list[Region], occupancy: Occupancy) -> Norms:
    count = min(plan.rows, NORM_ROWS)
    rows = np.arange(count) * plan.rows // count
    norms = np.concatenate(
        [
            table.values(torch.from_numpy(rows[start : start + _BLOCK])).norm(dim=1).numpy()
            for start in range(0, count, _BLOCK)
        ]
    ).astype(np.float64)
    edges = np.linspace(0, float(norms.max()) or 1.0, _NORM_BINS + 1)
    histogram = [{"from": float(a), "to": float(b)} for a, b in itertools.pairwise(edges)]
    for name in dict.fromkeys(region.name for region in regions):
        mine = norms[in_regions(regions, rows, (name,))]
        for entry, number in zip(histogram, np.histogram(mine, edges)[0].tolist(), strict=True):
            entry[name] = number
    hashed = in_regions(regions, rows, HASHED)
    low, median, high = np.percentile(norms, (10, 50, 90)).tolist()
    return Norms(
        rows=count,
        initial=plan.init_scale * math.sqrt(plan.width / 3),
        mean=float(norms.mean()),
        low=low,
        median=median,
        high=high,
        maximum=float(norms.max()),
        histogram=histogram,
        by_load=_by_load(norms[hashed], occupancy.load_of(rows[hashed])),
    )


def _by_load(norms: np.ndarray, load: np.ndarray) -> list[dict[str, float]]:
    """Norms by load: 0, 1, 2, 3 to 4, 5 to 8, and so on."""
    out = []
    first, last = 0, 0
    while first <= load.max(initial=-1):
        mine = norms[(load >= first) & (load <= last)]
        if len(mine):
            low, high = np.percentile(mine, (10, 90)).tolist()
            mean = float(mine.mean())
            out.append({"from": first, "to": last, "rows": len(mine), "mean": mean, "low": low, "high": high})
        first, last = last + 1, max(2 * last, 1)
    return out


def _updates(state: Mapping[str, Tensor], rows: int, regions: list[Region]) -> Updates | None:
    steps = int(state["steps"] if "steps" in state else state["step"]) if "last" in state else 0
    known = next((name for name in ("last", "momentum", "second") if name in state), None)
    if known is None or len(state[known]) != rows:
        return None
    never = dict.fromkeys((region.name for region in regions), 0)
    total = dict(never)
    powers = max(len(str(steps)), 1)
    ages = np.zeros(powers, np.int64)
    for region in regions:
        for start in range(region.start, region.stop, _BLOCK):
            part = state[known][start : min(start + _BLOCK, region.stop)].numpy()
            updated = (part.reshape(len(part), -1) != 0).any(1)
            never[region.name] += int((~updated).sum())
            total[region.name] += len(part)
            if steps and region.name in HASHED:
                age = steps - part[updated].astype(np.int64)
                ages += np.bincount(
                    np.searchsorted(10 ** np.arange(1, powers + 1), age, side="right"), minlength=powers
                )
    if never == total:  # a fresh state, of no training
        return None
    return Updates(
        never={name: never[name] / total[name] for name in never},
        steps=steps or None,
        ages=[{"from": 10**i if i else 0, "to": 10 ** (i + 1) - 1, "rows": int(n)} for i, n in enumerate(ages.tolist())]
        if steps
        else [],
    )
