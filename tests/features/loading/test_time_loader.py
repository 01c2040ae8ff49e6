"""Time loader: periods in the order of time whatever the order of the files, from any position, over any ranks."""

import numpy as np
import pytest
import torch

from features.batch import Batch
from features.errors import ArtifactError, ConfigError
from features.loading.time_loader import TimeLoader
from features.spec import FeatureSpec
from features.storage.splits import RandomSplit
from features.storage.store import build_store
from features.validation import validate

HOUR = 3_600_000_000


def test_periods_and_rows_are_in_the_order_of_time(store):
    whole = store.read("train")
    expected = whole.rows(whole.time.argsort(stable=True))
    starts, batches = [], []
    for start, period in TimeLoader(store, "train", "1h", 16):
        here = list(period)
        assert {len(batch) for batch in here[:-1]} <= {16}
        times = torch.cat([batch.time for batch in here])
        begin = int(start.astype(int))
        assert begin % HOUR == 0
        assert begin <= int(times.min()) <= int(times.max()) < begin + HOUR
        starts.append(start)
        batches += here
    assert Batch.cat(batches).equal(expected)
    assert starts == sorted(set(starts))
    assert len(starts) == 17
    assert starts[0] == np.datetime64("2024-01-01T00:00")


def test_a_period_of_all_rows(store):
    loader = TimeLoader(store, "train", "4w", 10_000)
    ((start, rows),) = loader.periods
    assert rows == store.rows("train")
    _, batches = next(iter(loader))
    (batch,) = batches
    whole = store.read("train")
    assert batch.equal(whole.rows(whole.time.argsort(stable=True)))
    assert start == np.datetime64("2023-12-25")


def test_weeks_begin_on_monday(store):
    ((start, _),) = TimeLoader(store, "train", "1w", 64).periods
    assert start == np.datetime64("2024-01-01")  # a Monday


def test_shuffled_within_a_period_alone(store):
    def rows(seed):
        return [[row for batch in batches for row in batch.weight.tolist()] for _, batches in seeded(seed)]

    def seeded(seed):
        return TimeLoader(store, "train", "2h", 16, shuffle_seed=seed)

    plain, one, two = rows(None), rows(1), rows(2)
    assert [sorted(period) for period in one] == [sorted(period) for period in plain]
    assert all(a != b for a, b in zip(one, plain, strict=True))
    assert all(a != b for a, b in zip(one, two, strict=True))
    assert rows(1) == one


@pytest.mark.parametrize("options", [{}, {"shuffle_seed": 3}, {"prefetch": 2}])
def test_resume_at_every_position(store, options):
    loader = TimeLoader(store, "train", "3h", 50, **options)
    taken, states = [], [loader.state_dict()]
    for start, batches in loader:
        for batch in batches:
            taken.append((start, batch))
            states.append(loader.state_dict())
    for done, state in enumerate(states):
        fresh = TimeLoader(store, "train", "3h", 50, **options)
        fresh.load_state_dict(state)
        rest = [(start, batch) for start, batches in fresh for batch in batches]
        assert len(rest) == len(taken) - done
        assert all(a == c and b.equal(d) for (a, b), (c, d) in zip(rest, taken[done:], strict=True))


def test_what_is_not_taken_of_a_period_is_passed_over(store):
    loader = TimeLoader(store, "train", "1h", 16)
    starts = []
    for start, batches in loader:
        starts.append(start)
        next(batches)
    assert starts == [start for start, _ in loader.periods]
    assert list(loader) == []
    loader.restart()
    assert next(iter(loader))[0] == starts[0]


@pytest.mark.parametrize("world", [2, 7])
def test_the_ranks_batches_side_by_side_are_those_of_a_single_process(store, world):
    def every(**rank):
        return [(start, batch) for start, batches in TimeLoader(store, "train", "1h", 20, **rank) for batch in batches]

    ranks = [every(rank=rank, world_size=world) for rank in range(world)]
    for parts, (start, whole) in zip(zip(*ranks, strict=True), every(), strict=True):
        assert {at for at, _ in parts} == {start}
        assert Batch.cat([batch for _, batch in parts]).equal(whole)


def test_a_spec_without_time(events, tmp_path):
    spec = validate(FeatureSpec, {"features": [{"type": "id", "name": "city"}], "labels": ["click"]})
    store = build_store(events.lazy(), spec, RandomSplit(), tmp_path / "store")
    with pytest.raises(ConfigError, match=r"the spec has no time.*Mend: name the column"):
        TimeLoader(store, "train", "1d", 8)


@pytest.mark.parametrize("every", ["", "d", "0d", "1.5h", "1 d", "1mo", "-1d"])
def test_periods_that_are_none(store, every):
    with pytest.raises(ConfigError, match=r"no length of time|some length"):
        TimeLoader(store, "train", every, 8)


def test_a_position_outside_is_refused(store):
    loader = TimeLoader(store, "train", "1h", 8)
    for state in ({"period": 0, "batch": 0}, {**loader.state_dict(), "batch": 1000}):
        with pytest.raises(ArtifactError, match="position"):
            loader.load_state_dict(state)
