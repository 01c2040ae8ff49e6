"""Derived columns: what they give, in frames and in requests, and that nothing beyond the row is looked at."""

import datetime
import json

import polars as pl
import pytest
import torch

from features.errors import ArtifactError, ConfigError, DataError
from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.validation import validate

FRAME = pl.DataFrame(
    {
        "price": [10.0, None, float("nan"), 3.5],
        "amount": [1, 2, None, 4],
        "city": ["Oslo", None, "", "Zürich"],
        "at": [datetime.datetime(2024, 2, 29, 23), None, datetime.datetime(1969, 1, 1), datetime.datetime(2024, 1, 1)],
        "new": [True, False, None, True],
    }
)
DERIVE = {
    "key": "coalesce(city, 'none') || '/' || dear",
    "dear": "CASE WHEN total > 9 THEN 'dear' ELSE 'cheap' END",
    "total": "coalesce(price, 0) * coalesce(amount, 1)",
    "year": "extract(year FROM at)",
    "fresh": "new AND amount > 1",
}
FEATURES = [
    {"type": "id", "name": "key"},
    {"type": "number", "name": "total", "standardise": True},
    {"type": "id", "name": "year", "dtype": "integer"},
    {"type": "id", "name": "fresh", "dtype": "boolean"},
    {"type": "number", "name": "amount"},
    {"type": "cross", "name": "key_year", "of": ["key", "year"]},
]


def spec_of(derive, *features, **rest):
    features = list(features) or [{"type": "id", "name": name} for name in derive]
    return validate(FeatureSpec, {"features": features, "labels": ["click"], "derive": derive, **rest})


@pytest.fixture(scope="module")
def pipeline():
    return FeaturePipeline(spec_of(DERIVE, *FEATURES)).fit(FRAME)


def test_values_in_any_order_of_the_spec(pipeline):
    found = pipeline.derive(FRAME).collect()
    assert found["total"].to_list() == [10.0, 0.0, 0.0, 14.0]
    assert found["key"].to_list() == ["Oslo/dear", "none/cheap", "/cheap", "Zürich/dear"]
    assert found["year"].to_list() == [2024, None, 1969, 2024]
    assert found.select(FRAME.columns).equals(FRAME)


def test_a_request_has_the_bits_of_a_frame(pipeline):
    whole = pipeline.encode_frame(FRAME)
    assert whole.equal(pipeline.encode(FRAME.to_dicts()))
    for number, row in enumerate(FRAME.to_dicts()):
        assert pipeline.encode(row).equal(whole.rows([number]))


@pytest.mark.parametrize(
    "sql", ["x / 7", "x / CASE WHEN x IS NULL THEN 7.0 ELSE 7.0 END", "7 / x", "cast(x AS real) / 3"]
)
def test_a_quotient_is_the_same_in_any_number_of_rows(sql):
    values = [0.37 * number + number**5 for number in range(1, 400)]
    frame = pl.DataFrame({"x": values})
    pipeline = FeaturePipeline(spec_of({"d": sql, "t": "cast(d AS varchar)"}, {"type": "id", "name": "t"})).fit(frame)
    whole = pipeline.encode_frame(frame).ids
    assert whole.equal(pipeline.encode(frame.to_dicts()).ids)
    for size in (1, 2, 3):
        parts = [frame.slice(start, size) for start in range(0, 399, size)]
        assert whole.equal(torch.cat([pipeline.encode(part.to_dicts()).ids for part in parts]))
        assert whole[:size].equal(pipeline.encode_frame(parts[0]).ids)


def test_the_training_rows_decide_how_a_value_is_read(pipeline):
    text = {"price": "10.0", "amount": "1", "city": "Oslo", "at": "2024-02-29 23:00:00", "new": "true"}
    assert pipeline.encode(text).equal(pipeline.encode_frame(FRAME.head(1)))
    assert pipeline.encode_frame(pl.DataFrame([text])).equal(pipeline.encode_frame(FRAME.head(1)))


def test_shared_columns_are_derived_from(pipeline):
    rows = [{**row, "city": "Oslo", "price": 2} for row in FRAME.to_dicts()]
    rest = [{key: value for key, value in row.items() if key not in ("city", "price")} for row in rows]
    assert pipeline.encode(rest, shared={"city": "Oslo", "price": 2}).equal(pipeline.encode(rows))
    assert pipeline.encode([{}] * 3, shared=rows[0]).equal(pipeline.encode([rows[0]] * 3))


def test_save_and_load(pipeline, tmp_path):
    pipeline.save(tmp_path)
    loaded = FeaturePipeline.load(tmp_path)
    assert loaded.digest() == pipeline.digest()
    assert loaded.encode(FRAME.to_dicts()).equal(pipeline.encode_frame(FRAME))
    data = json.loads((tmp_path / "pipeline.json").read_text())
    data["inputs"]["amount"] = "string"
    (tmp_path / "pipeline.json").write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="does not match its digest"):
        FeaturePipeline.load(tmp_path)


