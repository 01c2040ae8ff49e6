"""Two processes train as one does: the same losses, checkpoints that fit any number of them, whole weights at the end.

Every group of processes is a real `torchrun` that works through a list of trainings.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.distributed import largest_difference, run_cases
from benchmarks.scripts.train_distributed import train
from features.errors import ArtifactError, ConfigError
from features.loading.loader import Loader
from features.storage.store import Store
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.sharded import torchrec_available
from recsys.evaluation.metrics import evaluate
from recsys.models import CTRModel, ModelConfig
from recsys.processes import Processes
from recsys.tensorfile import read_tensors
from recsys.training import TrainConfig, load_best, predict
from recsys.training.distributed import check_distributed
from tests.recsys.training import skipping_job

pytestmark = pytest.mark.skipif(not torchrec_available(), reason="torchrec is not installed")

EMBEDDING = {"width": 8, "rows": 300, "chunks": {"default": 2}, "exact": {"max_values": 10}}
MODEL = {"interaction": "dcnv2", "cross_layers": 1, "hidden": [16]}
# 23 rows a step: processes have batches of different sizes, and an epoch has more than 50 steps
TRAIN = {"batch_size": 23, "threads": 1, "checkpoint_steps": 20, "learning_rate": 0.01}
CHECKPOINT, CUT = 20, 25
KINDS = {
    "adagrad row_wise": ("rowwise_adagrad", "row_wise"),
    "adagrad table_wise": ("rowwise_adagrad", "table_wise"),
    "sgd row_wise": ("sgd", "row_wise"),
    "sgd column_wise": ("sgd", "column_wise"),
}


def case(kind: str, folder: Path, **more: Any) -> dict[str, Any]:
    optimizer, sharding = KINDS[kind]
    rate = {"rowwise_adagrad": 0.05, "sgd": 5.0}[optimizer]
    settings = {"table_optimizer": optimizer, "table_learning_rate": rate, "distributed": {"sharding": sharding}}
    return {
        "folder": str(folder),
        "embedding": EMBEDDING,
        "model": {**MODEL, **more.pop("model", {})},
        "train": {**TRAIN, **settings, **more.pop("train", {})},
        "seed": 3,
        **more,
    }


def with_dropout(folder: Path, **more: Any) -> dict[str, Any]:
    return case("adagrad row_wise", folder, model={"dropout": 0.2}, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def alone(store_folder: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Ordinary trainings: every kind, and one cut after its checkpoint."""
    store = Store.open(store_folder)
    out = {kind: train(store, case(kind, folder / "alone" / kind), Processes()) for kind in KINDS}
    out["cut"] = train(store, case("adagrad row_wise", folder / "alone" / "cut", cut=CUT), Processes())
    return {name: by_text(result) for name, result in out.items()}


