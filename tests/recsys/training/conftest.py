"""A small store of rows with a learnable label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.spec import FeatureSpec
from features.storage.splits import RandomSplit
from features.storage.store import build_store
from features.validation import validate

SPEC = {
    "features": [
        {"name": "user", "type": "id", "dtype": "integer"},
        {"name": "kind", "type": "id"},
        {"name": "tags", "type": "ids", "dtype": "integer", "pooling": "mean"},
        {"name": "price", "type": "number", "standardise": True},
    ],
    "labels": ["click"],
    "weight": "weight",
}


def events(rows: int = 1500, seed: int = 0) -> pl.DataFrame:
    """Clicks that depend on the user, the kind and the price."""
    rng = np.random.default_rng(seed)
    user, kind, price = rng.integers(0, 60, rows), rng.integers(0, 4, rows), rng.normal(size=rows)
    logit = np.sin(user) * 1.5 + kind * 0.5 - 1.0 + 0.5 * price
    return pl.DataFrame(
        {
            "user": user,
            "kind": [f"k{k}" for k in kind],
            "tags": [rng.integers(0, 30, n).tolist() for n in rng.integers(0, 4, rows)],
            "price": price,
            "click": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int),
            "weight": rng.integers(1, 3, rows).astype(float),
        }
    )


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the store; nothing writes to it."""
    folder = tmp_path_factory.mktemp("training") / "store"
    split = RandomSplit(fractions=(0.8, 0.1, 0.1), seed=1)
    build_store(events().lazy(), validate(FeatureSpec, SPEC), split, folder)
    return folder
