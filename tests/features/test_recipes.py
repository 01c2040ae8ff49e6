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


FRAPPE_HEADER = "user\titem\tcnt\tdaytime\tweekday\tisweekend\thomework\tcost\tweather\tcountry\tcity"

FRAPPE_ITEMS = [10, 50, 50, 20, 40, 10, 30, 50, 50, 10, 50, 50, 20, 50, 50, 30, 50, 50, 40, 50, 50, 50, 40, 10]
FRAPPE_ITEMS_SEED_1 = [10, 40, 50, 20, 10, 10, 30, 50, 20, 10, 50, 50, 20, 50, 50, 30, 50, 50, 40, 50, 50, 50, 10, 10]


def frappe_line(user, item, city=0):
    return f"{user}\t{item}\t9\tmorning\tsunday\tweekend\tunknown\tfree\tsunny\tCôte d'Ivoire\t{city}"


def frappe_file(folder, *lines):
    (folder / "frappe.csv").write_text("\n".join([FRAPPE_HEADER, *lines]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def frappe(tmp_path):
    """A made-up folder: users 7 and 8 lack items, user 9 lacks item 50 alone."""
    uses = [(7, 10), (8, 20), (7, 30), *((9, item) for item in (10, 20, 30, 40)), (8, 50)]
    return frappe_file(tmp_path, *(frappe_line(user, item, 100 + place) for place, (user, item) in enumerate(uses)))


def test_frappe_golden(frappe):
    frame = RECIPES["frappe"].load(frappe).collect()
    assert frame.row(1, named=True) == {
        "label": 0,
        "user": 7,
        "item": 50,
        "daytime": "morning",
        "weekday": "sunday",
        "isweekend": "weekend",
        "homework": "unknown",
        "cost": "free",
        "weather": "sunny",
        "country": "Côte d'Ivoire",
        "city": 100,
    }
    assert frame.schema["label"] == pl.Int8
    assert frame["label"].to_list() == [1, 0, 0] * 8
    assert frame["city"].to_list() == [100 + place for place in range(8) for _ in range(3)]
    assert frame["user"].to_list() == [user for user in (7, 8, 7, 9, 9, 9, 9, 8) for _ in range(3)]
    assert frame["item"].to_list() == FRAPPE_ITEMS
    assert RECIPES["frappe"].load(frappe, seed=1).collect()["item"].to_list() == FRAPPE_ITEMS_SEED_1


def test_frappe_draws_hang_on_the_seed_alone(frappe):
    recipe = RECIPES["frappe"]
    frame = recipe.load(frappe).collect()
    assert recipe.load(frappe).collect().equals(frame)
    # More negatives leave those there are as they were, and other context changes no draw.
    more = recipe.load(frappe, negatives=5).collect().with_columns(which=pl.int_range(pl.len()) % 6)
    assert more.filter(pl.col("which") < 3).drop("which").equals(frame)
    positives = recipe.load(frappe, negatives=0).collect()
    assert positives.equals(frame.filter(pl.col("label") == 1))
    text = (frappe / "frappe.csv").read_text(encoding="utf-8")
    (frappe / "frappe.csv").write_bytes(text.replace("sunny", "rainy").replace("\n", "\r\n").encode())
    assert recipe.load(frappe).collect()["item"].equals(frame["item"])


def test_frappe_negatives_are_items_the_user_never_used(tmp_path):
    rng = np.random.default_rng(5)
    # 60 users with from 1 to all of 60 items, some used twice.
    uses = [(user, item) for user in range(60) for item in rng.permutation(60)[: user + 1] * 7]
    uses = [uses[place] for place in rng.permutation(len(uses))] + uses[:300]
    folder = frappe_file(tmp_path, *(frappe_line(user * 1000, item) for user, item in uses))
    frame = RECIPES["frappe"].load(folder, negatives=3, seed=11).collect()
    positives, negatives = frame.filter(pl.col("label") == 1), frame.filter(pl.col("label") == 0)
    assert positives.select("user", "item").rows() == [(user * 1000, item) for user, item in uses]
    assert negatives.join(positives, on=["user", "item"], how="semi").height == 0
    assert set(negatives["item"]) <= set(positives["item"])
    # User 59 used every item: there is nothing to draw.
    everything = sum(user == 59 for user, _ in uses)
    assert negatives.height == 3 * (len(uses) - everything)
    assert 59_000 not in negatives["user"]
    # User 58 lacks one item.
    (lacking,) = set(range(0, 420, 7)) - {item for user, item in uses if user == 58}
    assert set(negatives.filter(pl.col("user") == 58_000)["item"]) == {lacking}
    assert RECIPES["frappe"].provenance(folder, negatives=3, seed=11) == {
        "recipe": "frappe",
        "params": {"negatives": 3, "seed": 11},
        "rows": frame.height,
        "positives": len(uses),
        "negatives": negatives.height,
        "dropped": {},
    }


def test_frappe_negatives_are_uniform(tmp_path):
    lines = [*(frappe_line(1, item) for item in (0, 3, 4, 9)), *(frappe_line(2, item) for item in range(10))]
    frame = RECIPES["frappe"].load(frappe_file(tmp_path, *lines * 100), negatives=6).collect()
    counts = frame.filter(pl.col("label") == 0)["item"].value_counts()
    assert set(counts["item"]) == {1, 2, 5, 6, 7, 8}
    # 2,400 draws of six items; the 99.9th percentile of chi-square with 5 degrees of freedom is 20.5.
    assert ((counts["count"] - 400) ** 2 / 400).sum() < 20.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"frappe\.csv: file is empty"),
        (FRAPPE_HEADER + "\n", r"frappe\.csv: file is empty.*a header alone"),
        ("<html>\n<body>\n", "user: column is missing"),
        (FRAPPE_HEADER.replace("weather", "wether") + "\n" + frappe_line(1, 2), "weather: .*did you mean 'wether'"),
        (FRAPPE_HEADER + "\n" + frappe_line(1, 2) + "\n1\t3\t9\tmor", "line 3 has no weekday.*unpack"),
        (FRAPPE_HEADER + "\n" + frappe_line(1, 2) + "\t5\n", r"frappe\.csv: file is damaged"),
        (FRAPPE_HEADER + "\n" + frappe_line("x", 2), "user is no integer.*'x'"),
        (FRAPPE_HEADER + "\n" + frappe_line(1, "2.5"), "item is no integer"),
        (FRAPPE_HEADER + "\n" + frappe_line(1, 2, "\udcff"), "file is damaged"),
    ],
)
def test_frappe_damaged_files(tmp_path, text, message):
    (tmp_path / "frappe.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message):
        RECIPES["frappe"].load(tmp_path)


def test_frappe_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"file is missing.*frappe\.csv.*frappe\.zip"):
        RECIPES["frappe"].load(tmp_path)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"negatives": -1}, r"params\.negatives: .*greater than or equal to 0"),
        ({"negatives": 1.5}, r"params\.negatives"),
        ({"seed": -1}, r"params\.seed: .*greater than or equal to 0"),
        ({"negative": 2}, "did you mean 'negatives'"),
    ],
)
def test_frappe_parameters_that_make_no_sense(frappe, params, message):
    with pytest.raises(ConfigError, match=message):
        RECIPES["frappe"].load(frappe, **params)


