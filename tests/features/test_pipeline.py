"""The pipeline: fitted state, files, what it refuses, and that no feature touches another."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import ArtifactError, ConfigError, DataError
from features.fingerprint import NULL_FINGERPRINT, fingerprint
from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.validation import validate


def spec_of(*features, **rest):
    return validate(FeatureSpec, {"features": list(features), "labels": ["click"], **rest})


def encoded(spec, events):
    """The encoded values of each feature by its name."""
    pipeline = FeaturePipeline(spec).fit(events)
    batch = pipeline.encode_frame(events)
    found = {name: batch.ids[:, place].tolist() for place, name in enumerate(spec.layout.id_names)}
    found |= {name: batch.dense[:, place].tolist() for place, name in enumerate(spec.layout.dense_names)}
    values = iter(batch.bag_values.split(batch.bag_lengths.sum(dim=1).tolist()))
    for place, name in enumerate(spec.layout.bag_names):
        found[name] = (next(values).tolist(), batch.bag_lengths[place].tolist())
    parts = batch.vectors.split(list(spec.layout.vector_sizes), dim=1) if spec.layout.vector_sizes else []
    return found | {name: part.tolist() for name, part in zip(spec.layout.vector_names, parts, strict=True)}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_adding_dropping_and_reordering_features_changes_no_other(spec, events, data):
    events = events.head(50)
    whole = encoded(spec, events)
    order = data.draw(st.permutations(spec.features))
    kept = order[: data.draw(st.integers(1, len(order)))]
    names = {feature.name for feature in kept}
    kept = [item for item in kept if item.type != "cross" or names.issuperset(item.of)]
    if not kept:
        return
    part = encoded(spec.model_copy(update={"features": kept}), events)
    assert part == {name: whole[name] for name in part}


def test_columns_of_transform(spec, events):
    pipeline = FeaturePipeline(spec).fit(events)
    frame = pipeline.transform(events).collect()
    assert dict(frame.schema) == {
        "ids": pl.Array(pl.Int64, 5),
        "bag:tags": pl.List(pl.Int64),
        "bag:words": pl.List(pl.Int64),
        "dense": pl.Array(pl.Float32, 2),
        "vectors": pl.Array(pl.Float32, 2),
        "labels": pl.Array(pl.Float32, 2),
        "weight": pl.Float32,
        "group": pl.Int64,
        "time": pl.Int64,
        "reference": pl.Float32,
    }
    assert pipeline.transform(events, labels=False).collect_schema().names() == frame.columns[:5]
    kept = pipeline.transform(events, labels=False, keep=["number"]).collect()
    assert kept["number"].to_list() == list(range(1000))


def test_frames_and_rows_agree_on_a_whole_spec(spec, events):
    pipeline = FeaturePipeline(spec).fit(events)
    rows = events.head(100)
    assert pipeline.encode_frame(rows, labels=True).equal(pipeline.encode(rows.to_dicts(), labels=True))
    bare = rows.drop("click", "buy", "p", "importance")
    assert pipeline.encode_frame(bare).equal(pipeline.encode(bare.to_dicts()))


def test_lazy_and_eager_frames_agree(spec, events):
    lazy = FeaturePipeline(spec).fit(events.lazy())
    assert lazy.digest() == FeaturePipeline(spec).fit(events).digest()
    assert lazy.encode_frame(events.lazy()).equal(lazy.encode_frame(events))


def test_statistics_are_those_of_numpy(events):
    spec = spec_of(
        {"type": "number", "name": "age", "clip": [20, 60], "standardise": True},
        {"type": "bucket", "name": "b", "column": "age", "quantiles": 4},
    )
    state = FeaturePipeline(spec).fit(events).state()
    ages = events["age"].drop_nulls().to_numpy()
    assert state["age"]["mean"] == pytest.approx(ages.clip(20, 60).mean())
    assert state["age"]["deviation"] == pytest.approx(ages.clip(20, 60).std())
    assert state["b"]["edges"] == np.quantile(ages, [0.25, 0.5, 0.75], method="inverted_cdf").tolist()


def test_quantiles_of_many_rows_are_close(monkeypatch):
    monkeypatch.setattr("features.ops.quantiles.QUANTILE_SAMPLE", 1000)
    values = np.random.default_rng(0).permutation(20_000).astype(float)
    pipeline = FeaturePipeline(spec_of({"type": "bucket", "name": "x", "quantiles": 10}))
    edges = pipeline.fit(pl.DataFrame({"x": values})).state()["x"]["edges"]
    assert np.abs(np.array(edges) - np.arange(1, 10) * 2000).max() < 1500


def test_missing_values_and_constants():
    frame = pl.DataFrame({"a": [None, None], "b": [3.0, 3.0]}, schema={"a": pl.Float64, "b": pl.Float64})
    spec = spec_of(
        {"type": "number", "name": "a", "standardise": True},
        {"type": "number", "name": "b", "standardise": True},
        {"type": "bucket", "name": "c", "column": "a", "quantiles": 3},
        {"type": "bucket", "name": "d", "column": "b", "quantiles": 3},
    )
    pipeline = FeaturePipeline(spec).fit(frame)
    batch = pipeline.encode({"a": None, "b": 4.0})
    assert batch.dense.tolist() == [[0.0, 1.0]]
    assert batch.ids.tolist() == [[NULL_FINGERPRINT, fingerprint("0")]]


def test_null_empty_and_the_text_null_are_three_things():
    pipeline = FeaturePipeline(spec_of({"type": "id", "name": "x"}, {"type": "ids", "name": "l"}))
    batch = pipeline.encode([{"x": None, "l": None}, {"x": "", "l": []}, {"x": "null", "l": [""]}])
    assert batch.ids[:, 0].tolist() == [NULL_FINGERPRINT, fingerprint(""), fingerprint("null")]
    assert batch.bag_values.tolist() == [NULL_FINGERPRINT, fingerprint("")]
    assert batch.bag_lengths.tolist() == [[1, 0, 1]]


def test_seven_is_seven_as_text_and_as_number():
    spec = spec_of({"type": "id", "name": "x", "dtype": "integer"})
    ids = FeaturePipeline(spec).encode([{"x": 7}, {"x": "7"}, {"x": 7.0}, {"x": "007"}]).ids
    assert ids.unique().tolist() == [fingerprint("7")]


def test_save_and_load(tmp_path, spec, events):
    pipeline = FeaturePipeline(spec).fit(events)
    pipeline.save(tmp_path / "p")
    loaded = FeaturePipeline.load(tmp_path / "p")
    assert loaded.digest() == pipeline.digest()
    assert loaded.encode_frame(events).equal(pipeline.encode_frame(events))
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["pipeline.json"]


def test_digest_follows_the_fitted_state(spec, events):
    digests = {FeaturePipeline(spec).fit(events.head(rows)).digest() for rows in (100, 500, 1000)}
    assert len(digests) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(version=99),
        lambda data: data.update(fingerprint_version=0),
        lambda data: data["state"]["age"].update(mean=0.0),
        lambda data: data["state"].pop("age"),
        lambda data: data.pop("spec"),
        lambda data: data["spec"].update(labels=[]),
    ],
)
def test_a_changed_file_is_refused(tmp_path, spec, events, change):
    FeaturePipeline(spec).fit(events).save(tmp_path)
    path = tmp_path / "pipeline.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=r"pipeline\.json"):
        FeaturePipeline.load(tmp_path)


def test_a_missing_or_truncated_file_is_refused(tmp_path, spec, events):
    with pytest.raises(ArtifactError, match="missing"):
        FeaturePipeline.load(tmp_path)
    FeaturePipeline(spec).fit(events).save(tmp_path)
    path = tmp_path / "pipeline.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ArtifactError, match="cannot be read"):
        FeaturePipeline.load(tmp_path)


def test_an_unfitted_pipeline_says_so(spec, events, tmp_path):
    pipeline = FeaturePipeline(spec)
    for action in (lambda: pipeline.transform(events), lambda: pipeline.encode({}), lambda: pipeline.save(tmp_path)):
        with pytest.raises(ConfigError, match="not fitted"):
            action()
    with pytest.raises(DataError, match="no row"):
        pipeline.fit(events.head(0))


def test_a_missing_column_is_named_with_the_nearest(spec, events):
    pipeline = FeaturePipeline(spec).fit(events)
    renamed = events.rename({"city": "City"})
    for action in (
        lambda: pipeline.transform(renamed),
        lambda: pipeline.encode(renamed.to_dicts()[0]),
        lambda: FeaturePipeline(spec).fit(events.rename({"age": "Age"})),
    ):
        with pytest.raises(DataError, match=r"column is missing.*did you mean '(City|Age)'") as caught:
            action()
        assert caught.value.field in ("city", "age")
    with pytest.raises(DataError, match="click: column is missing"):
        pipeline.transform(events.drop("click"))
    with pytest.raises(DataError, match="buy: column is missing"):
        pipeline.encode(events.drop("buy").to_dicts(), labels=True)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("click", 2, "label outside {0, 1}"),
        ("click", "maybe", "label outside {0, 1}"),
        ("buy", None, "label is missing"),
        ("user", 0.5, "not a whole number"),
        ("user", "u1", "not a whole number"),
        ("importance", -1.0, "weight"),
        ("p", 1.5, "reference probability"),
        ("at", None, "time is missing"),
        ("at", "yesterday", "text that is no time"),
        ("age", "old", "text that is no number"),
        ("picture", [1.0], "vector of another size"),
    ],
)
def test_a_bad_value_is_explained_with_column_sample_and_count(spec, events, column, value, words):
    pipeline = FeaturePipeline(spec).fit(events)
    rows = events.to_dicts()
    for row in rows[10:13]:
        row[column] = value
    if isinstance(value, str):
        for row in rows:
            row[column] = None if row[column] is None else str(row[column])
    bad = pl.DataFrame(rows, infer_schema_length=None)
    with pytest.raises(DataError) as in_frame:
        pipeline.encode_frame(bad, labels=True)
    with pytest.raises(DataError) as in_row:
        pipeline.encode(rows[10], labels=True)
    for caught in (in_frame, in_row):
        assert caught.value.field == column
        assert words in str(caught.value)
        assert caught.value.found == repr(value)
        assert caught.value.mend
    assert "in 3 rows" in str(in_frame.value)


def test_a_bad_value_is_never_silent_in_a_plain_collect(spec, events):
    bad = events.with_columns(click=pl.lit(2))
    with pytest.raises(pl.exceptions.PolarsError, match="label outside"):
        FeaturePipeline(spec).fit(events).transform(bad).collect()


def test_numbers_too_large_to_standardise():
    frame = pl.DataFrame({"x": [1e308, -1e308, 1e308]})
    with pytest.raises(DataError, match="too large to standardise"):
        FeaturePipeline(spec_of({"type": "number", "name": "x", "standardise": True})).fit(frame)


def test_an_empty_frame_and_no_rows(spec, events):
    pipeline = FeaturePipeline(spec).fit(events)
    empty = pipeline.encode_frame(events.head(0), labels=True)
    assert len(empty) == 0
    assert empty.equal(pipeline.encode([], labels=True))


def test_widths_of_zero_are_tensors():
    batch = FeaturePipeline(spec_of({"type": "number", "name": "x"})).encode({"x": 1})
    assert batch.ids.shape == (1, 0)
    assert batch.bag_lengths.shape == (0, 1)
    assert batch.vectors.shape == (1, 0)
    assert batch.ids.dtype == batch.bag_values.dtype == torch.int64
    only_ids = FeaturePipeline(spec_of({"type": "id", "name": "x"}))
    assert only_ids.encode_frame(pl.DataFrame({"x": ["a"]})).dense.shape == (1, 0)


def test_a_column_of_nulls_is_a_column():
    spec = spec_of(
        {"type": "id", "name": "a"},
        {"type": "ids", "name": "b"},
        {"type": "number", "name": "c", "missing_flag": True},
        {"type": "vector", "name": "d", "size": 2},
        {"type": "time", "name": "e", "part": "hour"},
    )
    frame = pl.DataFrame({name: [None, None, None] for name in "abcde"})
    pipeline = FeaturePipeline(spec)
    assert pipeline.encode_frame(frame).equal(pipeline.encode(frame.to_dicts()))
