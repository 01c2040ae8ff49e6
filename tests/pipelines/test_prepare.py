"""When prepared data is used again, and when it is made anew."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import polars as pl
import pytest

from features.errors import ArtifactError, ConfigError, DataError
from features.storage.store import build_store
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


def test_ray_where_it_is_not_installed(config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    there = config_from(config.to_json(), ["engine=ray"])
    with pytest.raises(ConfigError, match=r"engine: Ray is not installed.*recsys-embeddings\[ray\]"):
        prepare(there, Console(quiet=True))
    assert not there.store_folder.exists()
    prepare(config, Console(quiet=True))
    # What is prepared is the same, whoever prepared it.
    assert prepare(there, Console(quiet=True))["reused"]


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


def added(config: ExperimentConfig, **data: object) -> ExperimentConfig:
    """The experiment with a glob as source, to which files are added."""
    raw = Path(config.data.source or "")
    values = {**config.to_json(), "name": "added"}
    values["data"] = {**values["data"], "source": str(raw.with_name("e*.parquet")), "incremental": {}, **data}
    return config_from(values)


def test_new_files_are_added_and_a_changed_one_asks_for_rebuild(config: ExperimentConfig) -> None:
    config, raw, console = added(config), Path(config.data.source or ""), Console(quiet=True)
    assert sum(prepare(config, console)["rows"].values()) == 300
    assert prepare(config, console)["reused"]
    FRAME.head(100).write_parquet(raw.with_name("events-2.parquet"))
    assert open_store(config).manifest["rows_read"] == 300
    again = prepare(config, console)
    assert not again["reused"]
    assert sum(again["rows"].values()) == 400
    assert prepare(config, console)["reused"]
    FRAME.tail(20).write_parquet(raw)
    with pytest.raises(DataError, match="changed after they were read"):
        prepare(config, console)
    assert sum(prepare(config, console, rebuild=True)["rows"].values()) == 120


def test_files_that_were_read_may_go(config: ExperimentConfig) -> None:
    config, raw, console = (
        added(config, incremental={"gone": "keep"}),
        Path(config.data.source or ""),
        Console(quiet=True),
    )
    prepare(config, console)
    raw.unlink()
    assert prepare(config, console)["reused"]
    FRAME.head(100).write_parquet(raw.with_name("events-2.parquet"))
    assert sum(prepare(config, console)["rows"].values()) == 400


def test_a_table_of_another_kind_is_not_added_to(config: ExperimentConfig, tmp_path: Path) -> None:
    FRAME.write_delta(tmp_path / "delta")
    whole = config_from(config.to_json(), [f"data.source={tmp_path / 'delta'}"])
    assert sum(prepare(whole, Console(quiet=True))["rows"].values()) == 300
    with pytest.raises(ConfigError, match="Delta table"):
        prepare(config_from(whole.to_json(), ["data.incremental={}"]), Console(quiet=True))


def test_events_without_a_side_row_are_counted(
    config: ExperimentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pl.DataFrame({"user": ["u0", "u3", "u99"], "plan": ["paid", "free", "paid"]}).write_parquet(
        tmp_path / "users.parquet"
    )
    joined = config_from(config.to_json(), [f"data.join=[{{source: {tmp_path / 'users.parquet'}, 'on': user}}]"])
    prepare(joined, Console())
    count = FRAME.filter(~pl.col("user").is_in(["u0", "u3"])).height
    assert open_store(joined).manifest["source"]["unmatched"] == {str(tmp_path / "users.parquet"): count}
    assert f"{count} events have no row in the side table" in capsys.readouterr().out


def test_side_tables_of_a_store_that_grows(
    config: ExperimentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = tmp_path / "side" / "users.parquet"
    users.parent.mkdir()
    side = pl.DataFrame({"user": ["u0", "u3"], "plan": ["paid", "free"]})
    side.write_parquet(users)
    config, console = added(config, join=[{"source": str(users), "on": "user"}]), Console()
    raw = Path(config.data.source or "")
    prepare(config, console)
    FRAME.head(100).write_parquet(raw.with_name("events-2.parquet"))
    os.utime(users)
    prepare(config, console)
    counts = [rows.filter(~pl.col("user").is_in(["u0", "u3"])).height for rows in (FRAME, FRAME.head(100))]
    manifest = open_store(config).manifest
    assert [batch["unmatched"] for batch in manifest["batches"]] == [{str(users): count} for count in counts]
    assert manifest["source"]["unmatched"] == {str(users): sum(counts)}
    assert f"{counts[1]} events have no row in the side table" in capsys.readouterr().out
    pl.concat([side, pl.DataFrame({"user": ["u1"], "plan": ["paid"]})]).write_parquet(users)
    with pytest.raises(DataError, match=r"users\.parquet: side tables changed after rows were joined"):
        prepare(config, console)
    kept = config_from(config.to_json(), ["data.incremental.side_tables=keep"])
    assert prepare(kept, console)["reused"]
    FRAME.tail(50).write_parquet(raw.with_name("events-3.parquet"))
    prepare(kept, console)
    now = FRAME.tail(50).filter(~pl.col("user").is_in(["u0", "u1", "u3"])).height
    assert open_store(kept).manifest["batches"][-1]["unmatched"] == {str(users): now}
    assert prepare(config, console)["reused"]


def test_a_split_that_moves_rows_prepares_everything_anew(config: ExperimentConfig) -> None:
    fractions = {"kind": "last_per_group", "group": "user", "columns": ["click"]}
    config, raw, console = added(config, split=fractions), Path(config.data.source or ""), Console(quiet=True)
    prepare(config, console)
    FRAME.head(100).write_parquet(raw.with_name("events-2.parquet"))
    again = prepare(config, console)
    assert not again["reused"]
    assert sum(again["rows"].values()) == 400
    assert len(open_store(config).manifest.get("batches", [])) == 0


def test_what_is_in_quarantine_is_told(config: ExperimentConfig) -> None:
    raw, console = Path(config.data.source or ""), Console(quiet=True)
    FRAME.with_columns(click=pl.col("click").cast(pl.Int64) + (pl.int_range(300) == 7) * 5).write_parquet(raw)
    with pytest.raises(DataError, match="label outside"):
        prepare(config, console)
    kept = config_from(config.to_json(), ["data.quality.mode=quarantine"])
    done = prepare(kept, console)
    assert done["quarantined"] == {"click: label outside {0, 1}": 1}
    assert sum(done["rows"].values()) == 299
    assert prepare(kept, console)["reused"]
    raw.with_suffix(".csv").write_text("user,click\nu,1\nu\n")
    csv = config_from(config.to_json(), [f"data.source={raw.with_suffix('.csv')}"])
    with pytest.raises(DataError, match=r"events\.csv: too few fields \(in 1 line\)"):
        prepare(csv, console)


@pytest.mark.parametrize("joined", [False, True], ids=["alone", "with a side table"])
@pytest.mark.parametrize("adds", [False, True], ids=["at once", "file by file"])
def test_a_bad_line_goes_into_quarantine(config: ExperimentConfig, tmp_path: Path, joined: bool, adds: bool) -> None:
    lines = [f"{user},{click:d}" for user, click in FRAME.iter_rows()]
    lines[50] = "u1"
    raw = tmp_path / "events.csv"
    raw.write_text("\n".join(["user,click", *lines, ""]))
    pl.DataFrame({"user": ["u0", "u3"], "plan": ["paid", "free"]}).write_parquet(tmp_path / "users.parquet")
    overrides = [f"data.source={raw}", "data.quality.mode=quarantine"]
    overrides += [f"data.join=[{{source: {tmp_path / 'users.parquet'}, 'on': user}}]"] if joined else []
    changed = config_from(config.to_json(), [*overrides, *(["data.incremental={}"] if adds else [])])
    done = prepare(changed, Console(quiet=True))
    assert done["quarantined"] == {"too few fields": 1}
    assert sum(done["rows"].values()) == 299
    if joined:
        good = FRAME.with_row_index().filter(pl.col("index") != 50)
        count = good.filter(~pl.col("user").is_in(["u0", "u3"])).height
        assert open_store(changed).manifest["source"]["unmatched"] == {str(tmp_path / "users.parquet"): count}
    assert {path.name for path in changed.store_folder.parent.iterdir()} == {"data"}
