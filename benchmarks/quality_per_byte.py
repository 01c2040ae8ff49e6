"""Quality per byte: AUC and logloss against everything a table stores, on MovieLens-1M and on the Criteo sample.

MovieLens-1M in the setting of `benchmarks.movielens_budgets`; the Criteo sample in the order of time, 80/10/10.
Validation picks the settings and the epoch of every method; the test rows judge what was picked.  A picture of each
frontier is written to `work/quality_per_byte`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import movielens_budgets
from benchmarks.arms import Arm, Limit, Run, Training, difference, run_arms
from benchmarks.harness import ROOT, Bar, Outcome, Settings, main
from features.recipes import RECIPES
from features.spec import FeatureSpec
from features.storage.splits import RandomSplit, Split, TimeSplit
from features.storage.store import build_store
from features.validation import validate
from recsys.evaluation.metrics import auc, logloss
from recsys.evaluation.paired import Difference
from recsys.evaluation.plots import frontier_picture

FOLDER = ROOT / "work" / "quality_per_byte"
SEEDS: tuple[int, ...] = (0, 1, 2)
OURS, REFERENCE = "multiplexed", "collisionless"

# ---- MovieLens-1M

MOVIELENS_TARGETS = {24_000: 0.8872, 80_000: 0.8950, 158_000: 0.8985}
"""Test AUC to reach within so many bytes."""


MOVIELENS_TRAIN: dict[str, Any] = movielens_budgets.TRAIN | {
    "table_optimizer": "rmsprop",
    "table_learning_rate": 3e-3,
    "table_l2": 2e-4,
}
"""Of all arms; those of full width also try the L2 that was best for them in `movielens_budgets`."""
_FULL = {"width": 30, "exact": {"max_values": 64}}


def _movielens(limit: int, form: str, width: int, user: int, movie: int) -> Arm:
    """Several low-bit chunks a feature; zip codes say nothing that users do not."""
    chunks = {"features": {"user_id": user, "movie_id": movie, "zip": 0}}
    embedding = {"width": width, "format": form, "chunks": chunks, "exact": {"max_values": 64}}
    return Arm(OURS, embedding, limit, train={"table_master": True})


def _movielens_peers(limit: int) -> list[Arm]:
    """Other methods at a size, for the frontier alone."""
    wide = {"table_l2": 1e-3}
    return [
        Arm("multiplexed, one chunk, fp32", _FULL, limit, train=wide, seeds=SEEDS[:1]),
        Arm("hashed, proportional", {"kind": "hashed", **_FULL}, limit, train=wide, seeds=SEEDS[:1]),
        Arm("ROBE", {"width": 32, "block": 8}, limit, "robe", train=wide, seeds=SEEDS[:1]),
        Arm("frequency split", {"width": 30, "frequent": 0.8}, limit, "frequency", train=wide, seeds=SEEDS[:1]),
    ]


MOVIELENS_ARMS = (
    Arm(REFERENCE, {"kind": "collisionless", "width": 30}),
    Arm(REFERENCE, {"kind": "collisionless", "width": 30}, train={"table_l2": 1e-3}),
    _movielens(24_000, "int2", 16, user=4, movie=6),
    _movielens(80_000, "int4", 16, user=5, movie=8),
    _movielens(158_000, "int4", 8, user=12, movie=20),
    *_movielens_peers(24_000),
    *_movielens_peers(80_000),
    *_movielens_peers(158_000),
)

# ---- Criteo

TWENTIETH = Fraction(1, 20)
_SMALL = {"exact": {"max_values": 64}}
HOT_SLOTS = 680_000
"""Ids with rows of their own at the whole size; at a share of it, that share of them: three quarters of the bytes."""


def _criteo(limit: Fraction, seeds: tuple[int, ...]) -> list[Arm]:
    """All methods at a size.  What each is made of was chosen by validation AUC, ours among some twenty layouts."""
    hot = {"slots": int(HOT_SLOTS * limit)}
    return [
        Arm(OURS, {"width": 16, "format": "int8", "hot": hot, **_SMALL}, limit, seeds=seeds),
        Arm("multiplexed, one chunk, int8", {"width": 16, "format": "int8", **_SMALL}, limit, seeds=seeds),
        Arm("multiplexed, one chunk, fp32", {"width": 16, **_SMALL}, limit, seeds=seeds),
        *(
            Arm(f"hashed, {split}", {"kind": "hashed", "width": 16, "split": split, **_SMALL}, limit, seeds=seeds)
            for split in ("proportional", "sqrt", "equal")
        ),
        *(Arm("ROBE", {"width": 16, "block": block}, limit, "robe", seeds=seeds) for block in (4, 8)),
        # at a hundredth not even one row a square root of values fits
        *(
            Arm("QR", {"width": 16, "small": small}, limit, "qr", seeds=seeds)
            for small in (64, 1000)
            if limit >= TWENTIETH
        ),
        *(
            Arm("frequency split", {"width": width, "frequent": 0.95}, limit, "frequency", seeds=seeds)
            for width in (8, 16)
        ),
    ]


CRITEO_ARMS = (
    Arm(REFERENCE, {"kind": "collisionless", "width": 16}),
    *_criteo(TWENTIETH, SEEDS),
    # for the frontier alone
    *_criteo(Fraction(1, 5), SEEDS[:1]),
    *_criteo(Fraction(1, 100), SEEDS[:1]),
)

# ---- the frame


@dataclass(frozen=True)
class Compared:
    """The picked runs of every method and size on one data set."""

    groups: Mapping[tuple[str, Limit], list[Run]]
    """(method, limit) -> its runs, one a seed."""
    same_rows: bool
    """Whether all seeds have the same test rows."""

    def mean(self, method: str, limit: Limit, metric: Callable[..., float]) -> float:
        """A test metric, averaged over seeds."""
        return float(np.mean([metric(run.labels, run.probabilities) for run in self.groups[method, limit]]))

    def difference(self, limit: Limit, other: str, other_limit: Limit) -> dict[str, Difference]:
        """Test AUC and logloss of ours minus another method's, seed by seed."""
        return difference(self.groups[OURS, limit], self.groups[other, other_limit], self.same_rows)


