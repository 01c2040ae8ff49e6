"""Recipes read the official files and the forms on this machine, and the generator keeps its word."""

import datetime
import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.errors import ConfigError, DataError
from features.pipeline import FeaturePipeline
from features.recipes import RECIPES, find_data
from features.recipes.criteo import CATEGORIES, INTEGERS
from features.spec import FeatureSpec
from features.validation import validate

USERS = "1::F::1::10::48067\n2::M::56::16::70072\n"
MOVIES = "10::Café Noir (1995)::Drama\n20::Toy (1996)::Animation|Children's\n30::Void (1997)::Drama\n"
RATINGS = "1::10::5::978300760\n1::20::3::978300700\n2::20::1::978300000\n2::10::2::978300000\n1::30::4::978300800\n"


@pytest.fixture
def ml_1m(tmp_path):
    """A made-up folder in the official form."""
    for name, text in (("users", USERS), ("movies", MOVIES), ("ratings", RATINGS)):
        (tmp_path / f"{name}.dat").write_bytes(text.encode("latin-1"))
    return tmp_path


def real_data(folder):
    try:
        return find_data(folder)
    except DataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_what_it_is(name):
    recipe = RECIPES[name]
    assert recipe.name == name
    assert recipe.description
    assert recipe.how_to_get
    validate(FeatureSpec, recipe.spec_hint)
    with pytest.raises(ConfigError, match="unknown key"):
        recipe.load(Path("."), nonsense=1)


def test_movielens_official_form(ml_1m):
    frame = RECIPES["movielens_1m"].load(ml_1m).collect()
    assert frame.rows(named=True)[0] == {
        "user_id": 1,
        "movie_id": 10,
        "gender": "F",
        "age": 1,
        "occupation": 10,
        "zip": "48067",
        "title": "Café Noir (1995)",
        "genres": ["Drama"],
        "rating": 5,
        "label": 1,
        "timestamp": datetime.datetime(2000, 12, 31, 22, 12, 40),
        "seq_pos": 1,
    }
    assert frame["rating"].to_list() == [5, 1, 2, 4]
    assert frame["label"].to_list() == [1, 0, 0, 1]
    # Ties of time keep the order of the file.
    assert frame["seq_pos"].to_list() == [1, 0, 1, 2]
    assert frame["genres"].to_list()[1] == ["Animation", "Children's"]


def test_movielens_neutral_ratings_are_counted_or_kept(ml_1m):
    recipe = RECIPES["movielens_1m"]
    assert recipe.provenance(ml_1m)["dropped"] == {"neutral rating of 3": 1}
    assert recipe.provenance(ml_1m, drop_neutral=False)["dropped"] == {}
    assert recipe.load(ml_1m, drop_neutral=False).collect()["label"].to_list() == [1, 0, 0, 0, 1]
    with pytest.raises(ConfigError, match=r"params\.drop_neutrals: .*did you mean 'drop_neutral'"):
        recipe.load(ml_1m, drop_neutrals=False)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ratings", "", "file is empty"),
        ("ratings", "1::10::5\n", "line 1 has another number of fields"),
        ("ratings", RATINGS + "1::10::fi", "line 6"),
        ("ratings", "1::10::five::978300760\n", "rating is no integer"),
        ("users", "x::F::1::10::48067\n", "user_id is no integer"),
    ],
)
def test_movielens_damaged_files(ml_1m, name, text, message):
    (ml_1m / f"{name}.dat").write_text(text)
    with pytest.raises(DataError, match=message):
        RECIPES["movielens_1m"].load(ml_1m).collect()


def test_movielens_missing_files(ml_1m):
    (ml_1m / "movies.dat").unlink()
    with pytest.raises(DataError, match=r"movies\.dat.*ml-1m\.zip"):
        RECIPES["movielens_1m"].load(ml_1m)


