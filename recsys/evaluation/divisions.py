"""Ways to part rows into slices: by feature value, by how often training saw it, by range of a number, by day."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from features.batch import Batch
from features.fingerprint import NULL_FINGERPRINT
from features.layout import Layout

HEAD, TORSO = 0.5, 0.9
"""The most frequent values that make up half of the training rows are the head, those up to this share the torso."""
MANY_VALUES = 100
"""A feature with more training values than this is parted by their frequency too."""
RANGES = 5
DAY = 86_400_000_000
BANDS = ("head", "torso", "tail")

IdCounts = Mapping[str, tuple[np.ndarray, np.ndarray]]
ValueNames = Mapping[str, Mapping[int, str]]
"""Feature -> fingerprint -> what people call the value."""


@dataclass(frozen=True)
class Division:
    """A way to part rows; rows may be in several slices of it, or in none."""

    by: str
    feature: str
    codes: np.ndarray
    """[M] int64: rows of one code are a slice."""
    rows: np.ndarray | None = None
    """[M] the row of each code; 0 .. M-1 when left out."""
    names: Mapping[int, str] = field(default_factory=dict)

    def name(self, code: int) -> str:
        """What people call a slice: its value, or the fingerprint where the value is not known.

        >>> Division("value", "ad", np.array([1]), names={1: "shoes"}).name(1), Division("value", "ad", []).name(-1)
        ('shoes', '#ffffffffffffffff')
        """
        if code in self.names:
            return self.names[code]
        return "missing" if code == NULL_FINGERPRINT else f"#{code & (1 << 64) - 1:016x}"


def slice_name(by: str, feature: str, value: str) -> str:
    """What people call a slice of a division.

    >>> slice_name("day", "time", "2024-02-29"), slice_name("value", "ad", "7")
    ('2024-02-29', 'ad = 7')
    >>> slice_name("training frequency", "ad", "tail")
    'ad: tail'
    """
    return {"value": f"{feature} = {value}", "day": value}.get(by, f"{feature}: {value}")


def divisions_of(
    layout: Layout, batch: Batch, *, counts: IdCounts | None = None, names: ValueNames | None = None
) -> list[Division]:
    """All ways to part the rows of a batch.

    By every value of every id feature (a row of a bag is in the slices of all its values); by head, torso and tail of
    the training frequency for features with more than `MANY_VALUES` training values; by seen or unseen in training; by
    ranges of equally many rows for every number; by day (UTC).

    Args:
        layout: of the batch.
        batch: N rows.
        counts: distinct training fingerprints of each feature, ascending, and how often each was seen; left out, there
            is no division by frequency.
        names: what people call values.
    """
    return list(_divisions(layout, batch, counts or {}, names or {}))


def _divisions(layout: Layout, batch: Batch, counts: IdCounts, names: ValueNames) -> Iterator[Division]:
    for place, feature in enumerate(layout.id_names):
        ids = batch.ids[:, place].numpy()
        yield Division("value", feature, ids, names=names.get(feature, {}))
        if feature in counts:
            yield from _by_frequency(feature, ids, *counts[feature])
    values = batch.bag_values.numpy()
    ends = np.cumsum(batch.bag_lengths.sum(1).numpy())
    for place, feature in enumerate(layout.bag_names):
        lengths = batch.bag_lengths[place].numpy()
        own = values[ends[place] - lengths.sum() : ends[place]]
        rows = np.repeat(np.arange(len(batch)), lengths)
        order = np.lexsort((own, rows))
        codes, places = own[order], rows[order]
        # a value that a row has twice counts once
        new = np.ones(len(codes), bool)
        new[1:] = (codes[1:] != codes[:-1]) | (places[1:] != places[:-1])
        yield Division("value", feature, codes[new], places[new], names.get(feature, {}))
        if feature in counts:
            unseen = np.zeros(len(batch), bool)
            unseen[rows[~np.isin(own, counts[feature][0])]] = True
            yield from _by_seen(feature, ~unseen)
    for place, feature in enumerate(layout.dense_names):
        yield _by_range(feature, batch.dense[:, place].numpy())
    if batch.time is not None:
        days = batch.time.numpy() // DAY
        first = datetime.date(1970, 1, 1)
        dates = {int(day): str(first + datetime.timedelta(days=int(day))) for day in np.unique(days)}
        yield Division("day", "time", days, names=dates)


def _by_frequency(feature: str, ids: np.ndarray, known: np.ndarray, seen: np.ndarray) -> Iterator[Division]:
    bands = frequency_bands(ids, known, seen)
    is_known = bands < len(BANDS)
    yield from _by_seen(feature, is_known)
    if len(known) > MANY_VALUES:
        rows = np.flatnonzero(is_known)
        yield Division("training frequency", feature, bands[rows], rows, dict(enumerate(BANDS)))


def frequency_bands(ids: np.ndarray, known: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """By how often training saw it, the place of each value's band in `BANDS`, or their number for an unseen value.

    What stands before a value decides: the one that crosses a bound is still on its near side.

    Args:
        ids: [N] fingerprints.
        known: [K] fingerprints of the training rows, ascending.
        seen: [K] how often each occurs.

    >>> frequency_bands(np.array([1, 2, 3, 9]), np.array([1, 2, 3]), np.array([5, 4, 1])).tolist()
    [0, 1, 2, 3]
    """
    if not len(known):
        return np.full(len(ids), len(BANDS))
    order = np.argsort(-seen, kind="stable")
    before = np.cumsum(seen[order]) - seen[order]
    band = np.empty(len(known), np.int64)
    band[order] = np.searchsorted((HEAD, TORSO), before / seen.sum(), side="right")
    place = np.searchsorted(known, ids).clip(max=len(known) - 1)
    return np.where(known[place] == ids, band[place], len(BANDS))


def _by_seen(feature: str, seen: np.ndarray) -> Iterator[Division]:
    """Nothing where every value was seen: the slice would be all rows."""
    if not seen.all():
        yield Division("seen in training", feature, seen.astype(np.int64), names={1: "seen", 0: "unseen"})


def _by_range(feature: str, values: np.ndarray) -> Division:
    """Ranges of equally many rows; each value by itself where there are few."""
    distinct = np.unique(values)
    if len(distinct) <= RANGES:
        if feature.endswith(":missing"):
            names = {0: "there", 1: "missing"}
            return Division("value", feature.removesuffix(":missing"), values.astype(np.int64), names=names)
        codes = np.searchsorted(distinct, values)
        return Division("value", feature, codes, names={i: f"{value:g}" for i, value in enumerate(distinct)})
    edges = np.unique(np.quantile(values, np.arange(1, RANGES) / RANGES, method="inverted_cdf"))
    codes = np.searchsorted(edges, values, side="left")
    used = np.unique(codes)
    names = {int(code): f"range {place} of {len(used)}" for place, code in enumerate(used, 1)}
    return Division("range", feature, codes, names=names)
