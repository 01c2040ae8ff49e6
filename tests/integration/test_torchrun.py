"""`torchrun -m pipelines.train` with real processes: one run for all of them, and a clear end when one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from features.loading.loader import Loader
from features.storage.store import Store
from recsys.embeddings.sharded import torchrec_available
from recsys.serving.bundle import load_bundle
from recsys.training import predict

pytestmark = pytest.mark.skipif(not torchrec_available(), reason="torchrec is not installed")

SETTINGS = ["train.batch_size=32", "train.checkpoint_steps=20", "train.epochs=2"]


def start(world: Any, *more: str, restarts: int = 0) -> subprocess.Popen[str]:
    """The documented command, in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    # The launcher looks for ended processes every 3 seconds: time for the others to say what they saw.
    command += ["--monitor-interval", "3", "--max-restarts", str(restarts)]
    command += ["-m", "pipelines.train", str(world.config), *SETTINGS, *more]
    return subprocess.Popen(
        command,
        cwd=world.folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def checkpoints(world: Any) -> list[Path]:
    return sorted((world.folder / "work" / "small" / "runs").glob("*/checkpoints/step-*"))


def kill_one(job: subprocess.Popen[str], rank: int, how: signal.Signals) -> None:
    """Sends a signal to one of the processes when the first epoch is over."""
    assert job.stdout is not None
    assert any(line.startswith("epoch 1:") for line in job.stdout)
    (victim,) = [p for p in psutil.Process(job.pid).children() if p.environ().get("RANK") == str(rank)]
    victim.send_signal(how)


def test_a_killed_process_ends_the_others_and_the_run_goes_on(world: Any, recsys: Callable[..., Any]) -> None:
    assert recsys("prepare", world.config).code == 0
    job = start(world)
    kill_one(job, 1, signal.SIGKILL)
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "error: process 0 of 2: another process is gone or does not answer" in err
    assert "process 1 (pid " in err
    assert "--resume goes on from it" in err
    whole = checkpoints(world)
    assert whole
    assert all((path / "state.json").is_file() for path in whole)

    tracked = "tracking.enabled=true"
    job = start(world, tracked, "--resume", "--json")
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    summary = json.loads(out)  # one process speaks
    assert (summary["run"], summary["processes"]) == ("0001", 2)
    assert f"resuming at step {int(whole[-1].name[5:])}" in err
    run = world.folder / summary["folder"]
    parts = json.loads((run / "sharding.json").read_text())["parts"]
    assert sum(part["table_bytes"] for part in parts) == summary["table_parameters"] * 4
    assert world.leftovers() == []

    # the bundle is an ordinary one: one process would have trained the same model, and the other verbs take it
    alone = recsys("train", world.config, *SETTINGS, tracked, "--json")
    assert alone.json["valid"]["auc"] == pytest.approx(summary["valid"]["auc"], abs=1e-6)
    loader = Loader(Store.open(world.store), "valid", 100)
    bundles = [load_bundle(world.folder / each["bundle"]) for each in (summary, alone.json)]
    two, one = (predict(bundle.model, loader).probabilities for bundle in bundles)
    assert two == pytest.approx(one, abs=1e-4)
    assert recsys("evaluate", world.config, *SETTINGS, "--run", "0001").code == 0
    # and its table is looked into like that of one process, down to which rows were ever updated
    updates = [
        json.loads((world.folder / each["folder"] / "diagnostics.json").read_text())["updates"]
        for each in (summary, alone.json)
    ]
    assert updates[0] is not None
    assert updates[0] == updates[1]
    looked = recsys("inspect", run, world.store, "--json")
    assert looked.json["diagnostics"]["updates"] == updates[0]
    # and a run that is finished stays as it is, however many processes ask for it
    assert recsys("train", world.config, *SETTINGS, "--resume").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "how"), [(0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_no_process_waits_for_ever(world: Any, recsys: Callable[..., Any], rank: int, how: signal.Signals) -> None:
    """The first process killed; and one that stands still, which is given up after the stated time."""
    assert recsys("prepare", world.config).code == 0
    job = start(world, "train.distributed.timeout_seconds=20")
    kill_one(job, rank, how)
    _, err = job.communicate(timeout=240)
    assert job.returncode != 0
    assert f"process {rank} (pid " in err
    assert ("is stopped" if how == signal.SIGSTOP else "has ended") in err


@pytest.mark.slow
def test_a_run_goes_on_by_itself_when_torchrun_starts_the_processes_again(
    world: Any, recsys: Callable[..., Any]
) -> None:
    assert recsys("prepare", world.config).code == 0
    job = start(world, "--json", restarts=1)
    assert job.stderr is not None
    assert any(line.startswith("epoch 1:") for line in job.stderr)
    (victim,) = [p for p in psutil.Process(job.pid).children() if p.environ().get("RANK") == "1"]
    victim.kill()
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    assert "resuming at step" in err
    assert json.loads(out.splitlines()[-1])["run"] == "0001"


@pytest.mark.slow
def test_a_warm_start_is_that_of_one_process(world: Any, recsys: Callable[..., Any]) -> None:
    assert recsys("prepare", world.config).code == 0
    first = recsys("train", world.config, *SETTINGS, "--json").json
    more = [f"train.warm_start={first['bundle']}", "embedding.rows=700"]
    job = start(world, *more, "--json")
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    two, alone = json.loads(out), recsys("train", world.config, *SETTINGS, *more, "--json").json
    assert two["warm_start"]["auc"] == pytest.approx(alone["warm_start"]["auc"], abs=1e-9)
    assert two["valid"]["logloss"] == pytest.approx(alone["valid"]["logloss"], abs=1e-6)
    assert world.leftovers() == []


def test_what_several_processes_cannot_do_is_said_before_they_meet(
    world: Any, recsys: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recsys("prepare", world.config).code == 0
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    # There is no other process: a group that were formed would not be.
    outcome = recsys("train", world.config, "train.table_optimizer=adam")
    assert outcome.code == 2
    assert "train.table_optimizer: a table in several processes does not have this optimizer" in outcome.err
    assert not (world.folder / "work" / "small" / "runs").exists()
    monkeypatch.setenv("RANK", "1")
    outcome = recsys("train", world.config, "train.ema=0.9", "--json")
    assert outcome.out == ""
    assert outcome.err.startswith("process 1: error: train.ema:")
    outcome = recsys("run", world.config)
    assert outcome.code == 2
    assert "several processes only train" in outcome.err