def test_movielens_real():
    folder = real_data("movielens-1m")
    frame = RECIPES["movielens_1m"].load(folder).collect()
    assert frame.height == 739_012
    assert frame["label"].mean() == pytest.approx(0.778, abs=5e-4)
    assert frame["user_id"].n_unique() == 6_039 or frame["user_id"].n_unique() == 6_040
    assert frame.select("gender", "age", "occupation", "zip", "title", "genres").null_count().sum_horizontal()[0] == 0
    whole = RECIPES["movielens_1m"].load(folder, drop_neutral=False).collect()
    assert whole.height == 1_000_209
    assert whole["timestamp"].count() == 549_143
    lengths = whole.group_by("user_id").agg(pl.col("seq_pos").sort())
    assert all(places == list(range(len(places))) for places in lengths["seq_pos"].to_list())


def criteo_line(label, category="68fd1e64"):
    return "\t".join([str(label), "-1", "", *["3"] * 11, category, "", *["0b153874"] * 24])


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
def test_criteo_official_form(tmp_path, name):
    text = "\n".join([criteo_line(0), criteo_line(1, "00000001")]) + "\n"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    recipe = RECIPES["criteo"]
    frame = recipe.load(tmp_path).collect()
    assert frame.columns == ["label", *INTEGERS, *CATEGORIES, "row"]
    assert frame["label"].to_list() == [0, 1]
    assert frame.row(0)[1:4] == (-1, None, 3)
    assert frame["C1"].to_list() == ["68fd1e64", "00000001"]
    assert frame["C2"].to_list() == [None, None]
    assert frame["row"].to_list() == [0, 1]
    pipeline = FeaturePipeline(validate(FeatureSpec, recipe.spec_hint)).fit(frame)
    assert pipeline.encode_frame(frame, labels=True).ids.shape == (2, 26)


def test_criteo_damaged_files(tmp_path):
    with pytest.raises(DataError, match="file is missing"):
        RECIPES["criteo"].load(tmp_path)
    (tmp_path / "train.txt").write_text("")
    with pytest.raises(DataError, match="file is empty"):
        RECIPES["criteo"].load(tmp_path)
    (tmp_path / "train.txt").write_text("label,I1,I2\n0,1,2\n")
    with pytest.raises(DataError, match="not the official form"):
        RECIPES["criteo"].load(tmp_path)


def test_criteo_real():
    folder = real_data("criteo-kaggle")
    frame = RECIPES["criteo"].load(folder).collect()
    assert frame.height == 137_139
    assert frame["label"].mean() == pytest.approx(0.257, abs=5e-4)
    assert frame["row"].to_list() == list(range(137_139))
    assert frame.select("part", "row_in_part").equals(frame.select("part", "row_in_part").sort("part", "row_in_part"))
    assert RECIPES["criteo"].load(folder, part="head").collect().height == 10_000


def test_find_data(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"not on this machine.*set RECSYS_DATA"):
        find_data("movielens-1m")
    with pytest.raises(DataError, match="grouplens"):
        RECIPES["movielens_1m"].load()
    (tmp_path / "movielens-1m").mkdir()
    assert find_data("movielens-1m") == tmp_path / "movielens-1m"
    (tmp_path / "movielens-1m").rename(tmp_path / "ml-1m")
    assert find_data("movielens-1m", also=["ml-1m"]) == tmp_path / "ml-1m"
    with pytest.raises(DataError, match=r"ml-1m: file is missing.*ratings\.dat"):
        RECIPES["movielens_1m"].load()
    (tmp_path / "ml-1m").rmdir()
    with pytest.raises(DataError, match="folder named movielens-1m or ml-1m and set RECSYS_DATA"):
        RECIPES["movielens_1m"].load()
    monkeypatch.delenv("RECSYS_DATA")
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    with pytest.raises(DataError, match="shared/data"):
        find_data("movielens-1m")


@pytest.fixture(scope="module")
def synthetic():
    return RECIPES["synthetic"].load(rows=200_000, seed=7).collect()


def test_synthetic_is_deterministic(synthetic):
    assert RECIPES["synthetic"].load(rows=200_000, seed=7).collect().equals(synthetic)
    other = RECIPES["synthetic"].load(rows=200_000, seed=8).collect()
    assert not other["user_id"].equals(synthetic["user_id"])


def test_synthetic_golden(synthetic):
    row = synthetic.row(0, named=True)
    expected = {
        "country": "c1",
        "device": "d0",
        "publisher_id": 226,
        "ad_id": 149,
        "user_id": 0,
        "tags": ["t2"],
        "age": 43,
        "click": 1,
    }
    assert {name: row[name] for name in expected} == expected
    assert row["p_true"] == pytest.approx(0.256801955209295)


