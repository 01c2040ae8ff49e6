"""Every row goes to one split, by the rule and by nothing else."""

from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from features.errors import ConfigError, DataError
from features.spec import FeatureSpec
from features.storage.splits import ColumnSplit, LastPerGroupSplit, RandomSplit, SplitConfig, TimeSplit, assign_split
from features.validation import Strict, validate

SPEC = validate(FeatureSpec, {"features": [{"type": "id", "name": "u"}], "labels": ["y"], "time": "t", "group": "g"})
BARE = validate(FeatureSpec, {"features": [{"type": "id", "name": "u"}], "labels": ["y"]})


def names(frame, split, spec=SPEC):
    found = assign_split(frame.lazy(), split, spec).collect()
    assert found.drop("__split__").equals(frame)
    return found["__split__"].to_list()


def test_random_shares_and_independence():
    frame = pl.DataFrame({"u": range(50_000)})
    found = names(frame, RandomSplit(seed=1))
    for name, share in (("train", 0.8), ("valid", 0.1), ("test", 0.1)):
        # Four standard errors of a share of 50,000 draws.
        assert found.count(name) / 50_000 == pytest.approx(share, abs=4 * (share * (1 - share) / 50_000) ** 0.5)
    other = names(frame, RandomSplit(seed=2))
    both = sum(a == b == "test" for a, b in zip(found, other, strict=True))
    assert both == pytest.approx(500, abs=100)


def test_random_is_stable_when_rows_are_added():
    short, long = pl.DataFrame({"u": range(100)}), pl.DataFrame({"u": range(1000)})
    assert names(long, RandomSplit())[:100] == names(short, RandomSplit())
    # Golden: the same division for ever.
    assert [place for place, name in enumerate(names(short, RandomSplit())) if name == "test"] == [
        69,
        70,
        73,
        75,
        79,
        88,
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=60))
def test_time_is_ordered_with_exact_counts(times):
    found = names(pl.DataFrame({"t": times}), TimeSplit(fractions=(0.5, 0.3, 0.2)))
    n = len(times)
    assert found.count("train") == round(n * 0.5)
    assert found.count("train") + found.count("valid") == round(n * 0.8)
    by_split = {
        name: [t for t, s in zip(times, found, strict=True) if s == name] for name in ("train", "valid", "test")
    }
    ordered = [by_split[name] for name in ("train", "valid", "test") if by_split[name]]
    for earlier, later in pairwise(ordered):
        assert max(earlier) <= min(later)


def test_time_by_several_columns_and_ties_in_input_order():
    frame = pl.DataFrame({"part": [2, 1, 1, 2], "row": [1, 2, 1, 1]})
    found = names(frame, TimeSplit(fractions=(0.5, 0.25, 0.25), columns=["part", "row"]))
    assert found == ["valid", "train", "train", "test"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 50)), min_size=1, max_size=40))
def test_last_per_group(rows):
    frame = pl.DataFrame(rows, schema={"g": pl.Int64, "t": pl.Int64}, orient="row")
    found = names(frame, LastPerGroupSplit())
    for group in {g for g, _ in rows}:
        mine = sorted((t, place, found[place]) for place, (g, t) in enumerate(rows) if g == group)
        assert [name for _, _, name in mine][::-1] == ["test", "valid", *["train"] * len(mine)][: len(mine)]


def test_column_with_values_of_no_split():
    split = ColumnSplit(column="day", values={"train": [1, 2], "valid": [3], "test": [4]})
    assert names(pl.DataFrame({"day": [1, 2, 3, 4, 5, None]}), split) == ["train", "train", "valid", "test", None, None]
    flag = ColumnSplit(column="b", values={"train": [True], "valid": [False], "test": ["never"]})
    assert names(pl.DataFrame({"b": [True, False]}), flag) == ["train", "valid"]


def test_missing_and_null_columns():
    with pytest.raises(DataError, match="t: is missing in 1 of 2 rows"):
        names(pl.DataFrame({"t": [1, None]}), TimeSplit())
    with pytest.raises(DataError, match="did you mean 'seq_pos'"):
        names(pl.DataFrame({"seq_pos": [1]}), TimeSplit(columns=["seqpos"]))
    with pytest.raises(DataError, match="day: column is missing"):
        names(pl.DataFrame({"t": [1]}), ColumnSplit(column="day", values={"train": [1], "valid": [2], "test": [3]}))
    with pytest.raises(ConfigError, match="no column to order by"):
        names(pl.DataFrame({"t": [1]}), TimeSplit(), BARE)
    with pytest.raises(ConfigError, match="no group column"):
        names(pl.DataFrame({"t": [1]}), LastPerGroupSplit(columns=["t"]), BARE)


@pytest.mark.parametrize("name", ["__split__", "__row__"])
def test_a_column_with_a_name_of_ours_is_refused(name):
    with pytest.raises(DataError, match=f"{name}: this name is taken.*Mend: rename it"):
        names(pl.DataFrame({"t": [1], name: [1]}), RandomSplit())


@pytest.mark.parametrize("fractions", [[0.8, 0.2], [0.4, 0.3, 0.2, 0.1], []])
def test_three_fractions(fractions):
    with pytest.raises(ConfigError, match=r"Expected: three fractions: train, valid, test"):
        validate(Config, {"split": {"kind": "random", "fractions": fractions}})


class Config(Strict):
    split: SplitConfig


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "randon"}, "did you mean 'random'"),
        ({"kind": "random", "fraction": [1, 0, 0]}, "did you mean 'fractions'"),
        ({"kind": "random", "fractions": [0.8, 0.1, 0.2]}, "sum to 1"),
        ({"kind": "time", "fractions": [0.9, 0.1, 0.0]}, "above 0"),
        ({"kind": "column", "column": "c", "values": {"train": [1], "valid": [2]}}, "each of train, valid and test"),
        ({"kind": "column", "column": "c", "values": {"train": [1], "valid": [2], "test": [1]}}, "none twice"),
    ],
)
def test_configs_that_make_no_sense(data, message):
    with pytest.raises(ConfigError, match=message):
        validate(Config, {"split": data})


def test_the_config_is_read_by_its_kind():
    adapter = TypeAdapter(SplitConfig)
    assert adapter.validate_python({"kind": "time"}) == TimeSplit()


@pytest.mark.parametrize(
    ("text", "order"),
    [
        (["10", "9", "-1", "007"], [2, 3, 1, 0]),
        (["1e3", "9.5", "-1", "7"], [2, 3, 1, 0]),
        (["2024-01-02 03:04:05", "2024-01-02T03:04:04Z", "2023-12-31 23:59:59.5", "2024-01-01T00:00:00"], [2, 3, 1, 0]),
        (["10", "9", "b", "a"], [0, 1, 3, 2]),
    ],
)
def test_numbers_and_times_as_text_are_ordered_by_what_they_say(text, order):
    spec = validate(FeatureSpec, {"features": [{"type": "id", "name": "u"}], "labels": ["y"], "time": "t"})
    frame = pl.LazyFrame({"u": ["a"] * 4, "t": text})
    time = TimeSplit(fractions=(0.5, 0.25, 0.25))
    for split in (time, LastPerGroupSplit(group="u")):
        found = assign_split(frame, split, spec).collect()
        assert found["__split__"].gather(order).to_list() == ["train", "train", "valid", "test"]
        assert found["t"].to_list() == text
