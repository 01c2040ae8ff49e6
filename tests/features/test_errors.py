"""Errors read as one line and keep their parts; nearest names are found."""

import pickle
from typing import Any

import polars as pl
import pytest

from features.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    RecsysError,
    UndefinedMetricError,
    list_names,
    nearest,
)
from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.validation import validate


def test_every_part_is_in_the_one_line():
    error = DataError("is wrong", field="age", found="x", expected="a number", mend="cast it")
    assert str(error) == "age: is wrong. Found: x. Expected: a number. Mend: cast it"
    assert (error.field, error.found, error.expected, error.mend) == ("age", "x", "a number", "cast it")


def test_parts_that_are_absent_are_left_out():
    assert str(RecsysError("something\nhappened.")) == "something happened"
    assert str(RecsysError("is wrong", found=0)) == "is wrong. Found: 0"


@pytest.mark.parametrize("kind", [ConfigError, DataError, ArtifactError, UndefinedMetricError])
def test_kinds_are_one_family_and_survive_another_process(kind):
    error = pickle.loads(pickle.dumps(kind("what", field="f", found=1)))
    assert isinstance(error, RecsysError)
    assert str(error) == "f: what. Found: 1"


def test_undefined_metric_is_a_matter_of_the_data():
    assert issubclass(UndefinedMetricError, DataError)


def test_nearest():
    assert nearest("User_ID", ["user_id", "item_id"]) == "user_id"
    assert nearest("batchsize", ["batch_size", "epochs"]) == "batch_size"
    assert nearest("qqq", ["user_id"]) is None
    assert nearest("x", []) is None


def test_list_names_is_cut():
    assert list_names(map(str, range(100)), limit=3) == "0, 1, 2 ... and 97 more"


def test_a_value_nested_too_deeply_to_be_shown_is_named(nested: list[Any]) -> None:
    spec = {"features": [{"name": "tags", "type": "ids"}, {"name": "price", "type": "number"}], "labels": ["click"]}
    pipeline = FeaturePipeline(validate(FeatureSpec, spec)).fit(pl.DataFrame({"tags": [["a"]], "price": [1.0]}))
    for field, row in (("tags", {"tags": nested, "price": 1.0}), ("price", {"tags": ["a"], "price": nested})):
        with pytest.raises(DataError, match="Found: a list that is nested too deeply") as refused:
            pipeline.encode(row)
        assert refused.value.field == field


@pytest.fixture(name="nested")
def nested_fixture() -> list[Any]:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    return value
