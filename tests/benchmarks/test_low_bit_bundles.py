"""Low-bit bundles: what the lines and bars say of made-up models, whose differences are known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.harness import ROOT
from benchmarks.low_bit_bundles import DATA, LOW_BIT, Scored, bars_of, compare
from pipelines.config import load_config


def scored(table_bytes: int, noise: float, seed: int) -> Scored:
    rng = np.random.default_rng(0)
    truth = rng.random(2000)
    labels = (rng.random(2000) < truth).astype(np.float32)
    changed = truth + noise * np.random.default_rng(seed + 1).normal(size=2000)
    return Scored(table_bytes, table_bytes + 100, noise, labels, changed.clip(0.001, 0.999))


def test_lines_and_bars_tell_what_was_lost() -> None:
    lines = compare(
        {
            "fp32": [scored(6400, 0.0, seed) for seed in range(3)],
            "int8, converted": [scored(1800, 0.0, seed) for seed in range(3)],
            "int8-table, converted": [scored(1600, 0.0, seed) for seed in range(3)],
            "int4, converted": [scored(1000, 0.2, seed) for seed in range(3)],
        }
    )
    whole, int8, shared, int4 = lines
    assert "auc_loss" not in whole
    assert int8["table_ratio"] == pytest.approx(3.556, abs=1e-3)
    assert int8["auc_loss"]["mean"] == int8["max_change"] == 0.0
    assert shared["table_ratio"] == 4.0
    assert int4["auc_loss"]["mean"] == pytest.approx(whole["auc"] - int4["auc"])
    assert int4["auc_loss"]["low"] > 0.005
    met = {bar.name: bar.met for bar in bars_of("X", lines)}
    assert met == {
        "X, int8: times smaller table": False,
        "X, int8: AUC lost by conversion": True,
        "X, int8-table: times smaller table": True,
        "X, int8-table: AUC lost by conversion": True,
        "X, int4: times smaller table": True,
        "X, int4: AUC lost by conversion": False,
    }


def test_the_bars_are_those_of_the_issue() -> None:
    assert LOW_BIT == {"int8": 0.0005, "int8-table": 0.0005, "int4": 0.001}
    for name in DATA.values():
        assert load_config(ROOT / f"configs/{name}.yaml").embedding.format == "fp32"
