"""What the evolution promises: it finds the best, evaluates nothing twice, keeps to its budget and repeats itself."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import ConfigError
from recsys.search.evolution import Evaluate, evolve, mutate
from recsys.search.space import SearchSpace
from tests.recsys.search.landscapes import hidden_target, space_of, spaces

CHUNKS = (0, 1, 2, 4, 8)


class Recorded:
    """Counts calls and keeps what was asked."""

    def __init__(self, evaluate: Evaluate) -> None:
        self.evaluate = evaluate
        self.asked: list[np.ndarray] = []

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        self.asked.append(genes.copy())
        return self.evaluate(genes)


@settings(max_examples=40, deadline=None)
@given(space=spaces(), share=st.one_of(st.none(), st.floats(0, 1)), seed=st.integers(0, 2**32))
def test_nothing_is_evaluated_twice_nor_beyond_any_budget(space: SearchSpace, share: float | None, seed: int) -> None:
    most = float(space.lookups(space.largest))
    budget = None if share is None else space.least_lookups + share * (most - space.least_lookups)
    recorded = Recorded(hidden_target(space, seed)[1])
    found = evolve(space, recorded, generations=4, population=8, max_lookups=budget, seed=seed)
    asked = np.concatenate(recorded.asked)
    assert (asked == found.genes).all()
    assert len(recorded.asked) <= 4
    assert max(map(len, recorded.asked)) <= 8
    assert len(np.unique(asked, axis=0)) == len(asked)
    assert budget is None or (space.lookups(asked) <= budget).all()
    assert not space.needs_a_chunk or space.chunks(asked).any(1).all()
    assert (found.fitness == recorded.evaluate(asked)).all()
    assert recorded.evaluate(found.best[None])[0] == found.fitness.max()


def test_the_first_of_equals_is_the_best() -> None:
    space = space_of(CHUNKS, CHUNKS, CHUNKS)
    found = evolve(space, lambda genes: np.zeros(len(genes)), generations=3, seed=1)
    assert (found.best == found.genes[0]).all()
    assert found.order.tolist() == list(range(60))


def test_the_seed_decides_everything() -> None:
    space = space_of(*[CHUNKS] * 6)
    fitness = hidden_target(space, 0)[1]

    def run(seed: int) -> np.ndarray:
        np.random.seed(seed + 100)  # noqa: NPY002  the global draws are not used
        return evolve(space, fitness, generations=5, max_lookups=12, seed=seed).genes

    assert (run(3) == run(3)).all()
    assert (run(3) != run(4)).any()


def test_given_genes_come_first_repaired_and_are_left_as_they_were() -> None:
    space = space_of(*[CHUNKS] * 4)
    first = [space.largest, np.array([1, 0, 0, 1]), np.array([1, 0, 0, 1])]
    before = [genes.copy() for genes in first]

    def spoil(genes: np.ndarray) -> np.ndarray:
        fitness = -genes.sum(1).astype(float)
        genes[:] = 0
        return fitness

    found = evolve(space, spoil, generations=3, max_lookups=9, first=first, seed=0)
    assert all((a == b).all() for a, b in zip(first, before, strict=True))
    assert space.lookups(found.genes[0]) <= 9
    assert found.genes[1].tolist() == [1, 0, 0, 1]
    assert found.genes[2].tolist() != [1, 0, 0, 1]
    assert (found.fitness == -found.genes.sum(1)).all()


def test_given_genes_beyond_the_population_are_not_evaluated() -> None:
    space = space_of(*[CHUNKS] * 4)
    first = list(space.random(np.random.Generator(np.random.PCG64(0)), 12))
    found = evolve(space, lambda genes: genes.sum(1), generations=2, population=5, first=first)
    assert len(found.genes) == 10
    assert (found.genes[:5] == first[:5]).all()


@pytest.mark.parametrize("budget", [None, 7.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_optimum_of_a_small_separable_landscape_is_found(budget: float | None, seed: int) -> None:
    space = space_of((0, 1, 2, 4), (0, 1, 2, 4), (0, 1, 2), (0, 1, 2, 4, 8), (1, 2), values=1.5)
    worth = np.random.Generator(np.random.PCG64(seed)).random((5, 5))

    def fitness(genes: np.ndarray) -> np.ndarray:
        out: np.ndarray = worth[np.arange(5), genes].sum(1)
        return out

    genes = np.array(list(product(*(range(size) for size in space.sizes))))
    allowed = genes if budget is None else genes[space.lookups(genes) <= budget]
    found = evolve(space, fitness, generations=20, population=15, max_lookups=budget, seed=seed)
    assert len(found.genes) < len(genes)
    assert found.fitness.max() == fitness(allowed).max()


def test_an_exhausted_space_ends_the_search() -> None:
    space = space_of((0, 1), (0, 1, 2), (0, 1))
    recorded = Recorded(hidden_target(space, 0)[1])
    found = evolve(space, recorded, generations=50, population=20, seed=0)
    assert len(found.genes) == 12
    assert len(recorded.asked) < 5
    assert found.fitness.max() == 0


def test_a_space_of_one_allocation_is_evaluated_once() -> None:
    recorded = Recorded(lambda genes: np.zeros(len(genes)))
    found = evolve(space_of((2,), (1,)), recorded, generations=5)
    assert found.genes.tolist() == [[0, 0]]
    assert len(recorded.asked) == 1


def test_children_that_are_all_copies_give_way_to_random_ones() -> None:
    """One parent and no mutation: after a while hardly a child is new, while most of the space is."""
    space = space_of(*[(0, 1, 2)] * 6)
    found = evolve(space, lambda genes: genes.sum(1), generations=10, parents=1, mutation=0.0, crossover=1.0)
    assert len(found.genes) == 200


def test_a_budget_that_nothing_meets_is_refused_before_anything_is_evaluated() -> None:
    recorded = Recorded(lambda genes: np.zeros(len(genes)))
    with pytest.raises(ConfigError, match="4 or more"):
        evolve(space_of((1, 2), (3, 4)), recorded, generations=3, max_lookups=3.5)
    assert recorded.asked == []


@given(space=spaces(), probability=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_mutants_are_copies_within_the_levels(space: SearchSpace, probability: float, seed: int) -> None:
    generator = np.random.Generator(np.random.PCG64(seed))
    genes = space.random(generator, 1)[0]
    before = genes.copy()
    mutant = mutate(space, genes, probability, generator, at_least=1)
    assert (genes == before).all()
    assert ((mutant >= 0) & (mutant < space.sizes)).all()


def test_mutation_reaches_every_level() -> None:
    space, generator = space_of((0, 1, 2, 4), (3,)), np.random.Generator(np.random.PCG64(0))
    mutants = [mutate(space, np.array([2, 0]), 0.5, generator).tolist() for _ in range(200)]
    assert {mutant[0] for mutant in mutants} == {0, 1, 2, 3}
    assert {mutant[1] for mutant in mutants} == {0}
