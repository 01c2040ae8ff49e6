"""The MLflow signature of a model, made from the feature spec and not from a sample of rows.

Every column is optional, because a null is an ordinary value of every feature. Whole numbers and numbers are of
MLflow's type `any`: its `long` cannot hold a null, and its `double` refuses a column of whole numbers. The feature
pipeline checks their values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from features.spec import (
    BucketFeature,
    CyclicFeature,
    FeatureSpec,
    FrequencyFeature,
    IdFeature,
    IdsFeature,
    NgramsFeature,
    NumberFeature,
    RecencyFeature,
    SemanticIdFeature,
    SequenceFeature,
    TimeFeature,
    VectorFeature,
)

if TYPE_CHECKING:
    from mlflow.models import ModelSignature


def signature_of(spec: FeatureSpec) -> ModelSignature:
    """The inputs and outputs of a model with this spec.

    Args:
        spec: Its features give the input columns, its labels the output columns.

    Returns:
        Inputs: one optional column a feature column. Outputs: one double a task, see `output_names`.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

    types = {"string": DataType.string, "boolean": DataType.boolean, "datetime": DataType.datetime}
    types |= {"string[]": Array(DataType.string), "boolean[]": Array(DataType.boolean)}
    inputs = [
        ColSpec(types.get(kind, AnyType()), name=column, required=False) for column, kind in column_types(spec).items()
    ]
    outputs = [ColSpec(DataType.double, name=name) for name in output_names(spec)]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def output_names(spec: FeatureSpec) -> list[str]:
    """The columns that hold a model's probabilities: `p_` and the label's name."""
    return [f"p_{label}" for label in spec.labels]


def column_types(spec: FeatureSpec) -> dict[str, str]:
    """The type of every feature column, `[]` after it for a list.

    A column that several features read in different ways is `any`, unless all of them read numbers.

    >>> column_types(FeatureSpec(features=[IdFeature(name="user", dtype="integer"), NumberFeature(name="age"),
    ...     IdsFeature(name="genres")], labels=["click"]))
    {'user': 'integer', 'age': 'number', 'genres': 'string[]'}
    """
    types: dict[str, str] = {}
    for feature in spec.features:
        for column in spec.columns_of(feature):
            if column in spec.derive:
                continue
            kind = _type_of(feature) if column == getattr(feature, "column", None) else "any"
            before = types.setdefault(column, kind)
            if before != kind:
                types[column] = "number" if {before, kind} == {"integer", "number"} else "any"
    # What derived columns read may be of any type; the pipeline reads it as it did in training.
    return {column: types.get(column, "any") for column in spec.feature_columns}


def _type_of(feature: Any) -> str:
    match feature:
        case IdFeature(dtype=dtype) | FrequencyFeature(dtype=dtype):
            return str(dtype)
        case IdsFeature(dtype=dtype, separator=separator):
            return "string" if separator is not None else f"{dtype}[]"
        case NumberFeature() | BucketFeature():
            return "number"
        case TimeFeature(unit=unit) | CyclicFeature(unit=unit) | RecencyFeature(unit=unit):
            return "datetime" if unit is None else "integer"
        case NgramsFeature():
            return "string"
        case SemanticIdFeature():
            return "integer[]"
        case SequenceFeature(dtype=dtype):
            return f"{dtype}[]"
        case VectorFeature():
            return "number[]"
    raise TypeError(f"no signature type for {type(feature).__name__}")
