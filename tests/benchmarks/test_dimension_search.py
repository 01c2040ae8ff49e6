"""The frame of the benchmark: what is compared at equal lookups, and which savings count."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import dimension_search as bench
from recsys.search.space import SearchFeature, SearchSpace

SPACE = SearchSpace(tuple(SearchFeature(f"f{i}", (0, 1, 2, 4)) for i in range(6)), needs_a_chunk=True)


def test_random_allocations_cost_what_is_asked_and_differ() -> None:
    drawn = bench._random_at(SPACE, 6, 10, np.random.Generator(np.random.PCG64(0)))
    assert len({genes.tobytes() for genes in drawn}) == 10
    assert [float(SPACE.lookups(genes)) for genes in drawn] == [6.0] * 10


def test_every_data_set_is_compared_at_one_lookup_a_feature() -> None:
    features = {"movielens": 6, "criteo": 26, "frappe": 10}
    assert {name: data.budget for name, data in bench.DATA_SETS.items()} == features


def test_the_planted_fields_know_what_they_tell() -> None:
    data = bench._planted(3)
    effects = data.params["effects"]
    assert [effects[f["name"]] for f in data.features] == [*bench.INFORMED, *[0.0] * len(bench.USELESS)]
    assert data.params["seed"] == 3
    assert data.budget == pytest.approx(2 * len(bench.INFORMED))
