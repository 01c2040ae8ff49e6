"""A small frame is encoded row by row, to the bits and with the errors of the whole one."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
import torch

from features.errors import DataError
from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.validation import validate
from recsys.serving.small_frames import MOST_ROWS, FrameEncoder

SPEC = {
    "features": [
        {"name": "user", "type": "id", "dtype": "integer"},
        {"name": "item", "type": "id"},
        {"name": "member", "type": "id", "dtype": "boolean"},
        {"name": "tags", "type": "ids"},
        {"name": "price", "type": "number", "log": 1, "clip": [0, None], "standardise": True, "missing_flag": True},
        {"name": "hour", "type": "time", "column": "at", "part": "hour", "unit": "s"},
        {"name": "user_item", "type": "cross", "of": ["user", "item"]},
    ],
    "labels": ["click"],
}
FRAME = pl.DataFrame(
    {
        "user": [1, None, -5, 2**60],
        "item": ["a", "", None, "2.0"],
        "member": [True, False, None, True],
        "tags": [["x"], [], None, ["y", None]],
        "price": [0.5, None, -3.0, 1e9],
        "at": [0, 10**9, None, 5],
    }
)


@pytest.fixture(scope="module")
def pipeline() -> FeaturePipeline:
    return FeaturePipeline(validate(FeatureSpec, SPEC)).fit(FRAME.with_columns(click=pl.lit(0)))


def columns(**changed: Any) -> pl.DataFrame:
    return FRAME.with_columns(**{name: pl.Series(values) for name, values in changed.items()})


FRAMES = {
    "as trained": FRAME,
    "one row": FRAME.head(1),
    "others beside, in another order": FRAME.select("at", pl.lit(1).alias("more"), *FRAME.columns[:-1]),
    "empty": FRAME.head(0),
    "large": pl.concat([FRAME] * MOST_ROWS),
    "narrow numbers": columns(price=pl.Series([0.5, 2.5, float("nan"), 7], dtype=pl.Float32)),
    "whole numbers": columns(price=pl.Series([1, 2, None, 3], dtype=pl.Int8)),
    "numbers without sign": columns(user=pl.Series([1, 2, 3, 2**63 - 1], dtype=pl.UInt64)),
    "categories": columns(item=pl.Series(["a", "b", None, "c"], dtype=pl.Categorical)),
    "infinite": columns(price=[1.0, float("inf"), 2.0, 3.0]),
    "only nulls": columns(item=pl.Series([None] * 4), tags=pl.Series([None] * 4)),
}


@pytest.mark.parametrize("name", FRAMES)
def test_every_frame_is_encoded_to_the_same_bits(pipeline: FeaturePipeline, name: str) -> None:
    encode = FrameEncoder(pipeline)
    for _ in range(2):  # a schema that was seen before is not looked at again
        found, expected = encode(FRAMES[name]), pipeline.encode_frame(FRAMES[name])
        for field in ("ids", "bag_values", "bag_lengths", "dense", "vectors"):
            assert torch.equal(getattr(found, field), getattr(expected, field)), field


WRONG = {
    "no column": FRAME.drop("price"),
    "another type": columns(price=[["a"]] * 4),
    "no whole number": columns(user=[1.0, 2.5, 3.0, 4.5]),
    "no number": columns(price=["1", "dear", "2", "cheap"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_as_of_a_large_frame(pipeline: FeaturePipeline, name: str) -> None:
    with pytest.raises(DataError) as expected:
        pipeline.encode_frame(WRONG[name])
    with pytest.raises(DataError) as found:
        FrameEncoder(pipeline)(WRONG[name])
    assert str(found.value) == str(expected.value)