def test_a_spec_without_derived_columns_is_what_it_was():
    spec = validate(FeatureSpec, {"features": [{"type": "id", "name": "a"}], "labels": ["click"]})
    assert "derive" not in spec.model_dump(mode="json")
    assert spec.digest() == "7dddeb18a1b95fdc30662dc86d21a7ed38119ee7b4b8b2ffea60ec31ead39776"
    assert spec.digest() != spec_of({"b": "a"}, {"type": "id", "name": "a"}).digest()


def test_columns_of_the_data_alone_are_feature_columns(pipeline):
    assert pipeline.spec.feature_columns == ["amount", "city", "price", "at", "new"]


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("a +", "is no SQL expression"),
        ("a; b", "is no SQL expression"),
        ("a, b", "is no SQL expression"),
        ("__import__('os')", "is no SQL expression"),
        ("sum(a)", "nothing but the columns of its own row"),
        ("a - avg(a)", "nothing but the columns of its own row"),
        ("count(*) + a", "nothing but the columns of its own row"),
        ("row_number() OVER (ORDER BY a)", "nothing but the columns of its own row"),
        ("lag(a) OVER (ORDER BY b)", "nothing but the columns of its own row"),
        ("rank() OVER (ORDER BY a)", "nothing but the columns of its own row"),
        ("string_agg(a, ',')", "nothing but the columns of its own row"),
        ("corr(a, b)", "nothing but the columns of its own row"),
        ("quantile_cont(a, 0.5)", "nothing but the columns of its own row"),
        ("a IN (SELECT b FROM c)", "nothing but the columns of its own row|is no SQL"),
        ("unnest(a)", "nothing but the columns of its own row"),
        ("columns('a')", "nothing but the columns of its own row"),
        ("a < now()", "now"),
        ("a < CURRENT_DATE", "CURRENT_DATE"),
        ("1 + 1", "reads no column"),
        ("x + 1", "derived from itself"),
        ("click + 1", "leak"),
    ],
)
def test_what_looks_beyond_the_row_is_refused_by_name(sql, words):
    with pytest.raises(ConfigError, match=words) as caught:
        spec_of({"x": sql})
    assert caught.value.field in ("derive.x", "features.x")
    assert caught.value.mend


def test_the_clock_in_quotes_is_a_text():
    spec_of({"x": "coalesce(a, 'now()')"})


def test_a_circle_is_named():
    with pytest.raises(ConfigError, match="a <- b <- a"):
        spec_of({"a": "b", "b": "a || 'x'"})


def test_a_role_is_no_derived_column():
    with pytest.raises(ConfigError, match="group: column 'x' is derived"):
        spec_of({"x": "a"}, group="x")


def test_what_does_not_fit_the_data_is_refused():
    for derive, words in [
        ({"x": "nope || 'a'"}, r"nope: column is missing \(the spec's derive\.x\)"),
        ({"x": "city + amount"}, r"derive\.x: the expression cannot be computed.*amount: integer, city: string.*Mend"),
        ({"city": "amount"}, r"city: the data hold a column of this name"),
    ]:
        with pytest.raises(DataError, match=words):
            FeaturePipeline(spec_of(derive)).fit(FRAME)
    lists = FRAME.with_columns(tags=pl.lit(["a"]))
    with pytest.raises(DataError, match=r"tags: .*cannot read.*Found: List"):
        FeaturePipeline(spec_of({"x": "tags"})).fit(lists)


def test_a_bad_value_is_named_in_frames_and_requests():
    pipeline = FeaturePipeline(spec_of({"x": "cast(city AS bigint)", "z": "amount + 1"})).fit(FRAME.head(0))
    for row, words in [
        ({"city": "one", "amount": 1}, r"derive\.x: the expression cannot be computed.*city: string"),
        ({"city": "1", "amount": "one"}, r"amount: not a whole number"),
    ]:
        for action in (
            lambda row=row: pipeline.encode(row),
            lambda row=row: pipeline.encode_frame(pl.DataFrame([row])),
        ):
            with pytest.raises(DataError, match=words):
                action()


def test_an_unfitted_pipeline_says_so():
    with pytest.raises(ConfigError, match="derive: the pipeline is not fitted"):
        FeaturePipeline(spec_of({"x": "a"})).encode({"a": 1})


def test_a_column_given_twice_is_refused():
    pipeline = FeaturePipeline(spec_of({"x": "amount + 1"})).fit(FRAME)
    with pytest.raises(DataError, match="amount: is given twice"):
        pipeline.encode([{"amount": 1}, {"amount": 2}], shared={"amount": 1})
    with pytest.raises(DataError, match="x: the data hold a column of this name"):
        pipeline.encode({"amount": 1, "x": 2})
