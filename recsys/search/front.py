"""The front of a search: allocations of which none is both better and cheaper than another, by NSGA-II.

The algorithm (Deb et al., 2002) is pymoo's; mutation and repair are those of `recsys.search.evolution`, so that both
searches move through the space in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recsys.search.evolution import mutate
from recsys.search.space import Genes, SearchSpace

Objectives = Callable[[np.ndarray], np.ndarray]
"""Genes [N, F] -> [N, K], all to be made small."""


def search_front(
    space: SearchSpace,
    evaluate: Objectives,
    *,
    objectives: int,
    generations: int,
    population: int,
    mutation: float = 0.1,
    max_lookups: float | None = None,
    first: Sequence[Genes] = (),
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Searches for the allocations that no other one dominates.

    Args:
        space: what to choose among.
        evaluate: called once a generation.
        objectives: K.
        generations: calls of it.
        population: genes evaluated in a generation, and kept from one to the next.
        mutation: probability that a feature of a child changes.
        max_lookups: none may cost more; None for no bound.
        first: genes that begin in the first generation; the others are random, from sparse to full.
        seed: of all draws.

    Returns:
        Everything evaluated, in order: genes [N, F] and objectives [N, K]; see `non_dominated`.

    Raises:
        ConfigError: no allocation is within the budget.
    """
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.evaluator import Evaluator
    from pymoo.core.mutation import Mutation
    from pymoo.core.problem import Problem
    from pymoo.core.repair import Repair
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.problems.static import StaticProblem

    class Move(Mutation):
        def _do(self, problem: Any, X: np.ndarray, *args: Any, random_state: Any = None, **kwargs: Any) -> np.ndarray:
            return np.stack([mutate(space, genes, mutation, random_state, at_least=1) for genes in X])

    class WithinBudget(Repair):
        def _do(self, problem: Any, X: np.ndarray, random_state: Any = None, **kwargs: Any) -> np.ndarray:
            return np.stack([space.repair(genes, max_lookups, random_state) for genes in X])

    space.check_budget(max_lookups)
    generator = np.random.Generator(np.random.PCG64(seed))
    born = [*first][:population]
    while len(born) < population:
        born.append(generator.binomial(space.sizes - 1, generator.random()))
    algorithm = NSGA2(
        pop_size=population,
        sampling=np.stack(born),
        crossover=UniformCrossover(prob=0.5),
        mutation=Move(),
        repair=WithinBudget(),
    )
    problem = Problem(n_var=len(space.features), n_obj=objectives, xl=0, xu=space.sizes - 1, vtype=int)
    algorithm.setup(problem, termination=("n_gen", generations), seed=seed, verbose=False)
    genes, values = [], []
    while algorithm.has_next():
        asked = algorithm.ask()
        if asked is None or not len(asked):  # the space is exhausted
            break
        genes.append(asked.get("X").astype(np.int64))
        values.append(evaluate(genes[-1]))
        Evaluator().eval(StaticProblem(problem, F=values[-1]), asked)
        algorithm.tell(infills=asked)
    return np.concatenate(genes), np.concatenate(values)


def non_dominated(objectives: np.ndarray) -> np.ndarray:
    """The rows of [N, K] that no other row equals or beats in everything, ascending by the first objective.

    Of rows that are alike the first counts.

    >>> non_dominated(np.array([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [2.0, 2.5], [2.0, 2.0]])).tolist()
    [1, 2, 0]
    """
    kept: list[int] = []
    for i in np.lexsort(objectives.T[::-1]):
        if not any((objectives[j] <= objectives[i]).all() for j in kept):
            kept.append(int(i))
    return np.array(kept, np.int64)