def test_frappe_real():
    folder = real_data("frappe")
    recipe = RECIPES["frappe"]
    frame = recipe.load(folder).collect()
    assert frame.height == 288_609
    assert frame["label"].sum() == 96_203
    assert frame["label"].to_list()[:6] == [1, 0, 0, 1, 0, 0]
    assert frame.null_count().sum_horizontal()[0] == 0
    assert frame["user"].n_unique() == 957
    assert frame["item"].n_unique() == 4_082
    positives, negatives = frame.filter(pl.col("label") == 1), frame.filter(pl.col("label") == 0)
    assert negatives.join(positives, on=["user", "item"], how="semi").height == 0
    pipeline = FeaturePipeline(validate(FeatureSpec, recipe.spec_hint)).fit(frame)
    assert pipeline.encode_frame(frame.head(9), labels=True).ids.shape == (9, 10)


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


OPEN_BANDIT_HEADER = ",timestamp,item_id,position,click,propensity_score," + ",".join(
    [*(f"user_feature_{n}" for n in range(4)), *(f"user-item_affinity_{n}" for n in range(3))]
)
OPEN_BANDIT_ITEMS = [
    ",item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3",
    "0,0,-0.5,{0}7a,{0}11,{0}c",
    "1,1,0.25,{0}3b,{0}11,{0}c",
    "2,2,1.0,{0}7a,{0}22,{0}c",
]


