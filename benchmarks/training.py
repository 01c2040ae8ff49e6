"""Training throughput beside DeepCTR-Torch's DCN: same rows, same features, same network, one machine, turn by turn.

Bars: 3 times its examples/s with 40,000 rows a feature, 10 times with 400,000; and at most a fifth of our step outside
of matrix products and table kernels.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Bar, Outcome, Settings, child, main
from benchmarks.peers import DEEPCTR_TORCH, call, prepare
from features.recipes import RECIPES
from features.spec import FeatureSpec
from features.storage.splits import RandomSplit
from features.storage.store import Store, build_store
from features.validation import validate

ID_FEATURES = [f"C{i}" for i in range(1, 27)]
NUMBER_FEATURES = [f"I{i}" for i in range(1, 14)]
WIDTH = 16
HIDDEN = [256, 128]
CROSS_LAYERS = 2
BATCH_SIZE = 4096
THREADS = 2
TRAIN_SHARE = 0.9


@dataclass(frozen=True)
class Case:
    """One table size: what is asked of it and how long it is measured."""

    rows_a_feature: int
    target: float
    steps: int
    """Steps of the measured epoch; an epoch of the same length before it warms up."""
    runs: int
    """Turns of each side; the median counts."""


CASES = (Case(40_000, 3.0, steps=30, runs=5), Case(400_000, 10.0, steps=15, runs=3))
QUICK = (Case(40_000, 3.0, steps=8, runs=2), Case(400_000, 10.0, steps=4, runs=1))


def measure(settings: Settings) -> Outcome:
    """Training examples a second, ours over DeepCTR-Torch's, both through their public training loops."""
    cases = QUICK if settings.quick else CASES
    prepare(DEEPCTR_TORCH, settings.log)
    bars, figures = [], {}
    with tempfile.TemporaryDirectory(prefix="recsys-benchmark-") as name:
        folder = Path(name)
        settings.log("preparing the Criteo sample")
        store = _store(folder, max(case.steps for case in cases))
        for case in cases:
            figures[f"{case.rows_a_feature} rows a feature"] = figure = _measure_case(case, store, folder, settings)
            title = f"examples/s over DeepCTR-Torch's, {case.rows_a_feature:,} rows a feature"
            bars.append(Bar(title, figure["ratio"], ">=", case.target))
            outside = (
                f"share of our step outside matrix products and table kernels, {case.rows_a_feature:,} rows a feature"
            )
            bars.append(Bar(outside, figure["our_step"]["outside"], "<=", 0.2))
    return Outcome(bars, {"settings": _describe(), **figures}, threads=THREADS)


def _measure_case(case: Case, store: Store, folder: Path, settings: Settings) -> dict[str, Any]:
    """Alternate the two sides, so that a slow spell of the machine meets both."""
    examples = case.steps * BATCH_SIZE
    common = {
        "examples": examples,
        "width": WIDTH,
        "hidden": HIDDEN,
        "cross_layers": CROSS_LAYERS,
        "batch_size": BATCH_SIZE,
        "epochs": 2,
        "threads": THREADS,
    }
    peer_request = {**common, "rows": case.rows_a_feature, **_arrays(store, case, folder)}
    our_request = {**common, "rows": case.rows_a_feature * len(ID_FEATURES), "store": str(folder / "store")}
    ours, theirs, losses, answers = [], [], {"ours": 0.0, "peer": 0.0}, {}
    for turn in range(case.runs):
        answers["ours"] = child([sys.executable, "-m", "benchmarks.scripts.train_dcn"], our_request, threads=THREADS)
        ours.append(_rate(answers["ours"]))
        answers["peer"] = call(DEEPCTR_TORCH, peer_request, threads=THREADS)
        theirs.append(_rate(answers["peer"]))
        settings.log(
            f"{case.rows_a_feature:,} rows a feature, turn {turn + 1} of {case.runs}: "
            f"ours {ours[-1]:,.0f} examples/s, DeepCTR-Torch {theirs[-1]:,.0f}"
        )
    shares = child(
        [sys.executable, "-m", "benchmarks.scripts.train_dcn"], {**our_request, "breakdown": True}, threads=THREADS
    )["shares"]
    settings.log(
        f"{case.rows_a_feature:,} rows a feature, our step: " + ", ".join(f"{n} {s:.1%}" for n, s in shares.items())
    )
    losses = {side: answer["epoch_loss"] for side, answer in answers.items()}
    return {
        "ratio": statistics.median(ours) / statistics.median(theirs),
        "ours_examples_per_second": [round(rate, 1) for rate in ours],
        "peer_examples_per_second": [round(rate, 1) for rate in theirs],
        "measured_examples": examples,
        "runs": case.runs,
        "parameters": {side: answer["parameters"] for side, answer in answers.items()},
        "epoch_loss": losses,
        "our_step": {name: round(share, 4) for name, share in shares.items()},
        "peer_versions": answers["peer"]["versions"],
        "ours": answers["ours"]["settings"],
    }


