"""A small store of rows with a learnable label, with a bag and a number."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.spec import FeatureSpec
from features.storage.splits import RandomSplit
from features.storage.store import Store, build_store
from features.validation import validate
from tests.recsys.training.conftest import SPEC, events


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store; nothing writes to it."""
    folder: Path = tmp_path_factory.mktemp("search") / "store"
    split = RandomSplit(fractions=(0.8, 0.1, 0.1), seed=1)
    build_store(events().lazy(), validate(FeatureSpec, SPEC), split, folder)
    return Store.open(folder)
