"""Allocations without a supernet, against what brute force and loops find."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.errors import ConfigError
from recsys.embeddings.plan import IdCounts
from recsys.search.importance import by_magnitude, by_statistics, chunk_norms, effective_values
from recsys.search.space import SearchFeature, SearchSpace
from tests.recsys.search.landscapes import space_of, spaces
from tests.recsys.search.models import LARGEST, WIDTH, batch, build, networks


def counts_of(space: SearchSpace, *values: int) -> IdCounts:
    """So many values a feature, each seen as often."""
    return {name: (np.arange(n), np.full(n, 3)) for name, n in zip(space.names, values, strict=True)}


@networks
def test_chunk_norms_are_weights_times_what_they_read(network: dict[str, Any]) -> None:
    model, batches = build(network), [batch(seed=1), batch(rows=7, seed=2)]
    found = chunk_norms(model, batches)
    x = torch.cat([model.inputs_of(b) for b in batches]).detach().double().numpy()
    place = 0
    assert [len(own) for own in found] == list(LARGEST.values())
    for own in found:
        for norm in own:
            square = 0.0
            for column in range(place, place + WIDTH):
                read = (x[:, column] ** 2).mean()
                for weight in model.network.first_layers().values():
                    square += sum(float(w) ** 2 for w in weight[:, column].detach()) * read
            assert norm == pytest.approx(np.sqrt(square), rel=1e-6)
            place += WIDTH


def test_a_feature_without_chunks_has_no_norms() -> None:
    model = build(chunks={**LARGEST, "item": 0})
    assert [len(own) for own in chunk_norms(model, [batch()])] == [4, 0, 1, 3, 2]


def test_magnitude_keeps_the_largest_chunks_of_all() -> None:
    space = space_of((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3))
    norms = [np.array([9.0, 5.0, 1.0]), np.array([2.0, 8.0, 0.5]), np.array([0.1, 0.2, 0.3])]
    assert by_magnitude(space, norms, 4) == {"f0": 2, "f1": 2, "f2": 0}
    assert by_magnitude(space, norms, 9) == {"f0": 3, "f1": 3, "f2": 3}
    assert by_magnitude(space, norms, 100) == {"f0": 3, "f1": 3, "f2": 3}


@given(data=st.data(), budget=st.integers(0, 15))
def test_magnitude_keeps_exactly_the_budget(data: st.DataObject, budget: int) -> None:
    space = space_of(*[(0, 1, 2, 3)] * 5)
    norm = st.floats(0, 10)
    norms = [np.array(data.draw(st.lists(norm, min_size=3, max_size=3))) for _ in range(5)]
    kept = by_magnitude(space, norms, budget)
    assert sum(kept.values()) == budget
    least_kept = min((np.sort(own)[::-1][n - 1] for own, n in zip(norms, kept.values(), strict=True) if n), default=0)
    most_left = max((np.sort(own)[::-1][n] for own, n in zip(norms, kept.values(), strict=True) if n < 3), default=0)
    assert budget in (0, 15) or least_kept >= most_left


def test_magnitude_passes_over_a_bag_it_cannot_pay_for() -> None:
    space = space_of((0, 1, 2), (0, 1, 2), values=2.5)
    norms = [np.array([3.0, 1.0]), np.array([9.0, 8.0])]
    assert by_magnitude(space, norms, 4) == {"f0": 1, "f1": 1}
    assert by_magnitude(space, norms, 2) == {"f0": 2, "f1": 0}
    with pytest.raises(ConfigError, match="1 or more"):
        by_magnitude(space_of((0, 1), (0, 1), needs_a_chunk=True), norms, 0.5)


def test_magnitude_keeps_to_the_levels() -> None:
    space = space_of((0, 2, 4), (1, 3), (2,), (0, 4))
    norms = [np.array([1.0, 9, 8, 7]), np.array([6.0, 5, 5]), np.array([0.0, 0]), np.array([10.0, 4, 3, 2])]
    assert by_magnitude(space, norms, 3) == {"f0": 0, "f1": 1, "f2": 2, "f3": 0}
    assert by_magnitude(space, norms, 5) == {"f0": 2, "f1": 1, "f2": 2, "f3": 0}  # 9 and 8
    assert by_magnitude(space, norms, 8) == {"f0": 2, "f1": 3, "f2": 2, "f3": 0}  # 5 and 5; 4 more are not paid for
    assert by_magnitude(space, norms, 11) == {"f0": 2, "f1": 3, "f2": 2, "f3": 4}  # 4.75, before 7 and 1
    assert by_magnitude(space, norms, 99) == {"f0": 4, "f1": 3, "f2": 2, "f3": 4}
    with pytest.raises(ConfigError, match="3 or more"):
        by_magnitude(space, norms, 2)


def test_what_a_model_cannot_do_without_is_paid_for() -> None:
    space = SearchSpace(
        (SearchFeature("user", (0, 2)), SearchFeature("city", (0, 1, 2), suffices=False)), needs_a_chunk=True
    )
    norms = [np.array([1.0, 1.0]), np.array([9.0, 8.0])]
    counts: IdCounts = {name: (np.arange(9), np.ones(9)) for name in space.names}
    for budget, chunks in ((2, {"user": 2, "city": 0}), (3, {"user": 2, "city": 1}), (4, {"user": 2, "city": 2})):
        assert by_magnitude(space, norms, budget) == chunks
        assert space.allocation(by_statistics(space, norms, counts, budget)) == chunks


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [0, 1, 3, 5.5, 8, 12, 50])
def test_statistics_spend_the_budget_where_it_is_worth_most(seed: int, budget: float) -> None:
    """Every chunk costs the same and is worth less than the one before: greed is best."""
    space = space_of(*[(0, 1, 2, 3)] * 4)
    draws = np.random.Generator(np.random.PCG64(seed))
    norms = [draws.random(2) for _ in range(4)]
    values = draws.integers(1, 1000, 4)
    worth = np.array([np.linalg.norm(own) for own in norms]) * values**0.25

    def total(genes: np.ndarray) -> np.ndarray:
        out: np.ndarray = np.sqrt(space.chunks(genes)) @ worth
        return out

    every = np.array(list(product(range(4), repeat=4)))
    allowed = every[space.lookups(every) <= budget]
    found = by_statistics(space, norms, counts_of(space, *values), budget)
    assert space.lookups(found) <= budget
    assert total(found) == pytest.approx(total(allowed).max())


@given(space=spaces(), share=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_statistics_leave_no_level_that_could_be_paid(space: SearchSpace, share: float, seed: int) -> None:
    budget = space.least_lookups + share * (float(space.lookups(space.largest)) - space.least_lookups)
    draws = np.random.Generator(np.random.PCG64(seed))
    norms = [draws.random(1) + 0.1 for _ in space.features]
    found = by_statistics(space, norms, counts_of(space, *draws.integers(1, 1000, len(norms))), budget)
    assert space.lookups(found) <= budget
    assert not space.needs_a_chunk or space.chunks(found).any()
    for i in np.flatnonzero(found < space.largest):
        more = found.copy()
        more[i] += 1
        assert space.lookups(more) > budget


def test_frequent_values_count_for_more() -> None:
    """Of two features with as many values, the one whose rows are read evenly gets the chunk."""
    space = space_of((0, 1), (0, 1))
    counts: IdCounts = {"f0": (np.arange(4), np.array([97, 1, 1, 1])), "f1": (np.arange(4), np.array([25] * 4))}
    assert by_statistics(space, [np.ones(1), np.ones(1)], counts, 1).tolist() == [0, 1]


def test_a_feature_is_not_worth_more_for_the_chunks_of_the_short_training() -> None:
    """Beside one of a single chunk, a feature that may have four or none had four, each with a norm a little less."""
    space = space_of((0, 4), (0, 4))
    counts = counts_of(space, 50, 50)
    assert by_statistics(space, [np.full(4, 0.9), np.ones(1)], counts, 4).tolist() == [0, 1]
    assert by_statistics(space, [np.full(4, 1.1), np.ones(1)], counts, 4).tolist() == [1, 0]


def test_bags_cost_what_they_look_up() -> None:
    space = space_of((0, 1), (0, 1), values=3.0)
    counts = counts_of(space, 50, 50)
    assert by_statistics(space, [np.ones(1), 2 * np.ones(1)], counts, 3).tolist() == [1, 0]
    assert by_statistics(space, [np.ones(1), 4 * np.ones(1)], counts, 3).tolist() == [0, 1]


@pytest.mark.filterwarnings("error")
def test_bags_that_were_always_empty_are_free() -> None:
    space = space_of((0, 1), (0, 1, 2), values=0.0)
    for norm in (0.0, 1.0):
        found = by_statistics(space, [np.ones(1), np.full(1, norm)], counts_of(space, 5, 0), 1)
        assert found[0] == 1


@given(counts=st.lists(st.integers(1, 1000), max_size=20))
def test_effective_values_are_at_most_those_there_are(counts: list[int]) -> None:
    found = effective_values(np.array(counts))
    assert 1 - 1e-9 <= found <= max(len(counts), 1) + 1e-9
    assert effective_values(np.array(counts) * 7) == pytest.approx(found)
