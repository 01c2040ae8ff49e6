"""When prepared data is used again, and when it is made anew."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipelines.config import config_from
from pipelines.console import Console
from pipelines.prepare import open_store, prepare


def test_changed_raw_files_are_prepared_again_and_missing_ones_do_not_stop_training(tmp_path: Path) -> None:
    raw = tmp_path / "events.parquet"
    frame = pl.DataFrame({"user": [f"u{i % 7}" for i in range(300)], "click": [i % 3 == 0 for i in range(300)]})
    frame.write_parquet(raw)
    config = config_from(
        {
            "name": "events",
            "workspace": str(tmp_path / "work"),
            "data": {"source": str(raw), "split": {"kind": "random", "fractions": [0.6, 0.2, 0.2], "seed": 0}},
            "spec": {"features": [{"type": "id", "name": "user"}], "labels": ["click"]},
        }
    )
    console = Console(quiet=True)
    first = prepare(config, console)
    assert not first["reused"]
    assert prepare(config, console)["reused"]
    frame.tail(200).write_parquet(raw)
    again = prepare(config, console)
    assert not again["reused"]
    assert sum(again["rows"].values()) == 200
    raw.unlink()
    assert open_store(config).digest == again["digest"]
