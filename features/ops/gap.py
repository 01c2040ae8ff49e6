"""Times between two events as buckets on a logarithmic scale: minutes, hours, days and years in a few dozen ids."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import polars as pl

from features.fingerprint import NULL_FINGERPRINT, fingerprint
from features.spec import GapBase

_LIMIT = 1 << 62
FUTURE = fingerprint("future")


class GapBuckets:
    """Buckets of the time from one event to a later one.

    Bucket 0 holds the gaps below `shortest`, the last those of `longest` and more. A gap below zero, to an event in
    the future, has an id of its own; so has a missing one, that of null.

    Args:
        feature: Names shortest, longest and the number of buckets.
    """

    def __init__(self, feature: GapBase) -> None:
        self.edges = gap_edges(feature.shortest, feature.longest, feature.buckets)
        self._ids = [fingerprint(str(bucket)) for bucket in range(len(self.edges) + 1)]

    def expression(self, then: pl.Expr, now: pl.Expr) -> pl.Expr:
        """Int64 fingerprints from two Int64 expressions of microseconds."""
        return self._bucket(now.clip(-_LIMIT, _LIMIT) - then.clip(-_LIMIT, _LIMIT))

    def list_expression(self, then: pl.Expr, now: pl.Expr) -> pl.Expr:
        """List(Int64) fingerprints from List(Int64) and Int64 expressions of microseconds."""
        gaps = now.fill_null(0).clip(-_LIMIT, _LIMIT) - then.list.eval(pl.element().clip(-_LIMIT, _LIMIT))
        missing = then.list.eval(pl.element().is_null().cast(pl.Int64) * 0 + NULL_FINGERPRINT)
        return pl.when(now.is_null()).then(missing).otherwise(gaps.list.eval(self._bucket(pl.element())))

    def _bucket(self, gap: pl.Expr) -> pl.Expr:
        ids = pl.when(gap.is_null()).then(NULL_FINGERPRINT).when(gap < 0).then(FUTURE)
        for edge, code in zip(self.edges, self._ids, strict=False):
            ids = ids.when(gap < edge).then(code)
        # literals alone have no dtype yet, which a column beside them would not take
        return ids.otherwise(self._ids[-1]).cast(pl.Int64)

    def encoder(self) -> Callable[[int | None, int | None], int]:
        """Python form of `expression`."""
        edges, ids = self.edges, self._ids

        def encode(then: int | None, now: int | None) -> int:
            if then is None or now is None:
                return NULL_FINGERPRINT
            gap = min(max(now, -_LIMIT), _LIMIT) - min(max(then, -_LIMIT), _LIMIT)
            return FUTURE if gap < 0 else ids[bisect_right(edges, gap)]

        return encode


def gap_edges(shortest: float, longest: float, buckets: int) -> Sequence[int]:
    """Returns the edges between buckets in microseconds: each stands to the next as that to the one after it.

    Example:
        >>> [edge / 1e6 for edge in gap_edges(1, 1000, 5)]
        [1.0, 10.0, 100.0, 1000.0]
    """
    steps = buckets - 2
    edges = [round(1e6 * shortest * (longest / shortest) ** (step / steps)) for step in range(steps + 1)]
    return sorted(set(edges))
