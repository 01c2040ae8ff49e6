"""Encoded columns keep their values on the way from Polars through Arrow to tensors."""

import polars as pl
import torch

from features.columns import Columns, column_types, record_batch
from features.layout import Layout

LAYOUT = Layout(id_names=("a", "b"), bag_names=("l",), bag_poolings=("sum",), label_names=("y",))
FRAME = pl.DataFrame(
    {
        "ids": pl.Series([[1, 2], [3, 4], [5, 6], [7, 8]], dtype=pl.Array(pl.Int64, 2)),
        "bag:l": pl.Series([[1], [2, 2], [], [4]], dtype=pl.List(pl.Int64)),
        "labels": pl.Series([[0], [1], [0], [1]], dtype=pl.Array(pl.Float32, 1)),
    }
)


def columns_of(frame):
    return Columns.of(record_batch(frame, column_types(LAYOUT, labels=True)), LAYOUT)


def test_a_slice_of_a_frame_is_its_rows():
    whole = columns_of(FRAME)
    for start in range(4):
        for stop in range(start, 5):
            part = columns_of(FRAME.slice(start, stop - start))
            assert part.slice(0, part.rows).equal(whole.slice(start, stop))


def test_take_is_slice_by_index():
    whole = columns_of(FRAME)
    assert whole.take(torch.tensor([1, 2, 3])).equal(whole.slice(1, 4))
    assert whole.take(torch.tensor([3, 0])).ids.tolist() == [[7, 8], [1, 2]]
    assert whole.take(torch.tensor([], dtype=torch.int64)).bag_lengths.shape == (1, 0)


def test_the_bytes_follow_the_values_alone():
    types = column_types(LAYOUT, labels=True)
    pieces = pl.concat([FRAME.head(1), FRAME.slice(1)], rechunk=False)
    assert record_batch(pieces, types).serialize().equals(record_batch(FRAME, types).serialize())
    part = pl.concat([FRAME, FRAME]).slice(4)
    assert record_batch(part, types).serialize().equals(record_batch(FRAME, types).serialize())
