"""The estimate of a training's memory follows its config, and a real process grows by about that much."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from features.errors import ConfigError
from recsys.memory import require_memory
from recsys.training.footprint import training_memory
from tests.recsys.training import memory_job

JOB = Path(memory_job.__file__)
TABLE = {"rows": 1000, "width": 16}


def estimate(*settings: dict[str, Any]) -> dict[str, int]:
    """Bytes by the first word of a part's name."""
    parts = training_memory(*memory_job.configs(settings))  # type: ignore[arg-type]
    return {part.name.split()[0]: part.bytes for part in parts}


def test_parts_follow_the_config() -> None:
    parts = estimate(TABLE, {}, {"table_optimizer": "adam"})
    assert (parts["table"], parts["optimizer"], parts["moving"]) == (64_000, 128_008, 0)  # with a step counter
    assert estimate(TABLE, {}, {"table_optimizer": "sgd"})["optimizer"] == 8
    small = {**TABLE, "format": "int4"}
    assert estimate(small, {}, {})["table"] == 10_000
    assert estimate(small, {}, {"table_master": True})["table"] == 64_000
    assert estimate(TABLE, {}, {"ema": 0.9})["moving"] > 3 * parts["table"]
    hot = estimate({**TABLE, "hot": {"features": {"f0": 1600}}}, {}, {})
    assert (hot["hot"], parts["hot"]) == (1600 * 52, 0)
    small, large = (estimate(TABLE, {}, {"batch_size": n})["a"] for n in (20_000, 80_000))
    assert large == 4 * small
    wide = estimate({**TABLE, "chunks": {"default": 4}}, {}, {})
    assert wide["network"] > 10 * parts["network"]
    assert estimate({**TABLE, "chunks": {"default": 4}}, {"low_rank": 4}, {})["network"] < wide["network"] / 10
    mlp, fm, ipnn = (estimate(TABLE, {"interaction": name}, {}) for name in ("mlp", "fm", "ipnn"))
    assert fm["network"] - mlp["network"] == 4 * 4 * (26 + 26 * 16 + 1)  # scales, linear term, sum over pairs
    assert ipnn["network"] - mlp["network"] == 4 * 4 * 256 * 26 * 25 // 2
    assert mlp["a"] < fm["a"]
    assert mlp["a"] < ipnn["a"]


@pytest.mark.parametrize(
    ("embedding", "train", "words"),
    [
        ({"rows": 2**31 - 1000, "width": 1024}, {}, r"embedding\.rows.*table 8,796 GB.*lower embedding\.rows"),
        ({"rows": 2**31 - 1000, "width": 512}, {"table_optimizer": "adam"}, r"train\.table_optimizer.*rowwise_adagrad"),
        ({"width": 1024, "chunks": {"default": 64}}, {}, r"embedding\.chunks.*reads 1,703,936 numbers.*low_rank"),
        ({"chunks": {"default": 64}}, {"batch_size": 100_000_000}, r"train\.batch_size: it would not fit into memory"),
        ({}, {"eval_batch_size": 2**40}, r"train\.eval_batch_size"),
    ],
)
def test_what_cannot_fit_is_refused_by_the_key_that_decides(
    embedding: dict[str, Any], train: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        require_memory(training_memory(*memory_job.configs((embedding, {}, train))))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize(
    "settings",
    [
        ({"rows": 3_000_000, "width": 16}, {"hidden": [8]}, {"batch_size": 64, "eval_batch_size": 64}),
        (
            {"rows": 1_000_000, "width": 16},
            {"hidden": [8]},
            {"batch_size": 64, "eval_batch_size": 64, "table_optimizer": "adam", "ema": 0.9},
        ),
        (
            {"rows": 1_000_000, "width": 16, "format": "int4"},
            {"hidden": [8]},
            {"batch_size": 64, "eval_batch_size": 64, "table_master": True, "ema": 0.9},
        ),
        (
            {"rows": 1000, "width": 4, "hot": {"features": {"f0": 4_000_000}}},
            {"hidden": [8]},
            {"batch_size": 64, "eval_batch_size": 64},
        ),
        ({"rows": 1000, "chunks": {"default": 4}}, {}, {"batch_size": 16_384, "eval_batch_size": 64}),
        ({"rows": 1000}, {"interaction": "fm"}, {"batch_size": 16_384, "eval_batch_size": 64}),
        ({"rows": 1000}, {"interaction": "ipnn"}, {"batch_size": 16_384, "eval_batch_size": 64}),
    ],
    ids=["table", "averages", "rounded", "hot", "batch", "fm", "ipnn"],
)
def test_a_process_grows_by_about_the_estimate(settings: memory_job.Settings, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(JOB), json.dumps(settings), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(JOB.parents[3])},
    )
    assert 0.8 < sum(estimate(*settings).values()) / int(done.stdout) < 1.7
