"""The front of quality against cost: which allocations are on it, and that the search finds a good one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from features.errors import ConfigError
from recsys.search.front import non_dominated, search_front
from recsys.search.space import SearchSpace
from tests.recsys.search.landscapes import space_of

SPACE = space_of(*[(0, 1, 2, 4, 8)] * 20)


def loss_and_cost(space: SearchSpace, seed: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """A loss that chunks lower less and less, by a worth that differs from feature to feature; and the lookups."""
    worth = np.random.Generator(np.random.PCG64([seed, 2])).exponential(size=len(space.features)) ** 2

    def objectives(genes: np.ndarray) -> np.ndarray:
        return np.stack([(worth / (1 + space.chunks(genes))).sum(1), space.lookups(genes)], 1)

    return objectives


def hypervolume(objectives: np.ndarray, reference: np.ndarray) -> float:
    """The area that two objectives dominate, as far as a reference point."""
    area, above = 0.0, reference[1]
    for x, y in objectives[non_dominated(objectives)]:
        if x < reference[0] and y < above:
            area += float((reference[0] - x) * (above - y))
            above = y
    return area


@given(
    objectives=arrays(
        np.float64,
        st.tuples(st.integers(0, 12), st.integers(1, 3)),
        elements=st.integers(0, 4).map(float),
    )
)
def test_non_dominated_is_what_brute_force_finds(objectives: np.ndarray) -> None:
    def dominated(i: int) -> bool:
        return any(
            (own <= objectives[i]).all() and ((own < objectives[i]).any() or j < i)
            for j, own in enumerate(objectives)
            if j != i
        )

    expected = [i for i in range(len(objectives)) if not dominated(i)]
    found = non_dominated(objectives)
    assert sorted(found.tolist()) == expected
    assert (np.diff(objectives[found, 0]) >= 0).all()


def test_the_seed_decides_the_front() -> None:
    def run(seed: int) -> tuple[np.ndarray, np.ndarray]:
        np.random.seed(seed + 100)  # noqa: NPY002  the global draws are not used
        return search_front(SPACE, loss_and_cost(SPACE), objectives=2, generations=6, population=10, seed=seed)

    (genes, values), (again, _), (other, _) = run(1), run(1), run(2)
    assert np.array_equal(genes, again)
    assert not np.array_equal(genes, other)
    assert genes.dtype == np.int64
    assert (values == loss_and_cost(SPACE)(genes)).all()


@pytest.mark.parametrize("needs_a_chunk", [False, True])
def test_nothing_costs_more_than_the_budget(needs_a_chunk: bool) -> None:
    space = space_of(*[(0, 1, 2, 4)] * 6, values=2.5, needs_a_chunk=needs_a_chunk)
    first = [space.largest, np.zeros(6, np.int64)]
    genes, values = search_front(
        space,
        loss_and_cost(space),
        objectives=2,
        generations=10,
        population=12,
        max_lookups=7.5,
        first=first,
    )
    assert (values[:, 1] <= 7.5).all()
    assert (values[:, 1] == space.lookups(genes)).all()
    assert (values[:, 1] == 0).any() != needs_a_chunk
    assert first[0].tolist() == space.largest.tolist()
    with pytest.raises(ConfigError, match="or more"):
        search_front(space_of((1,)), loss_and_cost(space), objectives=2, generations=1, population=2, max_lookups=0.5)


def test_given_genes_come_first() -> None:
    first = [SPACE.largest, np.zeros(20, np.int64)]
    genes, _ = search_front(SPACE, loss_and_cost(SPACE), objectives=2, generations=1, population=6, first=first)
    assert genes[:2].tolist() == [own.tolist() for own in first]
    assert len(genes) == 6


def test_no_more_is_evaluated_than_asked_for() -> None:
    calls: list[int] = []

    def counted(genes: np.ndarray) -> np.ndarray:
        calls.append(len(genes))
        return loss_and_cost(SPACE)(genes)

    genes, values = search_front(SPACE, counted, objectives=2, generations=7, population=9)
    assert calls == [9] * 7
    assert len(genes) == len(values) == 63


def test_the_whole_front_of_a_small_space_is_found() -> None:
    space = space_of((0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 1))
    every = np.array(list(product(*(range(size) for size in space.sizes))))
    objectives = loss_and_cost(space)
    genes, values = search_front(space, objectives, objectives=2, generations=30, population=20)
    expected = objectives(every)
    np.testing.assert_allclose(values[non_dominated(values)], expected[non_dominated(expected)])
    assert len(genes) <= 600


def test_a_space_of_few_allocations_ends_the_search() -> None:
    space = space_of((0, 1), (0, 1))
    genes, _ = search_front(space, loss_and_cost(space), objectives=2, generations=50, population=10)
    assert len(np.unique(genes, axis=0)) == 4


def true_front(space: SearchSpace, seed: int = 0) -> np.ndarray:
    """The least loss at every cost, feature by feature; see `loss_and_cost`."""
    least = np.zeros(1)
    for i, feature in enumerate(space.features):
        alone = np.zeros((len(feature.levels), len(space.features)), np.int64)
        alone[:, i] = range(len(alone))
        losses = loss_and_cost(space, seed)(alone)[:, 0]
        following = np.full(len(least) + feature.levels[-1], np.inf)
        for level, loss in zip(feature.levels, losses - losses[0], strict=True):
            part = following[level : level + len(least)]
            np.minimum(part, least + loss, out=part)
        least = following
    nothing = loss_and_cost(space, seed)(np.zeros((1, len(space.features)), np.int64))[0, 0]
    return np.stack([nothing + least, np.arange(len(least))], 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_front_comes_closer_to_the_true_one_than_as_many_random_allocations(seed: int) -> None:
    objectives = loss_and_cost(SPACE, seed)
    _, found = search_front(SPACE, objectives, objectives=2, generations=40, population=40, seed=seed)
    generator = np.random.Generator(np.random.PCG64(seed))
    even = objectives(SPACE.random(generator, 1600))
    fullness = generator.random((1600, 1))
    spread = objectives(generator.binomial(SPACE.sizes - 1, fullness, (1600, 20)))  # as the search begins
    nothing, everything = objectives(np.stack([np.zeros(20, np.int64), SPACE.largest]))
    reference = np.array([nothing[0], everything[1]])
    most = hypervolume(true_front(SPACE, seed), reference)
    missed, by_even, by_spread = (1 - hypervolume(own, reference) / most for own in (found, even, spread))
    assert 0 <= missed < 0.7 * min(by_even, by_spread)
