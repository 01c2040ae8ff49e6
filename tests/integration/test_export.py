"""Vectors leave a trained model as they are in it, told from those of any other; and they find neighbours."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.fingerprint import FINGERPRINT_VERSION, fingerprint
from pipelines.vectors import METADATA, matrix_of, read_vectors
from recsys.embeddings.addressing import HASH_VERSION
from recsys.serving.bundle import Bundle, load_bundle

MODEL = "models:/small@challenger"
RUN = Path("work/small/runs/0001")


def bundle_of(world: Any) -> Bundle:
    return load_bundle(world.folder / RUN / "bundle")


def exported(recsys: Callable[..., Any], out: Path, *arguments: object) -> tuple[pa.Table, dict[str, Any]]:
    outcome = recsys("export", *arguments[:1], out, *arguments[1:], "--json")
    assert outcome.code == 0, outcome.err
    return read_vectors(out)[0], outcome.json


def embedding_of(bundle: Bundle, frame: pl.DataFrame, feature: str) -> np.ndarray:
    """[B, chunks * width]: what the embedding module gives a batch for one feature."""
    batch = bundle.pipeline.encode_frame(frame)
    whole = bundle.model.embedding(batch.ids, batch.bag_values, batch.bag_lengths).detach().numpy()
    widths = [f.chunks * bundle.model.plan.width for f in bundle.model.plan.features]
    place = [f.name for f in bundle.model.plan.features].index(feature)
    return np.asarray(whole[:, sum(widths[:place]) : sum(widths[: place + 1])])


@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather"])
def test_a_row_a_value_with_what_the_batch_would_get(
    in_trained: Any, recsys: Callable[..., Any], tmp_path: Path, ending: str
) -> None:
    arguments = (MODEL, "--feature", "item", "--data", in_trained.events, "--keep", "city")
    table, result = exported(recsys, tmp_path / f"items.{ending}", *arguments)
    frame, bundle = pl.read_parquet(in_trained.events), bundle_of(in_trained)
    assert table.column_names == ["value", "count", "city", "fingerprint", "region", "seen", "bundle", "vector"]
    assert table.column("vector").type == pa.list_(pa.field("item", pa.float32(), nullable=False), 4)
    values = table.column("value").to_pylist()
    assert values == frame["item"].unique(maintain_order=True).to_list()
    assert dict(zip(values, table.column("count").to_pylist(), strict=True)) == dict(
        frame["item"].value_counts().iter_rows()
    )
    assert table.column("fingerprint").to_pylist() == [fingerprint(value) for value in values]
    vectors = dict(zip(values, matrix_of(table), strict=True))
    expected = embedding_of(bundle, frame, "item")
    assert all(np.array_equal(vectors[item], row) for item, row in zip(frame["item"], expected, strict=True))
    first_city = frame.filter(pl.col("item") == values[0])["city"].drop_nulls()[0]
    assert table.column("city").to_pylist()[0] == first_city
    about = json.loads(table.schema.metadata[METADATA])
    assert about == {
        "vectors_version": 1,
        "model": {"name": "small", "version": 1},
        "bundle": bundle.digest,
        "fingerprint_version": FINGERPRINT_VERSION,
        "hash_version": HASH_VERSION,
        "hash_seed": 0,
        "format": "fp32",
        "dtype": "fp32",
        "width": 4,
        "table_width": 4,
        "parts": [{"feature": "item", "region": "exact", "chunks": 1, "start": 0, "width": 4}],
        "feature": "item",
        "value_dtype": "string",
    }
    assert set(table.column("bundle").to_pylist()) == {bundle.digest}
    assert about.items() <= result.items()
    assert (result["rows"], result["regions"], result["unseen"], result["unknown"]) == (40, {"exact": 40}, 0, 0)


def test_a_run_has_values_of_its_own(in_trained: Any, recsys: Callable[..., Any], tmp_path: Path) -> None:
    own, result = exported(recsys, tmp_path / "own.parquet", RUN, "--feature", "user")
    named, _ = exported(recsys, tmp_path / "named.parquet", RUN, "--feature", "user", "--data", in_trained.events)
    assert own.equals(named)
    assert result["model"] == {"name": None, "version": None}
    half, _ = exported(recsys, tmp_path / "half.parquet", RUN, "--feature", "user", "--dtype", "fp16")
    assert half.column("vector").type.value_type == pa.float16()
    assert np.array_equal(matrix_of(half), matrix_of(own).astype(np.float16).astype(np.float32))


def test_values_that_training_never_saw_are_marked(in_trained: Any, recsys: Callable[..., Any], tmp_path: Path) -> None:
    pl.DataFrame({"item": ["item-3", "brand new", None, "item-3"]}).write_csv(tmp_path / "items.csv")
    table, result = exported(
        recsys, tmp_path / "new.parquet", MODEL, "--feature", "item", "--data", tmp_path / "items.csv"
    )
    columns = ("value", "count", "region", "seen")
    assert list(zip(*(table.column(name).to_pylist() for name in columns), strict=True)) == [
        ("item-3", 2, "exact", True),
        ("brand new", 1, "shared", False),
        (None, 1, "shared", False),
    ]
    assert result["unseen"] == 2
    # cities have a null in training
    pl.DataFrame({"city": ["c1", None]}).write_parquet(tmp_path / "cities.parquet")
    table, _ = exported(
        recsys, tmp_path / "city.parquet", MODEL, "--feature", "city", "--data", tmp_path / "cities.parquet"
    )
    assert table.column("seen").to_pylist() == [True, True]


def test_elements_of_lists_and_values_known_by_themselves(
    in_trained: Any, recsys: Callable[..., Any], tmp_path: Path
) -> None:
    tags, _ = exported(recsys, tmp_path / "tags.parquet", RUN, "--feature", "tags")
    frame, bundle = pl.read_parquet(in_trained.events), bundle_of(in_trained)
    alone = frame.filter(pl.col("tags").list.len() == 1)
    vectors = dict(zip(tags.column("value").to_pylist(), matrix_of(tags), strict=True))
    assert sorted(vectors) == ["t0", "t1", "t2", "t3", "t4", "t5"]
    assert sum(tags.column("count").to_pylist()) == frame["tags"].list.len().sum()
    expected = embedding_of(bundle, alone, "tags")
    assert all(np.array_equal(vectors[tag], row) for (tag,), row in zip(alone["tags"], expected, strict=True))
    hours, _ = exported(recsys, tmp_path / "hours.parquet", MODEL, "--feature", "hour")
    assert hours.column("value").to_pylist() == [None, *map(str, range(24))]
    assert hours.column("count").null_count == 25
    noon = embedding_of(bundle, frame.filter(pl.col("at") // 3600 % 24 == 12), "hour")
    assert np.array_equal(matrix_of(hours)[13], noon[0])


def test_a_row_an_item_with_what_the_network_reads_of_it(
    in_trained: Any, recsys: Callable[..., Any], tmp_path: Path
) -> None:
    item = "tags,user_city,price,item"
    table, result = exported(recsys, tmp_path / "items.parquet", RUN, "--item", item, "--keep", "click")
    frame, bundle = pl.read_parquet(in_trained.events), bundle_of(in_trained)
    columns = ["tags", "price", "item", "user", "city"]
    assert set(result["columns"]) == set(columns)
    items = pl.from_arrow(table.select(result["columns"]))
    assert isinstance(items, pl.DataFrame)
    assert len(items) == frame.select(columns).n_unique()
    assert result["unseen"] == sum(map(bool, table.column("unseen").to_pylist()))
    # the first row of the events is the first item
    inputs = bundle.model.inputs_of(bundle.pipeline.encode_frame(frame.head(1))).detach().numpy()[0]
    axis = [str(key[0]) for key in bundle.model.network.input_axis()]  # type: ignore[index]
    chosen = [i for i, name in enumerate(axis) if name.partition(":")[0] in item.split(",")]
    assert np.array_equal(matrix_of(table)[0], inputs[chosen])
    assert [part["feature"] for part in result["parts"]] == ["item", "user_city", "tags", "price", "price:missing"]


def test_neighbours_are_those_of_brute_force(in_trained: Any, recsys: Callable[..., Any], tmp_path: Path) -> None:
    table, _ = exported(recsys, tmp_path / "items.parquet", RUN, "--feature", "item", "--keep", "city")
    values, vectors = table.column("value").to_pylist(), matrix_of(table).astype(np.float64)
    own = values.index("item-7")
    for by in ("cosine", "dot"):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if by == "cosine" else vectors
        every = unit @ unit[own]
        every[own] = -np.inf
        best = np.argsort(-every)[:5]
        asked = recsys("neighbours", tmp_path / "items.parquet", "item=item-7", "-k", "5", "--by", by, "--json")
        assert asked.code == 0, asked.err
        found = asked.json["neighbours"]
        assert [line["value"] for line in found] == [values[i] for i in best]
        np.testing.assert_allclose([line["similarity"] for line in found], every[best], atol=6e-5)
        assert asked.json["candidates"] == 39
        model = recsys("neighbours", RUN, "item=item-7", "-k", "5", "--by", by, "--keep", "city", "--json")
        assert model.json["neighbours"] == found
    assert list(found[0]) == ["similarity", "value", "count", "city", "region"]


def test_neighbours_leave_out_what_training_never_saw_and_what_is_rare(
    in_trained: Any, recsys: Callable[..., Any], tmp_path: Path
) -> None:
    data = tmp_path / "users.parquet"
    pl.DataFrame({"user": [1, 1, 2, 2, 2, 3, 1000, 1001]}).write_parquet(data)
    asked = recsys("neighbours", MODEL, "user=3", "--data", data, "--min-count", "2", "--json")
    assert asked.code == 0, asked.err
    assert {line["value"] for line in asked.json["neighbours"]} == {"1", "2"}
    assert asked.json["left_out"] == {"never in training": 2, "too rare": 0}
    text = recsys("neighbours", MODEL, "user=2", "--data", data, "--min-count", "2")
    assert "user 2, count 3" in text.out
    assert "cosine among 1 others (exact); left out: 2 never in training, 1 too rare" in text.out


def test_neighbours_of_an_item(in_trained: Any, recsys: Callable[..., Any], tmp_path: Path) -> None:
    data = tmp_path / "items.parquet"
    pl.DataFrame({"item": ["item-1", "item-2", "item-2"], "city": ["c1", "c1", "c2"]}).write_parquet(data)
    arguments = ("--item", "item,city", "--data", data, "--json")
    asked = recsys("neighbours", MODEL, "item=item-1", *arguments)
    assert asked.code == 0, asked.err
    assert [line["item"] for line in asked.json["neighbours"]] == ["item-2", "item-2"]
    both = recsys("neighbours", MODEL, "item=item-2", "city=c2", *arguments)
    assert len(both.json["neighbours"]) == 2
    several = recsys("neighbours", MODEL, "item=item-2", *arguments)
    assert several.code == 2
    assert "several items are meant. Found: 2 rows. Mend: name more of item, city" in several.err


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    in_trained: Any, recsys: Callable[..., Any], tmp_path: Path
) -> None:
    out, file = tmp_path / "out.parquet", tmp_path / "file"
    file.write_text("in the way")
    users = tmp_path / "users.parquet"
    pl.DataFrame({"user": ["7", "seven"], "vector": [1, 2]}).write_parquet(users)
    huge = tmp_path / "huge.parquet"
    pl.DataFrame({"price": [1e30]}).write_parquet(huge)
    for arguments, words in (
        ((RUN, out, "--feature", "itme"), "itme: there is no such embedded feature"),
        ((RUN, out, "--feature", "itme"), "did you mean 'item'?"),
        ((RUN, out, "--feature", "price"), "price: there is no such embedded feature"),
        ((RUN, out, "--feature", "user_city"), "made of several columns or elements"),
        ((RUN, out, "--item", "item,ctiy"), "did you mean 'city'?"),
        ((MODEL, out, "--feature", "item"), "ids that hash are in no vocabulary"),
        ((RUN, out, "--feature", "hour", "--data", users), "known by themselves"),
        ((RUN, out, "--feature", "item", "--data", in_trained.store), "prepared data holds fingerprints"),
        ((RUN, out, "--feature", "item", "--data", users), "item: column is missing"),
        ((RUN, out, "--feature", "user", "--data", users), "user: not a whole number of 64 bits (in 1 row)"),
        ((RUN, out, "--feature", "user", "--keep", "ctiy"), "did you mean 'city'?"),
        ((RUN, out, "--feature", "user", "--keep", "city,city"), "kept twice"),
        ((RUN, out, "--feature", "user", "--data", users, "--keep", "vector"), "name of one that is there already"),
        ((RUN, out, "--item", "price", "--data", huge, "--dtype", "fp16"), "too large for the vectors"),
        ((RUN, tmp_path / "out.csv", "--feature", "item"), "unknown ending"),
        ((RUN, file / "out.parquet", "--feature", "item"), "cannot be written"),
        ((tmp_path, out, "--feature", "item"), "is no model bundle"),
        ((RUN, out), "give one of the two"),
        ((RUN, out, "--feature", "item", "--dtype", "int8"), "give fp32 or fp16"),
    ):
        outcome = recsys("export", *arguments)
        assert outcome.code == 2, outcome.out
        assert words in " ".join(outcome.err.replace("│", " ").split()), outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "huge.parquet", "users.parquet"]
    assert in_trained.leftovers() == []


def test_questions_without_an_answer(in_trained: Any, recsys: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "users.parquet"
    data = tmp_path / "data.parquet"
    pl.DataFrame({"user": [1, 2, 3, 1000]}).write_parquet(data)
    exported(recsys, file, RUN, "--feature", "user", "--data", data)
    other = tmp_path / "other.parquet"
    pl.DataFrame({"user": [1]}).write_parquet(other)
    newer = tmp_path / "newer.parquet"
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({METADATA: json.dumps({"vectors_version": 2})}), newer)
    for arguments, words in (
        ((file, "user"), "user: is no query. Expected: feature=value"),
        ((file, "usr=1"), "did you mean 'user'?"),
        ((file, "user=seven"), "user: not a whole number of 64 bits"),
        ((file, "user=1002"), "there is no such value in the data. Found: '1002'. Mend: did you mean '1000'?"),
        ((file, "user=1000"), "user=1000: training never saw this"),
        ((file, "user=1", "--keep", "city"), "goes with a model"),
        ((tmp_path / "none.parquet", "user=1"), "cannot be read"),
        ((other, "user=1"), "holds no exported vectors"),
        ((newer, "user=1"), "vectors version 2. Expected: 1"),
        ((RUN, "usr=1"), "did you mean 'user'?"),
        ((RUN, "user=1", "item=item-1"), "the value of one feature has neighbours"),
        ((RUN, "user=1", "--by", "distance"), "give cosine or dot"),
    ):
        outcome = recsys("neighbours", *arguments)
        assert outcome.code == 2, outcome.out
        assert words in " ".join(outcome.err.replace("│", " ").split()), outcome.err


def test_neighbours_without_faiss(in_trained: Any, recsys: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    outcome = recsys("neighbours", RUN, "item=item-7")
    assert outcome.code == 2
    assert "FAISS is not installed. Mend: pip install 'recsys-embeddings[neighbours]'" in outcome.err
