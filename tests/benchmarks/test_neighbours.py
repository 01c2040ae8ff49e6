"""How alike the genres of neighbours are, on sets whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.neighbours import genre_overlap


def test_neighbours_of_one_kind_have_its_genres() -> None:
    vectors = np.repeat(np.eye(2, dtype=np.float32), 3, axis=0)
    found = genre_overlap(vectors, [["Drama", "Crime"]] * 3 + [["Drama"]] * 3, k=2)
    assert found["jaccard"] == found["in_common"] == found["in_common_any"] == 1
    # of any other film, 2 of 5 have the same genres and 3 have one of two
    assert found["jaccard_any"] == pytest.approx((2 + 3 * 0.5) / 5)


def test_neighbours_of_the_other_kind_have_none() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    found = genre_overlap(vectors, [["Drama"], ["Comedy"], ["Drama"], ["Comedy"]], k=1)
    assert found["jaccard"] == found["in_common"] == 0
    assert found["in_common_any"] == pytest.approx(1 / 3, abs=1e-4)
