"""The loader: every row once, in an order that seed and epoch decide, from any position, over any ranks."""

import shutil
import threading

import pytest
import torch

from features.batch import Batch
from features.errors import ArtifactError, ConfigError
from features.loading.loader import Loader
from features.storage.store import Store


def weights(batches):
    """The weight tells the rows of the test store apart."""
    return [value for batch in batches for value in batch.weight.tolist()]


def test_file_order_is_the_split(store):
    loader = Loader(store, "train", 64)
    batches = list(loader)
    assert len(batches) == len(loader) == -(-store.rows("train") // 64)
    assert {len(batch) for batch in batches[:-1]} == {64}
    assert Batch.cat(batches).equal(store.read("train"))
    assert loader.rows == store.rows("train")


def test_an_epoch_is_a_permutation_of_whole_rows(store):
    whole = store.read("train")
    place = {weight: number for number, weight in enumerate(whole.weight.tolist())}
    shuffled = Batch.cat(list(Loader(store, "train", 64, shuffle_seed=1)))
    order = [place[weight] for weight in shuffled.weight.tolist()]
    assert sorted(order) == list(range(len(whole)))
    assert order != sorted(order)
    assert shuffled.equal(whole.rows(order))


def test_order_is_a_function_of_seed_and_epoch(store):
    def order(seed, epoch):
        loader = Loader(store, "train", 64, shuffle_seed=seed)
        loader.set_epoch(epoch)
        return weights(loader)

    assert order(1, 0) == order(1, 0)
    assert order(1, 3) == order(1, 3)
    different = [order(1, 0), order(1, 1), order(2, 0), order(2, 1)]
    assert all(a != b for place, a in enumerate(different) for b in different[:place])


def test_rows_do_not_depend_on_what_was_iterated_before(store):
    loader = Loader(store, "train", 64, shuffle_seed=1)
    first = weights(loader)
    loader.set_epoch(1)
    list(loader)
    loader.set_epoch(0)
    assert weights(loader) == first


@pytest.mark.parametrize("seed", [None, 5])
def test_resume_at_every_position(store, seed):
    loader = Loader(store, "train", 100, shuffle_seed=seed)
    loader.set_epoch(2)
    batches, states = [], [loader.state_dict()]
    for batch in loader:
        batches.append(batch)
        states.append(loader.state_dict())
    assert states[0] == {"epoch": 2, "batch": 0}
    assert states[-1] == {"epoch": 2, "batch": len(loader)}
    for done, state in enumerate(states):
        fresh = Loader(store, "train", 100, shuffle_seed=seed)
        fresh.load_state_dict(state)
        rest = list(fresh)
        assert len(rest) == len(batches) - done
        assert all(a.equal(b) for a, b in zip(rest, batches[done:], strict=True))


def test_iterating_again_starts_the_epoch_again(store):
    loader = Loader(store, "valid", 32)
    assert weights(loader) == weights(loader)


@pytest.mark.parametrize("world", [2, 3, 7])
@pytest.mark.parametrize("seed", [None, 5])
def test_the_ranks_batches_side_by_side_are_those_of_a_single_process(store, world, seed):
    loaders = [Loader(store, "train", 64, shuffle_seed=seed, rank=rank, world_size=world) for rank in range(world)]
    single = Loader(store, "train", 64, shuffle_seed=seed)
    steps = list(zip(*loaders, strict=True))
    assert len(steps) == len(single)
    for parts, whole in zip(steps, single, strict=True):
        assert Batch.cat(parts).equal(whole)
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("seed", [None, 5])
def test_ranks_go_on_from_a_position_with_rows_that_no_other_has(store, seed):
    """Also in another number of processes: the position is that of the step, which all share."""
    before = [Loader(store, "train", 100, shuffle_seed=seed, rank=rank, world_size=2) for rank in range(2)]
    seen = [weights([batch]) for loader in before for _, batch in zip(range(3), loader, strict=False)]
    state = before[0].state_dict()
    assert state == before[1].state_dict() == {"epoch": 0, "batch": 3}
    for rank in range(3):
        after = Loader(store, "train", 100, shuffle_seed=seed, rank=rank, world_size=3)
        after.load_state_dict(state)
        seen += [weights([batch]) for batch in after]
    every = [weight for part in seen for weight in part]
    assert len(every) == len(set(every)) == store.rows("train")


def test_a_step_of_fewer_rows_than_ranks_leaves_some_batches_empty(store):
    rows = store.rows("train")
    parts = [list(Loader(store, "train", rows - 1, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(part[1]) for part in parts] == [1, 0, 0]
    assert Batch.cat([part[1] for part in parts]).equal(list(Loader(store, "train", rows - 1))[1])


@pytest.mark.parametrize("seed", [None, 5])
def test_positions_put_the_ranks_rows_back_in_order(store, seed):
    parts = [Loader(store, "train", 100, shuffle_seed=seed, rank=rank, world_size=3) for rank in range(3)]
    order = torch.cat([part.positions() for part in parts]).argsort()
    rows = torch.tensor([weight for part in parts for weight in weights(part)])
    assert rows[order].tolist() == weights(Loader(store, "train", 100, shuffle_seed=seed))


def test_drop_last(store):
    rows = store.rows("train")
    loader = Loader(store, "train", 64, drop_last=True)
    assert len(loader) == rows // 64
    assert {len(batch) for batch in loader} == {64}


def test_batches_are_copies(store):
    for seed in (None, 1):
        batch = next(iter(Loader(store, "train", 64, shuffle_seed=seed)))
        for tensor in (batch.ids, batch.dense, batch.bag_values, batch.bag_lengths, batch.labels):
            tensor.zero_()
    assert store.read("train").ids.any()


def test_batches_may_span_shards(store):
    sizes = [len(batch) for batch in Loader(store, "train", 500, shuffle_seed=0)]
    assert sizes == [500, store.rows("train") - 500]
    assert len(store.shard_rows("train")) > 2


def test_types(store):
    batch = next(iter(Loader(store, "train", 8, shuffle_seed=1)))
    assert batch.ids.dtype == batch.bag_values.dtype == batch.bag_lengths.dtype == torch.int64
    assert batch.group.dtype == batch.time.dtype == torch.int64
    assert batch.dense.dtype == batch.labels.dtype == batch.weight.dtype == batch.reference.dtype == torch.float32
    assert batch.labels.shape == (8, 2)
    assert batch.vectors.shape == (8, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch size"),
        ({"batch_size": 8, "rank": 2, "world_size": 2}, "rank"),
        ({"batch_size": 8, "prefetch": -1}, "prefetch"),
        ({"batch_size": 5000, "drop_last": True}, "too few rows"),
    ],
)
def test_sizes_that_make_no_sense(store, arguments, message):
    with pytest.raises(ConfigError, match=message):
        Loader(store, "train", **arguments)


def test_a_position_outside_is_refused(store):
    with pytest.raises(ArtifactError, match="position"):
        Loader(store, "train", 64).load_state_dict({"epoch": 0, "batch": 10_000})


@pytest.mark.parametrize("depth", [1, 3, 50])
@pytest.mark.parametrize("seed", [None, 5])
def test_prefetch_changes_no_batch_and_no_position(store, depth, seed):
    ahead = Loader(store, "train", 100, shuffle_seed=seed, prefetch=depth)
    plain = Loader(store, "train", 100, shuffle_seed=seed)
    for a, b in zip(ahead, plain, strict=True):
        assert a.equal(b)
        assert ahead.state_dict() == plain.state_dict()


def test_prefetch_stops_with_its_caller(store):
    loader = Loader(store, "train", 100, prefetch=2)
    threads = threading.active_count()
    batches = iter(loader)
    next(batches)
    assert loader.state_dict() == {"epoch": 0, "batch": 1}
    batches.close()
    assert threading.active_count() == threads
    assert len(list(loader)) == len(loader) - 1


def test_an_error_while_prefetching_comes_in_its_turn(store, tmp_path):
    copy = shutil.copytree(store.folder, tmp_path / "copy")
    loader = Loader(Store.open(copy), "train", 230, prefetch=1)
    (copy / "train" / "part-00002.arrow").unlink()
    batches = iter(loader)
    assert [len(next(batches)), len(next(batches))] == [230, 230]
    with pytest.raises(ArtifactError, match="part-00002"):
        next(batches)


def test_pinning_without_a_gpu_changes_nothing(store):
    pinned = next(iter(Loader(store, "train", 100, pin_memory=True)))
    assert pinned.equal(next(iter(Loader(store, "train", 100))))
    assert pinned.ids.is_pinned() == torch.cuda.is_available()
