"""OptEmbed's released evolution loop (Lyu et al., CIKM 2022) with its mistakes, to compare the corrected one with.

After `evolution.py` of github.com/fuyuanlyu/OptEmbed as it is published, in words of our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.search.evolution import Evaluate, Evolved
from recsys.search.space import Genes, SearchSpace

MUTATED = 10
"""Candidates of a generation that come from mutation."""
CROSSED = 10
"""Those that come from crossover."""
PROBABILITY = 0.1
"""That a feature of a candidate is drawn anew in mutation."""


@dataclass(frozen=True)
class Published(Evolved):
    """Everything evaluated, as it was then; and what the released code takes for the best of it."""

    saved: Genes
    """[F] what it saves, and trains in the end; mostly not `best`."""


def published_search(space: SearchSpace, evaluate: Evaluate, *, generations: int = 30, seed: int = 0) -> Published:
    """Searches as the released code does.  What is wrong with it:

    - Mutation edits candidates in place, and the best so far is kept as a reference to one of them: it goes on changing
      after it was judged, also in the last generation, so that what is saved was mostly never evaluated.
    - Crossover reads the candidates after mutation: its parents are not those that were found good.
    - No candidate outlives its generation (`keep_num` is 0): the best one is mutated like the others, and gone.
    - The cut point of crossover is drawn from 1 to the number of levels, where 1 to the number of features is meant.
      With more levels than features most children are copies of a parent, which are judged again; with fewer, only the
      first few features ever come from the first parent.
    - Mutation draws from the second level on: the smallest one can only come from the first generation.
    - Fitness is all that counts.  The cost is computed, and not used: no budget can be asked for.

    The released code has the same levels for every feature and calls their number D.  Here mutation draws from
    `1..levels of the feature - 1` (one with a single level stays as it is), and the cut point from `1..D` with the D of
    the feature that has most.  Its best begins at fitness 0, for it is an AUC; here below all.

    Args:
        space: what to choose among.
        evaluate: called once a generation with 20 genes, seen before or not.
        generations: calls of it.
        seed: of all draws.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    sizes = space.sizes
    candidates = [*space.random(generator, MUTATED + CROSSED)]
    genes, fitness = [], []
    best, saved = -np.inf, candidates[0]
    for _ in range(generations):
        genes.append(np.stack(candidates))
        fitness.append(evaluate(genes[-1].copy()))
        order = np.argsort(-fitness[-1], kind="stable")
        candidates = [candidates[i] for i in order]
        if fitness[-1][order[0]] > best:
            best, saved = fitness[-1][order[0]], candidates[0]
        mutated = candidates[:MUTATED]
        for own in mutated:
            moved = (generator.random(len(own)) < PROBABILITY) & (sizes > 1)
            own[moved] = generator.integers(1, sizes[moved])
        candidates = [*mutated, *_crossed(candidates, int(sizes.max()), generator)]
    return Published(np.concatenate(genes), np.concatenate(fitness), saved.copy())


def _crossed(candidates: list[Genes], levels: int, generator: np.random.Generator) -> list[Genes]:
    """The head of one of the first candidates with the tail of another, perhaps the same; no pair twice."""
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < CROSSED:
        first, second = generator.integers(0, CROSSED + 1, 2).tolist()
        pairs[first, second] = None
    points = generator.integers(1, levels + 1, CROSSED)
    return [
        np.concatenate([candidates[first][:point], candidates[second][point:]])
        for (first, second), point in zip(pairs, points, strict=True)
    ]
