"""The spec refuses what cannot work or would leak, and lays columns out in spec order."""

import json

import pytest

from features.errors import ConfigError
from features.layout import Layout
from features.spec import FeatureSpec
from features.validation import validate

FULL = {
    "features": [
        {"type": "id", "name": "user", "column": "user_id"},
        {"type": "number", "name": "age", "clip": [0, None], "log": 1, "missing_flag": True},
        {"type": "bucket", "name": "age_bucket", "column": "age", "quantiles": 4},
        {"type": "ids", "name": "tags", "separator": "|", "pooling": "mean"},
        {"type": "cross", "name": "user.hour", "of": ["user", "hour"]},
        {"type": "time", "name": "hour", "column": "at", "part": "hour", "unit": "s"},
        {"type": "number", "name": "price"},
        {"type": "vector", "name": "embedding", "size": 3},
    ],
    "labels": ["click", "buy"],
    "weight": "w",
    "group": "user_id",
    "time": "at",
    "reference": "p",
}


def spec_with(*features, **rest):
    return {"features": list(features), "labels": ["y"], **rest}


def test_layout_follows_the_spec_order():
    layout = validate(FeatureSpec, FULL).layout
    assert layout == Layout(
        id_names=("user", "age_bucket", "user.hour", "hour"),
        bag_names=("tags",),
        bag_poolings=("mean",),
        dense_names=("age", "age:missing", "price"),
        vector_names=("embedding",),
        vector_sizes=(3,),
        label_names=("click", "buy"),
        has_weight=True,
        has_group=True,
        has_time=True,
        has_reference=True,
    )
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout
    assert layout.vector_width == 3


def test_digest_follows_content_alone():
    spec = validate(FeatureSpec, FULL)
    assert spec.digest() == validate(FeatureSpec, dict(reversed(FULL.items()))).digest()
    assert spec.digest() == validate(FeatureSpec, json.loads(spec.model_dump_json())).digest()
    assert spec.digest() != validate(FeatureSpec, {**FULL, "weight": None}).digest()
    assert len(spec.digest()) == 64


def test_columns_and_lookup():
    spec = validate(FeatureSpec, FULL)
    assert spec.feature_columns == ["user_id", "age", "tags", "at", "price", "embedding"]
    assert spec.feature("tags").type == "ids"
    with pytest.raises(ConfigError, match="did you mean 'price'"):
        spec.feature("prize")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (spec_with(), "at least 1"),
        (spec_with({"type": "id", "name": "a"}, {"type": "number", "name": "a"}), "used twice"),
        (spec_with({"type": "id", "name": "a b"}), "pattern"),
        (spec_with({"type": "id", "name": "y"}), "leak"),
        (spec_with({"type": "id", "name": "a", "column": "y"}), "leak"),
        (spec_with({"type": "number", "name": "w"}, weight="w"), "leak"),
        (spec_with({"type": "number", "name": "p"}, reference="p"), "leak"),
        (spec_with({"type": "id", "name": "a"}, group="y"), "also a label"),
        (spec_with({"type": "id", "name": "a"}, labels=["y", "y"]), "used twice"),
        (spec_with({"type": "id", "name": "a"}, labels=[]), "at least 1"),
        (spec_with({"type": "number", "name": "a", "log": 1}), "not positive"),
        (spec_with({"type": "number", "name": "a", "log": 1, "clip": [-1, None]}), "not positive"),
        (spec_with({"type": "number", "name": "a", "clip": [2, 1]}), "not in order"),
        (spec_with({"type": "number", "name": "a", "clip": [float("nan"), 1]}), "finite"),
        (spec_with({"type": "bucket", "name": "a"}), "either edges or quantiles"),
        (
            spec_with({"type": "bucket", "name": "a", "edges": [1], "quantiles": 3}),
            "either edges or quantiles",
        ),
        (spec_with({"type": "bucket", "name": "a", "edges": [2, 1]}), "strictly increasing"),
        (spec_with({"type": "bucket", "name": "a", "edges": []}), "1 to 1000"),
        (
            spec_with({"type": "id", "name": "a"}, {"type": "cross", "name": "c", "of": ["a", "b"]}),
            "cross of 'b'",
        ),
        (spec_with({"type": "id", "name": "a"}, {"type": "cross", "name": "c", "of": ["a"]}), "at least 2"),
        (
            spec_with({"type": "id", "name": "a"}, {"type": "cross", "name": "c", "of": ["a", "a"]}),
            "used twice",
        ),
        (spec_with({"type": "vector", "name": "a", "size": 0}), "greater than or equal to 1"),
        (spec_with({"type": "ids", "name": "a", "max_length": 0}), "greater than or equal to 1"),
        (spec_with({"type": "idss", "name": "a"}), "did you mean 'ids'"),
        (spec_with({"type": "id", "name": "a", "dtyp": "string"}), "did you mean 'dtype'"),
    ],
)
def test_what_cannot_work_is_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        validate(FeatureSpec, data)
