"""From a file that no recipe knows to a registered model: `recsys init`, then `recsys run`, with no edit between."""

import datetime
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.integration.conftest import recsys

ROWS = 2500


def truth(rng):
    """Ids, and labels that depend on them."""
    reader, story = rng.integers(0, 50, ROWS), rng.integers(0, 30, ROWS)
    chance = 1 / (1 + np.exp(-2.0 * (np.sin(reader * 1.7) + np.cos(story * 2.3))))
    return reader, story, rng.random(ROWS) < chance


def parquet(folder: Path) -> str:
    """Two files of columns of every kind."""
    rng = np.random.default_rng(0)
    reader, story, liked = truth(rng)
    frame = pl.DataFrame(
        {
            "row": range(ROWS),
            "Reader ID": reader.astype(np.uint32),
            "story": [f"s{x}" for x in story],
            "paper": pl.Series([["daily", "weekly", None][x % 3] for x in story], dtype=pl.Categorical),
            "length": pl.Series([None if x % 7 == 0 else float(x) ** 3 for x in range(ROWS)], dtype=pl.Float32),
            "scores": pl.Series(rng.normal(size=(ROWS, 4)), dtype=pl.Array(pl.Float32, 4)),
            "price": pl.Series(["1.50"] * ROWS).cast(pl.Decimal(8, 2)),
            "published": [datetime.date(2024, 1, 1) + datetime.timedelta(days=int(x)) for x in story],
            "reward": liked * 5.0,
            "liked": liked,
        }
    )
    folder.mkdir()
    frame.head(1000).write_parquet(folder / "a.parquet")
    frame.tail(-1000).write_parquet(folder / "b.parquet")
    return str(folder / "*.parquet")


def ndjson(folder: Path) -> str:
    """Lines with lists, nulls, booleans, nested text and timestamps."""
    rng = np.random.default_rng(1)
    reader, story, clicked = truth(rng)
    folder.mkdir()
    start = datetime.datetime(2024, 5, 1)
    with (folder / "log.ndjson").open("w") as file:
        for place in range(ROWS):
            event = {
                "timestamp": (start + datetime.timedelta(minutes=13 * place)).isoformat() + "Z",
                "userId": int(reader[place]),
                "story": None if place % 50 == 0 else f"s{story[place]}",
                "tags": None if place % 20 == 0 else [f"t{x}" for x in range(story[place] % 4)],
                "night": bool(place % 3),
                "context": {"page": "größe", "referrer": {"host": "example.org"}},
                "depth": None if place % 11 == 0 else int(rng.integers(0, 500)),
                "is_clicked": int(clicked[place]),
            }
            file.write(json.dumps(event) + "\n")
    return str(folder / "log.ndjson")


@pytest.mark.parametrize(
    ("write", "name", "features", "dropped"),
    [
        (
            parquet,
            "papers",
            ["Reader_ID", "story", "paper", "length", "scores", "published_weekday"],
            {"row", "price", "reward"},
        ),
        (
            ndjson,
            "log",
            ["timestamp_hour", "timestamp_weekday", "userId", "story", "tags", "night", "depth"],
            {"context"},
        ),
    ],
)
def test_an_unknown_source_becomes_a_registered_model_in_two_commands(
    write, name, features, dropped, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "papers")
    made = recsys("init", source, "--json")
    assert made.code == 0, made.err
    assert made.json["config"] == f"{name}.yaml"
    assert made.json["features"] == features
    assert set(made.json["dropped"]) == dropped
    assert f"next: recsys run {name}.yaml" in made.err
    run = recsys("run", f"{name}.yaml", "--json")
    assert run.code == 0, run.err
    assert run.json["register"]["version"] == 1
    assert run.json["evaluate"]["metrics"]["auc"] > 0.7
