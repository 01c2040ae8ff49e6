"""Who sits in which row of the table: load, traffic and collisions, counted from the ids of a sample.

Every distinct id goes through the model's own addressing; beside each count stands what a perfect hash would give.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from features.batch import Batch
from features.errors import DataError
from features.layout import Layout
from recsys.embeddings.multiplexed import MultiplexedEmbedding
from recsys.embeddings.plan import EmbeddingPlan, FeaturePlan, IdCounts

HASHED = ("shared", "own")
"""Regions whose rows ids hash into; in the others an id has rows to itself."""
BUSIEST = 0.01
"""The share of rows whose traffic is told beside that of the whole."""
_BLOCK = 65_536
_BINS = 40
_CURVE_POINTS = 80


@dataclass(frozen=True)
class Region:
    """Consecutive rows of the table that serve one purpose."""

    name: str
    """shared or own (hashed into), exact, or hot."""
    start: int
    stop: int


@dataclass(frozen=True)
class RegionUse:
    """All rows of one kind together; the index of ids that have rows of their own is an entry without rows."""

    region: str
    rows: int
    bytes: int
    traffic: float | None
    """Share of the sample's lookups."""
    touched: float | None
    """Share of the rows that an id of the sample reads."""


@dataclass(frozen=True)
class Rates:
    """Collisions of one feature. Shares of its traffic, so that a frequent id counts for more."""

    intra: float
    """Lookups whose row another id of the feature uses too."""
    inter: float
    """Lookups whose row an id of another feature uses too."""
    confused: float
    """Occurrences of ids that have every row, chunk by chunk, in common with another id of the feature."""
    duplicate_chunks: float
    """Occurrences of ids two of whose chunks fall into one row."""


@dataclass(frozen=True)
class FeatureUse:
    """How one feature uses the table; the rates are None if the sample has no id of it."""

    feature: str
    region: str
    chunks: int
    ids: int
    """Distinct ids in the sample."""
    lookups: int
    """Rows read for the feature in the sample: occurrences times chunks."""
    traffic: dict[str, float]
    """Share of these lookups by region."""
    measured: Rates | None
    expected: Rates | None
    """Of a perfect hash, for the ids of the sample."""
    trained: Rates | None
    """Of a perfect hash, for all the values seen in training."""
    intra_traffic: float | None
    """Share of a row's traffic that other ids of the feature have, mean over lookups."""
    inter_traffic: float | None
    """Share of a row's traffic that ids of other features have, mean over lookups."""


@dataclass(frozen=True)
class Fill:
    """How full rows are."""

    mean: float
    """Distinct ids a row."""
    maximum: int
    """In the fullest row (its median, where this is an expectation)."""
    empty: float
    """Share of rows without an id."""


@dataclass(frozen=True)
class Load:
    """Distinct ids and traffic of the rows that ids hash into."""

    rows: int
    measured: Fill
    expected: Fill
    """Of a perfect hash, for the ids of the sample."""
    trained: Fill
    """Of a perfect hash, for all the values seen in training."""
    dispersion: float | None
    """Variance over mean of the ids a row; about 1 for a perfect hash (Poisson)."""
    histogram: list[dict[str, float]]
    """`from` and `to` ids a row, `rows` that hold so many, and how many are `expected` to."""
    traffic_mean: float
    """Lookups a row."""
    traffic_max: int
    traffic_histogram: list[dict[str, int]]
    """`rows` with `from` to `to` lookups: 0, 1, 2 to 3, 4 to 7 and so on."""
    top_row: float
    """Share of the lookups in the busiest row."""
    top_id: float
    """Share of the lookups that one id has in one row, at most; no hash can part it."""
    top_rows: float
    """Share of the lookups in the busiest hundredth of the rows."""
    top_ids: float
    """Share of the lookups of equally many ids, the most frequent (an id counts once for each of its rows)."""
    curve: list[dict[str, float]]
    """Share of the lookups in the `number` busiest `rows`, and of as many of the most frequent `ids`."""


@dataclass(frozen=True)
class Occupancy:
    """What a sample of ids does to the rows of a table."""

    regions: tuple[RegionUse, ...]
    features: tuple[FeatureUse, ...]
    """Those that read the table, in plan order."""
    load: Load | None
    """None if nothing hashes."""
    touched: np.ndarray
    """[U] int64: the rows that the sample reads, ascending."""
    ids_in_row: np.ndarray
    """[U] int64: distinct ids in each of them."""

    def load_of(self, rows: np.ndarray) -> np.ndarray:
        """Distinct ids in each of these rows [n], int64."""
        if not len(self.touched):
            return np.zeros(len(rows), np.int64)
        place = np.searchsorted(self.touched, rows).clip(max=len(self.touched) - 1)
        return np.where(self.touched[place] == rows, self.ids_in_row[place], 0)


