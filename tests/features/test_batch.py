"""Batches can be cut and joined, bags included, and nothing is lost."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.batch import Batch
from features.errors import DataError


def make(lengths, start=0):
    """A batch whose every value tells its row; `lengths` is [B][G]."""
    rows, bags = len(lengths), len(lengths[0]) if lengths else 2
    values = [
        1000 * bag + 10 * (start + row) + k
        for bag in range(bags)
        for row in range(rows)
        for k in range(lengths[row][bag])
    ]
    number = torch.arange(start, start + rows)
    return Batch(
        ids=torch.stack([number, number + 500], dim=1),
        bag_values=torch.tensor(values, dtype=torch.int64),
        bag_lengths=torch.tensor(lengths, dtype=torch.int64).reshape(rows, bags).T.contiguous(),
        dense=number[:, None].float(),
        vectors=torch.zeros(rows, 0),
        labels=(number[:, None] % 2).float(),
        group=number * 7,
    )


LENGTHS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8)


@given(LENGTHS, LENGTHS, st.data())
def test_cat_then_rows_gives_the_parts_back(first, second, data):
    a, b = make(first), make(second, start=len(first))
    joined = Batch.cat([a, b])
    assert joined.equal(make(first + second))
    assert joined.rows(slice(0, len(a))).equal(a)
    assert joined.rows(slice(len(a), None)).equal(b)
    picks = data.draw(st.lists(st.integers(0, len(joined) - 1), max_size=5)) if len(joined) else []
    picked = joined.rows(picks)
    assert picked.group.tolist() == [7 * pick for pick in picks]
    singles = [joined.rows([pick]) for pick in picks]
    if singles:
        assert picked.equal(Batch.cat(singles))


def test_rows_takes_masks_and_negative_numbers():
    batch = make([(1, 0), (2, 1), (0, 3)])
    assert batch.rows(torch.tensor([True, False, True])).equal(batch.rows([0, 2]))
    assert batch.rows([-1]).equal(batch.rows([2]))


def test_no_bags_and_nothing_else_is_fine():
    empty = torch.zeros(3, 0)
    batch = Batch(empty.long(), torch.zeros(0).long(), torch.zeros(0, 3).long(), empty, empty)
    assert len(Batch.cat([batch, batch])) == 6
    assert batch.rows([2, 1]).bag_lengths.shape == (0, 2)
    assert batch.to("cpu").equal(batch)


def test_joining_what_does_not_fit_is_refused():
    with_labels, without = make([(1, 1)]), make([(1, 1)])
    without.labels = None
    with pytest.raises(DataError, match="labels"):
        Batch.cat([with_labels, without])
    with pytest.raises(DataError, match="no batch"):
        Batch.cat([])


def test_equal_tells_bits_apart():
    batch = make([(1, 1)])
    other = make([(1, 1)])
    other.dense = other.dense.double()
    assert not batch.equal(other)
    assert not batch.equal(make([(1, 0)]))
