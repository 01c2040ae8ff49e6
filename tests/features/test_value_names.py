"""Names of values: what stands behind a fingerprint is what was hashed."""

import polars as pl

from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.validation import validate
from features.value_names import value_names

FRAME = pl.DataFrame(
    {
        "user": [1, 2, None, 1],
        "city": ["Rome", "Oslo", "a" * 60, "Rome"],
        "tags": [["x", "y"], [], None, ["y"]],
        "words": ["red|blue", "", None, "red"],
        "at": [0, 3600 * 26, 3600 * 50, 3600 * 71],
        "price": [1.0, 5.0, 20.0, None],
        "click": [0, 1, 0, 1],
    }
)
SPEC = {
    "features": [
        {"type": "id", "name": "user", "dtype": "integer"},
        {"type": "id", "name": "city"},
        {"type": "ids", "name": "tags"},
        {"type": "ids", "name": "words", "separator": "|"},
        {"type": "time", "name": "hour", "column": "at", "part": "hour", "unit": "s"},
        {"type": "time", "name": "weekday", "column": "at", "part": "weekday", "unit": "s"},
        {"type": "bucket", "name": "cost", "column": "price", "edges": [2, 10]},
        {"type": "cross", "name": "user_city", "of": ["user", "city"]},
        {"type": "id", "name": "upper", "column": "shout"},
        {"type": "number", "name": "price"},
    ],
    "derive": {"shout": "upper(city)"},
    "labels": ["click"],
}


def pipeline() -> FeaturePipeline:
    return FeaturePipeline(validate(FeatureSpec, SPEC)).fit(FRAME)


def test_every_encoded_value_has_the_name_of_what_was_hashed() -> None:
    fitted = pipeline()
    batch = fitted.encode_frame(FRAME)
    names = value_names(fitted, FRAME)

    def read(feature: str) -> list[str]:
        place = fitted.layout.id_names.index(feature)
        return [names[feature][code] for code in batch.ids[:, place].tolist()]

    assert read("user") == ["1", "2", "missing", "1"]
    assert read("city") == ["Rome", "Oslo", "a" * 38 + "..", "Rome"]
    assert read("upper") == ["ROME", "OSLO", "A" * 38 + "..", "ROME"]
    assert read("hour") == ["0", "2", "2", "23"]
    assert read("weekday") == ["Thursday", "Friday", "Saturday", "Saturday"]
    assert read("cost") == ["below 2", "2 to 10", "from 10", "missing"]
    assert read("user_city") == ["1 x Rome", "2 x Oslo", "missing x " + "a" * 28 + "..", "1 x Rome"]
    tags, words = batch.bag_values.split(batch.bag_lengths.sum(1).tolist())
    assert [names["tags"][code] for code in tags.tolist()] == ["x", "y", "missing", "y"]
    assert [names["words"][code] for code in words.tolist()] == ["red", "blue", "missing", "red"]


def test_without_rows_parts_of_a_time_and_buckets_are_known_all_the_same() -> None:
    names = value_names(pipeline())
    assert len(names["hour"]) == 24 + 1
    assert "from 10" in names["cost"].values()
    assert list(names["city"].values()) == ["missing"]
    assert value_names(pipeline(), FRAME[:0]) == names
