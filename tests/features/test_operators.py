"""What each operator gives for known values, and what it refuses."""

import datetime
import hashlib
import math

import numpy as np
import polars as pl
import pytest

from features.errors import ArtifactError, ConfigError, DataError
from features.fingerprint import NULL_FINGERPRINT, fingerprint
from features.ops.ngrams import LOWER
from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.validation import validate

NOW = datetime.datetime(2024, 3, 1, 12)


def pipeline_of(*features, **rest):
    return FeaturePipeline(validate(FeatureSpec, {"features": list(features), "labels": ["click"], **rest}))


def bags(pipeline, row):
    """The lists of ids of one row."""
    batch = pipeline.encode(row)
    return [part.tolist() for part in batch.bag_values.split(batch.bag_lengths[:, 0].tolist())]


def prints(*texts):
    return [fingerprint(text) for text in texts]


def test_words_are_what_stands_between_blanks_and_punctuation():
    pipeline = pipeline_of({"type": "ngrams", "name": "x"})
    expected = prints("the", "größe", "x", "2", "the größe", "größe x", "x 2")
    assert bags(pipeline, {"x": "The GRÖßE,\u00a0x-2!"}) == [expected]
    assert bags(pipeline, {"x": " .,- "}) == bags(pipeline, {"x": ""}) == [[]]
    assert bags(pipeline, {"x": None}) == [[NULL_FINGERPRINT]]


def test_characters_run_across_words():
    feature = {"type": "ngrams", "name": "x", "of": "characters", "n": [3, 4], "lowercase": False, "max_length": 4}
    assert bags(pipeline_of(feature), {"x": " Ab  c-"}) == [prints("Ab ", "b c", " c-", "Ab c")]


def test_lower_case_is_the_same_under_every_version_of_unicode():
    table = "".join(letter + small for letter, small in sorted(LOWER.items()))
    assert len(LOWER) == 714
    assert hashlib.sha256(table.encode()).hexdigest().startswith("3062a073c311706c")


def test_items_share_the_ids_of_the_codes_they_share():
    pipeline = pipeline_of({"type": "semantic_id", "name": "x", "depth": 3})
    assert bags(pipeline, {"x": [12, 5, 7, 1]}) == [prints("12", "12,5", "12,5,7")]
    assert bags(pipeline, {"x": ["12", 5.0]}) == [prints("12", "12,5")]
    assert bags(pipeline, {"x": [1, 25]}) != bags(pipeline, {"x": [12, 5]})
    assert bags(pipeline, {"x": []}) == [[]]
    assert bags(pipeline, {"x": None}) == [[NULL_FINGERPRINT]]


@pytest.mark.parametrize("codes", [[1, None], [1.5], [float("nan")]])
def test_a_code_that_is_none_is_refused(codes):
    pipeline = pipeline_of({"type": "semantic_id", "name": "x", "depth": 2})
    for action in (lambda: pipeline.encode({"x": codes}), lambda: pipeline.encode_frame(pl.DataFrame({"x": [codes]}))):
        with pytest.raises(DataError, match=r"x: .*Mend: "):
            action()


def test_a_sequence_is_the_latest_events_newest_first():
    last = pipeline_of({"type": "sequence", "name": "x", "length": 2})
    first = pipeline_of({"type": "sequence", "name": "x", "length": 2, "newest": "first"})
    assert bags(last, {"x": ["a", "b", "c"]}) == bags(first, {"x": ["c", "b", "a"]}) == [prints("c", "b")]
    assert bags(last, {"x": ["a"]}) == [prints("a")]


def test_gaps_stand_beside_their_events():
    feature = {"type": "sequence", "name": "x", "length": 2, "times": "at", "shortest": 1, "longest": 100, "buckets": 4}
    pipeline = pipeline_of(feature, time="now")
    assert pipeline.layout.bag_names == ("x", "x:gap")
    ago = [NOW - datetime.timedelta(seconds=seconds) for seconds in (1000, 10, 0.5)]
    assert bags(pipeline, {"x": ["a", "b", "c"], "at": ago, "now": NOW}) == [prints("c", "b"), prints("0", "2")]
    assert bags(pipeline, {"x": ["a"], "at": [NOW], "now": ago[0]}) == [prints("a"), prints("future")]
    assert bags(pipeline, {"x": ["a"], "at": [None], "now": NOW}) == [prints("a"), [NULL_FINGERPRINT]]
    assert bags(pipeline, {"x": [], "at": None, "now": NOW}) == [[], []]
    assert bags(pipeline, {"x": None, "at": None, "now": NOW}) == [[NULL_FINGERPRINT]] * 2
    with pytest.raises(DataError, match=r"at: another number of times.*'x'"):
        pipeline.encode({"x": ["a"], "at": [], "now": NOW})


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0, "0"), (0.999, "0"), (1, "1"), (9.99, "1"), (10, "2"), (100, "3"), (1e9, "3")]
)
def test_recency_is_logarithmic(seconds, bucket):
    feature = {"type": "recency", "name": "x", "shortest": 1, "longest": 100, "buckets": 4}
    row = {"x": NOW - datetime.timedelta(seconds=seconds), "now": NOW}
    assert pipeline_of(feature, time="now").encode(row).ids.tolist() == [prints(bucket)]