def count_ids(layout: Layout, batches: Iterable[Batch]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Counts the distinct ids of every feature. Memory follows the distinct ids, not the batches.

    Args:
        layout: Of the batches.
        batches: Labels need not be there.

    Returns:
        By feature: fingerprints (int64, ascending) and how often each occurs (int64).

    Raises:
        DataError: There is no row.
    """
    names = (*layout.id_names, *layout.bag_names)
    counts = {name: (np.empty(0, np.int64), np.empty(0, np.int64)) for name in names}
    rows = 0
    for batch in batches:
        rows += len(batch)
        bags = batch.bag_values.split(batch.bag_lengths.sum(1).tolist()) if layout.bag_names else ()
        for name, column in zip(names, (*batch.ids.unbind(1), *bags), strict=True):
            here = np.unique(column.numpy(), return_counts=True)
            values, place = np.unique(np.concatenate([counts[name][0], here[0]]), return_inverse=True)
            counts[name] = (values, _sums(place, np.concatenate([counts[name][1], here[1]]), len(values)))
    if not rows:
        raise DataError("there are no rows to look at", mend="give a file or a split that has some")
    return counts


def regions_of(plan: EmbeddingPlan) -> list[Region]:
    """The regions of a plan in order of their rows; rows that are neither hashed into nor exact are hot."""
    plan = plan.stored
    name = "shared" if plan.kind == "multiplexed" else "own"
    known = [Region(name, *segment) for segment in {(f.base, f.base + f.span) for f in plan.features if f.chunks}]
    known += [
        Region("exact", f.exact_base, f.exact_base + f.values * f.chunks)
        for f in plan.features
        if f.region == "exact" and f.values
    ]
    regions, end = [], 0
    for region in [*sorted(known, key=lambda r: r.start), Region("", plan.rows, plan.rows)]:
        if region.start > end:
            regions.append(Region("hot", end, region.start))
        regions.append(region)
        end = region.stop
    return regions[:-1]


def in_regions(regions: list[Region], rows: np.ndarray, names: Collection[str]) -> np.ndarray:
    """Whether each of these rows [n] lies in a region of one of these names."""
    named: np.ndarray = np.array([region.name in names for region in regions], bool)[_number(regions, rows)]
    return named


def occupy(embedding: MultiplexedEmbedding, counts: IdCounts, plan: EmbeddingPlan | None = None) -> Occupancy:
    """Puts every id of a sample into its rows and counts who meets whom.

    Memory follows the distinct ids of the sample, not the table.

    Args:
        embedding: Addresses the ids.
        counts: The sample: distinct ids of each feature and how often each occurs (`count_ids`, `Store.id_counts`).
        plan: The plan, where the embedding was made for fewer rows than it has.

    Raises:
        DataError: The sample lacks a feature of the plan.
    """
    plan = (plan or embedding.plan).stored
    used = [f for f in plan.features if f.chunks]
    for f in used:
        if f.name not in counts:
            raise DataError("the sample lacks a feature of the model", field=f.name, mend="give data of the same spec")
    rows = _rows(embedding, plan, counts)
    regions = regions_of(plan)
    meetings = _Meetings([rows[f.name] for f in used], [counts[f.name][1] for f in used])
    segments: dict[tuple[int, int], list[_Tenant]] = {}
    for f in used:
        segments.setdefault((f.base, f.span), []).append(_Tenant.of(f, rows[f.name]))
    return Occupancy(
        regions=tuple(_region_uses(plan, regions, meetings)),
        features=tuple(
            _feature_use(meetings, i, f, rows[f.name], counts[f.name][1], regions, segments[f.base, f.span])
            for i, f in enumerate(used)
        ),
        load=_load(meetings, regions, segments) if segments else None,
        touched=meetings.touched,
        ids_in_row=meetings.ids_in_row,
    )


@dataclass(frozen=True)
class _Tenant:
    """A feature in the rows it hashes into."""

    feature: str
    chunks: int
    ids: int
    """Of the sample, without those that have rows of their own."""
    trained: int
    """Of the training."""

    @classmethod
    def of(cls, f: FeaturePlan, rows: np.ndarray) -> _Tenant:
        ids = int(((rows[:, 0] >= f.base) & (rows[:, 0] < f.base + f.span)).sum())
        # the training's values are known by their number only: those the sample shows in rows of their own have left
        trained = ids if f.region == "exact" else max(f.values - (len(rows) - ids), ids)
        return cls(f.name, f.chunks, ids, trained)


class _Meetings:
    """Every distinct pair of an id and a row it reads, and what the id shares that row with.

    Args:
        rows: For each feature the rows [n, chunks] of its n ids.
        counts: For each feature how often each id occurs, [n].
    """

    def __init__(self, rows: list[np.ndarray], counts: list[np.ndarray]) -> None:
        sizes = [len(r) for r in rows]
        first = np.cumsum([0, *sizes])
        ids = max(int(first[-1]), 1)
        row = _join([r.ravel() for r in rows])
        id_ = _join([np.arange(first[i], first[i + 1]).repeat(r.shape[1]) for i, r in enumerate(rows)])
        lookups = _join([c.repeat(r.shape[1]) for c, r in zip(counts, rows, strict=True)])
        pairs, place = np.unique(row * ids + id_, return_inverse=True)
        self.row = pairs // ids
        self.feature = np.repeat(np.arange(len(sizes)), sizes)[pairs % ids]
        self.lookups = _sums(place, lookups, len(pairs))

        self.touched, at, self.ids_in_row = np.unique(self.row, return_inverse=True, return_counts=True)
        self.row_lookups = _sums(at, self.lookups, len(self.touched))
        # a cell: the ids of one feature in one row
        cells, cell, ids_in_cell = np.unique(
            at * max(len(sizes), 1) + self.feature, return_inverse=True, return_counts=True
        )
        cell_lookups = _sums(cell, self.lookups, len(cells))
        self.intra = ids_in_cell[cell] > 1
        self.inter = self.ids_in_row[at] > ids_in_cell[cell]
        self.intra_traffic = (cell_lookups[cell] - self.lookups) / self.row_lookups[at]
        self.inter_traffic = (self.row_lookups[at] - cell_lookups[cell]) / self.row_lookups[at]


@torch.no_grad()
def _rows(embedding: MultiplexedEmbedding, plan: EmbeddingPlan, counts: IdCounts) -> dict[str, np.ndarray]:
    """The rows of every distinct id by feature, [n, chunks] int64, as the embedding's own lookup gives them."""
    nothing = np.empty(0, np.int64)
    ids = {f.name: torch.from_numpy(counts[f.name][0] if f.chunks else nothing) for f in plan.features}
    singles, bags = [f for f in plan.features if not f.bag], [f for f in plan.features if f.bag]
    parts: dict[str, list[np.ndarray]] = {f.name: [np.empty((0, f.chunks), np.int64)] for f in plan.features}
    for start in range(0, max((len(x) for x in ids.values()), default=0), _BLOCK):
        block = {name: x[start : start + _BLOCK] for name, x in ids.items()}
        # one column a feature, padded to the longest
        columns = torch.zeros(max((len(block[f.name]) for f in singles), default=0), len(singles), dtype=torch.int64)
        for i, f in enumerate(singles):
            columns[: len(block[f.name]), i] = block[f.name]
        values = torch.cat([torch.empty(0, dtype=torch.int64), *(block[f.name] for f in bags)])
        lengths = torch.tensor([len(block[f.name]) for f in bags], dtype=torch.int64).unsqueeze(1)
        rows, bag_rows = embedding.rows(columns, values, lengths)
        for f, found in zip((*singles, *bags), (*rows.split([f.chunks for f in singles], 1), *bag_rows), strict=True):
            parts[f.name].append(found[: len(block[f.name])].numpy().astype(np.int64))
    return {name: np.concatenate(part) for name, part in parts.items()}


def _region_uses(plan: EmbeddingPlan, regions: list[Region], meetings: _Meetings) -> list[RegionUse]:
    row_bytes = plan.row_bytes
    traffic = _by_region(regions, meetings.touched, meetings.row_lookups)
    touched = _by_region(regions, meetings.touched, np.ones_like(meetings.touched))
    lookups = int(meetings.row_lookups.sum())
    rows: dict[str, int] = {}
    for region in regions:
        rows[region.name] = rows.get(region.name, 0) + region.stop - region.start
    uses = [
        RegionUse(name, n, n * row_bytes, traffic[name] / lookups if lookups else None, touched[name] / n)
        for name, n in rows.items()
    ]
    index = plan.table_bytes - plan.rows * row_bytes
    return [*uses, RegionUse("index", 0, index, None, None)] if index else uses


def _feature_use(
    meetings: _Meetings,
    number: int,
    f: FeaturePlan,
    rows: np.ndarray,
    counts: np.ndarray,
    regions: list[Region],
    tenants: list[_Tenant],
) -> FeatureUse:
    mine = meetings.feature == number
    weight = meetings.lookups[mine]
    lookups, occurrences = int(weight.sum()), int(counts.sum())
    if not lookups:
        return FeatureUse(f.name, f.region, f.chunks, 0, 0, {}, None, None, None, None, None)

    def mean(values: np.ndarray) -> float:
        return float(np.dot(values, weight)) / lookups

    traffic = {name: n / lookups for name, n in _by_region(regions, meetings.row[mine], weight).items() if n}
    hashed = sum(traffic.get(name, 0.0) for name in HASHED)
    own = next(t for t in tenants if t.feature == f.name)
    return FeatureUse(
        feature=f.name,
        region=f.region,
        chunks=f.chunks,
        ids=len(rows),
        lookups=lookups,
        traffic=traffic,
        measured=Rates(
            intra=mean(meetings.intra[mine]),
            inter=mean(meetings.inter[mine]),
            confused=float(np.dot(_confused(rows), counts)) / occurrences,
            duplicate_chunks=float(np.dot(_duplicated(rows), counts)) / occurrences,
        ),
        expected=_expected(f, own.ids, sum(t.ids * t.chunks for t in tenants if t != own), hashed),
        trained=_expected(f, own.trained, sum(t.trained * t.chunks for t in tenants if t != own), hashed),
        intra_traffic=mean(meetings.intra_traffic[mine]),
        inter_traffic=mean(meetings.inter_traffic[mine]),
    )


def _confused(rows: np.ndarray) -> np.ndarray:
    """Whether each id's rows [n, chunks] are another's too, in the same order."""
    order = np.lexsort(rows.T)
    same = (rows[order[1:]] == rows[order[:-1]]).all(1)
    out = np.zeros(len(rows), bool)
    out[order[1:]] |= same
    out[order[:-1]] |= same
    return out


def _duplicated(rows: np.ndarray) -> np.ndarray:
    """Whether two of each id's rows [n, chunks] are one."""
    ordered = np.sort(rows, 1)
    same: np.ndarray = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    return same


def _expected(f: FeaturePlan, ids: int, others: int, hashed: float) -> Rates:
    """What a perfect hash gives a feature with so many ids in its segment beside so many lookups of others.

    A given row is missed by one lookup with probability `1 - 1 / span`, by all independent ones with its power.

    Args:
        f: Its chunks and the span of its segment.
        ids: Distinct ids of the feature that hash.
        others: Distinct (id, chunk) of other features in the segment.
        hashed: Share of the feature's traffic that hashes; the rest collides with nothing.
    """
    peers = max(ids - 1, 0)
    apart = math.prod(max(1 - i / f.span, 0.0) for i in range(f.chunks))
    return Rates(
        intra=hashed * some_hit(1 / f.span, f.chunks * peers),
        inter=hashed * some_hit(1 / f.span, others),
        confused=hashed * some_hit(float(f.span) ** -f.chunks, peers),
        duplicate_chunks=hashed * (1 - apart),
    )


def some_hit(probability: float, trials: float) -> float:
    """`1 - (1 - probability) ** trials`, true for small probabilities too.

    >>> some_hit(0.5, 2), some_hit(1.0, 3), some_hit(1.0, 0), f"{some_hit(1e-20, 1000):.0e}"
    (0.75, 1.0, 0.0, '1e-17')
    """
    if probability >= 1:
        return 1.0 if trials else 0.0
    return -math.expm1(trials * math.log1p(-probability))


def _load(meetings: _Meetings, regions: list[Region], segments: dict[tuple[int, int], list[_Tenant]]) -> Load:
    """Load and traffic of all hashed rows; several segments are a mixture."""
    rows_hashed, pairs_hashed = (in_regions(regions, rows, HASHED) for rows in (meetings.touched, meetings.row))
    ids = meetings.ids_in_row[rows_hashed]
    rows = sum(span for _, span in segments)
    means = [(span, sum(t.ids * some_hit(1 / span, t.chunks) for t in all_)) for (_, span), all_ in segments.items()]
    trained = [
        (span, sum(t.trained * some_hit(1 / span, t.chunks) for t in all_)) for (_, span), all_ in segments.items()
    ]
    maximum = int(ids.max(initial=0))
    mean = float(ids.sum()) / rows
    expected = _fill(means)
    busiest = np.sort(meetings.row_lookups[rows_hashed])[::-1]
    frequent = np.sort(meetings.lookups[pairs_hashed])[::-1]
    total = int(busiest.sum())

    def share(of: np.ndarray, number: int) -> float:
        return float(of[:number].sum()) / total if total else 0.0

    hundredth = math.ceil(rows * BUSIEST)
    numbers = np.unique(np.geomspace(1, max(len(frequent), 1), _CURVE_POINTS).round().astype(int))
    return Load(
        rows=rows,
        measured=Fill(mean, maximum, 1 - len(ids) / rows),
        expected=expected,
        trained=_fill(trained),
        dispersion=(float(np.square(ids).sum()) / rows - mean**2) / mean if mean else None,
        histogram=_histogram(ids, rows, means, max(maximum, expected.maximum)),
        traffic_mean=total / rows,
        traffic_max=int(busiest[0]) if total else 0,
        traffic_histogram=_doublings(busiest, rows),
        top_row=share(busiest, 1),
        top_id=share(frequent, 1),
        top_rows=share(busiest, hundredth),
        top_ids=share(frequent, hundredth),
        curve=[{"number": int(n), "rows": share(busiest, n), "ids": share(frequent, n)} for n in numbers],
    )


def _fill(means: list[tuple[int, float]]) -> Fill:
    """The Poisson mixture of segments, each given as its rows and the mean of their ids."""
    rows = sum(span for span, _ in means)
    highest = max(mean for _, mean in means)
    tails = []
    for span, mean in means:
        # P(more than k ids), summed from the small end
        above = np.cumsum(_poisson(mean, int(highest + 12 * math.sqrt(highest)) + 30)[::-1])[::-1]
        tails.append(span * np.log1p(-np.minimum(np.append(above[1:], 0.0), 1 - 1e-12)))
    maximum = int(np.argmax(np.sum(tails, 0) >= math.log(0.5)))
    return Fill(
        mean=sum(span * mean for span, mean in means) / rows,
        maximum=maximum,
        empty=sum(span * math.exp(-mean) for span, mean in means) / rows,
    )


def _histogram(ids: np.ndarray, rows: int, means: list[tuple[int, float]], highest: int) -> list[dict[str, float]]:
    """Rows by their ids, in at most `_BINS` bins of equal width from 0 to `highest`."""
    width = math.ceil((highest + 1) / _BINS)
    bins = highest // width + 1
    measured = np.bincount(ids // width, minlength=bins)
    measured[0] += rows - len(ids)
    expected = sum(span * _poisson(mean, bins * width).reshape(bins, width).sum(1) for span, mean in means)
    return [
        {"from": i * width, "to": (i + 1) * width - 1, "rows": int(measured[i]), "expected": float(expected[i])}
        for i in range(bins)
    ]


def _doublings(lookups: np.ndarray, rows: int) -> list[dict[str, int]]:
    """Rows by their lookups, of which `lookups` has those above 0, in bins that double."""
    bits = np.frexp(lookups)[1]
    counts = np.bincount(bits, minlength=1)
    counts[0] = rows - len(lookups)
    return [{"from": 2**b // 2, "to": max(2**b - 1, 0), "rows": n} for b, n in enumerate(counts.tolist())]


def _poisson(mean: float, below: int) -> np.ndarray:
    """P(k) of a Poisson variable for k from 0 up to, not including, `below`."""
    k = np.arange(below)
    if not mean:
        return (k == 0).astype(np.float64)
    log_factorial = np.cumsum(np.log(np.maximum(k, 1)))
    return np.exp(k * math.log(mean) - mean - log_factorial)


def _by_region(regions: list[Region], rows: np.ndarray, weight: np.ndarray) -> dict[str, int]:
    """The weights summed by the name of the region their rows lie in."""
    out = dict.fromkeys((region.name for region in regions), 0)
    for region, total in zip(regions, _sums(_number(regions, rows), weight, len(regions)).tolist(), strict=True):
        out[region.name] += total
    return out


def _number(regions: list[Region], rows: np.ndarray) -> np.ndarray:
    """The number of the region each row lies in."""
    return np.searchsorted(np.array([region.start for region in regions]), rows, side="right") - 1


def _sums(place: np.ndarray, weight: np.ndarray, length: int) -> np.ndarray:
    """Whole numbers summed by their place."""
    return np.bincount(place, weight, length).astype(np.int64)


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
