"""The signature follows the spec: a column for each feature column, all optional, one output a task."""

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
        "user": "long",
        "city": "string",
        "mobile": "boolean",
        "genres": "string[]",
        "tags": "string",
        "age": "double",
        "at": "datetime",
        "vector": "double[]",
    }


def test_every_input_is_optional_and_outputs_are_named_by_label() -> None:
    signature = signature_of(SPEC)
    assert all(not column.required for column in signature.inputs.inputs)
    assert signature.outputs.input_names() == output_names(SPEC) == ["p_click", "p_buy"]
    assert str(signature.inputs.input_types()[0]) == "DataType.long"


def test_a_column_read_in_two_ways_is_of_any_type() -> None:
    spec = validate(
        FeatureSpec,
        {
            "features": [
                {"type": "id", "name": "age", "dtype": "integer"},
                {"type": "number", "name": "age_number", "column": "age"},
            ],
            "labels": ["click"],
        },
    )
    assert column_types(spec) == {"age": "any"}
    assert signature_of(spec).inputs.input_names() == ["age"]
