"""A profile says what the columns hold, by known truth, in bounded memory, and repeats."""

import datetime

import numpy as np
import polars as pl
import pytest

from features.errors import DataError
from features.profiling.bins import MISSING, OTHER, bins_of
from features.profiling.profile import profile_of
from features.profiling.roles import find_roles, is_time, unit_of
from features.profiling.time_drift import drift_of, jensen_shannon

ROWS = 3000
START = datetime.datetime(2024, 1, 1)


def events():
    rng = np.random.default_rng(3)
    price = np.round(rng.gamma(2, 10, ROWS), 2).tolist()
    return pl.DataFrame(
        {
            "row": range(ROWS),
            "user_id": rng.integers(0, 200, ROWS),
            "city": [None if city == 3 else f"c{city}" for city in rng.integers(0, 5, ROWS)],
            "price": [None if place % 10 == 0 else value for place, value in enumerate(price)],
            "zip": [f"{code:05d}" for code in rng.integers(0, 900, ROWS)],
            "amount": [str(value) for value in price],
            "tags": [[f"t{tag}" for tag in range(place % 3)] for place in range(ROWS)],
            "at": [START + datetime.timedelta(minutes=10 * place) for place in range(ROWS)],
            "seen": [str(START + datetime.timedelta(hours=place % 48)) for place in range(ROWS)],
            "release": [f"v{place * 4 // ROWS}" for place in range(ROWS)],
            "nested": [{"a": 1}] * ROWS,
            "nothing": [None] * ROWS,
            "click": rng.integers(0, 2, ROWS),
        }
    )


@pytest.fixture(scope="module")
def profile():
    return profile_of(events().lazy())


def test_counts_are_those_of_the_data(profile):
    frame = events()
    assert profile.rows == ROWS
    assert [column.name for column in profile.columns] == frame.columns
    for column in profile.columns:
        values = frame.get_column(column.name)
        assert column.missing == values.null_count()
        if column.kind in ("list", "other"):
            continue
        truth = values.drop_nulls().n_unique()
        assert column.distinct == pytest.approx(truth, rel=0.03)
        if column.exact:
            assert column.distinct == truth
            counts = dict(values.drop_nulls().cast(pl.String).value_counts().iter_rows())
            assert all(counts[item.value] == item.count for item in column.top)
    city = profile.column("city")
    assert (city.exact, city.distinct, city.head_share) == (True, 4, 1.0)


def test_kinds_and_what_text_writes(profile):
    found = {column.name: (column.kind, column.reading) for column in profile.columns}
    assert found == {
        "row": ("integer", None),
        "user_id": ("integer", None),
        "city": ("text", None),
        "price": ("number", None),
        "zip": ("text", "integer"),
        "amount": ("text", "number"),
        "tags": ("list", None),
        "at": ("time", None),
        "seen": ("text", "time"),
        "release": ("text", None),
        "nested": ("other", None),
        "nothing": ("empty", None),
        "click": ("integer", None),
    }
    assert profile.column("zip").leading_zeros
    assert not profile.column("amount").leading_zeros
    assert [column.name for column in profile.columns if column.ascending] == ["row"]
    tags = profile.column("tags")
    assert (tags.inner, tags.values, tags.distinct, tags.quantiles[1.0]) == ("text", ROWS, 2, 2.0)
    assert "nested" not in profile.sample.columns


def test_quantiles_are_those_of_the_numbers(profile):
    price = events().get_column("price").drop_nulls().to_numpy()
    quantiles = profile.column("price").quantiles
    assert (quantiles[0.0], quantiles[1.0]) == (price.min(), price.max())
    for share in (0.05, 0.5, 0.95):
        assert (price <= quantiles[share]).mean() == pytest.approx(share, abs=0.005)


def test_the_same_rows_give_the_same_profile_however_they_are_cut(profile, tmp_path):
    events().write_parquet(tmp_path / "small_groups.parquet", row_group_size=101)
    again = profile_of(pl.scan_parquet(tmp_path / "small_groups.parquet"))
    assert [column.to_json() for column in again.columns] == [column.to_json() for column in profile.columns]
    assert again.sample.equals(profile.sample)


def test_the_sample_is_every_so_manyth_row_of_the_whole_source():
    found = profile_of(events().lazy(), sample_rows=400)
    assert found.stride == 8
    assert found.sample.get_column("row").to_list() == list(range(0, ROWS, 8))


def test_text_that_is_once_no_number_is_text():
    found = profile_of(pl.LazyFrame({"x": ["1", "2", "n/a", None]}))
    assert (found.column("x").kind, found.column("x").reading) == ("text", None)


def test_nan_is_missing_and_whole_floats_are_seen():
    found = profile_of(pl.LazyFrame({"x": [1.0, float("nan"), 3.0, None], "y": [0.5, 1.0, 2.0, 3.0]}))
    assert (found.column("x").missing, found.column("x").whole, found.column("x").distinct) == (2, True, 2)
    assert not found.column("y").whole


