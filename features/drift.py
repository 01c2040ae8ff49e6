"""Drift: how far new rows are from those the store began with."""

from __future__ import annotations

from pydantic import Field

from features.validation import Strict


class DriftConfig(Strict):
    """From where on a change is said; nothing is done about it."""

    psi: float = Field(0.25, gt=0)
    """Population stability index of a feature's buckets, above what as many rows give by chance."""
    unseen: float = Field(0.5, ge=0, le=1)
    """Share of ids that no row before had."""
    missing: float = Field(0.1, ge=0, le=1)
    """Change of the share of missing values."""
