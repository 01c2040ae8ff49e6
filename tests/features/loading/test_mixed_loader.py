"""Mixed loader: rows in proportion, each of a source once a pass, the same batches from any position and rank."""

import dataclasses

import polars as pl
import pytest
import torch

from features.batch import Batch
from features.errors import ConfigError, DataError
from features.loading.mixed_loader import MixedLoader, Source
from features.storage.splits import RandomSplit
from features.storage.store import build_store


@pytest.fixture
def sources(store):
    return [Source(store, "train", 3), Source(store, "valid", 1)]


def weights_of(store, split):
    """The weight tells the rows of the test store apart."""
    return set(store.read(split).weight.tolist())


def test_every_batch_has_the_proportions(store, sources):
    train, valid = weights_of(store, "train"), weights_of(store, "valid")
    counts = []
    for batch in MixedLoader(sources, 30, length=100):
        rows = batch.weight.tolist()
        assert len(rows) == 30
        counts.append(sum(row in train for row in rows))
        assert counts[-1] + sum(row in valid for row in rows) == 30
    assert set(counts) == {22, 23}
    assert sum(counts) / len(counts) == pytest.approx(22.5, abs=0.2)


def test_rows_are_whole_and_none_comes_again_before_all_came(store, sources):
    valid = store.read("valid")
    whole = {row: number for number, row in enumerate(valid.weight.tolist())}
    seen = []
    for batch in MixedLoader(sources, 30, length=60):
        places = [place for place, row in enumerate(batch.weight.tolist()) if row in whole]
        seen += [whole[row] for row in batch.weight[places].tolist()]
        assert batch.rows(places).equal(valid.rows(seen[len(seen) - len(places) :]))
    rows = len(valid)
    passes = [seen[start : start + rows] for start in range(0, len(seen) - rows + 1, rows)]
    assert len(passes) > 2
    # Within a batch the order is random, so a pass may end in the middle of one: what is left out is at most a batch.
    for number in range(len(passes)):
        counts = torch.tensor(seen[: rows * (number + 1)]).bincount(minlength=rows)
        assert counts.sum() == rows * (number + 1)
        assert (counts - (number + 1)).abs().sum() <= 2 * 8
    assert passes[0] != passes[1]


def test_the_rows_of_a_batch_are_mixed(store, sources):
    train = weights_of(store, "train")
    orders = [[row in train for row in batch.weight.tolist()] for batch in MixedLoader(sources, 30, length=5)]
    assert all(order != sorted(order) and order != sorted(order, reverse=True) for order in orders)


def test_batches_are_a_function_of_seed_and_epoch(sources):
    def first(seed, epoch):
        loader = MixedLoader(sources, 64, seed=seed)
        loader.set_epoch(epoch)
        return next(iter(loader)).weight.tolist()

    assert first(1, 2) == first(1, 2)
    different = [first(0, 0), first(0, 1), first(1, 0)]
    assert all(a != b for place, a in enumerate(different) for b in different[:place])


def test_resume_at_every_position(sources):
    loader = MixedLoader(sources, 100, length=12, prefetch=2)
    loader.set_epoch(1)
    batches, states = [], [loader.state_dict()]
    for batch in loader:
        batches.append(batch)
        states.append(loader.state_dict())
    for done, state in enumerate(states):
        fresh = MixedLoader(sources, 100, length=12)
        fresh.load_state_dict(state)
        rest = list(fresh)
        assert len(rest) == 12 - done
        assert all(a.equal(b) for a, b in zip(rest, batches[done:], strict=True))


@pytest.mark.parametrize("world", [2, 7])
def test_the_ranks_batches_side_by_side_are_those_of_a_single_process(sources, world):
    loaders = [MixedLoader(sources, 50, length=5, rank=rank, world_size=world) for rank in range(world)]
    for parts, whole in zip(zip(*loaders, strict=True), MixedLoader(sources, 50, length=5), strict=True):
        assert Batch.cat(parts).equal(whole)


def test_an_epoch_is_as_long_as_the_sources(store, sources):
    rows = store.rows("train") + store.rows("valid")
    loader = MixedLoader(sources, 64)
    assert len(loader) == rows // 64
    assert loader.rows == len(loader) * 64


@pytest.mark.parametrize(
    ("change", "message"),
    [({"weight": 0}, "sources.1.weight"), ({"weight": float("inf")}, "weight"), ({"weight": float("nan")}, "weight")],
)
def test_weights_that_make_no_sense(sources, change, message):
    with pytest.raises(ConfigError, match=message):
        MixedLoader([sources[0], dataclasses.replace(sources[1], **change)], 8)


def test_nothing_to_mix(sources):
    with pytest.raises(ConfigError, match="nothing to mix"):
        MixedLoader([], 8)
    with pytest.raises(ConfigError, match="no batch"):
        MixedLoader(sources, 8, length=0)


def test_sources_that_are_encoded_in_different_ways(store, spec, events, tmp_path):
    other = build_store(events.lazy().filter(pl.col("age") > 40), spec, RandomSplit(), tmp_path / "other")
    with pytest.raises(DataError, match=r"sources.1: .*other statistics"):
        MixedLoader([Source(store), Source(other)], 8)
