"""Batch scoring: order and ids, every kind of source, kills, bad rows, side tables, and places that are taken."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import polars as pl
import pytest
import yaml

from features.errors import ArtifactError, ConfigError, DataError
from features.folders import workshop
from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.validation import validate
from pipelines.console import Console
from pipelines.score import PART_BATCHES, score
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.serving.bundle import save_bundle
from recsys.serving.scorer import Scorer

SPEC: dict[str, Any] = {
    "features": [
        {"name": "user", "type": "id", "dtype": "integer"},
        {"name": "item", "type": "id"},
        {"name": "price", "type": "number", "standardise": True, "missing_flag": True},
        {"name": "plan", "type": "id"},
    ],
    "labels": ["click", "buy"],
    "time": "at",
    "time_unit": "s",
}
ROWS, BATCH = 1500, 16
STORE = "sqlite:///not-needed.db"


def events(rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    """Rows with nulls, none of which is like another: `row` tells them apart."""
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "row": [f"r{seed}-{i}" for i in range(rows)],
            "user": [None if missing else i for i, missing in zip(range(rows), rng.random(rows) < 0.1, strict=True)],
            "item": [f"i{i}" for i in rng.integers(0, 50, rows)],
            "price": [round(float(x), 2) if x > 3 else None for x in rng.gamma(2, 10, rows)],
            "plan": [f"p{i}" for i in rng.integers(0, 4, rows)],
            "at": rng.integers(0, 10**9, rows),
        }
    )


def make_bundle(folder: Path, seed: int = 0) -> Path:
    frame = events(300, seed=99)
    pipeline = FeaturePipeline(validate(FeatureSpec, SPEC)).fit(frame)
    ids = pipeline.encode_frame(frame).ids.numpy()
    counts = {n: np.unique(ids[:, i], return_counts=True) for i, n in enumerate(pipeline.layout.id_names)}
    config = EmbeddingConfig.model_validate({"width": 4, "rows": 100, "init_scale": 1.0})
    plan = plan_embedding(pipeline.layout, config, counts)
    model = CTRModel(pipeline.layout, plan, ModelConfig.model_validate({"hidden": (8,)}), seed=seed).eval()
    return save_bundle(folder, model=model, pipeline=pipeline)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("model") / "bundle")


def run(bundle: Path, source: Path | str, out: Path, **options: Any) -> dict[str, Any]:
    options = {"tracking_uri": STORE, "batch_size": BATCH, **options}
    return score(str(bundle), str(source), out, Console(quiet=True), **options)


def check(bundle: Path, out: Path, frame: pl.DataFrame) -> None:
    """`out` holds the rows of `frame` in their order, with the scores of the scorer."""
    found = pl.read_parquet(out if out.is_file() else out / "part-*.parquet")
    assert found["row"].to_list() == frame["row"].to_list()
    expected = Scorer.load(bundle).score(frame)
    np.testing.assert_allclose(found.select("p_click", "p_buy").to_numpy(), expected, atol=1e-6, rtol=0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def typed(frame: pl.DataFrame) -> pl.DataFrame:
    """What CSV files are read as: text."""
    return frame.with_columns(pl.all().cast(pl.String))


def csv_gz(folder: Path, frame: pl.DataFrame) -> Path:
    for number, part in enumerate(frame.iter_slices(600)):
        part.write_csv(folder / f"day-{number}.csv.gz", compression="gzip")
    return folder / "day-*.csv.gz"


def ndjson(folder: Path, frame: pl.DataFrame) -> Path:
    frame.write_ndjson(folder / "rows.ndjson")
    return folder / "rows.ndjson"


def partitions(folder: Path, frame: pl.DataFrame) -> Path:
    for number, part in enumerate(frame.iter_slices(400)):
        (folder / f"day={number}").mkdir()
        part.write_parquet(folder / f"day={number}" / "rows.parquet")
    return folder


def delta(folder: Path, frame: pl.DataFrame) -> Path:
    deltalake.write_deltalake(folder / "table", frame.to_arrow())
    return folder / "table"


@pytest.mark.parametrize("write", [csv_gz, ndjson, partitions, delta])
def test_every_kind_of_source_keeps_order_and_ids(bundle: Path, tmp_path: Path, write: Any) -> None:
    (tmp_path / "in").mkdir()
    frame, out = events(), tmp_path / "scores.parquet"
    result = run(bundle, write(tmp_path / "in", frame), out, keep=["row", "at"])
    check(bundle, out, frame)
    assert (result["rows"], result["columns"]) == (ROWS, ["row", "at", "p_click", "p_buy"])
    means = Scorer.load(bundle).score(frame).mean(0)
    assert list(result["mean"].values()) == pytest.approx(means.tolist(), abs=1e-6)
    assert names(tmp_path) == ["in", "scores.parquet"]


def test_a_folder_holds_the_rows_of_the_file_whatever_the_number_of_workers(bundle: Path, tmp_path: Path) -> None:
    frame = events()
    frame.write_parquet(tmp_path / "in.parquet")
    run(bundle, tmp_path / "in.parquet", tmp_path / "a.parquet", workers=1)
    run(bundle, tmp_path / "in.parquet", tmp_path / "b.parquet", workers=3)
    run(bundle, tmp_path / "in.parquet", tmp_path / "c", workers=3)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    parts = sorted((tmp_path / "c").glob("part-*.parquet"))
    assert [len(pl.read_parquet(part)) for part in parts] == [256] * 5 + [220]
    assert PART_BATCHES * BATCH == 256
    assert pl.read_parquet(parts).equals(pl.read_parquet(tmp_path / "a.parquet"))


def test_scores_that_are_there_are_left_until_something_changes(bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    events().write_parquet(source)
    for out in (tmp_path / "scores.parquet", tmp_path / "scores"):
        first = run(bundle, source, out, keep=["row"])
        again = run(bundle, source, out, keep=["row"])
        assert (first["reused"], again["reused"]) == (False, True)
        timed = {"seconds", "rows_per_second", "reused"}
        assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in first.items() if k not in timed}
    other = make_bundle(tmp_path / "other", seed=1)
    assert not run(other, source, tmp_path / "scores.parquet", keep=["row"])["reused"]
    check(other, tmp_path / "scores.parquet", events())
    events(700, seed=1).write_parquet(source)
    for out in (tmp_path / "scores.parquet", tmp_path / "scores"):
        assert not run(bundle, source, out, keep=["row"])["reused"]
        check(bundle, out, events(700, seed=1))


def processes() -> Any:
    """Makes processes that have imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipelines.score", __name__])
    return context


