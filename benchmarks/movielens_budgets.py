"""Quality at a fixed table size on MovieLens-1M, in the setting of the Unified Embedding paper (arXiv 2305.12102).

3-star rows dropped, random 80/10/10, six features, width 30, one cross layer beside a network of 192 units;
validation picks the epoch.  Multiplexed (one chunk a feature), per-feature hashing with and without exact small
fields, and a row a value, each with three seeds.  A seed redraws
the split, the initial weights, the order of rows and the hashes, whose luck alone is worth some .001 AUC in the
smallest table.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Bar, Outcome, Settings, main
from features.loading.loader import Loader
from features.recipes import RECIPES
from features.spec import FeatureSpec
from features.storage.splits import RandomSplit
from features.storage.store import Store, build_store
from features.validation import validate
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.evaluation.metrics import evaluate
from recsys.models import CTRModel, ModelConfig
from recsys.training import TrainConfig, Trainer, predict

WIDTH = 30
ROW_BYTES = 4 * WIDTH
# 1, 1/2 and 1/10 of the collisionless table, the sizes of the paper's Table 1
BUDGETS = {"1.6 MB": 1_582_000, "791 kB": 791_000, "158 kB": 158_200}
TARGETS = {"1.6 MB": 0.886, "791 kB": 0.875, "158 kB": 0.825}
COLLISIONLESS_TARGET = 0.894
SMALL_FIELD = 64
"""Distinct values up to which a field is exact in the arm that keeps small fields exact."""
SEEDS = (0, 1, 2)

MODEL = ModelConfig(interaction="dcnv2", cross_layers=1, hidden=(192,))
TRAIN: dict[str, Any] = {
    "batch_size": 512,
    "epochs": 15,
    "patience": 2,
    "learning_rate": 1e-3,
    "table_optimizer": "adam",
    "table_learning_rate": 2e-3,
    "table_l2": 1e-3,
    "ema": 0.999,
    "threads": 1,
}
"""The same for every arm."""


def embedding(arm: str, bytes_: int | None, exact_rows: int, seed: int) -> EmbeddingConfig:
    """The table of an arm within a number of bytes.

    Args:
        arm: multiplexed, hashed, hashed_exact or collisionless.
        bytes_: of all fp32 rows; None for collisionless.
        exact_rows: rows that exact small fields take in `hashed_exact`, one for unseen values of each included.
        seed: of the hashes.
    """
    rows = (bytes_ or ROW_BYTES) // ROW_BYTES
    common: dict[str, Any] = {"width": WIDTH, "exact": {"max_values": 0}, "hash_seed": seed}
    if arm == "hashed_exact":
        common |= {"kind": "hashed", "exact": {"max_values": SMALL_FIELD}, "rows": rows - exact_rows}
    elif arm == "collisionless":
        common |= {"kind": "collisionless"}
    else:
        common |= {"kind": arm, "rows": rows}
    return EmbeddingConfig.model_validate(common)


def train_arm(arm: str, budget: str | None, seed: int, folder: str, quick: bool) -> dict[str, Any]:
    """Trains and tests one arm; runs in a process of its own."""
    store = Store.open(Path(folder))
    counts = store.id_counts("train")
    small = [len(values) for values, _ in counts.values() if len(values) <= SMALL_FIELD]
    config = embedding(arm, BUDGETS[budget] if budget else None, sum(small) + len(small), seed)
    plan = plan_embedding(store.layout, config, counts)
    train = TrainConfig.model_validate(TRAIN | ({"epochs": 2, "batch_size": 1024} if quick else {}))
    model = CTRModel(store.layout, plan, MODEL, seed=seed, optimizer=train.optimizer_of_table)
    with tempfile.TemporaryDirectory() as checkpoints:
        trainer = Trainer(model, train, seed=seed, folder=Path(checkpoints))
        result = trainer.fit(
            Loader(store, "train", train.batch_size, shuffle_seed=seed), Loader(store, "valid", train.eval_batch_size)
        )
    scored = predict(model, Loader(store, "test", train.eval_batch_size))
    assert scored.labels is not None
    test = evaluate(scored.labels, scored.probabilities)
    return {
        "arm": arm,
        "budget": budget,
        "seed": seed,
        "auc": test["auc"],
        "logloss": test["logloss"],
        "best_epoch": result.best_epoch,
        "row_bytes": plan.rows * ROW_BYTES,
        "table_bytes": plan.table_bytes,
    }


def measure(settings: Settings) -> Outcome:
    """AUC of each kind of table at three sizes on MovieLens-1M."""
    seeds = SEEDS[:1] if settings.quick else SEEDS
    arms: list[tuple[str, str | None]] = [("collisionless", None)]
    arms += list(itertools.product(("multiplexed", "hashed", "hashed_exact"), BUDGETS))
    with tempfile.TemporaryDirectory() as work:
        recipe = RECIPES["movielens_1m"]
        spec = validate(FeatureSpec, recipe.spec_hint)
        for seed in seeds:
            build_store(
                recipe.load(None), spec, RandomSplit(fractions=(0.8, 0.1, 0.1), seed=seed), Path(work) / str(seed)
            )
        runs = []
        workers = min(os.cpu_count() or 1, 8)
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            tasks = [
                pool.submit(train_arm, arm, budget, seed, f"{work}/{seed}", settings.quick)
                for seed in seeds
                for arm, budget in arms
            ]
            for done, task in enumerate(as_completed(tasks), 1):
                run = task.result()
                runs.append(run)
                settings.log(
                    f"[{done}/{len(tasks)}] {run['arm']} {run['budget'] or ''} seed {run['seed']}: "
                    f"test AUC {run['auc']:.4f} (epoch {run['best_epoch']})"
                )
    table = [_summary(arm, budget, runs) for arm, budget in arms]
    for line in table:
        settings.log(
            f"{line['arm']:13} {line['budget'] or 'a row a value':13} AUC {line['auc_mean']:.4f} +- "
            f"{line['auc_std']:.4f}  logloss {line['logloss_mean']:.4f}  {line['row_bytes']:,} bytes of rows"
        )
    means = {(line["arm"], line["budget"]): line["auc_mean"] for line in table}
    bars = [
        Bar(f"test AUC, multiplexed, one chunk a feature, {budget}", means["multiplexed", budget], ">=", target)
        for budget, target in TARGETS.items()
    ]
    bars.append(Bar("test AUC, collisionless", means["collisionless", None], ">=", COLLISIONLESS_TARGET))
    return Outcome(
        bars, {"table": table, "runs": runs, "train": TRAIN, "model": MODEL.model_dump(mode="json")}, threads=1
    )


def _summary(arm: str, budget: str | None, runs: list[dict[str, Any]]) -> dict[str, Any]:
    own = [run for run in runs if (run["arm"], run["budget"]) == (arm, budget)]
    auc, logloss = (np.array([run[name] for run in own]) for name in ("auc", "logloss"))
    several = len(own) > 1
    return {
        "arm": arm,
        "budget": budget,
        "auc_mean": round(float(auc.mean()), 5),
        "auc_std": round(float(auc.std(ddof=1)), 5) if several else 0.0,
        "logloss_mean": round(float(logloss.mean()), 5),
        "logloss_std": round(float(logloss.std(ddof=1)), 5) if several else 0.0,
        "row_bytes": own[0]["row_bytes"],
        "table_bytes": own[0]["table_bytes"],
        "seeds": len(own),
    }


if __name__ == "__main__":
    raise SystemExit(main("movielens_budgets", measure))
