"""cross: the combination of two or more single-valued id features as one id."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from features.fingerprint import cross_expr, cross_fingerprints
from features.spec import CrossFeature


class Cross:
    """Works on the fingerprints of its parts, so that it needs no column of its own.

    Attributes:
        name: Name of the feature.
        of: Names of its parts, in the order that counts.
    """

    def __init__(self, feature: CrossFeature) -> None:
        self.name, self.of = feature.name, feature.of

    def expression(self, parts: Sequence[pl.Expr]) -> pl.Expr:
        """[B] Int64 fingerprints from those of the parts."""
        return cross_expr(parts)

    def encode(self, parts: Sequence[int]) -> int:
        """The fingerprint from those of the parts."""
        return cross_fingerprints(parts)
