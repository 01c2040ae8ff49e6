"""The search space: what allocations cost, what a budget does to them, and which levels a feature has."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from features.errors import ConfigError
from recsys.search.space import SearchFeature, SearchSpace, levels_of, uniform
from tests.recsys.search.landscapes import space_of, spaces


def everything(space: SearchSpace) -> np.ndarray:
    """All genes there are."""
    return np.array(list(product(*(range(size) for size in space.sizes))))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@given(space=spaces(), share=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_repair_keeps_the_budget_and_lowers_levels_only(space: SearchSpace, share: float, seed: int) -> None:
    most = float(space.lookups(space.largest))
    budget = space.least_lookups + share * (most - space.least_lookups)
    genes = space.random(generator(seed), 1)[0]
    given_genes = genes.copy()
    repaired = space.repair(genes, budget, generator(seed))
    assert (genes == given_genes).all()
    assert space.lookups(repaired) <= budget
    assert (repaired >= 0).all()
    raised = repaired > genes
    if raised.any():  # the first chunk of a model that had none
        assert space.needs_a_chunk
        assert repaired.sum() == raised.sum() == 1
    if space.needs_a_chunk:
        assert space.chunks(repaired).any()


@given(space=spaces(), seed=st.integers(0, 2**32))
def test_what_is_within_the_budget_is_left_alone(space: SearchSpace, seed: int) -> None:
    genes = space.random(generator(seed), 1)[0]
    if space.chunks(genes).any() or not space.needs_a_chunk:
        assert (space.repair(genes, float(space.lookups(genes)), generator()) == genes).all()
        assert (space.repair(genes, None, generator()) == genes).all()


@given(space=spaces())
def test_least_lookups_are_those_of_the_cheapest_allocation(space: SearchSpace) -> None:
    genes = everything(space)
    allowed = genes[space.chunks(genes).any(1)] if space.needs_a_chunk else genes
    assert space.least_lookups == space.lookups(allowed).min()
    space.check_budget(space.least_lookups)
    space.check_budget(None)


def test_repair_does_not_always_lower_the_same_feature() -> None:
    space, draws = space_of((0, 1, 2), (0, 1, 2), (0, 1, 2)), generator()
    repaired = {tuple(space.repair(space.largest, 4.0, draws)) for _ in range(100)}
    assert len(repaired) == 6  # all ways to go down by two levels
    assert all(sum(genes) == 4 for genes in repaired)


def test_a_model_that_needs_a_chunk_gets_one_it_can_pay_for() -> None:
    space, draws = space_of((0, 4), (0, 1), (0, 1), values=3.0, needs_a_chunk=True), generator()
    nothing = np.zeros(3, np.int64)
    assert {tuple(space.repair(nothing, 1.0, draws)) for _ in range(50)} == {(0, 1, 0)}
    assert {tuple(space.repair(nothing, None, draws)) for _ in range(50)} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


HOT = SearchSpace(
    (SearchFeature("user", (0, 2)), SearchFeature("city", (0, 1), suffices=False), SearchFeature("tags", (0, 1), 1.5)),
    needs_a_chunk=True,
)
"""Where the ids of users or tags have to be hot."""


def test_only_some_features_may_do_for_a_model() -> None:
    assert HOT.least_lookups == 1.5
    assert [HOT.lacks_a_chunk(genes) for genes in everything(HOT)] == [True, False, True, False] + [False] * 4
    assert HOT.owed(np.array([0, 1, 0])) == 1.5
    assert HOT.owed(np.array([1, 1, 0])) == 0
    draws = generator()
    for budget, expected in ((None, {(1, 1, 0), (0, 1, 1)}), (2.4, {(1, 0, 0), (0, 0, 1)}), (1.5, {(0, 0, 1)})):
        assert {tuple(HOT.repair(np.array([0, 1, 0]), budget, draws)) for _ in range(50)} == expected


def test_a_feature_that_can_have_no_chunk_is_not_given_one() -> None:
    space, draws = space_of((0,), (0, 2), (0,), needs_a_chunk=True), generator()
    for budget in (None, 2.0):
        assert {tuple(space.repair(np.zeros(3, np.int64), budget, draws)) for _ in range(20)} == {(0, 1, 0)}


def test_every_value_of_a_bag_is_looked_up() -> None:
    space = space_of((0, 1, 2), (1, 4), (0, 2), values=2.5)
    genes = np.array([[2, 0, 0], [2, 1, 1], [0, 0, 1]])
    assert space.chunks(genes).tolist() == [[2, 1, 0], [2, 4, 2], [0, 1, 2]]
    assert space.lookups(genes).tolist() == [3.0, 11.0, 6.0]


@given(space=spaces(), seed=st.integers(0, 2**32))
def test_genes_and_allocations_are_two_names_of_the_same(space: SearchSpace, seed: int) -> None:
    for genes in space.random(generator(seed), 5):
        allocation = space.allocation(genes)
        assert list(allocation) == space.names
        assert (space.genes(allocation) == genes).all()


@given(space=spaces(), rows=st.integers(1, 10**6), share=st.floats(0.01, 1))
def test_a_supernet_has_as_many_more_rows_as_lookups(space: SearchSpace, rows: int, share: float) -> None:
    most = float(space.lookups(space.largest))
    assume(most > 0)
    given_rows = space.supernet_rows(rows, share * most)
    assert given_rows % rows == 0
    assert abs(given_rows / rows - 1 / share) <= 0.5 + 1e-9
    assert space.supernet_rows(rows, most) == rows


def test_without_a_budget_the_mean_of_the_levels_counts() -> None:
    space = SearchSpace((SearchFeature("user", (0, 1, 2, 4, 8)), SearchFeature("device", (0, 1))))
    assert space.supernet_rows(1000, None) == 1000 * round(9 / (3 + 0.5))
    assert space.supernet_rows(2**30, 1.0) == 2**31 - 1


def test_a_count_that_is_no_level_becomes_the_next_smaller_one() -> None:
    space = space_of((0, 1, 4), (2, 3))
    assert space.allocation(space.genes({"f0": 3, "f1": 8})) == {"f0": 1, "f1": 3}
    assert space.allocation(space.genes({"f0": 9, "f1": 0})) == {"f0": 4, "f1": 2}
    assert space.allocation(uniform(space, 2)) == {"f0": 1, "f1": 2}


def test_the_thinnest_allocation_reads_every_feature_that_can_be_read() -> None:
    space = space_of((0, 1, 2), (0, 2, 4), (0, 4), (0,), (2, 3), (1,))
    assert list(space.allocation(space.thinnest).values()) == [1, 2, 4, 0, 2, 1]


def test_random_genes_have_every_level_as_often() -> None:
    space = space_of((0, 1), (0, 1, 2, 4))
    genes = space.random(generator(), 4000)
    for feature, size in enumerate(space.sizes):
        share = np.bincount(genes[:, feature], minlength=size) / len(genes)
        np.testing.assert_allclose(share, 1 / size, atol=0.03)


@pytest.mark.parametrize(
    ("space", "found", "least"),
    [
        (space_of((1, 2), (2, 4), values=1.5), 3.9, "4 or more"),
        (space_of((0, 2), (0, 1), values=1.5, needs_a_chunk=True), 1.0, "1.5 or more"),
    ],
)
def test_a_budget_that_nothing_meets_is_refused_with_the_least(space: SearchSpace, found: float, least: str) -> None:
    with pytest.raises(ConfigError, match=f"max_lookups.*{found:g}.*{least}"):
        space.check_budget(found)


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        (21, 8, (0, 1, 2, 4)),  # 3 chunks would do, and 4 is the next level
        (16, 8, (0, 1, 2)),
        (17, 8, (0, 1, 2, 4)),
        (8, 8, (0, 1)),
        (2, 64, (0, 1)),
        (1000, 8, (0, 1, 2, 4, 8)),
        (0, 8, (0,)),  # never seen in training
    ],
)
def test_an_exact_feature_has_no_more_dimensions_than_values(values: int, width: int, expected: object) -> None:
    assert levels_of((0, 1, 2, 4, 8), values, width, exact=True) == expected
    assert levels_of((0, 1, 2, 4, 8), values, width, exact=False) == (0, 1, 2, 4, 8)
