"""Each wrong input through the command line: exit code 2, a message that names it, and nothing half-written."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

Recsys = Callable[..., Any]
# The code under test, also where the package is not installed.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def refused(outcome: Any, *words: str) -> None:
    """The command ended with 2 and one message that has these words."""
    assert outcome.code == 2, outcome.out + outcome.err
    message = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(message) == 1, outcome.err
    for word in words:
        assert word in message[0], message[0]
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epocs=3", ("train.epocs", "unknown key", "did you mean 'epochs'")),
        ("embeding.rows=3", ("embeding", "did you mean 'embedding'")),
        ("spec.features.1.pooling=sum", ("spec.features.1.pooling", "unknown key")),
        ("spec.features.1.type=idd", ("spec.features.1.type", "idd", "did you mean 'id'")),
        ("spec.features.9.type=id", ("spec.features.9.type", "no such item")),
        ("model.interaction=dcnv3", ("model.interaction", "dcnv3")),
        ("train.epochs=many", ("train.epochs", "many")),
        ("train.epochs", ("key=value",)),
        ("train.epochs=[1", ("train.epochs", "not YAML")),
        ("gates.acu.min=0.7", ("gates.acu", "did you mean 'auc'")),
        ("data.recipe=synthetic", ("data", "'recipe' or 'source'")),
        ("spec.labels=[price]", ("price", "leak")),
        (f"seed={2**63}", ("seed",)),
        ("name=..", ("name",)),
        ("tracking.alias=latest", ("tracking.alias", "latest")),
        ("tracking.alias=v1", ("tracking.alias", "v1")),
        ("tracking.alias=a b", ("tracking.alias",)),
        ("tracking.registered_model=a/b", ("tracking.registered_model",)),
    ],
)
def test_wrong_config(world: Any, recsys: Recsys, override: str, words: tuple[str, ...]) -> None:
    refused(recsys("run", world.config, override), *words)
    assert not (world.folder / "work").exists()


def test_config_that_is_absent_or_no_yaml(world: Any, recsys: Recsys) -> None:
    refused(recsys("run", world.folder / "none.yaml"), "none.yaml", "cannot read the config")
    world.config.write_text("name: a\nname: b\n")
    refused(recsys("run", world.config), "given twice")
    world.config.write_text("- a list\n")
    refused(recsys("run", world.config), "no mapping")


def test_unknown_recipe(world: Any, recsys: Recsys) -> None:
    refused(
        recsys("prepare", world.config, "data.source=null", "data.recipe=criteoo"), "criteoo", "did you mean 'criteo'"
    )
    refused(recsys("data", "sinthetic"), "did you mean 'synthetic'")


def test_error_is_also_json_when_asked(world: Any, recsys: Recsys) -> None:
    outcome = recsys("run", world.config, "train.epocs=3", "--json")
    assert outcome.code == 2
    error = json.loads(outcome.out)["error"]
    assert error["type"] == "ConfigError"
    assert error["field"] == "train.epocs"


def test_usage_errors_exit_2(recsys: Recsys) -> None:
    assert recsys("no-such-verb").code == 2
    assert recsys("run").code == 2
    assert recsys("evaluate", "x.yaml", "--split", "train").code == 2


def broken(world: Any, recsys: Recsys, frame: pl.DataFrame, *words: str) -> None:
    """Preparing this data is refused, and what was prepared before is still there."""
    assert recsys("prepare", world.config).code == 0
    before = (world.store / "manifest.json").read_bytes()
    world.write(frame, tracking={"enabled": False})
    refused(recsys("prepare", world.config), *words)
    assert (world.store / "manifest.json").read_bytes() == before
    assert world.leftovers() == []


def test_missing_column(world: Any, recsys: Recsys) -> None:
    broken(world, recsys, pl.read_parquet(world.events).rename({"price": "prices"}), "price", "prices")


def test_missing_label_column(world: Any, recsys: Recsys) -> None:
    broken(world, recsys, pl.read_parquet(world.events).rename({"click": "clicks"}), "click", "clicks")


def test_wrong_dtype(world: Any, recsys: Recsys) -> None:
    frame = pl.read_parquet(world.events)
    broken(world, recsys, frame.with_columns(item=pl.concat_list("item")), "item")


def test_text_that_is_no_integer(world: Any, recsys: Recsys) -> None:
    frame = pl.read_parquet(world.events)
    broken(world, recsys, frame.with_columns(user=pl.lit("u7")), "user", "u7")


def test_label_outside_0_and_1(world: Any, recsys: Recsys) -> None:
    frame = pl.read_parquet(world.events)
    changed = frame.with_columns(click=pl.when(pl.int_range(pl.len()) == 5).then(3).otherwise("click"))
    broken(world, recsys, changed, "click", "3")


def test_no_rows(world: Any, recsys: Recsys) -> None:
    broken(world, recsys, pl.read_parquet(world.events).head(0))


@pytest.mark.parametrize("damage", ["empty", "truncated", "absent"])
def test_damaged_file(world: Any, recsys: Recsys, damage: str) -> None:
    data = world.events.read_bytes()
    if damage == "absent":
        world.events.unlink()
    else:
        world.events.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")
    refused(recsys("prepare", world.config), "events.parquet")
    assert not world.store.exists()
    assert world.leftovers() == []


def test_one_class_validation_split(world: Any, recsys: Recsys) -> None:
    frame = pl.read_parquet(world.events).with_columns(click=pl.lit(0))
    world.write(frame, tracking={"enabled": False})
    assert recsys("prepare", world.config).code == 0
    refused(recsys("train", world.config), "auc", "undefined", "every click is 0")
    assert not (world.folder / "work" / "small" / "runs").exists()
    assert recsys("train", world.config, "train.monitor=logloss").code == 0


@pytest.mark.parametrize("setting", ["train.clip_norm=1.0", "train.ema=0.9"])
def test_settings_that_do_not_go_together_begin_no_run(world: Any, recsys: Recsys, setting: str) -> None:
    pytest.importorskip("fbgemm_gpu", reason="the conflict is with the fbgemm kernel")
    assert recsys("prepare", world.config).code == 0
    overrides = ("embedding.kernel=fbgemm", setting, "tracking.enabled=true")
    refused(recsys("train", world.config, *overrides), setting.partition("=")[0], "kernel to auto")
    refused(recsys("train", world.config, *overrides, "--dry-run"), setting.partition("=")[0])
    assert not (world.folder / "work" / "small" / "runs").exists()
    assert not (world.folder / "work" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("embedding.chunks.default=64", "embedding.width=1024"), ("embedding.chunks", "network of", "low_rank")),
        (("train.batch_size=1000000000000",), ("train.batch_size", "a batch", "lower it")),
    ],
)
def test_what_is_beyond_memory_begins_no_run(
    world: Any, recsys: Recsys, overrides: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert recsys("prepare", world.config).code == 0
    for more in ((), ("--dry-run",)):
        refused(recsys("train", world.config, *overrides, *more), "would not fit into memory", *words)
    table = ("embedding.rows=2000000000", "embedding.width=1024")
    refused(recsys("train", world.config, *table), "embedding.rows", "8,192 GB", "available")
    assert not (world.folder / "work" / "small" / "runs").exists()


def test_numbers_that_are_not_finite_stop_a_training_after_the_number_stated(world: Any, recsys: Recsys) -> None:
    assert recsys("prepare", world.config).code == 0
    rates = ("train.table_optimizer=sgd", "train.table_learning_rate=1.0e30", "train.max_skipped_steps=4")
    refused(recsys("train", world.config, *rates, "train.epochs=50"), "4 steps in a row", "gradient norm", "clip_norm")
    assert world.leftovers() == []


def test_ids_of_another_fingerprint(world: Any, recsys: Recsys) -> None:
    assert recsys("prepare", world.config).code == 0
    manifest = world.store / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "fingerprint_version": 0}))
    refused(recsys("train", world.config), "another version of the fingerprint", "recsys prepare")


def test_train_before_prepare(world: Any, recsys: Recsys) -> None:
    refused(recsys("train", world.config), "recsys prepare")


def test_spec_changed_since_the_data_was_prepared(world: Any, recsys: Recsys) -> None:
    assert recsys("prepare", world.config).code == 0
    outcome = recsys("train", world.config, "spec.features.4.standardise=false")
    refused(outcome, "price", "spec changed", "recsys prepare")
    assert not (world.folder / "work" / "small" / "runs").exists()


def test_split_changed_since_the_data_was_prepared(world: Any, recsys: Recsys) -> None:
    assert recsys("prepare", world.config).code == 0
    refused(recsys("train", world.config, "data.split.seed=4"), "split", "recsys prepare")


def test_evaluate_or_register_before_train(world: Any, recsys: Recsys) -> None:
    assert recsys("prepare", world.config).code == 0
    refused(recsys("evaluate", world.config), "no trained run", "recsys train")
    refused(recsys("register", world.config), "no trained run")


def test_evaluate_on_other_data_than_it_was_trained_on(world: Any, recsys: Recsys) -> None:
    assert recsys("prepare", world.config).code == 0
    assert recsys("train", world.config).code == 0
    seed = "data.split.seed=4"
    assert recsys("prepare", world.config, seed).code == 0
    refused(recsys("evaluate", world.config, seed), "0001", "data.split", "recsys prepare", "train again")
    first = yaml.safe_load(world.config.read_text())["spec"]
    turned = f"spec={json.dumps(first | {'features': [*first['features'][1:], first['features'][0]]})}"
    assert recsys("prepare", world.config, turned).code == 0
    refused(recsys("evaluate", world.config, turned), "differs in spec")
    assert recsys("prepare", world.folder / "work" / "small" / "runs" / "0001" / "config.yaml").code == 0
    assert recsys("evaluate", world.config).code == 0
    world.write(pl.read_parquet(world.events).head(2500), tracking={"enabled": False})
    assert recsys("prepare", world.config).code == 0
    refused(recsys("evaluate", world.config), "differs in the raw files")


def test_register_a_run_without_tracking(world: Any, recsys: Recsys) -> None:
    recsys("prepare", world.config)
    assert recsys("train", world.config).code == 0
    refused(recsys("register", world.config), "tracking.enabled")


def test_damaged_bundle(world: Any, recsys: Recsys) -> None:
    recsys("prepare", world.config)
    bundle = Path(recsys("train", world.config, "--json").json["bundle"])
    weights = bundle / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused(recsys("evaluate", world.config), "damaged")
    refused(recsys("score", bundle, world.events, world.folder / "out.parquet"), "damaged")


def test_full_disk_during_checkpointing(world: Any, recsys: Recsys) -> None:
    recsys("prepare", world.config)
    command = [sys.executable, "-m", "pipelines.cli", "train", str(world.config), "embedding.rows=50000"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=world.folder, env=ENVIRONMENT, preexec_fn=limit
    )
    assert ended.returncode == 2, ended.stderr
    assert "could not be written" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert world.leftovers() == []


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("models:/smal@challenger", ("smal", "did you mean 'small'")),
        ("models:/small@champion", ("no such version or alias", "challenger -> 1")),
        ("models:/small/7", ("no such version or alias",)),
        ("models:/small", ("models:/NAME@ALIAS",)),
        ("no/such/folder", ("no/such/folder", "no model bundle")),
    ],
)
def test_unknown_model(in_trained: Any, recsys: Recsys, tmp_path: Path, uri: str, words: tuple[str, ...]) -> None:
    refused(recsys("score", uri, in_trained.events, tmp_path / "out.parquet"), *words)
    assert list(tmp_path.iterdir()) == []


def test_registered_model_on_a_file_that_lacks_a_column(in_trained: Any, recsys: Recsys, tmp_path: Path) -> None:
    source, out = tmp_path / "new.parquet", tmp_path / "out.parquet"
    pl.read_parquet(in_trained.events).drop("city").write_parquet(source)
    refused(recsys("score", "models:/small@challenger", source, out), "city")
    refused(recsys("score", "models:/small@challenger", source, out, "--keep", "city"), "city")
    assert [path.name for path in tmp_path.iterdir()] == ["new.parquet"]


def test_registered_model_on_an_empty_file(in_trained: Any, recsys: Recsys, tmp_path: Path) -> None:
    source = tmp_path / "new.parquet"
    pl.read_parquet(in_trained.events).head(0).write_parquet(source)
    refused(recsys("score", "models:/small@challenger", source, tmp_path / "out.parquet"), "new.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["new.parquet"]


def test_store_that_cannot_be_opened(in_trained: Any, recsys: Recsys, tmp_path: Path) -> None:
    (tmp_path / "not-a-database.db").write_text("hello" * 100)
    uri = f"sqlite:///{tmp_path / 'not-a-database.db'}"
    outcome = recsys("score", "models:/a@b", in_trained.events, tmp_path / "out.parquet", "--tracking-uri", uri)
    refused(outcome, "cannot open the MLflow store")


def test_store_that_is_not_there_is_not_made(in_trained: Any, recsys: Recsys, tmp_path: Path) -> None:
    arguments = ("score", "models:/small@challenger", in_trained.events, tmp_path / "out.parquet")
    refused(recsys(*arguments, "--workspace", tmp_path / "nowhere"), "nowhere", "no MLflow store", "--workspace")
    assert list(tmp_path.iterdir()) == []


def test_scoring_a_file_that_is_damaged_inside(in_trained: Any, recsys: Recsys, tmp_path: Path) -> None:
    source = tmp_path / "new.parquet"
    data = bytearray(in_trained.events.read_bytes())
    data[4 : len(data) * 3 // 4] = b"\xff" * (len(data) * 3 // 4 - 4)
    source.write_bytes(data)
    refused(recsys("score", "models:/small@challenger", source, tmp_path / "out.parquet"), "new.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["new.parquet"]


@pytest.mark.parametrize(("keep", "words"), [("user,item,user", ("user", "twice")), ("p_click", ("p_click", "output"))])
def test_columns_that_cannot_be_kept(
    in_trained: Any, recsys: Recsys, tmp_path: Path, keep: str, words: tuple[str, ...]
) -> None:
    source = tmp_path / "new.parquet"
    pl.read_parquet(in_trained.events).with_columns(p_click=0.5).write_parquet(source)
    outcome = recsys("score", "models:/small@challenger", source, tmp_path / "out.parquet", "--keep", keep)
    refused(outcome, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["new.parquet"]


def test_demo_elsewhere_than_in_the_repository(recsys: Recsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(recsys("demo"), "configs/synthetic.yaml", "root of the repository")


def test_inspect_a_model_with_data_that_does_not_fit(world: Any, recsys: Recsys) -> None:
    assert recsys("prepare", world.config).code == 0
    assert recsys("train", world.config).code == 0
    run = world.folder / "work" / "small" / "runs" / "0001"
    page = world.folder / "table.html"
    refused(recsys("inspect", run / "bundle", "none.parquet", "--html", page), "none.parquet")
    refused(recsys("inspect", run / "bundle", world.folder, "--html", page), "no prepared data")
    refused(recsys("inspect", run / "bundle", "--html", page), "--html", "needs data")
    refused(
        recsys("inspect", run / "bundle", world.store, "embedding.rows=3"), "one source of data", "embedding.rows=3"
    )
    pl.read_parquet(world.events).rename({"item": "items"}).write_parquet(world.folder / "other.parquet")
    refused(recsys("inspect", run, "other.parquet", "--html", page), "item", "items")
    refused(recsys("inspect", run, "--html", world.store / "manifest.json" / "table.html"), "cannot be written")
    refused(recsys("inspect", run, "--split", "training"), "training", "train, valid, test")
    assert recsys("inspect", run, "--rows", "0").code == 2
    assert not page.exists()
    assert world.leftovers() == []


def test_inspect_what_is_no_model(world: Any, recsys: Recsys) -> None:
    refused(recsys("inspect", world.folder), "no model bundle")
    refused(recsys("inspect", "models:/small@challenger"), "no MLflow store")
    refused(recsys("inspect", "none.yaml"), "none.yaml", "cannot read the config")
    assert recsys("prepare", world.config).code == 0
    assert recsys("train", world.config).code == 0
    run = world.folder / "work" / "small" / "runs" / "0001"
    (run / "train.json").unlink()
    refused(recsys("inspect", run), "0001", "not finished", "--resume")


def test_inspect_a_run_whose_data_is_gone(world: Any, recsys: Recsys) -> None:
    """What the model holds is still shown; only a page needs the data."""
    assert recsys("prepare", world.config).code == 0
    assert recsys("train", world.config).code == 0
    run = world.folder / "work" / "small" / "runs" / "0001"
    world.store.rename(world.folder / "moved")
    outcome = recsys("inspect", run, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["diagnostics"] is None
    assert "its table is not looked into" in outcome.err
    refused(recsys("inspect", run, "--html", "table.html"), "no prepared data")
    assert recsys("inspect", run, world.folder / "moved", "--html", "table.html").code == 0


@pytest.mark.parametrize(
    ("join", "words"),
    [
        (
            "{source: users.parquet, on: user, columns: [since]}",
            ("users.parquet", "data.join.on (user)", "share their key"),
        ),
        ("{source: users.parquet, on: user, time: since}", ("data.join (users.parquet).event_time", "spec's time")),
        ("{source: user.parquet, on: user}", ("user.parquet", "did you mean 'users.parquet'")),
        ("{source: users.parquet, on: user, time: since, event_time: at, columns: [city]}", ("city", "prefix")),
        (
            "{source: users.parquet, on: {city: user}, time: since, event_time: at, columns: []}",
            ("city", "cannot be compared"),
        ),
    ],
)
def test_wrong_join(world: Any, recsys: Recsys, join: str, words: tuple[str, ...]) -> None:
    users = pl.DataFrame({"user": [True, True], "since": [0, 9], "city": ["a", "b"]})
    if "{city" not in join:
        users = users.with_columns(user=1)
    users.write_parquet(world.folder / "users.parquet")
    refused(recsys("prepare", world.config, f"data.join=[{join}]"), *words)
    assert not world.store.exists()


def test_a_log_cut_short(world: Any, recsys: Recsys) -> None:
    whole = gzip.compress(pl.read_parquet(world.events).select("user", "click").write_csv().encode())
    (world.folder / "events.csv.gz").write_bytes(whole[:-100])
    feature = "spec.features=[{type: id, name: user}]"
    arguments = ("data.source=events.csv.gz", feature, "spec.group=null", "spec.reference=null")
    refused(recsys("prepare", world.config, *arguments), "events.csv.gz", "damaged", "unexpected end of file")
    assert not world.store.exists()
    assert world.leftovers() == []
