"""Values and items of every sort of feature: taken from raw rows, with the vectors that those rows get."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from features.errors import ConfigError
from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.validation import validate
from pipelines.vectors import Wanted, matrix_of, vectors_of
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.occupancy import count_ids
from recsys.models import CTRModel, ModelConfig
from recsys.serving.bundle import save_bundle

SPEC: dict[str, Any] = {
    "features": [
        {"type": "id", "name": "who", "column": "user", "dtype": "integer"},
        {"type": "id", "name": "capitals"},
        {"type": "ids", "name": "genres", "separator": "|"},
        {"type": "sequence", "name": "seen", "length": 3, "times": "seen_at", "unit": "s"},
        {"type": "ngrams", "name": "title"},
        {"type": "semantic_id", "name": "code", "depth": 2},
        {"type": "bucket", "name": "price", "edges": [2.0]},
        {"type": "frequency", "name": "often", "column": "user", "buckets": 3},
        {"type": "recency", "name": "age", "column": "born", "unit": "s", "buckets": 4},
        {"type": "cyclic", "name": "clock", "column": "at", "part": "hour", "unit": "s"},
        {"type": "vector", "name": "picture", "size": 2},
        {"type": "cross", "name": "who_price", "of": ["who", "price"]},
    ],
    "derive": {"capitals": "UPPER(name)"},
    "labels": ["click"],
    "time": "at",
    "time_unit": "s",
}
FRAME = pl.DataFrame(
    {
        "user": [1, 2, 1, None],
        "name": ["a", "b", "c", None],
        "genres": ["x|y", "y", "", None],
        "seen": [["p", "q"], [], ["p"], None],
        "seen_at": [[1, 2], [], [3], None],
        "title": ["hello world", "b", None, ""],
        "code": [[1, 2], [1, 3], None, [2, 2]],
        "price": [1.0, 2.0, None, 4.0],
        "born": [0, 1, 2, None],
        "at": [10, 20, 30, 40],
        "picture": [[1.0, 2.0]] * 4,
        "click": [0, 1, 0, 1],
    }
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, CTRModel, FeaturePipeline]:
    """Folder of a bundle, file of the rows, model and pipeline."""
    folder = tmp_path_factory.mktemp("model")
    pipeline = FeaturePipeline(validate(FeatureSpec, SPEC)).fit(FRAME)
    batch = pipeline.encode_frame(FRAME)
    config = EmbeddingConfig.model_validate({"width": 4, "rows": 100})
    plan = plan_embedding(pipeline.layout, config, count_ids(pipeline.layout, [batch]))
    made = CTRModel(pipeline.layout, plan, ModelConfig(hidden=(8,)), seed=0).eval()
    FRAME.write_parquet(folder / "rows.parquet")
    save_bundle(folder / "bundle", model=made, pipeline=pipeline)
    return str(folder / "bundle"), str(folder / "rows.parquet"), made, pipeline


@pytest.mark.parametrize(
    ("feature", "values", "counts"),
    [
        ("who", ["1", "2", None], [2, 1, 1]),
        ("capitals", ["A", "B", "C", None], [1, 1, 1, 1]),
        ("genres", ["x", "y", None], [1, 2, 1]),
        ("seen", ["p", "q", None], [2, 1, 1]),
    ],
)
def test_values_of_data(model: Any, feature: str, values: list[str | None], counts: list[int]) -> None:
    bundle, rows, _, _ = model
    table = vectors_of(bundle, rows, Wanted(feature), tracking_uri="").table()
    assert table.column("value").to_pylist() == values
    assert table.column("count").to_pylist() == counts
    assert table.column("seen").to_pylist() == [True] * len(values)


@pytest.mark.parametrize(
    ("feature", "values"),
    [
        ("price", [None, "below 2", "from 2"]),
        ("often", [None, "bucket 0 of 3", "bucket 1 of 3", "bucket 2 of 3"]),
        ("age", [None, "bucket 0 of 4", "bucket 1 of 4", "bucket 2 of 4", "bucket 3 of 4", "after the event"]),
    ],
)
def test_values_known_by_themselves(model: Any, feature: str, values: list[str | None]) -> None:
    table = vectors_of(model[0], None, Wanted(feature), tracking_uri="").table()
    assert table.column("value").to_pylist() == values


@pytest.mark.parametrize("feature", ["title", "code", "who_price", "seen:gap", "clock", "picture"])
def test_what_has_no_values_of_its_own(model: Any, feature: str) -> None:
    with pytest.raises(ConfigError, match=f"{feature}: (a value of a|no such feature|there is no such embedded)"):
        vectors_of(model[0], model[1], Wanted(feature), tracking_uri="")


@pytest.mark.parametrize(
    ("item", "columns"),
    [
        (["who"], ["user"]),
        (["capitals", "who_price"], ["name", "user", "price"]),
        (["seen"], ["seen", "seen_at", "at"]),
        (["title", "code"], ["title", "code"]),
        (["age", "clock", "picture"], ["born", "at", "picture"]),
        (["genres", "price", "often"], ["genres", "price", "user"]),
    ],
)
def test_items(model: Any, item: list[str], columns: list[str]) -> None:
    bundle, rows, made, pipeline = model
    found = vectors_of(bundle, rows, Wanted(item=tuple(item)), tracking_uri="")
    assert found.about["columns"] == columns
    first = FRAME.select(columns).with_row_index("row").group_by(columns, maintain_order=True).first()["row"]
    inputs = made.inputs_of(pipeline.encode_frame(FRAME)).detach().numpy()
    axis = [str(key[0]).partition(":")[0] for key in made.network.input_axis()]
    table = found.table()
    assert np.array_equal(matrix_of(table), inputs[first.to_numpy()][:, [name in item for name in axis]])
    assert table.select(columns).to_pylist() == FRAME[first.to_list()].select(columns).to_dicts()
    assert table.column("unseen").to_pylist() == [[]] * len(first)
