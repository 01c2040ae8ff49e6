"""From packed logs and side tables to a prepared store, to scores and to diagnostics, by the command alone."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import yaml

from features.storage.store import Store
from recsys.serving.scorer import Scorer


def test_partitioned_logs_with_side_tables(world: Any, recsys: Callable[..., Any]) -> None:
    events = pl.read_parquet(world.events).drop("tags", "city")
    joined = events.with_columns(
        plan=pl.when(pl.col("at") >= 60_000).then(pl.lit("paid")).when(pl.col("at") >= 600).then(pl.lit("free")),
        brand=pl.when(pl.col("item") != "item-3").then("item"),
    )
    users = pl.DataFrame({"id": range(60), "free": 600, "paid": 60_000}).unpivot(
        index="id", variable_name="plan", value_name="since"
    )
    users.sample(fraction=1.0, shuffle=True, seed=1).write_ndjson(world.folder / "users.ndjson")
    items = events.select("item", brand="item").unique().filter(pl.col("item") != "item-3")
    (world.folder / "items.csv.gz").write_bytes(gzip.compress(items.write_csv().encode()))
    for day, piece in enumerate(events.iter_slices(1000)):
        folder = world.folder / "logs" / f"day={day}"
        folder.mkdir(parents=True)
        (folder / "part.csv.gz").write_bytes(gzip.compress(piece.write_csv().encode()))
        (folder / "_SUCCESS").write_text("")
    config = yaml.safe_load(world.config.read_text())
    config["spec"] |= {
        "features": [{"type": "id", "name": name} for name in ("plan", "brand", "day")],
        "time": "at",
        "time_unit": "s",
    }
    config["data"] |= {
        "source": "logs",
        "join": [
            {"source": "users.ndjson", "on": {"user": "id"}, "time": "since"},
            {"source": "items.csv.gz", "on": "item"},
        ],
    }
    world.config.write_text(yaml.safe_dump(config))
    outcome = recsys("prepare", world.config, "--json")
    assert outcome.code == 0, outcome.err
    found = Store.open(world.store)
    # The same store from one file in which everything was joined by hand.
    joined.with_columns(day=pl.int_range(pl.len()) // 1000).write_parquet(world.events)
    by_hand = recsys("prepare", world.config, f"data.source={world.events}", "data.join=[]", "--json")
    assert by_hand.json["digest"] == outcome.json["digest"] == found.digest
    assert not by_hand.json["reused"]


def test_a_trained_model_reads_raw_rows_with_its_side_tables(world: Any, recsys: Callable[..., Any]) -> None:
    joined = pl.read_parquet(world.events).with_columns(plan=pl.when(pl.col("user") != 3).then(pl.col("user") % 4))
    users = joined.select("user", "plan").unique().drop_nulls()
    users.write_csv(world.folder / "users.csv")
    joined.drop("plan").write_parquet(world.events)
    config = yaml.safe_load(world.config.read_text())
    config["spec"]["features"] = [{"type": "id", "name": "plan"}, {"type": "id", "name": "item"}]
    config["data"]["join"] = [{"source": str(world.folder / "users.csv"), "on": "user"}]
    world.config.write_text(yaml.safe_dump(config))
    assert recsys("prepare", world.config).code == 0
    run = world.folder / "work" / "small" / "runs" / "0001"
    assert recsys("train", world.config).code == 0
    out = world.folder / "scores.parquet"
    scored = recsys("score", run, world.events, out, "--keep", "at,plan", "--json")
    assert scored.code == 0, scored.err
    assert scored.json["unmatched"] == {str(world.folder / "users.csv"): joined["plan"].null_count()}
    found = pl.read_parquet(out)
    assert found["at"].to_list() == joined["at"].to_list()
    expected = Scorer.load(run / "bundle").score(joined.with_columns(pl.col("plan").cast(pl.String)))
    np.testing.assert_allclose(found["p_click"], expected[:, 0], atol=1e-6, rtol=0)
    # a bundle does not know where its columns came from
    inspected = recsys("inspect", run / "bundle", world.events, "--json")
    assert inspected.code == 2
    assert "plan: column is missing" in inspected.err
    for target, more in ((run / "bundle", ("--config", world.config)), (run, ())):
        inspected = recsys("inspect", target, world.events, *more, "--json")
        assert inspected.code == 0, inspected.err
        assert "3,000 rows" in inspected.json["diagnostics"]["sample"]
    evaluated = recsys("evaluate", run, world.events, "--json")
    assert evaluated.code == 0, evaluated.err
    assert evaluated.json["metrics"]["rows"] == 3000