def open_bandit_line(row, time, item, position, click, propensity="0.0125", affinities="0.0,2.0,0.0"):
    return f"{row},2019-11-24 00:00:{time}+00:00,{item},{position},{click},{propensity},u,v,w,x,{affinities}"


def open_bandit_files(folder, *lines, behaviour="random", salt="f", inner=""):
    place = folder / behaviour / inner
    place.mkdir(parents=True, exist_ok=True)
    (place / "all.csv").write_text("\n".join([OPEN_BANDIT_HEADER, *lines]) + "\n")
    (place / "item_context.csv").write_text("\n".join(OPEN_BANDIT_ITEMS).format(salt) + "\n")
    return folder


@pytest.mark.parametrize("inner", ["", "all"])
def test_open_bandit_golden(tmp_path, inner):
    lines = (open_bandit_line(0, "53.965051", 2, 3, 1), open_bandit_line(1, "34.76283", 0, 1, 0, "0.00005"))
    recipe = RECIPES["open_bandit"]
    frame = recipe.load(open_bandit_files(tmp_path, *lines, inner=inner)).collect()
    # In the order of time, whatever that of the file.
    assert frame.row(1, named=True) == {
        "timestamp": datetime.datetime(2019, 11, 24, 0, 0, 53, 965051),
        "item_id": 2,
        "position": 3,
        "click": 1,
        "propensity_score": 0.0125,
        "user_feature_0": "u",
        "user_feature_1": "v",
        "user_feature_2": "w",
        "user_feature_3": "x",
        "item_feature_0": 1.0,
        "item_feature_1": 0,
        "item_feature_2": 2,
        "item_feature_3": 0,
        "affinities": [0.0, 2.0, 0.0],
    }
    assert frame["propensity_score"].to_list() == [0.00005, 0.0125]
    pipeline = FeaturePipeline(validate(FeatureSpec, recipe.spec_hint)).fit(frame)
    assert pipeline.encode_frame(frame, labels=True).ids.shape == (2, 9)


def test_open_bandit_items_are_alike_under_both_policies(tmp_path):
    for behaviour, salt in (("random", "f"), ("bts", "0")):
        lines = [open_bandit_line(item, f"0{item}.5", item, 1, 0) for item in range(3)]
        open_bandit_files(tmp_path, *lines, behaviour=behaviour, salt=salt)
    random, bts = (RECIPES["open_bandit"].load(tmp_path, behaviour=name).collect() for name in ("random", "bts"))
    assert random.equals(bts)
    assert random["item_feature_1"].to_list() == [0, 1, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (open_bandit_line(0, "34.7", 7, 1, 0), "item has no line. Found: item_id 7"),
        (open_bandit_line(0, "34.7", 1, 1, 0, "often"), "line 2 has no propensity_score. Found: often"),
        (open_bandit_line(0, "late", 1, 1, 0), "line 2 has no timestamp. Found: 2019-11-24 00:00:late"),
        (open_bandit_line(0, "34.7", 1, "top", 0), "position is no integer. Found: 'top'"),
        ("", "a header alone"),
    ],
)
def test_open_bandit_damaged_files(tmp_path, line, message):
    open_bandit_files(tmp_path, *([line] if line else []))
    with pytest.raises(DataError) as error:
        RECIPES["open_bandit"].load(tmp_path).collect()
    assert message in str(error.value)
    (tmp_path / "random" / "item_context.csv").unlink()
    with pytest.raises(DataError, match="file is missing"):
        RECIPES["open_bandit"].load(tmp_path)


@pytest.mark.parametrize(("behaviour", "clicks"), [("random", 38), ("bts", 42)])
def test_open_bandit_real(behaviour, clicks):
    frame = RECIPES["open_bandit"].load(real_data("open-bandit"), behaviour=behaviour).collect()
    assert frame.height == 10_000
    assert frame["click"].sum() == clicks
    assert sorted(frame["position"].unique()) == [1, 2, 3]
    assert frame["item_id"].n_unique() == 80
    assert frame["timestamp"].is_sorted()
    assert frame["affinities"].list.len().unique().to_list() == [80]
    assert frame["propensity_score"].is_between(0, 1, closed="right").all()
    assert [frame[f"item_feature_{n}"].n_unique() for n in range(1, 4)] == [12, 21, 7]
