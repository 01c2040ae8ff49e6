"""A sample of a stream: uniform, the same however the stream is cut, and of bounded size."""

import numpy as np
import pytest
import torch

from features.batch import Batch
from features.errors import DataError
from recsys.evaluation.row_sample import RowSample


def batches(rows: int, size: int) -> list[Batch]:
    """Rows whose id, and only tag, is their place."""
    cuts = [torch.arange(rows)[start : start + size] for start in range(0, rows, size)]
    return [
        Batch(
            ids=part[:, None],
            bag_values=part,
            bag_lengths=torch.ones(1, len(part), dtype=torch.int64),
            dense=torch.empty(len(part), 0),
            vectors=torch.empty(len(part), 0),
        )
        for part in cuts
    ]


def draw(rows: int, size: int, wanted: int, seed: int = 0) -> RowSample:
    sample = RowSample(wanted, seed)
    assert sum(len(batch) for batch in sample.watch(batches(rows, size))) == rows
    return sample


@pytest.mark.parametrize("size", [1000, 64, 7])
def test_where_batches_end_does_not_matter(size: int) -> None:
    sample = draw(1000, size, 50)
    places = sample.places
    assert sample.seen == 1000
    assert len(places) == 50
    np.testing.assert_array_equal(places, draw(1000, 1000, 50).places)
    assert (np.diff(places) > 0).all()
    np.testing.assert_array_equal(sample.batch.ids[:, 0].numpy(), places)
    np.testing.assert_array_equal(sample.batch.bag_values.numpy(), places)


def test_a_short_stream_is_kept_whole_and_an_empty_one_is_said_to_be() -> None:
    np.testing.assert_array_equal(draw(30, 8, 50).places, np.arange(30))
    assert len(RowSample(5).places) == 0
    with pytest.raises(DataError, match="no batch"):
        _ = RowSample(5).batch


def test_every_row_is_as_likely() -> None:
    seen = np.zeros(40)
    for seed in range(600):
        np.add.at(seen, draw(40, 16, 10, seed).places, 1)
    # of 600 draws each row is in a quarter, give or take 4.5 standard errors
    assert np.abs(seen - 150).max() < 4.5 * np.sqrt(600 * 0.25 * 0.75)
