"""Rows of their own for the head of giant fields: hot and shared rows against shared rows alone, at equal bytes.

On `synthetic` with one giant Zipf field and on the Criteo sample, both in the order of time: validation picks the
layout and the rate of either side, the test rows judge.  Then a stream in which half of the head's ids give way to new
ones at one moment: how many examples until the model is as good as one trained on the new ids from the start.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.arms import Arm, Limit, Run, Training, difference, plan_within, reference_bytes, run_arms
from benchmarks.harness import Bar, Outcome, Settings, main
from benchmarks.quality_per_byte import CRITEO_ARMS as QUALITY_ARMS
from benchmarks.quality_per_byte import DATA_SETS, HOT_SLOTS, TWENTIETH
from features.loading.loader import Loader
from features.recipes import RECIPES
from features.spec import FeatureSpec
from features.storage.splits import ColumnSplit, TimeSplit
from features.storage.store import Store, build_store
from features.validation import validate
from recsys.evaluation.metrics import auc, logloss
from recsys.models import CTRModel, ModelConfig
from recsys.training import TrainConfig, Trainer, TrainResult, predict

HOT, SHARED = "hot and shared", "shared"
SEEDS: tuple[int, ...] = (0, 1, 2, 3, 4)

# ---- synthetic: one giant field

GIANT = "user_id"
EVENTS: dict[str, Any] = {
    "fields": {"country": 30, "device": 5, GIANT: 1_000_000},
    "drifting": [],
    "zipf": 1.1,
    "rare": 1e-4,
}
"""Parameters of the recipe; the seed draws effects and events."""
SYNTHETIC_SPEC: dict[str, Any] = {
    "features": [
        {"type": "id", "name": "country"},
        {"type": "id", "name": "device"},
        {"type": "id", "name": GIANT, "dtype": "integer"},
        {"type": "ids", "name": "tags"},
        {"type": "number", "name": "price", "clip": [0, None], "log": 1, "standardise": True, "missing_flag": True},
        {"type": "number", "name": "age", "standardise": True},
    ],
    "labels": ["click"],
    "time": "timestamp",
}
SYNTHETIC_ROWS = 1_000_000
SYNTHETIC_BYTES = 72_000


def _synthetic(method: str, chunks: int, **hot: Any) -> Arm:
    embedding = {"width": 8, "exact": {"max_values": 300}, "chunks": {"features": {GIANT: chunks}}, "hot": hot}
    return Arm(method, embedding, SYNTHETIC_BYTES, seeds=SEEDS)


SYNTHETIC_ARMS = (
    *(_synthetic(SHARED, chunks) for chunks in (1, 2, 4)),
    _synthetic(HOT, 1, features={GIANT: 1400}),
    _synthetic(HOT, 2, features={GIANT: 750}),
)
SYNTHETIC_TRAINING = Training(
    model={"interaction": "dcnv2", "cross_layers": 1, "hidden": (64,)},
    train={"batch_size": 1024, "epochs": 2, "patience": 1, "threads": 1},
    grid=[{"table_learning_rate": rate} for rate in (0.3, 0.6)],
)

# ---- Criteo

CRITEO = DATA_SETS["criteo"]
CRITEO_SEEDS = SEEDS[:3]
CRITEO_LIMITS = (TWENTIETH, Fraction(1, 5))
"""Shares of the bytes of an fp32 table with a row a value."""


def criteo_arms(share: Fraction, limit: int, seeds: tuple[int, ...]) -> list[Arm]:
    """What competes at a share of the bytes, in int8; which layouts do was chosen by validation AUC at a twentieth."""

    def arm(method: str, width: int, chunks: int, max_values: int, slots: int = 0) -> Arm:
        own = {"exact": {"max_values": max_values}, "chunks": {"default": chunks}, "hot": {"slots": slots}}
        return Arm(method, {"width": width, "format": "int8", **own}, limit, seeds=seeds)

    return [
        arm(SHARED, 16, 1, 600),
        arm(SHARED, 8, 2, 600),
        arm(HOT, 16, 1, 64, int(HOT_SLOTS * share)),
        arm(HOT, 8, 2, 64, int(HOT_SLOTS * share * 14 / 17)),
    ]


# ---- the head changes

BEFORE, AFTER, JUDGE = 800_000, 500_000, 100_000
"""Examples before and after the head changes, and those that judge, which come last."""
HEAD = 10_000
"""The most frequent ids before the change; half of them give way, drawn at random."""
EVERY = 20
"""Steps between two looks at the rows that judge."""
WITHIN = 0.001
"""AUC that may be missing to a model trained on the new ids from the start."""


@dataclass(frozen=True)
class Stream:
    """A model that learns as the head changes, and its like that learns only what came after."""

    method: str
    seed: int
    fresh: float
    """AUC of the one that never saw the old ids, at the end."""
    curve: list[tuple[int, float]]
    """(examples since the change, AUC)."""

    def examples_to(self, target: float) -> int:
        """Examples until the AUC is within WITHIN of a target; AFTER if it never is."""
        return next((n for n, value in self.curve if value >= target - WITHIN), AFTER)


def measure(settings: Settings) -> Outcome:
    """Hot and shared rows against shared rows alone: AUC, logloss, and examples until a changed head is learnt."""
    seeds = SEEDS[:2] if settings.quick else SEEDS
    parts = settings.parts or PARTS
    bars: list[Bar] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="recsys-benchmark-") as work:
        if "criteo" in parts:
            known = tuple(seed for seed in CRITEO_SEEDS if seed in seeds)
            stores = dict.fromkeys(known, CRITEO.build(Path(work) / "criteo", known[0], settings.log))
            whole = reference_bytes(QUALITY_ARMS[:1], stores)
            for share in CRITEO_LIMITS:
                arms = criteo_arms(share, int(share * whole), known)
                picked = run_arms(arms, CRITEO.training, stores, settings.log)
                _compare(f"Criteo at {share}", picked, True, bars, figures, settings)
        if "synthetic" in parts or "churn" in parts:
            stores = {seed: _synthetic_store(Path(work) / str(seed), seed, settings) for seed in seeds}
            picked = run_arms(_of_seeds(SYNTHETIC_ARMS, seeds), SYNTHETIC_TRAINING, stores, settings.log)
            if "synthetic" in parts:
                _compare("synthetic", picked, False, bars, figures, settings)
            if "churn" in parts:
                arms_of = {method: runs[0] for (method, _), runs in picked.items()}
                _churn(Path(work), arms_of, seeds, bars, figures, settings)
    return Outcome(bars, figures, threads=1)


def _of_seeds(arms: Sequence[Arm], seeds: tuple[int, ...]) -> list[Arm]:
    return [replace(arm, seeds=tuple(seed for seed in arm.seeds if seed in seeds)) for arm in arms]


def _compare(
    name: str,
    picked: Mapping[tuple[str, Limit], list[Run]],
    same_rows: bool,
    bars: list[Bar],
    figures: dict[str, Any],
    settings: Settings,
) -> None:
    """Adds the bars and the figures of one data set."""
    runs = {method: own for (method, _), own in picked.items()}
    found = difference(runs[HOT], runs[SHARED], same_rows)
    bars.append(Bar(f"{name}: AUC over shared rows alone, lower end of the interval", found["auc"].low, ">", 0))
    bars.append(Bar(f"{name}: logloss, upper end of the interval", found["logloss"].high, "<", 0))
    lines = {method: _line(own) for method, own in runs.items()}
    for method, line in lines.items():
        settings.log(f"{name}, {method}: {line}")
    for metric, d in found.items():
        settings.log(f"{name}, hot minus shared: {metric} {d.mean:+.5f} [{d.low:+.5f}, {d.high:+.5f}]")
    figures[name] = {**lines, "difference": {metric: d.to_json() for metric, d in found.items()}}


def _line(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "embedding": dict(runs[0].arm.embedding),
        "setting": dict(runs[0].setting),
        "table_bytes": max(run.table_bytes for run in runs),
        "training_bytes": max(run.training_bytes for run in runs),
        **{
            name: round(float(np.mean([metric(run.labels, run.probabilities) for run in runs])), 5)
            for name, metric in (("auc", auc), ("logloss", logloss))
        },
    }


def _churn(
    work: Path,
    picked: Mapping[str, Run],
    seeds: Sequence[int],
    bars: list[Bar],
    figures: dict[str, Any],
    settings: Settings,
) -> None:
    """Both sides, as picked on data that does not change, through a change of the head."""
    jobs = []
    for seed in seeds:
        folders = {fresh: str(_churn_store(work / f"churn-{seed}-{fresh}", seed, fresh)) for fresh in (True, False)}
        jobs += [(method, run, seed, folders) for method, run in picked.items()]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        streams = list(pool.map(_stream, jobs))
    fresh = {seed: sorted(s.fresh for s in streams if s.seed == seed) for seed in seeds}
    rows = [
        {
            "method": s.method,
            "seed": s.seed,
            "fresh_auc": round(s.fresh, 5),
            "to_worse_fresh": s.examples_to(fresh[s.seed][0]),
            "to_better_fresh": s.examples_to(fresh[s.seed][-1]),
            "to_own_fresh": s.examples_to(s.fresh),
            "curve": [(n, round(value, 5)) for n, value in s.curve],
        }
        for s in streams
    ]
    for row in rows:
        settings.log(f"churn: { {name: value for name, value in row.items() if name != 'curve'} }")
    # one target for both sides: whose fresh model is better has further to go to its own
    for which in ("worse", "better"):
        key = f"to_{which}_fresh"
        examples = {m: float(np.mean([row[key] for row in rows if row["method"] == m])) for m in picked}
        title = f"churn: examples to within {WITHIN} of the {which} fresh model, hot over shared"
        bars.append(Bar(title, examples[HOT] / examples[SHARED], "<", 1))
    figures["churn"] = rows


@dataclass
class _Watch:
    """Looks at the rows that judge as a model learns."""

    model: CTRModel
    judge: Loader
    change: int
    """Step at which the head changes."""
    curve: list[tuple[int, float]] = field(default_factory=list)

    def on_start(self, total_steps: int, total_epochs: int, step: int) -> None:
        """Nothing yet."""

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """A look, once the head has changed."""
        if step > self.change:
            self.curve.append((step - self.change, _auc_of(self.model, self.judge)))

    def on_epoch(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """Nothing more."""

    def on_end(self, result: TrainResult) -> None:
        """Nothing more."""


def _stream(job: tuple[str, Run, int, Mapping[bool, str]]) -> Stream:
    """One pass over the changing stream and one over the new ids alone; runs in a process of its own."""
    method, run, seed, folders = job
    train = TrainConfig.model_validate({**SYNTHETIC_TRAINING.train, **run.setting, "epochs": 1, "log_steps": EVERY})
    ends, curves = {}, {}
    for fresh, folder in folders.items():
        store = Store.open(Path(folder))
        # nobody has seen the ids that will come: no slot has an owner at first
        embedding = {**run.arm.embedding, "hash_seed": seed}
        embedding["hot"] = {**embedding["hot"], "start": "empty"}
        plan = plan_within(store.layout, embedding, store.id_counts("train"), SYNTHETIC_BYTES)
        network = ModelConfig.model_validate(SYNTHETIC_TRAINING.model)
        model = CTRModel(store.layout, plan, network, seed=seed, optimizer=train.optimizer_of_table)
        judge = Loader(store, "test", train.eval_batch_size)
        steps = -(-store.rows("train") // train.batch_size)
        watch = _Watch(model, judge, steps if fresh else BEFORE // train.batch_size)
        with tempfile.TemporaryDirectory() as checkpoints:
            trainer = Trainer(model, train, seed=seed, folder=Path(checkpoints), listener=watch)
            # in the order of time
            trainer.fit(Loader(store, "train", train.batch_size), Loader(store, "valid", train.eval_batch_size))
        ends[fresh] = _auc_of(model, judge)
        curves[fresh] = [(steps * train.batch_size, value) for steps, value in watch.curve]
    return Stream(method, seed, ends[True], curves[False])


def _auc_of(model: CTRModel, rows: Loader) -> float:
    scored = predict(model, rows)
    assert scored.labels is not None
    return auc(scored.labels[:, 0], scored.probabilities[:, 0])


def _synthetic_store(folder: Path, seed: int, settings: Settings) -> Path:
    settings.log(f"synthetic: preparing the rows of seed {seed}")
    events = RECIPES["synthetic"].load(None, **EVENTS, seed=seed, rows=SYNTHETIC_ROWS)
    build_store(events, validate(FeatureSpec, SYNTHETIC_SPEC), TimeSplit(fractions=(0.8, 0.1, 0.1)), folder)
    return folder


def _churn_store(folder: Path, seed: int, fresh: bool) -> Path:
    """The stream whose head changes after BEFORE examples, or for `fresh` only what comes after that."""
    rows = BEFORE + AFTER + JUDGE
    events = RECIPES["synthetic"].load(None, **EVENTS, seed=seed, rows=rows).collect()
    ids = events[GIANT].to_numpy()
    head = np.argsort(-np.bincount(ids[:BEFORE]), kind="stable")[:HEAD]
    gone = np.zeros(ids.max() + 1, bool)
    gone[np.random.default_rng([seed, 7]).permutation(head)[: HEAD // 2]] = True
    place = np.arange(rows)
    # an id gives way to a new one with the same effect on clicks: nothing changes but who is whom
    changed = np.where(gone[ids] & (place >= BEFORE), ids + len(gone), ids)
    split = np.where(place < BEFORE, "before", np.where(place < BEFORE + AFTER, "after", "judge")).astype(object)
    split[BEFORE + AFTER : BEFORE + AFTER + 1000] = "valid"  # the trainer wants some; nothing depends on them
    own = ColumnSplit(
        column="part",
        values={"train": ["after"] if fresh else ["before", "after"], "valid": ["valid"], "test": ["judge"]},
    )
    events = events.with_columns(pl.Series(GIANT, changed), pl.Series("part", split, dtype=pl.String))
    build_store(events.lazy(), validate(FeatureSpec, SYNTHETIC_SPEC), own, folder)
    return folder


PARTS = ("criteo", "synthetic", "churn")

if __name__ == "__main__":
    raise SystemExit(main("hot_region", measure, parts=PARTS))
