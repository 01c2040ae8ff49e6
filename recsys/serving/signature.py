"""The MLflow signature of a model, made from the feature spec and not from a sample of rows.

Every column is optional, because a null is an ordinary value of every feature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from features.spec import (
    BucketFeature,
    CrossFeature,
    FeatureSpec,
    IdFeature,
    IdsFeature,
    NumberFeature,
    TimeFeature,
    VectorFeature,
)

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_ID_TYPES = {"string": "string", "integer": "long", "boolean": "boolean"}


def signature_of(spec: FeatureSpec) -> ModelSignature:
    """The inputs and outputs of a model with this spec.

    Args:
        spec: Its features give the input columns, its labels the output columns.

    Returns:
        Inputs: one optional column a feature column. Outputs: one double a task, see `output_names`.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

    def mlflow_type(name: str) -> Any:
        if name == "any":
            return AnyType()
        item = name.removesuffix("[]")
        return Array(DataType[item]) if item != name else DataType[item]

    inputs = [ColSpec(mlflow_type(kind), name=column, required=False) for column, kind in column_types(spec).items()]
    outputs = [ColSpec(DataType.double, name=name) for name in output_names(spec)]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def output_names(spec: FeatureSpec) -> list[str]:
    """The columns that hold a model's probabilities: `p_` and the label's name."""
    return [f"p_{label}" for label in spec.labels]


def column_types(spec: FeatureSpec) -> dict[str, str]:
    """The type of every feature column, `[]` after it for a list.

    A column that several features read in different ways is `any`, since each reads it in its own.

    >>> column_types(FeatureSpec(features=[IdFeature(name="user", dtype="integer"), NumberFeature(name="age"),
    ...     IdsFeature(name="genres")], labels=["click"]))
    {'user': 'long', 'age': 'double', 'genres': 'string[]'}
    """
    types: dict[str, str] = {}
    for feature in spec.features:
        if isinstance(feature, CrossFeature):
            continue
        kind = _type_of(feature)
        types[feature.column] = kind if types.get(feature.column, kind) == kind else "any"
    return types


def _type_of(feature: Any) -> str:
    match feature:
        case IdFeature(dtype=dtype):
            return _ID_TYPES[dtype]
        case IdsFeature(dtype=dtype, separator=separator):
            return "string" if separator is not None else f"{_ID_TYPES[dtype]}[]"
        case NumberFeature() | BucketFeature():
            return "double"
        case TimeFeature(unit=unit):
            return "datetime" if unit is None else "long"
        case VectorFeature():
            return "double[]"
    raise TypeError(f"no signature type for {type(feature).__name__}")
