"""A small world for the command line: events on disk, a config, and a way to call `recsys` in process."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from pipelines.cli import app

ROWS = 3000


@dataclass(frozen=True)
class Outcome:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.out.strip().splitlines()[-1]))


def recsys(*arguments: str | Path) -> Outcome:
    """Run the command in this process, as its entry point would."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    # MLflow puts the store in use into the environment, where the next command of this process would find it.
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app([str(argument) for argument in arguments], prog_name="recsys")
        except SystemExit as end:
            code = int(end.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def events(rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    """Clicks with a known probability; every sort of column, nulls included."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 60, rows), rng.integers(0, 40, rows)
    price = np.round(rng.gamma(2.0, 10.0, rows), 2)
    p = 1 / (1 + np.exp(-(np.sin(user * 1.7) * 1.5 + np.cos(item * 2.3) * 1.5 - price / 40)))
    return pl.DataFrame(
        {
            "user": user,
            "item": [f"item-{i}" for i in item],
            "city": [None if c == 3 else f"c{c}" for c in rng.integers(0, 5, rows)],
            "tags": [[f"t{t}" for t in rng.integers(0, 6, n)] for n in rng.integers(0, 3, rows)],
            "price": [
                None if missing else x for x, missing in zip(price.tolist(), rng.random(rows) < 0.1, strict=True)
            ],
            "at": np.arange(rows) * 60,
            "click": (rng.random(rows) < p).astype(np.int64),
            "p_true": p,
        }
    )


def config(source: Path, **changes: Any) -> dict[str, Any]:
    """A small experiment on a file; `changes` replace whole parts."""
    return {
        "name": "small",
        "data": {"source": str(source), "split": {"kind": "random", "fractions": [0.7, 0.15, 0.15], "seed": 0}},
        "spec": {
            "features": [
                {"type": "id", "name": "user", "dtype": "integer"},
                {"type": "id", "name": "item"},
                {"type": "id", "name": "city"},
                {"type": "ids", "name": "tags", "pooling": "mean"},
                {"type": "number", "name": "price", "standardise": True, "missing_flag": True},
                {"type": "time", "name": "hour", "column": "at", "part": "hour", "unit": "s"},
                {"type": "cross", "name": "user_city", "of": ["user", "city"]},
            ],
            "labels": ["click"],
            "group": "user",
            "reference": "p_true",
        },
        "embedding": {"width": 4, "rows": 500},
        "model": {"interaction": "dcnv2", "cross_layers": 1, "hidden": [16]},
        "train": {"batch_size": 256, "epochs": 2, "learning_rate": 0.01, "log_steps": 2, "threads": 1},
        "tracking": {"system_metrics": False},
        **changes,
    }


@dataclass(frozen=True)
class World:
    """A folder with events and a config; the commands run in it."""

    folder: Path

    @property
    def events(self) -> Path:
        return self.folder / "events.parquet"

    @property
    def config(self) -> Path:
        return self.folder / "small.yaml"

    @property
    def store(self) -> Path:
        return self.folder / "work" / "small" / "data"

    def write(self, frame: pl.DataFrame | None = None, **changes: Any) -> None:
        (events() if frame is None else frame).write_parquet(self.events)
        self.config.write_text(yaml.safe_dump(config(self.events, **changes)))

    def leftovers(self) -> list[str]:
        """Files and folders that a command began and did not end."""
        return [
            str(path)
            for path in self.folder.rglob("*")
            if path.name.startswith(".") or path.name.endswith((".tmp", ".partial"))
        ]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A fresh world, not prepared."""
    monkeypatch.chdir(tmp_path)
    made = World(tmp_path)
    made.write(tracking={"enabled": False})
    return made


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Outcome]:
    """A world in which `recsys run` was called once; tests must not change it."""
    made = World(tmp_path_factory.mktemp("trained"))
    made.write()
    with inside(made.folder):
        outcome = recsys("run", made.config, "--json")
    assert outcome.code == 0, outcome.err
    return made, outcome


@contextlib.contextmanager
def inside(folder: Path) -> Any:
    """Work in a folder for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture
def in_trained(trained: tuple[World, Outcome], monkeypatch: pytest.MonkeyPatch) -> World:
    """The trained world, as the present folder."""
    monkeypatch.chdir(trained[0].folder)
    return trained[0]


Command = Callable[..., Outcome]


@pytest.fixture(name="recsys")
def recsys_fixture() -> Command:
    """The command, in process."""
    return recsys