def _rate(answer: Mapping[str, Any]) -> float:
    """Examples a second of the last epoch: the first warms up."""
    return float(answer["examples"] / answer["epoch_seconds"][-1])


def _store(folder: Path, steps: int) -> Store:
    """The Criteo sample, repeated until its training split fills the longest epoch."""
    import polars as pl

    events = RECIPES["criteo"].load(None)
    have = int(events.select(pl.len()).collect().item())
    repeats = -(-int(steps * BATCH_SIZE / TRAIN_SHARE * 1.02) // have)
    return build_store(
        pl.concat([events] * repeats),
        _spec(),
        RandomSplit(fractions=(TRAIN_SHARE, 0.05, 0.05), seed=0),
        folder / "store",
    )


def _spec() -> FeatureSpec:
    features: list[dict[str, Any]] = [{"type": "id", "name": name} for name in ID_FEATURES]
    features += [
        {"type": "number", "name": name, "clip": [0, None], "log": 1, "standardise": True} for name in NUMBER_FEATURES
    ]
    return validate(FeatureSpec, {"features": features, "labels": ["label"]})


def _arrays(store: Store, case: Case, folder: Path) -> dict[str, str]:
    """The same training rows as arrays for the peer: ids hashed into the rows of its tables."""
    batch = store.read("train").rows(slice(0, case.steps * BATCH_SIZE))
    assert batch.labels is not None
    ids = (batch.ids.numpy().view(np.uint64) % np.uint64(case.rows_a_feature)).astype(np.int64)
    paths = {}
    for name, array in (("ids", ids), ("dense", batch.dense.numpy()), ("labels", batch.labels[:, 0].numpy())):
        path = folder / f"{name}-{case.rows_a_feature}.npy"
        np.save(path, array)
        paths[name] = str(path)
    return paths


def _describe() -> dict[str, Any]:
    return {
        "both": {
            "data": "Criteo sample, 26 ids and 13 numbers; the first epoch warms up, the second counts",
            "width": WIDTH,
            "hidden": HIDDEN,
            "cross_layers": CROSS_LAYERS,
            "cross": "matrix",
            "batch_size": BATCH_SIZE,
            "threads": THREADS,
        },
        "peer": {
            "model": "DCN(cross_parameterization='matrix'), no wide part and no penalties, which only cost time",
            "loop": "its fit(): arrays in memory, shuffled, metrics off",
            "optimizer": "adam for everything, its documented example",
            "table": "a dense nn.Embedding a feature",
        },
        "ours": {
            "loop": "Trainer over Loader: memory-mapped shards, shuffled",
            "optimizer": "Adam for the network, the default of table_optimizer for the table",
            "table": "one table of as many rows in all, one lookup a feature",
        },
    }


if __name__ == "__main__":
    sys.exit(main("training", measure))
