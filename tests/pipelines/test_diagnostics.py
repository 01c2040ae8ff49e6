"""Samples of prepared data and of raw files, and the page made of what is seen through them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.errors import ArtifactError, DataError
from features.spec import FeatureSpec
from features.storage.splits import RandomSplit
from features.storage.store import Store, build_store
from features.validation import validate
from pipelines.diagnostics import data_sample, split_sample
from pipelines.table_page import summary, table_page
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.diagnostics import diagnose
from recsys.models import CTRModel, ModelConfig

ROWS = 4000
SPEC = {
    "features": [
        {"name": "user", "type": "id", "dtype": "integer"},
        {"name": "when", "type": "id", "dtype": "integer"},
        {"name": "tags", "type": "ids"},
    ],
    "labels": ["click"],
}


def events() -> pl.DataFrame:
    """`when` tells in which tenth of the file a row stands."""
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "user": rng.integers(0, 300, ROWS),
            "when": np.arange(ROWS) * 10 // ROWS,
            "tags": [[f"t{t}" for t in rng.integers(0, 9, n)] for n in rng.integers(0, 3, ROWS)],
            "click": rng.integers(0, 2, ROWS),
        }
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    split = RandomSplit(fractions=(0.8, 0.1, 0.1), seed=1)
    folder = tmp_path_factory.mktemp("diagnostics") / "store"
    return build_store(events().lazy(), validate(FeatureSpec, SPEC), split, folder, shard_rows=700)


def test_a_sample_takes_the_same_share_of_every_shard(store: Store) -> None:
    sample = split_sample(store, "train", 1000)
    assert sample.text == f"1,000 of {store.rows('train'):,} rows of the train split"
    seen = sample.counts["when"][1]
    assert seen.sum() == 1000
    # a tenth of the rows each; 6 standard deviations
    assert len(seen) == 10
    assert abs(seen - 100).max() < 60
    again = split_sample(store, "train", 1000)
    assert all(
        np.array_equal(a, b) for n in sample.counts for a, b in zip(sample.counts[n], again.counts[n], strict=True)
    )


def test_a_split_of_no_more_rows_is_taken_whole(store: Store) -> None:
    sample, counts = split_sample(store, "valid", 10_000), store.id_counts("valid")
    assert sample.text == f"all {store.rows('valid'):,} rows of the valid split"
    assert all(np.array_equal(a, b) for n in counts for a, b in zip(sample.counts[n], counts[n], strict=True))


def test_raw_rows_give_the_counts_of_the_prepared_ones(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "events.parquet"
    events().drop("click").write_parquet(file)
    every = data_sample(store.pipeline, str(file), "train", 10**9)
    assert every.text == f"the first 4,000 rows of {file}"
    total = sum(store.id_counts(split)["user"][1].sum() for split in ("train", "valid", "test"))
    assert every.counts["user"][1].sum() == total == ROWS
    first = data_sample(store.pipeline, str(file), "train", 800)
    assert len(first.counts["when"][0]) == 2


def test_a_folder_is_prepared_data_of_the_same_spec(store: Store, tmp_path: Path) -> None:
    assert data_sample(store.pipeline, str(store.folder), "test", 10**9).counts.keys() == {"user", "when", "tags"}
    with pytest.raises(ArtifactError, match="there is no prepared data"):
        data_sample(store.pipeline, str(tmp_path), "train", 10)
    other = build_store(
        events().lazy(),
        validate(FeatureSpec, {**SPEC, "features": SPEC["features"][:2]}),
        RandomSplit(seed=1),
        tmp_path / "other",
    )
    with pytest.raises(ArtifactError, match=r"spec changed .*tags"):
        data_sample(store.pipeline, str(other.folder), "train", 10)


def test_raw_rows_without_a_column_or_without_a_row_are_refused(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "events.parquet"
    events().drop("tags").write_parquet(file)
    with pytest.raises(DataError, match="tags: column is missing"):
        data_sample(store.pipeline, str(file), "train", 10)
    events().head(0).write_parquet(file)
    with pytest.raises(DataError, match="no rows"):
        data_sample(store.pipeline, str(file), "train", 10)


@pytest.mark.parametrize("kind", ["multiplexed", "hashed", "collisionless"])
def test_the_page_stands_alone_and_tells_every_feature(store: Store, kind: str) -> None:
    sample = split_sample(store, "train", 10**9)
    config = EmbeddingConfig.model_validate({"kind": kind, "width": 4, "rows": 200})
    plan = plan_embedding(store.layout, config, sample.counts)
    found = diagnose(CTRModel(store.layout, plan, ModelConfig(hidden=(8,))), sample.counts)
    page = table_page("a <name>", found, sample.text, plan.summary())
    assert "a &lt;name&gt;: inside the table" in page
    assert all(f">{name}<" in page for name in ("user", "when", "tags"))
    assert not re.search(r"(src|href|srcset)=\"(?!data:)", page)
    assert "<script" not in page
    assert not re.search(r"\b(nan|None|inf)\b", re.sub(r"base64,[^\"]+", "", page))
    assert "ids a row" in summary(found)
    assert "Hit rates by region" not in page


def test_the_page_tells_which_region_answers_where_there_are_several(store: Store) -> None:
    """Half of the users are exact, the other half are new."""
    sample = split_sample(store, "train", 10**9)
    users, seen = sample.counts["user"]
    config = EmbeddingConfig.model_validate({"width": 4, "rows": 200, "exact": {"features": {"user": True}}})
    plan = plan_embedding(store.layout, config, {**sample.counts, "user": (users[::2], seen[::2])})
    found = diagnose(CTRModel(store.layout, plan, ModelConfig(hidden=(8,))), sample.counts)
    page = table_page("x", found, sample.text, plan.summary())
    share = 100 * seen[::2].sum() / seen.sum()
    assert "Hit rates by region" in page
    assert f"<td>user</td><td>{share:.3g}</td><td>{100 - share:.3g}</td>" in page