def test_synthetic_clicks_are_drawn_with_p_true(synthetic):
    p = synthetic["p_true"].to_numpy()
    click = synthetic["click"].to_numpy()
    assert p.min() > 0
    assert p.max() < 1
    for low in np.arange(0, 1, 0.1):
        here = (p >= low) & (p < low + 0.1)
        error = np.sqrt((p[here] * (1 - p[here])).sum())
        assert abs((click - p)[here].sum()) <= 4 * error + 1e-9
    assert abs((click - p).sum()) <= 3 * np.sqrt((p * (1 - p)).sum())
    assert p.mean() == pytest.approx(0.25, abs=0.03)


def test_synthetic_has_every_sort_of_column(synthetic):
    schema = synthetic.schema
    assert schema["tags"] == pl.List(pl.String)
    assert schema["timestamp"] == pl.Datetime("us")
    assert synthetic["timestamp"].is_sorted()
    assert synthetic["country"].null_count() > 0
    assert synthetic["price"].null_count() > 0
    assert synthetic["tags"].list.len().min() == 0
    assert synthetic["user_id"].n_unique() > 10_000
    spec = validate(FeatureSpec, RECIPES["synthetic"].spec_hint)
    batch = FeaturePipeline(spec).fit(synthetic).encode_frame(synthetic.head(1000), labels=True)
    assert batch.reference.tolist() == pytest.approx(synthetic["p_true"].head(1000).to_list())


def test_synthetic_ids_drift(synthetic):
    day = pl.col("timestamp").dt.ordinal_day()
    first, last = synthetic.filter(day == 1), synthetic.filter(day == 10)

    def unseen(name):
        return (~last[name].is_in(first[name].unique().implode())).mean()

    assert unseen("publisher_id") > 0.1
    # One in fifty ranks is renewed a day, and nothing else separates day 1 from day 10.
    still = RECIPES["synthetic"].load(rows=200_000, seed=7, drift=0.0).collect()
    first, last = still.filter(day == 1), still.filter(day == 10)
    assert unseen("publisher_id") < 0.02


def test_synthetic_frequencies_follow_zipf(synthetic):
    counts = synthetic["user_id"].value_counts(sort=True)["count"]
    assert counts[0] / counts[9] == pytest.approx(10**1.2, rel=0.1)


def test_synthetic_truth_does_not_depend_on_the_number_of_rows():
    def bias_of(rows):
        fields = {"country": 3, "device": 2, "user_id": 4}
        frame = RECIPES["synthetic"].load(rows=rows, seed=1, fields=fields, drifting=[]).collect()
        hour = pl.col("timestamp").dt.hour().alias("hour")
        plain = frame.filter((pl.col("tags").list.len() == 0) & pl.col("price").is_null())
        plain = plain.select(*fields, "age", hour, "p_true")
        return {row[:-1]: row[-1] for row in plain.rows()}

    few, many = bias_of(20_000), bias_of(60_000)
    shared = few.keys() & many.keys()
    assert len(shared) > 20
    assert all(few[key] == pytest.approx(many[key], abs=1e-12) for key in shared)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"rows": 0}, "greater than or equal to 1"),
        ({"row": 10}, "did you mean 'rows'"),
        ({"fields": {"ad_id": 10}}, "always needed"),
        ({"fields": {"country": 5, "device": 3, "user_id": 10, "click": 3}}, "taken"),
        ({"drifting": ["shop"]}, "no such field"),
    ],
)
def test_synthetic_parameters_that_make_no_sense(params, message):
    with pytest.raises(ConfigError, match=message):
        RECIPES["synthetic"].load(**params)


def test_synthetic_with_other_fields():
    fields = {"country": 3, "device": 2, "user_id": 50, "shop": 20}
    frame = RECIPES["synthetic"].load(rows=1000, fields=fields, drifting=["shop"], drift=1.0).collect()
    assert frame.columns[:4] == ["country", "device", "user_id", "shop"]
    assert frame["shop"].max() > 20