def _movielens_bars(compared: Compared) -> list[Bar]:
    bars = [
        Bar(f"MovieLens-1M, {limit:,} bytes: test AUC", compared.mean(OURS, limit, auc), ">=", target)
        for limit, target in MOVIELENS_TARGETS.items()
    ]
    largest = max(MOVIELENS_TARGETS)
    against = compared.difference(largest, REFERENCE, None)["auc"].mean
    return [*bars, Bar(f"MovieLens-1M, {largest:,} bytes: AUC minus {REFERENCE}", against, ">=", 0)]


def _criteo_bars(compared: Compared) -> list[Bar]:
    against = compared.difference(TWENTIETH, REFERENCE, None)
    bars = [
        Bar(f"Criteo, 1/20: AUC minus {REFERENCE}, upper end of the interval", against["auc"].high, ">=", 0),
        Bar(f"Criteo, 1/20: logloss minus {REFERENCE}, lower end of the interval", against["logloss"].low, "<=", 0),
    ]
    for method, limit in compared.groups:
        if limit == TWENTIETH and method != OURS:
            against = compared.difference(TWENTIETH, method, TWENTIETH)
            bars.append(Bar(f"Criteo, 1/20: AUC minus {method}", against["auc"].mean, ">", 0))
            bars.append(Bar(f"Criteo, 1/20: logloss minus {method}", against["logloss"].mean, "<", 0))
    return bars


@dataclass(frozen=True)
class DataSet:
    """Rows, what is compared on them, and what is asked of it."""

    title: str
    recipe: str
    split: Callable[[int], Split]
    """By seed."""
    same_rows: bool
    training: Training
    arms: tuple[Arm, ...]
    bars: Callable[[Compared], list[Bar]]

    def build(self, folder: Path, seed: int, log: Callable[[str], None]) -> Path:
        """Prepares the rows of a seed in a folder."""
        log(f"{self.title}: preparing the rows of seed {seed}")
        recipe = RECIPES[self.recipe]
        build_store(recipe.load(None), validate(FeatureSpec, recipe.spec_hint), self.split(seed), folder)
        return folder


DATA_SETS = {
    "movielens": DataSet(
        title="MovieLens-1M",
        recipe="movielens_1m",
        split=lambda seed: RandomSplit(fractions=(0.8, 0.1, 0.1), seed=seed),
        same_rows=False,
        training=Training(movielens_budgets.MODEL.model_dump(), MOVIELENS_TRAIN),
        arms=MOVIELENS_ARMS,
        bars=_movielens_bars,
    ),
    "criteo": DataSet(
        title="Criteo sample",
        recipe="criteo",
        split=lambda seed: TimeSplit(columns=["row"], fractions=(0.8, 0.1, 0.1)),
        same_rows=True,
        training=Training(
            model={"interaction": "dcnv2", "cross_layers": 2, "hidden": (256, 128), "dropout": 0.1},
            train={
                "batch_size": 256,
                "epochs": 3,
                "patience": 1,
                "learning_rate": 1e-3,
                "threads": 1,
            },
            grid=[{"table_learning_rate": rate, "table_eps": eps} for rate in (0.05, 0.1) for eps in (1e-8, 1e-4)],
        ),
        arms=CRITEO_ARMS,
        bars=_criteo_bars,
    ),
}


