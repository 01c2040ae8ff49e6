"""The published loop beside the corrected one, and the mistakes that make the difference."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.search.evolution import evolve
from recsys.search.optembed import Published, published_search
from recsys.search.space import SearchSpace
from tests.recsys.search.landscapes import hidden_target, space_of

SEEDS = 50
LANDSCAPES = {
    "39 features of 64 levels, as published": space_of(*[tuple(range(1, 65))] * 39),
    "39 features of 5 levels, as here": space_of(*[(0, 1, 2, 4, 8)] * 39),
    "20 features, exact ones with fewer levels": space_of(*[(0, 1, 2, 4, 8), (0, 1), (0, 1, 2), (1, 2, 4)] * 5),
}


@pytest.fixture(scope="module", params=LANDSCAPES)
def searched(request: pytest.FixtureRequest) -> tuple[SearchSpace, list[Published]]:
    """A landscape and what the published loop finds on it, by seed."""
    space = LANDSCAPES[request.param]
    return space, [published_search(space, hidden_target(space, seed)[1], seed=seed) for seed in range(SEEDS)]


def test_the_corrected_loop_returns_a_fitter_allocation(searched: tuple[SearchSpace, list[Published]]) -> None:
    """With as many evaluations: the bar that the search was built to clear."""
    space, published = searched
    better, better_than_its_record = 0, 0
    for seed, theirs in enumerate(published):
        fitness = hidden_target(space, seed)[1]
        ours = evolve(space, fitness, generations=30, population=20, seed=seed)
        assert len(ours.genes) == len(theirs.genes) == 600
        reached = fitness(ours.best[None])[0]
        better += reached > fitness(theirs.saved[None])[0]
        better_than_its_record += reached > theirs.fitness.max()
    assert better >= 0.9 * SEEDS
    assert better_than_its_record >= 0.9 * SEEDS


def test_what_the_published_loop_saves_is_not_what_it_found(searched: tuple[SearchSpace, list[Published]]) -> None:
    space, published = searched
    changed = [float((own.saved != own.best).mean()) for own in published]
    assert np.mean(np.array(changed) > 0) > 0.9
    assert np.mean(changed) > 0.1
    worse = [
        hidden_target(space, seed)[1](own.saved[None])[0] < own.fitness.max() for seed, own in enumerate(published)
    ]
    assert np.mean(worse) > 0.8


def test_the_published_loop_judges_copies_again_where_levels_outnumber_features() -> None:
    """With features that outnumber the levels few children are copies, but all share one tail."""
    wide, narrow = (
        published_search(space_of(*[levels] * 11), lambda genes: genes.sum(1), seed=0)
        for levels in (tuple(range(64)), (0, 1, 2, 4))
    )

    def of_parents(found: Published) -> float:
        generations = found.genes.reshape(30, 20, -1)
        copies = [any((child == parent).all() for parent in now[:10]) for now in generations[1:] for child in now[10:]]
        return float(np.mean(copies))

    assert of_parents(wide) > 0.6
    assert of_parents(wide) > of_parents(narrow)


def test_the_published_loop_never_mutates_to_the_first_level() -> None:
    space = space_of(*[(0, 1, 2)] * 8)
    found = published_search(space, lambda genes: genes.sum(1), generations=60, seed=0)
    generations = found.genes.reshape(60, 20, 8)
    gone = ~(generations == 0).any(1)
    assert gone[-1].all()
    assert (gone[1:] >= gone[:-1]).all()  # and never back
    others = ~(generations == 1).any(1)
    assert (others[1:] < others[:-1]).any()


def test_features_with_one_level_stay_as_they_are() -> None:
    found = published_search(space_of((2,), (0, 1), (1,)), lambda genes: genes[:, 1].astype(float), seed=0)
    assert not found.genes[:, [0, 2]].any()
    assert found.saved[[0, 2]].tolist() == [0, 0]


def test_the_seed_decides_everything() -> None:
    space = LANDSCAPES["20 features, exact ones with fewer levels"]
    first, again, other = (published_search(space, hidden_target(space, 0)[1], seed=seed) for seed in (1, 1, 2))
    assert (first.genes == again.genes).all()
    assert (first.saved == again.saved).all()
    assert (first.genes != other.genes).any()


def test_what_was_evaluated_is_kept_as_it_was_then() -> None:
    space = space_of(*[(0, 1, 2, 4, 8)] * 7)
    fitness = hidden_target(space, 3)[1]
    found = published_search(space, fitness, generations=10, seed=3)
    assert found.genes.shape == (200, 7)
    assert (fitness(found.genes) == found.fitness).all()
