"""When prepared data is used again, and when it is made anew."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from features.errors import ArtifactError
from features.store import build_store
from pipelines.config import ExperimentConfig, config_from
from pipelines.console import Console
from pipelines.prepare import dropped_of, open_store, prepare

FRAME = pl.DataFrame({"user": [f"u{i % 7}" for i in range(300)], "click": [i % 3 == 0 for i in range(300)]})


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    FRAME.write_parquet(tmp_path / "events.parquet")
    return config_from(
        {
            "name": "events",
            "workspace": str(tmp_path / "work"),
            "data": {
                "source": str(tmp_path / "events.parquet"),
                "split": {"kind": "random", "fractions": [0.6, 0.2, 0.2], "seed": 0},
            },
            "spec": {"features": [{"type": "id", "name": "user"}], "labels": ["click"]},
        }
    )


def test_changed_raw_files_are_prepared_again_and_missing_ones_do_not_stop_training(config: ExperimentConfig) -> None:
    raw, console = Path(config.data.source or ""), Console(quiet=True)
    first = prepare(config, console)
    assert not first["reused"]
    assert prepare(config, console)["reused"]
    FRAME.tail(200).write_parquet(raw)
    again = prepare(config, console)
    assert not again["reused"]
    assert sum(again["rows"].values()) == 200
    raw.unlink()
    assert open_store(config).digest == again["digest"]


def test_a_store_made_without_prepare_is_made_anew(config: ExperimentConfig) -> None:
    store = build_store(FRAME.lazy(), config.spec, config.data.split, config.store_folder)
    assert dropped_of(store) == {}
    assert not prepare(config, Console(quiet=True))["reused"]


def test_a_store_whose_spec_another_release_wrote_is_made_anew(config: ExperimentConfig) -> None:
    console = Console(quiet=True)
    prepare(config, console)
    (config.store_folder / "spec.json").write_text('{"features": [], "of_another_release": true}')
    assert not prepare(config, console)["reused"]
    assert prepare(config, console)["reused"]


def test_side_tables_are_joined_and_their_changes_noticed(tmp_path: Path) -> None:
    log = pl.DataFrame(
        {"user": [f"u{i % 7}" for i in range(300)], "t": range(300), "click": [i % 3 for i in range(300)]}
    )
    log.with_columns(pl.col("click") == 0).write_parquet(tmp_path / "events.parquet")
    users = pl.DataFrame({"user": ["u0", "u1", "u0"], "at": [0, 100, 100], "plan": ["free", "paid", "paid"]})
    users.write_csv(tmp_path / "users.csv.gz", compression="gzip")
    join = {"source": str(tmp_path / "users.csv.gz"), "on": "user", "time": "at", "prefix": "user_"}
    config = config_from(
        {
            "name": "joined",
            "workspace": str(tmp_path / "work"),
            "data": {"source": str(tmp_path / "events.parquet"), "join": [join], "split": {"kind": "random"}},
            "spec": {"features": [{"type": "id", "name": "user_plan"}], "labels": ["click"], "time": "t"},
        }
    )
    console = Console(quiet=True)
    first = prepare(config, console)
    counts = open_store(config).id_counts("train")["user_plan"][1]
    assert len(counts) == 3
    assert sum(first["rows"].values()) == 300
    assert prepare(config, console)["reused"]
    users.head(2).write_csv(tmp_path / "users.csv.gz", compression="gzip")
    again = prepare(config, console)
    assert not again["reused"]
    assert again["digest"] != first["digest"]
    alone = config.model_copy(update={"data": config.data.model_copy(update={"join": []})})
    with pytest.raises(ArtifactError, match="join"):
        open_store(alone)