def test_recency_stands_beside_other_ids():
    spec = {
        "features": [{"type": "id", "name": "user"}, {"type": "recency", "name": "x", "unit": "s"}],
        "labels": ["click"],
        "time": "now",
        "time_unit": "s",
    }
    pipeline = FeaturePipeline(validate(FeatureSpec, spec))
    row = {"user": "a", "x": 1, "now": 2}
    assert pipeline.encode_frame(pl.DataFrame([row])).equal(pipeline.encode(row))


def test_recency_of_the_future_and_of_nothing():
    pipeline = pipeline_of({"type": "recency", "name": "x"}, time="now")
    later = NOW + datetime.timedelta(microseconds=1)
    rows = [{"x": later, "now": NOW}, {"x": None, "now": NOW}, {"x": NOW, "now": None}]
    assert pipeline.encode(rows).ids[:, 0].tolist() == [fingerprint("future"), NULL_FINGERPRINT, NULL_FINGERPRINT]
    assert pipeline.spec.feature_columns == ["x", "now"]


def test_days_and_months_are_those_of_the_calendar():
    start = datetime.datetime(1890, 1, 1)
    days = [start + datetime.timedelta(days=11 * step) for step in range(13_000)]
    frame = pl.DataFrame({"x": days})
    pipeline = pipeline_of(
        {"type": "time", "name": "day", "column": "x", "part": "day"},
        {"type": "time", "name": "month", "column": "x", "part": "month"},
        {"type": "time", "name": "hour_of_week", "column": "x", "part": "hour_of_week"},
    )
    ids = pipeline.encode_frame(frame).ids
    assert ids[:, 0].tolist() == [fingerprint(str(day.day)) for day in days]
    assert ids[:, 1].tolist() == [fingerprint(str(day.month)) for day in days]
    assert ids[:, 2].tolist() == [fingerprint(str(24 * day.weekday())) for day in days]


def test_the_circle_of_hours():
    pipeline = pipeline_of({"type": "cyclic", "name": "x", "part": "hour"})
    assert pipeline.layout.dense_names == ("x:sin", "x:cos")
    at = [NOW.replace(hour=hour) for hour in (0, 6, 23)]
    dense = pipeline.encode([{"x": moment} for moment in [*at, None]]).dense
    assert dense[0].tolist() == [0, 1]
    assert dense[1].tolist() == pytest.approx([1, 0], abs=1e-7)
    assert (dense[0] - dense[2]).norm().item() == pytest.approx(2 * math.sin(math.pi / 24), rel=1e-6)
    assert dense[3].tolist() == [0, 0]


def test_the_place_among_quantiles(tmp_path):
    feature = {"type": "number", "name": "x", "quantiles": 4, "missing_flag": True}
    pipeline = pipeline_of(feature).fit(pl.DataFrame({"x": [0.0, 0.0, 0.0, 10.0, 20.0, 20.0, 40.0, None]}))
    rows = [{"x": x} for x in (-1, 0, 5, 10, 30, 40, 50, None)]
    expected = [0.0, 0.125, 0.3125, 0.5, 0.875, 1.0, 1.0, 0.0]
    assert pipeline.encode(rows).dense.tolist() == [
        [place, float(place == 0 and row["x"] is None)] for place, row in zip(expected, rows, strict=True)
    ]
    pipeline.save(tmp_path)
    assert FeaturePipeline.load(tmp_path).encode(rows).equal(pipeline.encode(rows))
    assert "quantiles" not in pipeline_of({"type": "number", "name": "x"}).spec.model_dump(mode="json")["features"][0]
    with pytest.raises(ConfigError, match="quantiles already give a scale"):
        pipeline_of({**feature, "standardise": True})


