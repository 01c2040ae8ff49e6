"""Ways to part rows, by hand."""

from collections.abc import Mapping

import numpy as np
import torch

from features.batch import Batch
from features.fingerprint import NULL_FINGERPRINT
from features.layout import Layout
from recsys.evaluation.divisions import DAY, Division, divisions_of

LAYOUT = Layout(
    id_names=("ad",), bag_names=("tags",), bag_poolings=("sum",), dense_names=("price", "price:missing"), has_time=True
)


def batch() -> Batch:
    """Four rows: tags [1, 1, 2], [], [2], [9]."""
    return Batch(
        ids=torch.tensor([[1], [200], [999], [NULL_FINGERPRINT]]),
        bag_values=torch.tensor([1, 1, 2, 2, 9]),
        bag_lengths=torch.tensor([[3, 0, 1, 1]]),
        dense=torch.tensor([[0.5, 0], [0.5, 1], [2, 0], [3, 0]]),
        vectors=torch.empty(4, 0),
        time=torch.tensor([0, DAY - 1, DAY, 59 * DAY]),
    )


def slices(division: Division) -> Mapping[str, list[int]]:
    places = np.arange(len(division.codes)) if division.rows is None else division.rows
    found: dict[str, list[int]] = {}
    for code, row in zip(division.codes.tolist(), places.tolist(), strict=True):
        found.setdefault(division.name(code), []).append(row)
    return found


def divide(**settings: object) -> dict[tuple[str, str], Mapping[str, list[int]]]:
    every = divisions_of(LAYOUT, batch(), **settings)  # type: ignore[arg-type]
    return {(one.by, one.feature): slices(one) for one in every}


def test_values_have_their_names_and_a_bag_is_in_all_its_values() -> None:
    found = divide(names={"ad": {1: "shoes"}, "tags": {2: "red"}})
    assert found["value", "ad"] == {"shoes": [0], f"#{200:016x}": [1], f"#{999:016x}": [2], "missing": [3]}
    assert found["value", "tags"] == {f"#{1:016x}": [0], "red": [0, 2], f"#{9:016x}": [3]}


def test_numbers_come_in_ranges_flags_as_flags_and_times_as_days() -> None:
    found = divide()
    assert found["value", "price"] == {"there": [0, 2, 3], "missing": [1]}
    assert found["day", "time"] == {"1970-01-01": [0, 1], "1970-01-02": [2], "1970-03-01": [3]}
    assert not any(by in ("training frequency", "seen in training") for by, _ in found)


def test_ranges_hold_equally_many_rows_and_equal_numbers_stay_together() -> None:
    layout = Layout(dense_names=("price",))
    values = np.r_[np.zeros(60), np.arange(1, 41)]
    wide = Batch(
        ids=torch.empty(100, 0, dtype=torch.int64),
        bag_values=torch.empty(0, dtype=torch.int64),
        bag_lengths=torch.empty(0, 100, dtype=torch.int64),
        dense=torch.from_numpy(values).float()[:, None],
        vectors=torch.empty(100, 0),
    )
    (division,) = divisions_of(layout, wide)
    found = slices(division)
    assert {name: len(rows) for name, rows in found.items()} == {
        "range 1 of 3": 60,
        "range 2 of 3": 20,
        "range 3 of 3": 20,
    }
    assert [values[rows].min() for rows in found.values()] == [0, 1, 21]


def test_head_torso_and_tail_are_by_share_of_the_training_rows() -> None:
    # 200 values: the first has half of the rows, the next 80 most of the rest
    known, seen = np.arange(1, 201), np.r_[1000, np.full(80, 10), np.full(119, 2)]
    found = divide(counts={"ad": (known, seen), "tags": (np.array([1, 2]), np.array([5, 5]))})
    assert found["training frequency", "ad"] == {"head": [0], "tail": [1]}
    assert found["seen in training", "ad"] == {"seen": [0, 1], "unseen": [2, 3]}
    assert found["seen in training", "tags"] == {"seen": [0, 1, 2], "unseen": [3]}


def test_a_small_field_has_no_head_and_nothing_unseen_is_no_division() -> None:
    ids = np.sort(np.array([1, 200, 999, NULL_FINGERPRINT]))
    found = divide(counts={"ad": (ids, np.ones(4, np.int64))})
    assert ("training frequency", "ad") not in found
    assert ("seen in training", "ad") not in found
    nothing = np.empty(0, np.int64)
    assert divide(counts={"ad": (nothing, nothing)})["seen in training", "ad"] == {"unseen": [0, 1, 2, 3]}