def score_until_killed(bundle: Path, source: Path, out: Path, told: Any) -> None:
    told.put("ready")
    result = run(bundle, source, out, keep=["row"], quarantine=True, max_bad_share=0.5, batch_size=8)
    told.put(result["resumed"])


def score_on_a_small_disk(bundle: Path, source: Path, out: Path, told: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        run(bundle, source, out, keep=["row"])
    except ArtifactError as error:
        told.put(str(error))


@pytest.mark.parametrize("name", ["scores.parquet", pytest.param("scores", marks=pytest.mark.slow)])
def test_killed_at_random_moments(bundle: Path, tmp_path: Path, name: str) -> None:
    """What comes out is what an undisturbed run gives, byte for byte, and what was done is not done again."""
    logs = tmp_path / "logs"
    logs.mkdir()
    for day in range(3):
        frame = events(700, seed=day).with_columns(
            price=pl.when(pl.col("user") % 9 == 0).then(pl.lit("x")).otherwise("price")
        )
        frame.write_csv(logs / f"day-{day}.csv")
    context = processes()

    def started(out: Path) -> tuple[Any, Any]:
        told = context.Queue()
        process = context.Process(target=score_until_killed, args=(bundle, logs, out, told))
        process.start()
        assert told.get(timeout=300) == "ready"
        return process, told

    def finished(out: Path) -> int:
        process, told = started(out)
        resumed = told.get(timeout=300)
        process.join()
        assert process.exitcode == 0
        return int(resumed)

    quiet, killed = tmp_path / "quiet" / name, tmp_path / "killed" / name
    assert finished(quiet) == 0
    progress = killed.parent / f".{name}.work" / "progress.json"
    draws = np.random.default_rng(0)
    for parts in (0, *sorted(draws.integers(1, 7, 3))):
        process, _ = started(killed)
        while len(json.loads(progress.read_text())["parts"]) < parts if progress.exists() else parts:
            process.join(0.01)
            assert process.is_alive()
        process.join(draws.random() * 0.1)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert finished(killed) > 0
    assert content(killed.parent) == content(quiet.parent)
    assert sum(1 for path in content(quiet.parent) if path.parts[0].endswith(".quarantine")) > 1


def content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_bad_value_ends_a_strict_run_and_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    frame = typed(events()).with_columns(
        price=pl.when(pl.int_range(pl.len()) == 1000).then(pl.lit("dear")).otherwise("price")
    )
    frame.write_csv(tmp_path / "in.csv")
    with pytest.raises(DataError, match=r"price.*dear"):
        run(bundle, tmp_path / "in.csv", tmp_path / "scores.parquet")
    assert names(tmp_path) == ["in.csv"]


def test_quarantine_sets_rows_and_lines_aside_and_counts_them(bundle: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    frame = events(200)
    bad = [20, 150]
    dirty = typed(frame).with_columns(
        price=pl.when(pl.int_range(pl.len()).is_in(bad)).then(pl.lit("dear")).otherwise("price")
    )
    dirty.head(100).write_csv(logs / "a.csv")
    lines = dirty.tail(100).write_csv().splitlines(keepends=True)
    (logs / "b.csv").write_text("".join([*lines[:11], "half a line\n", *lines[11:]]))
    out = tmp_path / "scores.parquet"
    with pytest.raises(DataError, match="too few fields"):
        run(bundle, logs, out)
    with pytest.raises(DataError, match="too many rows are in quarantine"):
        run(bundle, logs, out, quarantine=True)
    assert names(tmp_path) == ["logs", "scores.parquet.quarantine"]
    result = run(bundle, logs, out, keep=["row"], quarantine=True, max_bad_share=0.1)
    check(bundle, out, frame.filter(~pl.int_range(pl.len()).is_in(bad)))
    assert result["rows"] == 198
    assert sorted(result["quarantined"].values()) == [1, 2]
    rows = pl.concat(pl.read_parquet(path) for path in sorted((tmp_path / "scores.parquet.quarantine").glob("rows-*")))
    assert rows.select("__file__", "__place__", "row", "price").rows() == [
        ("a.csv", 20, "r0-20", "dear"),
        ("b.csv", 51, "r0-150", "dear"),
    ]
    records = pl.read_parquet(tmp_path / "scores.parquet.quarantine" / "records.parquet")
    assert records.select("__file__", "__place__", "record").rows() == [("b.csv", 10, "half a line")]
    # mended, there is no quarantine any more
    dirty.tail(100).with_columns(price=pl.lit("1.5")).write_csv(logs / "b.csv")
    dirty.head(100).with_columns(price=pl.lit("1.5")).write_csv(logs / "a.csv")
    assert run(bundle, logs, out, quarantine=True)["rows"] == 200
    assert names(tmp_path) == ["logs", "scores.parquet"]


def test_numbers_too_large_for_a_probability_are_bad_values(bundle: Path, tmp_path: Path) -> None:
    bad = [3, 40, 41]
    dirty = events(64).with_columns(
        price=pl.when(pl.int_range(pl.len()).is_in(bad)).then(pl.lit(-1e300)).otherwise("price"),
        user=pl.when(pl.int_range(pl.len()) == 5).then(pl.lit("u5")).otherwise(pl.col("user").cast(pl.String)),
    )
    dirty.with_columns(user=pl.col("user").str.replace("u5", "5")).write_parquet(tmp_path / "strict.parquet")
    with pytest.raises(DataError, match=r"price: a number is so large that there is no probability \(in 1 row\)"):
        run(bundle, tmp_path / "strict.parquet", tmp_path / "scores.parquet")
    assert names(tmp_path) == ["strict.parquet"]
    dirty.write_parquet(tmp_path / "in.parquet")
    out = tmp_path / "scores.parquet"
    result = run(bundle, tmp_path / "in.parquet", out, keep=["row"], quarantine=True, max_bad_share=0.1)
    check(bundle, out, events(64).filter(~pl.int_range(pl.len()).is_in([*bad, 5])))
    assert result["rows"] == 60
    assert result["quarantined"]["price: a number is so large that there is no probability"] == 3
    assert sum(result["quarantined"].values()) == 4
    rows = pl.concat(pl.read_parquet(path) for path in sorted((tmp_path / "scores.parquet.quarantine").glob("rows-*")))
    assert rows.select("__place__", "price").rows()[::2] == [(3, -1e300), (40, -1e300)]
    assert rows["__place__"].to_list() == [3, 5, 40, 41]


def config_with_side_table(folder: Path, users: pl.DataFrame) -> Path:
    users.write_csv(folder / "users.csv")
    config = {
        "name": "joined",
        "workspace": str(folder / "work"),
        "data": {
            "source": str(folder / "in.parquet"),
            "split": {"kind": "random", "fractions": [0.6, 0.2, 0.2]},
            "join": [{"source": str(folder / "users.csv"), "on": "user", "time": "since"}],
        },
        "spec": SPEC,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


@pytest.mark.parametrize("quarantine", [False, True])
def test_side_tables_are_joined(bundle: Path, tmp_path: Path, quarantine: bool) -> None:
    frame = events()
    frame.drop("plan").write_parquet(tmp_path / "in.parquet")
    known = frame.filter(pl.col("user") % 3 != 0)
    users = pl.concat(
        [
            known.select("user", pl.col("plan"), since=pl.col("at") - 5),
            known.select("user", plan=pl.lit("of the future"), since=pl.col("at") + 5),
        ]
    )
    config = config_with_side_table(tmp_path, users)
    out = tmp_path / "scores.parquet"
    with pytest.raises(DataError, match="plan: column is missing"):
        run(bundle, tmp_path / "in.parquet", out)
    result = run(bundle, tmp_path / "in.parquet", out, config=config, keep=["row", "plan"], quarantine=quarantine)
    joined = frame.with_columns(plan=pl.when(pl.col("user") % 3 != 0).then("plan"))
    check(bundle, out, joined)
    assert pl.read_parquet(out)["plan"].to_list() == joined["plan"].to_list()
    assert result["unmatched"] == {str(tmp_path / "users.csv"): joined["plan"].null_count()}
    # another side table: other scores
    users.with_columns(plan=pl.lit("p1")).write_csv(tmp_path / "users.csv")
    assert not run(bundle, tmp_path / "in.parquet", out, config=config, keep=["row", "plan"])["reused"]


def test_places_that_are_taken(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "rows.parquet"
    events(50).write_parquet(source)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    wrong = {
        tmp_path / "scores.csv": "scores are written as Parquet.*scores.parquet",
        source: "over what is read",
        tmp_path / "in": "over what is read",
        tmp_path / "in" / "scores.parquet": "among it",
        tmp_path / "mine": "holds other things than scores.*thesis.txt",
    }
    for out, words in wrong.items():
        with pytest.raises(ConfigError, match=words):
            run(bundle, tmp_path / "in", out)
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(ArtifactError, match=r"folder.parquet"):
        run(bundle, source, tmp_path / "folder.parquet")
    with pytest.raises(ArtifactError, match="cannot be written"):
        run(bundle, source, tmp_path / "mine" / "thesis.txt" / "scores.parquet")
    with (
        workshop(tmp_path / "a.parquet"),
        pytest.raises(ArtifactError, match="another process is writing these scores"),
    ):
        run(bundle, source, tmp_path / "a.parquet")
    assert pl.read_parquet(source).equals(events(50))


def test_what_cannot_be_read(bundle: Path, tmp_path: Path) -> None:
    events(50).head(0).write_parquet(tmp_path / "empty.parquet")
    events(50).drop("item").write_parquet(tmp_path / "lacks.parquet")
    events(50).write_parquet(tmp_path / "rows.parquet")
    (tmp_path / "none.ndjson").write_text("")
    (tmp_path / "rows.txt").write_text("1")
    wrong = {
        "empty.parquet": "no rows to score",
        "lacks.parquet": "item: column is missing",
        "none.ndjson": "file is empty",
        "rows.txt": "unknown ending",
        "row.parquet": "did you mean 'rows.parquet'",
        "none-*.parquet": "no file matches",
    }
    for name, words in wrong.items():
        for quarantine in (False, True):
            with pytest.raises(DataError, match=words):
                run(bundle, tmp_path / name, tmp_path / "out" / "scores.parquet", quarantine=quarantine)
    with pytest.raises(DataError, match="no such column to keep"):
        run(bundle, tmp_path / "rows.parquet", tmp_path / "out" / "scores.parquet", keep=["ro"])
    assert not any((tmp_path / "out").iterdir())


def test_a_full_disk_loses_no_part(bundle: Path, tmp_path: Path) -> None:
    """The parts fit, the whole file does not: with more space it is put together, and nothing is scored again."""
    source, out = tmp_path / "in.parquet", tmp_path / "scores.parquet"
    events().write_parquet(source)
    told = processes().Queue()
    process = processes().Process(target=score_on_a_small_disk, args=(bundle, source, out, told))
    process.start()
    assert "cannot be written" in told.get(timeout=300)
    process.join()
    assert not out.exists()
    result = run(bundle, source, out, keep=["row"])
    assert (result["rows"], result["resumed"]) == (ROWS, ROWS)
    check(bundle, out, events())
    run(bundle, source, tmp_path / "undisturbed.parquet", keep=["row"])
    assert out.read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()
    assert names(tmp_path) == ["in.parquet", "scores.parquet", "undisturbed.parquet"]


def test_parts_of_another_run_are_not_taken(bundle: Path, tmp_path: Path) -> None:
    """A run is stopped when all its parts are done; then the source changes."""
    source, out = tmp_path / "in.parquet", tmp_path / "scores.parquet"
    events().write_parquet(source)
    out.mkdir()  # the scores cannot get their name: all parts are done
    with pytest.raises(ArtifactError):
        run(bundle, source, out, keep=["row"])
    work = tmp_path / ".scores.parquet.work"
    assert sum(part["rows"] for part in json.loads((work / "progress.json").read_text())["parts"]) == ROWS
    os.rmdir(out)
    events(seed=3).write_parquet(source)
    assert run(bundle, source, out, keep=["row"])["resumed"] == 0
    check(bundle, out, events(seed=3))
    assert names(tmp_path) == ["in.parquet", "scores.parquet"]