def measure(settings: Settings) -> Outcome:
    """AUC and logloss of embedding tables at equal bytes."""
    bars: list[Bar] = []
    figures: dict[str, Any] = {}
    for name in settings.parts or DATA_SETS:
        data = DATA_SETS[name]
        compared = _compare(data, settings)
        bars += data.bars(compared)
        figures[name] = _figures(name, data, compared, settings)
    return Outcome(bars, figures, threads=1)


def _compare(data: DataSet, settings: Settings) -> Compared:
    """Trains everything; a quick run has one seed, epoch and setting, and none of the arms for the frontier alone."""
    arms, training, seeds = data.arms, data.training, SEEDS
    if settings.quick:
        seeds = SEEDS[:1]
        arms = tuple(replace(arm, seeds=seeds) for arm in arms if len(arm.seeds) > 1)
        training = replace(training, train={**training.train, "epochs": 1}, grid=training.grid[:1])
    with tempfile.TemporaryDirectory(prefix="recsys-benchmark-") as work:
        stores: dict[int, Path] = {}
        for seed in seeds:
            again = data.same_rows and stores
            stores[seed] = stores[SEEDS[0]] if again else data.build(Path(work) / str(seed), seed, settings.log)
        return Compared(run_arms(arms, training, stores, settings.log), data.same_rows)


def _figures(name: str, data: DataSet, compared: Compared, settings: Settings) -> dict[str, Any]:
    """Tables for the last line and for people, and the picture."""
    table = [_line(runs) for runs in compared.groups.values()]
    for line in table:
        settings.log(
            f"{line['method']:24} {line['table_bytes']:>12,} bytes  AUC {line['auc_mean']:.4f} +- {line['auc_std']:.4f}"
            f"  logloss {line['logloss_mean']:.4f} +- {line['logloss_std']:.4f}  {line['setting']}"
        )
    against = []
    for method, limit in compared.groups:
        if method == OURS:
            for other, other_limit in [(m, at) for m, at in compared.groups if m != OURS and at in (limit, None)]:
                found = compared.difference(limit, other, other_limit)
                against.append(
                    {"limit": str(limit), "other": other, **{metric: d.to_json() for metric, d in found.items()}}
                )
                settings.log(
                    f"ours at {limit} minus {other:24}"
                    + "".join(f"  {m} {d.mean:+.5f} [{d.low:+.5f}, {d.high:+.5f}]" for m, d in found.items())
                )
    series: dict[str, list[tuple[float, float]]] = {OURS: []}
    for line in table:
        series.setdefault(line["method"], []).append((line["table_bytes"], line["auc_mean"]))
    picture = frontier_picture(f"frontier-{name}", series, f"{data.title}: test AUC against the bytes of the table.")
    files = picture.write(FOLDER)
    settings.log(f"pictures: {', '.join(str(file) for file in files)}")
    return {
        "table": table,
        "ours_minus": against,
        "training": {"model": data.training.model, "train": data.training.train, "grid": data.training.grid},
        "pictures": [str(file) for file in files],
    }


def _line(runs: list[Run]) -> dict[str, Any]:
    arm = runs[0].arm
    out: dict[str, Any] = {
        "method": arm.method,
        "limit": None if arm.limit is None else str(arm.limit),
        "embedding": dict(arm.embedding),
        "setting": {**runs[0].setting, **arm.train},
        "table_bytes": max(run.table_bytes for run in runs),
        "training_bytes": max(run.training_bytes for run in runs),
        "seeds": len(runs),
        "best_epochs": [run.best_epoch for run in runs],
        "valid_auc_mean": round(float(np.mean([run.valid_auc for run in runs])), 5),
    }
    for name, metric in (("auc", auc), ("logloss", logloss)):
        values = [metric(run.labels, run.probabilities) for run in runs]
        out[f"{name}_mean"] = round(float(np.mean(values)), 5)
        out[f"{name}_std"] = round(float(np.std(values, ddof=1)), 5) if len(values) > 1 else 0.0
    return out


if __name__ == "__main__":
    raise SystemExit(main("quality_per_byte", measure, parts=tuple(DATA_SETS)))
