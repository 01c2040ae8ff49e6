"""Evolutionary search for the best allocation within a budget: elitist, with children that are always copies.

Parents are drawn from the best of everything evaluated so far, so that nothing good is lost; a child is made by uniform
crossover over features and by mutation of a copy, and repaired to the budget before it is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.search.space import Genes, SearchSpace

Evaluate = Callable[[np.ndarray], np.ndarray]
"""Genes [N, F] -> fitness [N], higher is better."""

TRIES = 20
"""Children made anew when they are copies of what was evaluated, before a random one takes their place; and random ones
before fewer of them are accepted."""


@dataclass(frozen=True)
class Evolved:
    """Everything a search evaluated, in order."""

    genes: np.ndarray
    """[N, F]"""
    fitness: np.ndarray
    """[N]"""

    @property
    def order(self) -> np.ndarray:
        """[N] best first; of equal ones the first evaluated."""
        return np.argsort(-self.fitness, kind="stable")

    @property
    def best(self) -> Genes:
        """The best genes."""
        out: Genes = self.genes[self.order[0]]
        return out


def evolve(
    space: SearchSpace,
    evaluate: Evaluate,
    *,
    generations: int,
    population: int = 20,
    parents: int = 15,
    mutation: float = 0.1,
    crossover: float = 0.5,
    max_lookups: float | None = None,
    first: Sequence[Genes] = (),
    seed: int = 0,
) -> Evolved:
    """Searches for the fittest allocation.

    Args:
        space: what to choose among.
        evaluate: called once a generation, with genes it has not seen before.
        generations: calls of it.
        population: genes evaluated in a generation.
        parents: how many of the best so far have children.
        mutation: probability that a feature of a child changes; at least one does unless the child is a crossover.
        crossover: share of children with two parents.
        max_lookups: the budget; None for none.
        first: genes that begin in the first generation, as many as it has room for, repaired to the budget; the others
            are random.
        seed: of all draws.

    Raises:
        ConfigError: no allocation is within the budget.
    """
    space.check_budget(max_lookups)
    generator = np.random.Generator(np.random.PCG64(seed))
    seen: set[bytes] = set()
    genes, fitness = np.empty((0, len(space.features)), np.int64), np.empty(0)

    def novel(make: Callable[[], Genes]) -> list[Genes]:
        for _ in range(TRIES):
            child = space.repair(make(), max_lookups, generator)
            if child.tobytes() not in seen:
                seen.add(child.tobytes())
                return [child]
        return []

    def child() -> Genes:
        best = genes[np.argsort(-fitness, kind="stable")[:parents]]
        own = best[generator.integers(len(best))].copy()
        crossed = generator.random() < crossover
        if crossed:
            other = best[generator.integers(len(best))]
            own = np.where(generator.random(len(own)) < 0.5, own, other)
        return mutate(space, own, mutation, generator, at_least=0 if crossed else 1)

    for generation in range(generations):
        born: list[Genes] = []
        if generation == 0:
            for genes_given in first[:population]:
                born += novel(lambda given=genes_given: given)  # type: ignore[misc]
        while len(born) < population:
            made = (novel(child) if generation else []) or novel(lambda: space.random(generator, 1)[0])
            if not made:
                break
            born += made
        if not born:  # the space is exhausted
            break
        genes = np.concatenate([genes, born])
        fitness = np.concatenate([fitness, evaluate(np.stack(born))])
    return Evolved(genes, fitness)


def mutate(
    space: SearchSpace, genes: Genes, probability: float, generator: np.random.Generator, *, at_least: int = 0
) -> Genes:
    """A copy in which each feature has moved to another of its levels with some probability.

    Half of the moves are to a neighbouring level, the others to any; half of the copies also exchange a level between
    two features, which leaves the cost about as it was.
    """
    out = genes.copy()
    sizes = space.sizes
    free = np.flatnonzero(sizes > 1)
    if not len(free):
        return out
    moved = free[generator.random(len(free)) < probability]
    if len(moved) < at_least:
        moved = generator.choice(free, min(at_least, len(free)), replace=False)
    for i in moved:
        if generator.random() < 0.5:
            step = 1 if out[i] == 0 else -1 if out[i] == sizes[i] - 1 else generator.choice([-1, 1])
            out[i] += step
        else:
            out[i] = (out[i] + generator.integers(1, sizes[i])) % sizes[i]
    if generator.random() < 0.5:
        lower, upper = np.flatnonzero(out > 0), np.flatnonzero(out < sizes - 1)
        if len(lower) and len(upper):
            down, up = generator.choice(lower), generator.choice(upper)
            out[down] -= 1
            out[up] = min(out[up] + 1, sizes[up] - 1)
    return out
