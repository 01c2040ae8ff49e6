"""Small data that the tests of features share."""

import datetime

import numpy as np
import polars as pl
import pytest

from features.spec import FeatureSpec
from features.storage.splits import RandomSplit
from features.storage.store import build_store
from features.validation import validate

SPEC = {
    "features": [
        {"type": "id", "name": "user", "dtype": "integer"},
        {"type": "id", "name": "city"},
        {"type": "ids", "name": "tags"},
        {"type": "ids", "name": "words", "separator": " ", "pooling": "mean", "max_length": 2},
        {"type": "number", "name": "age", "standardise": True, "missing_flag": True},
        {"type": "bucket", "name": "age_bucket", "column": "age", "quantiles": 4},
        {"type": "cross", "name": "city_age", "of": ["city", "age_bucket"]},
        {"type": "time", "name": "hour", "column": "at", "part": "hour"},
        {"type": "vector", "name": "picture", "size": 2},
    ],
    "labels": ["click", "buy"],
    "weight": "importance",
    "group": "user",
    "time": "at",
    "reference": "p",
}


def make_events(rows, seed=0):
    rng = np.random.default_rng(seed)
    start = datetime.datetime(2024, 1, 1)
    click = rng.integers(0, 2, rows)
    return pl.DataFrame(
        {
            "user": rng.integers(0, 40, rows),
            "city": [["Zürich", "", None, "Oslo"][k] for k in rng.integers(0, 4, rows)],
            "tags": [[f"t{k}" for k in range(n)] if n < 4 else None for n in rng.integers(0, 5, rows)],
            "words": [" ".join("abc"[:n]) for n in rng.integers(0, 4, rows)],
            "age": [None if k > 70 else k for k in rng.integers(18, 80, rows).tolist()],
            "at": [start + datetime.timedelta(minutes=int(m)) for m in rng.permutation(rows)],
            "picture": rng.normal(size=(rows, 2)).tolist(),
            "click": click,
            "buy": click * rng.integers(0, 2, rows),
            "importance": rng.random(rows),
            "p": rng.random(rows),
            "number": np.arange(rows),
        }
    )


@pytest.fixture(scope="session")
def spec():
    return validate(FeatureSpec, SPEC)


@pytest.fixture(scope="session")
def events():
    return make_events(1000)


@pytest.fixture(scope="session")
def store(tmp_path_factory, spec, events):
    """A store whose train split has several shards; its weight tells rows apart."""
    folder = tmp_path_factory.mktemp("store") / "data"
    return build_store(events.lazy(), spec, RandomSplit(seed=3), folder, shard_rows=230)
