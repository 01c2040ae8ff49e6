"""The signature follows the spec: a column for each feature column, all optional, one output a task."""

import datetime as dt

import polars as pl
import pytest
from mlflow.models.utils import _enforce_schema

from features.spec import FeatureSpec
from features.validation import validate
from recsys.serving.signature import column_types, output_names, signature_of

SPEC = validate(
    FeatureSpec,
    {
        "features": [
            {"type": "id", "name": "user", "dtype": "integer"},
            {"type": "id", "name": "city"},
            {"type": "id", "name": "mobile", "dtype": "boolean"},
            {"type": "ids", "name": "genres"},
            {"type": "ids", "name": "tags", "separator": "|"},
            {"type": "number", "name": "age"},
            {"type": "bucket", "name": "age_bucket", "column": "age", "quantiles": 4},
            {"type": "time", "name": "hour", "column": "at", "part": "hour"},
            {"type": "time", "name": "weekday", "column": "at", "part": "weekday"},
            {"type": "vector", "name": "vector", "size": 3},
            {"type": "cross", "name": "user_city", "of": ["user", "city"]},
        ],
        "labels": ["click", "buy"],
        "weight": "w",
        "group": "user",
    },
)


def test_a_column_for_each_feature_column_and_no_other() -> None:
    assert column_types(SPEC) == {
        "user": "integer",
        "city": "string",
        "mobile": "boolean",
        "genres": "string[]",
        "tags": "string",
        "age": "number",
        "at": "datetime",
        "vector": "number[]",
    }


def test_what_a_request_must_carry_beside_the_features_own_columns() -> None:
    spec = validate(
        FeatureSpec,
        {
            "features": [
                {"type": "sequence", "name": "seen", "dtype": "integer", "length": 5, "times": "seen_at"},
                {"type": "recency", "name": "visit"},
                {"type": "ngrams", "name": "title"},
                {"type": "semantic_id", "name": "codes", "depth": 2},
                {"type": "frequency", "name": "city"},
                {"type": "number", "name": "total"},
            ],
            "labels": ["click"],
            "time": "at",
            "derive": {"total": "price * amount"},
        },
    )
    assert column_types(spec) == {
        "seen": "integer[]",
        "seen_at": "any",
        "at": "any",
        "visit": "datetime",
        "title": "string",
        "codes": "integer[]",
        "city": "string",
        "amount": "any",
        "price": "any",
    }


def test_every_input_is_optional_and_outputs_are_named_by_label() -> None:
    signature = signature_of(SPEC)
    assert all(not column.required for column in signature.inputs.inputs)
    assert signature.outputs.input_names() == output_names(SPEC) == ["p_click", "p_buy"]


@pytest.mark.parametrize("nulls", [False, True])
def test_mlflow_takes_rows_with_and_without_nulls(nulls: bool) -> None:
    frame = pl.DataFrame(
        {
            "user": [1, 2],
            "city": ["a", "b"],
            "mobile": [True, False],
            "genres": [["x"], ["y", "z"]],
            "tags": ["p|q", ""],
            "age": [30, 40],
            "at": [dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 2)],
            "vector": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
        }
    )
    if nulls:
        frame = frame.with_columns(pl.when(pl.int_range(2) == 0).then(column) for column in frame.columns)
    enforced = _enforce_schema(frame.to_pandas(), signature_of(SPEC).inputs)
    assert list(enforced.columns) == frame.columns


def test_a_column_read_in_two_ways() -> None:
    def spec(second: dict[str, object]) -> FeatureSpec:
        features = [{"type": "id", "name": "age", "dtype": "integer"}, {**second, "column": "age"}]
        return validate(FeatureSpec, {"features": features, "labels": ["click"]})

    assert column_types(spec({"type": "number", "name": "age_number"})) == {"age": "number"}
    assert column_types(spec({"type": "id", "name": "age_text"})) == {"age": "any"}