@pytest.fixture(scope="module")
def two(store_folder: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The same in two processes, and one with dropout, whole and cut."""
    there = folder / "two"
    cases = {kind: case(kind, there / kind) for kind in KINDS}
    cases["cut"] = case("adagrad row_wise", there / "cut", cut=CUT)
    cases["dropout"] = with_dropout(there / "dropout")
    cases["dropout cut"] = with_dropout(there / "dropout cut", cut=CUT)
    return dict(zip(cases, run_cases(store_folder, list(cases.values()), 2), strict=True))


def by_text(result: dict[str, Any]) -> dict[str, Any]:
    """Steps as the JSON of another process has them."""
    return {**result, "losses": {str(step): loss for step, loss in result["losses"].items()}}


def best(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "best.safetensors")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_of_two_processes_are_those_of_one(alone: Any, two: Any, kind: str) -> None:
    assert len(two[kind]["losses"]) >= 50
    assert largest_difference(alone[kind], two[kind], steps=50) <= 1e-6
    for name, value in alone[kind]["metrics"].items():
        assert two[kind]["metrics"][name] == pytest.approx(value, abs=1e-9 if name == "auc" else 1e-6), name


def test_every_process_has_the_part_it_should(two: Any) -> None:
    parts = {kind: [(p["rows"], p["columns"]) for p in two[kind]["parts"]] for kind in KINDS}
    (low, _), (high, _) = parts["adagrad row_wise"]
    assert low.startswith("0 to ")
    assert int(high.split()[0]) == int(low.split()[-1]) + 1
    assert [columns for _, columns in parts["sgd column_wise"]] == ["0 to 3", "4 to 7"]
    assert sorted(rows == "none" for rows, _ in parts["adagrad table_wise"]) == [False, True]
    for kind in KINDS:
        assert sum(p["table_bytes"] for p in two[kind]["parts"]) == two["cut"]["parts"][0]["table_bytes"] * 2


def test_the_best_weights_are_an_ordinary_file_that_predicts_as_one_process_would(
    store_folder: Path, folder: Path, alone: Any, two: Any
) -> None:
    store = Store.open(store_folder)
    plan = plan_embedding(store.layout, EmbeddingConfig.model_validate(EMBEDDING), store.id_counts("train"))
    predictions = []
    for where in ("alone", "two"):
        model = CTRModel(store.layout, plan, ModelConfig.model_validate(MODEL))
        load_best(model, folder / where / "adagrad row_wise")
        predictions.append(predict(model, Loader(store, "valid", 64)))
    assert predictions[1].probabilities == pytest.approx(predictions[0].probabilities, abs=1e-5)
    assert predictions[1].labels is not None
    report = evaluate(predictions[1].labels, predictions[1].probabilities, predictions[1].weight)
    assert two["adagrad row_wise"]["metrics"]["auc"] == pytest.approx(report["auc"], abs=1e-9)


def test_a_checkpoint_of_two_loads_in_one(store_folder: Path, folder: Path, alone: Any, two: Any) -> None:
    shutil.copytree(folder / "two" / "cut", folder / "two to one")
    assert (folder / "two to one" / f"step-{CHECKPOINT:09d}").is_dir()
    store = Store.open(store_folder)
    resumed = by_text(train(store, case("adagrad row_wise", folder / "two to one", resume=True), Processes()))
    assert min(map(int, resumed["losses"])) == CHECKPOINT + 1
    assert largest_difference(alone["adagrad row_wise"], resumed) <= 1e-6


def test_checkpoints_of_one_and_of_two_load_in_two(store_folder: Path, folder: Path, alone: Any, two: Any) -> None:
    shutil.copytree(folder / "alone" / "cut", folder / "one to two")
    shutil.copytree(folder / "two" / "dropout cut", folder / "two to two")
    torn = folder / "two to two" / f".step-{CUT:09d}.tmp"  # as if killed while it was being written
    torn.mkdir()
    (torn / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
    cases = [
        case("adagrad row_wise", folder / "one to two", resume=True),
        with_dropout(folder / "two to two", resume=True),
    ]
    from_one, from_two = run_cases(store_folder, cases, 2)
    assert min(map(int, from_one["losses"])) == min(map(int, from_two["losses"])) == CHECKPOINT + 1
    assert largest_difference(alone["adagrad row_wise"], from_one) <= 1e-6
    # as many processes as before: the very same bits, dropout and all
    whole = two["dropout"]
    assert all(loss == whole["losses"][step] for step, loss in from_two["losses"].items())
    assert from_two["metrics"] == whole["metrics"]
    expected, found = best(folder / "two" / "dropout"), best(folder / "two to two")
    assert all(torch.equal(found[name], t) for name, t in expected.items())
    assert not torn.exists()


def test_two_checkpoints_are_kept_and_nothing_unfinished(folder: Path, two: Any) -> None:
    names = sorted(path.name for path in (folder / "two" / "sgd row_wise").iterdir())
    assert names[0] == "best.safetensors"
    assert [name.partition("-")[0] for name in names[1:]] == ["step", "step"]
    files = {path.name for path in (folder / "two" / "sgd row_wise" / names[-1]).iterdir()}
    assert files == {"state.json", *(f"shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2))}


def test_a_damaged_part_is_named(store_folder: Path, folder: Path, two: Any, tmp_path: Path) -> None:
    shutil.copytree(folder / "two" / "cut", tmp_path / "damaged")
    part = next((tmp_path / "damaged" / f"step-{CHECKPOINT:09d}").glob("shard-00002*"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=f"step-{CHECKPOINT:09d}: cannot be read: damaged"):
        train(Store.open(store_folder), case("adagrad row_wise", tmp_path / "damaged", resume=True), Processes())


def test_a_step_that_is_not_finite_in_one_process_is_skipped_in_all(store_folder: Path, tmp_path: Path) -> None:
    job = Path(skipping_job.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    out = subprocess.run(
        [*command, str(job), str(store_folder), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(job.parents[3]), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    said = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert sorted(each["rank"] for each in said) == [0, 1]
    for each in said:
        assert each["skipped"] == {"nothing": False, "loss": True, "table": True, "network": True, "after": False}
        assert each["unchanged"] == each["skipped"]


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_leaves_the_old_checkpoints(
    store_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files, which the processes inherit, stands in for the end of the disk."""
    run_cases(store_folder, [case("adagrad row_wise", tmp_path / "run", cut=CUT)], 2)
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    limits, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
    try:
        with pytest.raises(RuntimeError, match="ended with code 1"):
            run_cases(store_folder, [case("adagrad row_wise", tmp_path / "run", resume=True)], 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, action)
    assert "could not be written" in capfd.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_other_numbers_of_processes(store_folder: Path, folder: Path, alone: Any, two: Any, count: int) -> None:
    there = folder / str(count)
    shutil.copytree(folder / "two" / "cut", there / "cut")
    cases = {kind: case(kind, there / kind) for kind in KINDS}
    cases["cut"] = case("adagrad row_wise", there / "cut", resume=True)
    results = dict(zip(cases, run_cases(store_folder, list(cases.values()), count), strict=True))
    for kind in KINDS:
        assert largest_difference(alone[kind], results[kind]) <= 1e-6
    assert largest_difference(alone["adagrad row_wise"], results["cut"]) <= 1e-6


@pytest.mark.parametrize(
    ("train_settings", "embedding", "field"),
    [
        ({"table_optimizer": "adam"}, {}, "train.table_optimizer"),
        ({"table_optimizer": "rowwise_rmsprop"}, {}, "train.table_optimizer"),
        ({"table_master": True}, {}, "train.table_master"),
        ({}, {"format": "int8"}, "embedding.format"),
        ({}, {"hot": {"features": {"user": 16}}}, "embedding.hot"),
        ({}, {"kernel": "numba"}, "embedding.kernel"),
        ({"table_l2": 0.1}, {}, "train.table_l2"),
        ({"clip_norm": 1.0}, {}, "train.clip_norm"),
        ({"ema": 0.9}, {}, "train.ema"),
        ({"distributed": {"sharding": "column_wise"}}, {}, "train.distributed.sharding"),
        ({"distributed": {"sharding": "row_wise"}}, {"rows": 1}, "train.distributed.sharding"),
        ({}, {"kernel": "torch"}, "embedding.kernel"),
        ({}, {"width": 6}, "embedding.width"),
        ({}, {"chunks": {"default": 0}}, "embedding.chunks"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(
    store_folder: Path, train_settings: dict[str, Any], embedding: dict[str, Any], field: str
) -> None:
    store = Store.open(store_folder)
    table = EmbeddingConfig.model_validate({"exact": {"max_values": 0}, **embedding})
    plan = plan_embedding(store.layout, table, store.id_counts("train"))
    with pytest.raises(ConfigError, match=r"Mend:") as error:
        check_distributed(TrainConfig.model_validate(train_settings), table, plan, 2)
    assert error.value.field == field
    check_distributed(TrainConfig(), EmbeddingConfig(), plan_embedding(store.layout, EmbeddingConfig(), {}), 2)
