"""Spaces and fitness functions whose best allocation is known."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from recsys.search.evolution import Evaluate
from recsys.search.space import Genes, SearchFeature, SearchSpace


def space_of(*levels: tuple[int, ...], values: float = 1.0, needs_a_chunk: bool = False) -> SearchSpace:
    """A space of features with these levels; the last is a bag if it has other than one value."""
    per_row = [1.0] * (len(levels) - 1) + [values]
    features = tuple(SearchFeature(f"f{i}", own, n) for i, (own, n) in enumerate(zip(levels, per_row, strict=True)))
    return SearchSpace(features, needs_a_chunk)


def hidden_target(space: SearchSpace, seed: int) -> tuple[Genes, Evaluate]:
    """Hidden genes, and as the fitness minus the mean distance to them."""
    target = space.random(np.random.Generator(np.random.PCG64([seed, 1])), 1)[0]
    return target, lambda genes: -np.abs(genes - target).mean(1)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Up to five features with up to five levels each, some of them bags."""
    levels = st.lists(st.integers(0, 8), min_size=1, max_size=5, unique=True).map(sorted).map(tuple)
    features = draw(st.lists(st.tuples(levels, st.sampled_from([0.5, 1.0, 2.25])), min_size=1, max_size=5))
    needs = draw(st.booleans()) and any(own[-1] for own, _ in features)
    return SearchSpace(tuple(SearchFeature(f"f{i}", *feature) for i, feature in enumerate(features)), needs)