def test_long_texts_stay_apart_and_are_kept_short():
    long = ["x" * 5000 + end for end in "ab"]
    column = profile_of(pl.LazyFrame({"page": long * 5})).column("page")
    assert column.distinct == 2
    assert len({item.value for item in column.top}) == 2
    assert max(len(item.value) for item in column.top) < 200


def test_a_source_without_rows_is_an_error():
    with pytest.raises(DataError, match="no rows"):
        profile_of(pl.LazyFrame({"x": []}, schema={"x": pl.Int64}))


def test_roles_are_found(profile):
    roles = find_roles(profile)
    assert (roles.label, roles.time, roles.time_unit, roles.group) == ("click", "at", None, "user_id")


@pytest.mark.parametrize(
    ("columns", "label", "candidates"),
    [
        ({"target": [0, 1, 1]}, "target", ["target"]),
        ({"is_b": [True, False, True], "odd": [0, 1, 0]}, "is_b", ["is_b", "odd"]),
        ({"odd": ["0", "1", "0"]}, "odd", ["odd"]),
        ({"odd": [0.0, 1.0, 1.0]}, "odd", ["odd"]),
        ({"odd": ["true", "false", "true"], "even": [1, 0, 1]}, None, ["odd", "even"]),
        ({"click": [0, 1, None]}, None, []),
        ({"click": [1, 2, 1]}, None, []),
        ({"click": [1, 1, 1]}, None, []),
    ],
)
def test_a_label_holds_two_values_and_its_name_decides(columns, label, candidates):
    roles = find_roles(profile_of(pl.LazyFrame(columns)))
    assert (roles.label, list(roles.candidates)) == (label, candidates)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("lable", [0, 1], "did you mean 'label'"),
        ("label", [0, 1, 2], "label has other values than 0 and 1"),
        ("label", ["yes", "no"], "label has other values than 0 and 1.*yes"),
        ("label", [1, 1], "one class only"),
        ("label", [0, 1, None], "label is missing in 1 of 3 rows"),
    ],
)
def test_a_given_label_that_is_none_is_an_error(name, values, message):
    with pytest.raises(DataError, match=message):
        find_roles(profile_of(pl.LazyFrame({"label": values})), label=name)


@pytest.mark.parametrize(
    ("values", "message"),
    [(["a", "b"], "holds no times"), ([START, None], "time is missing in 1 of 2"), ([1, 2], "holds no times")],
)
def test_a_given_time_that_is_none_is_an_error(values, message):
    with pytest.raises(DataError, match=message):
        find_roles(profile_of(pl.LazyFrame({"when": values})), time="when")


@pytest.mark.parametrize(("unit", "steps"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_integer_times_tell_their_unit(unit, steps):
    found = profile_of(pl.LazyFrame({"timestamp": [1_700_000_000 * steps, 1_700_000_060 * steps]}))
    assert unit_of(found.column("timestamp")) == unit
    assert is_time(found.column("timestamp"))
    roles = find_roles(found)
    assert (roles.time, roles.time_unit) == ("timestamp", unit)


def test_bins_hold_every_row_once(profile):
    for column in profile.columns:
        if column.kind in ("other", "empty"):
            continue
        values = profile.sample.get_column(column.name)
        bins = bins_of(column, values)
        counts = dict(zip(bins.names, bins.counts().tolist(), strict=True))
        assert sum(counts.values()) == ROWS
        assert counts[MISSING] == values.null_count()
    city = bins_of(profile.column("city"), profile.sample.get_column("city"))
    assert city.names[-2:] == (OTHER, MISSING)
    assert city.counts()[-2] == 0
    price = bins_of(profile.column("price"), profile.sample.get_column("price"))
    assert price.ordered
    assert len(price.names) == 11


def test_drift_is_seen_where_it_is(profile):
    drift = drift_of(profile, "at", None)
    assert sum(drift.rows) == ROWS
    assert drift.of("release") > 0.9
    assert max(drift.of(name) for name in ("city", "price", "zip", "tags", "click")) < 0.02
    assert drift.divergence["release"][0] == 0.0


def test_chance_is_what_equal_slices_differ_by():
    rng = np.random.default_rng(5)
    bins, rows = 10, 500
    found = []
    for _ in range(300):
        a, b = (np.bincount(rng.integers(0, bins, rows), minlength=bins) / rows for _ in range(2))
        found.append(jensen_shannon(a, b))
    assert np.mean(found) == pytest.approx((bins - 1) / (8 * np.log(2)) * 2 / rows, rel=0.1)


def test_one_moment_has_no_slices():
    found = profile_of(pl.LazyFrame({"at": [START] * 1000, "x": [1] * 1000}))
    assert drift_of(found, "at", None) is None
