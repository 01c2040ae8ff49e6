"""`recsys program`: a folder that scores without this package, or an error and nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.serving.scorer import Scorer

MODEL, RUN = "models:/small@challenger", Path("work/small/runs/0001")

STRANGER = """
import json, sys
import torch
from features.pipeline import FeaturePipeline

rows = json.loads(sys.argv[1])
batch = FeaturePipeline.load("program/pipeline").encode(rows)
values = list(batch.bag_values.split(batch.bag_lengths.sum(1).tolist()))
run = torch.export.load("program/program.pt2").module()
p = run(ids=batch.ids, bag_values=values, bag_lengths=batch.bag_lengths, dense=batch.dense)
assert "recsys" not in sys.modules
print(json.dumps(p.tolist()))
"""


def test_a_registered_model_as_a_program(in_trained: Any, recsys: Callable[..., Any], tmp_path: Path) -> None:
    outcome = recsys("program", MODEL, tmp_path / "program", "--data", in_trained.events, "--json")
    assert outcome.code == 0, outcome.err
    result, scorer = outcome.json, Scorer.load(RUN / "bundle")
    assert sorted(path.name for path in (tmp_path / "program").iterdir()) == ["pipeline", "program.json", "program.pt2"]
    assert result["checked_rows"] == 1000 + 3000
    assert result["max_difference"]["program.pt2"] <= 1e-6
    assert result["compiled"] is None
    about = json.loads((tmp_path / "program" / "program.json").read_text())
    assert about["model"] == {"name": "small", "version": 1}
    assert about["bundle"] == scorer.bundle.digest
    assert about["outputs"][0]["columns"] == ["p_click"]
    rows = pl.read_parquet(in_trained.events).drop("click", "p_true").head(50).to_dicts()
    rows.append({**rows[0], "user": 10**9, "item": "new", "tags": None, "price": None})
    command = [sys.executable, "-c", STRANGER, json.dumps(rows)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), scorer.score(rows), rtol=0, atol=1e-6)


def test_what_is_there_is_left(in_trained: Any, recsys: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    outcome = recsys("program", RUN, tmp_path)
    assert (outcome.code, [path.name for path in tmp_path.iterdir()]) == (2, ["mine"])
    assert "is there already, and is not replaced" in outcome.err


def test_a_folder_that_is_no_bundle(recsys: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = recsys("program", tmp_path / "empty", tmp_path / "program")
    assert (outcome.code, list(tmp_path.iterdir())) == (2, [tmp_path / "empty"])
    assert "is no model bundle" in outcome.err


def test_data_that_lacks_a_column_leaves_nothing(in_trained: Any, recsys: Callable[..., Any], tmp_path: Path) -> None:
    pl.read_parquet(in_trained.events).drop("item").write_parquet(tmp_path / "rows.parquet")
    outcome = recsys("program", RUN, tmp_path / "program", "--data", tmp_path / "rows.parquet")
    assert (outcome.code, [path.name for path in tmp_path.iterdir()]) == (2, ["rows.parquet"])
    assert "item" in outcome.err


@pytest.mark.slow
def test_compiled_and_timed(in_trained: Any, recsys: Callable[..., Any], tmp_path: Path) -> None:
    outcome = recsys("program", RUN, tmp_path / "program", "--aot", "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json
    assert result["compiled"] is True
    assert set(result["bytes"]) == {"program.json", "program.pt2", "compiled.pt2"}
    assert max(result["max_difference"].values()) <= 1e-6
    timed = {"scorer", "program", "compiled"}
    assert {rows: set(ms) for rows, ms in result["ms"].items()} == {"1": timed, "500": timed}