def test_frequency_is_logarithmic_and_rare_is_unseen(tmp_path):
    counts = {"a": 1000, "b": 100, "c": 10, "d": 9, "e": 1}
    frame = pl.DataFrame({"x": [name for name, count in counts.items() for _ in range(count)] + [None] * 5000})
    pipeline = pipeline_of({"type": "frequency", "name": "x", "buckets": 4, "min_count": 2}).fit(frame)
    expected = [*prints("3", "2", "1", "1", "0", "0"), NULL_FINGERPRINT]
    rows = [{"x": name} for name in [*counts, "new", None]]
    assert pipeline.encode(rows).ids[:, 0].tolist() == expected
    assert pipeline.state()["x"]["values"] == 4
    pipeline.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipeline.json", "x.arrow"]
    loaded = FeaturePipeline.load(tmp_path)
    assert loaded.digest() == pipeline.digest()
    assert loaded.encode(rows).ids[:, 0].tolist() == expected
    assert loaded.encode_frame(pl.DataFrame(rows)).ids[:, 0].tolist() == expected


def test_counts_are_bounded_and_frequent_values_keep_theirs():
    rng = np.random.default_rng(0)
    rare = rng.integers(10_000, 10**9, 400_000)
    rare[::8] = np.arange(50_000) % 100
    feature = {"type": "frequency", "name": "x", "dtype": "integer", "buckets": 2, "max_values": 100, "min_count": 2}
    pipeline = pipeline_of(feature).fit(pl.DataFrame({"x": rare}))
    assert pipeline.state()["x"]["values"] == 100
    assert set(pipeline.encode([{"x": k} for k in range(100)]).ids[:, 0].tolist()) == {fingerprint("1")}
    assert pipeline.encode({"x": int(rare[1])}).ids.item() == fingerprint("0")


def test_frequencies_of_nothing_are_all_zero():
    frame = pl.DataFrame({"x": [None, "a"]})
    pipeline = pipeline_of({"type": "frequency", "name": "x"}).fit(frame)
    assert pipeline.encode_frame(frame).ids[:, 0].tolist() == [NULL_FINGERPRINT, fingerprint("0")]


def test_a_damaged_table_is_refused(tmp_path):
    frame = pl.DataFrame({"x": ["a", "a", "b", "b"]})
    pipeline_of({"type": "frequency", "name": "x"}).fit(frame).save(tmp_path)
    path = tmp_path / "x.arrow"
    whole = path.read_bytes()
    other = pl.read_ipc(path.read_bytes())
    for damage, words in [
        (lambda: path.write_bytes(whole[: len(whole) // 2]), "cannot be read|does not match"),
        (lambda: other.with_columns(bucket=pl.lit(7, dtype=pl.UInt8)).write_ipc(path), "does not match its digest"),
        (lambda: other.rename({"value": "v"}).write_ipc(path), "file is damaged"),
        (path.unlink, "file is missing"),
    ]:
        damage()
        with pytest.raises(ArtifactError, match=words):
            FeaturePipeline.load(tmp_path)


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        ({"type": "recency"}, r"features\.x: the time of the event is not known.*the spec's time"),
        ({"type": "sequence", "length": 2, "times": "at"}, r"features\.x: the time of the event is not known"),
        ({"type": "sequence", "length": 2, "times": "click"}, r"features\.x: .*leak"),
        ({"type": "ngrams", "n": [3, 2]}, r"features\.x\.n: sizes are not in order"),
        ({"type": "recency", "shortest": 10, "longest": 1}, r"features\.x\.shortest: bounds are not in order"),
        ({"type": "ngrams", "of": "word"}, "did you mean 'words'"),
    ],
)
def test_what_cannot_work_is_refused(feature, words):
    with pytest.raises(ConfigError, match=words):
        pipeline_of({"name": "x", **feature})


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ({"type": "ngrams"}, ["a"]),
        ({"type": "ngrams"}, 7),
        ({"type": "semantic_id", "depth": 2}, 7),
        ({"type": "sequence", "length": 2}, "a"),
        ({"type": "cyclic", "part": "hour"}, ["a"]),
        ({"type": "recency"}, [1]),
        ({"type": "id", "dtype": "integer"}, [1]),
        ({"type": "number"}, [1]),
    ],
)
def test_a_wrong_dtype_is_refused_by_both(feature, value):
    pipeline = pipeline_of({"name": "x", **feature}, time="now")
    with pytest.raises(DataError, match=r"x: .*Mend: "):
        pipeline.transform(pl.DataFrame({"x": [value], "now": [NOW]}), labels=False)
    with pytest.raises(DataError, match=r"x: .*Mend: "):
        pipeline.encode({"x": value, "now": NOW})
