"""Arms of a comparison at equal bytes: what a table is made of, trained with some settings and seeds in processes.

Arms of one method and size are candidates: with the settings of a common grid they compete on validation, and the
winner alone is tested.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from features.layout import Layout
from features.loading.loader import Loader
from features.storage.store import Store
from recsys.embeddings import EmbeddingConfig, EmbeddingPlan, TableOptimizer, plan_embedding
from recsys.embeddings.baselines import (
    BaselineConfig,
    BaselineEmbedding,
    FrequencySplitEmbedding,
    QuotientRemainderEmbedding,
    RobeEmbedding,
)
from recsys.embeddings.plan import IdCounts
from recsys.evaluation.metrics import auc, logloss
from recsys.evaluation.paired import Difference, over_seeds, paired_auc, paired_logloss
from recsys.models import CTRModel, ModelConfig
from recsys.models.warm_start import warm_start
from recsys.serving.bundle import load_bundle
from recsys.training import TrainConfig, Trainer, predict
from recsys.training.teacher import Teacher

BASELINES: dict[str, Callable[..., BaselineEmbedding]] = {
    "robe": RobeEmbedding,
    "qr": QuotientRemainderEmbedding,
    "frequency": FrequencySplitEmbedding,
}

Limit = int | Fraction | None
"""Bytes of everything indexed by ids, or a share of those of the arms without a limit (None)."""


@dataclass(frozen=True)
class Arm:
    """One way to lay out the table."""

    method: str
    """Its name in tables and pictures."""
    embedding: Mapping[str, Any]
    """Fields of `EmbeddingConfig`, whose hash seed is the run's unless it is given; or for a baseline its width and
    arguments of its class."""
    limit: Limit = None
    """`rows` is made as large as fits; None takes `embedding` as it is."""
    baseline: str | None = None
    """One of BASELINES."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrainConfig` for this arm alone, `warm_start` and `teacher` being folders of bundles; the settings of
    the grid go before them."""
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Training:
    """What all arms of a comparison have in common."""

    model: Mapping[str, Any]
    """Fields of `ModelConfig`."""
    train: Mapping[str, Any]
    """Fields of `TrainConfig`."""
    grid: Sequence[Mapping[str, Any]] = ({},)
    """Fields of `TrainConfig` to choose among."""


@dataclass(frozen=True)
class Run:
    """One arm trained once."""

    arm: Arm
    setting: Mapping[str, Any]
    seed: int
    best_epoch: int
    valid_auc: float
    valid_logloss: float
    table_bytes: int
    training_bytes: int
    """Of table, index, optimizer state and moving average."""
    labels: np.ndarray
    """[N] of the test rows."""
    probabilities: np.ndarray
    """[N] of the test rows."""


def run_arms(
    arms: Sequence[Arm], training: Training, stores: Mapping[int, Path], log: Callable[[str], None]
) -> dict[tuple[str, Limit], list[Run]]:
    """Trains every arm with every setting and seed, as many at a time as there are processors.

    Args:
        arms: what to train.
        training: how.
        stores: the data of each seed.
        log: told of every run.

    Returns:
        (method, limit), in the order of the arms -> the runs, one a seed, of the arm and setting with the best mean
        validation AUC.
    """
    whole = reference_bytes(arms, stores) if any(isinstance(arm.limit, Fraction) for arm in arms) else 0
    jobs = list(itertools.product(arms, training.grid))
    runs: dict[int, list[Run]] = {i: [] for i in range(len(jobs))}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = {
            pool.submit(_train, arm, _bytes(arm.limit, whole), setting, seed, training, str(stores[seed])): i
            for i, (arm, setting) in enumerate(jobs)
            for seed in arm.seeds
        }
        for done, task in enumerate(as_completed(tasks), 1):
            run = task.result()
            runs[tasks[task]].append(run)
            log(
                f"[{done}/{len(tasks)}] {run.arm.method}, {run.table_bytes:,} bytes, {dict(run.setting)}, "
                f"seed {run.seed}: valid AUC {run.valid_auc:.4f} (epoch {run.best_epoch})"
            )
    groups: dict[tuple[str, Limit], list[list[Run]]] = {}
    for i, (arm, _) in enumerate(jobs):
        groups.setdefault((arm.method, arm.limit), []).append(sorted(runs[i], key=lambda run: run.seed))
    return {
        key: max(candidates, key=lambda own: statistics.mean(run.valid_auc for run in own))
        for key, candidates in groups.items()
    }


def difference(ours: Sequence[Run], others: Sequence[Run], same_rows: bool) -> dict[str, Difference]:
    """Test AUC and logloss of some runs minus those of others, seed by seed.

    Args:
        ours: one a seed.
        others: one a seed, in the same order; the longer of the two is cut.
        same_rows: whether all seeds have the same test rows, so that the chance of the rows can be told.
    """
    pairs = list(zip(ours, others, strict=False))
    if same_rows or len(pairs) == 1:
        a, b = (np.stack([pair[side].probabilities for pair in pairs]) for side in (0, 1))
        labels = pairs[0][0].labels
        return {"auc": paired_auc(labels, a, b), "logloss": paired_logloss(labels, a, b)}
    return {
        name: over_seeds([metric(x.labels, x.probabilities) - metric(y.labels, y.probabilities) for x, y in pairs])
        for name, metric in (("auc", auc), ("logloss", logloss))
    }


def reference_bytes(arms: Sequence[Arm], stores: Mapping[int, Path]) -> int:
    """Bytes of the arms without a limit, the smallest over arms and seeds."""
    return min(
        embedding_of(arm, None, store.layout, store.id_counts("train"), seed)[0].table_bytes
        for seed, store in ((seed, Store.open(path)) for seed, path in stores.items())
        for arm in arms
        if arm.limit is None and seed in arm.seeds
    )


def embedding_of(
    arm: Arm, limit: int | None, layout: Layout, counts: IdCounts, seed: int, optimizer: TableOptimizer | None = None
) -> tuple[EmbeddingPlan, BaselineEmbedding | None]:
    """The plan of an arm's table within `limit` bytes, or a baseline and a plan of its output width."""
    if arm.baseline is None:
        return plan_within(layout, {"hash_seed": seed, **arm.embedding}, counts, limit), None
    own = dict(arm.embedding)
    config = BaselineConfig(own.pop("width"), seed, seed, optimizer=optimizer or TableOptimizer())
    baseline = BASELINES[arm.baseline](layout, counts, limit, config, **own)
    return plan_embedding(layout, EmbeddingConfig(width=config.width, rows=1), counts), baseline


def plan_within(layout: Layout, config: Mapping[str, Any], counts: IdCounts, limit: int | None) -> EmbeddingPlan:
    """The plan with as many rows to hash into as a number of bytes holds.

    Args:
        layout: the features.
        config: fields of `EmbeddingConfig`; `rows` is replaced.
        counts: distinct training fingerprints of every feature.
        limit: bytes; None takes the config as it is.

    Raises:
        ValueError: what is not hashed takes more than the limit.
    """
    if limit is None:
        return plan_embedding(layout, EmbeddingConfig.model_validate(config), counts)

    def plan(rows: int) -> EmbeddingPlan:
        return plan_embedding(layout, EmbeddingConfig.model_validate({**config, "rows": rows}), counts)

    # a hashed table has rows for every feature, one at least
    least = len(layout.id_names) + len(layout.bag_names) if config.get("kind") == "hashed" else 1
    low, high = least - 1, limit
    while low < high:
        rows = (low + high + 1) // 2
        low, high = (rows, high) if plan(rows).table_bytes <= limit else (low, rows - 1)
    if low < least:
        raise ValueError(f"the fewest rows and the exact ones take {plan(least).table_bytes:,} bytes, above {limit:,}")
    return plan(low)


def _bytes(limit: Limit, whole: int) -> int | None:
    return int(limit * whole) if isinstance(limit, Fraction) else limit


def _train(arm: Arm, limit: int | None, setting: Mapping[str, Any], seed: int, training: Training, folder: str) -> Run:
    """Trains and scores one arm; runs in a process of its own."""
    store = Store.open(Path(folder))
    train = TrainConfig.model_validate({**training.train, **setting, **arm.train})
    optimizer, counts = train.optimizer_of_table, store.id_counts("train")
    plan, baseline = embedding_of(arm, limit, store.layout, counts, seed, optimizer)
    network = ModelConfig.model_validate(training.model)
    model = CTRModel(store.layout, plan, network, seed=seed, optimizer=optimizer, embedding=baseline)
    if train.warm_start:
        warm_start(model, load_bundle(Path(train.warm_start)).model, counts)
    teacher = Teacher(load_bundle(Path(train.teacher)).model, store.layout, train.distill) if train.teacher else None
    with tempfile.TemporaryDirectory() as checkpoints:
        trainer = Trainer(model, train, seed=seed, folder=Path(checkpoints), teacher=teacher)
        result = trainer.fit(
            Loader(store, "train", train.batch_size, shuffle_seed=seed), Loader(store, "valid", train.eval_batch_size)
        )
    scored = predict(model, Loader(store, "test", train.eval_batch_size))
    assert scored.labels is not None
    return Run(
        arm=arm,
        setting=setting,
        seed=seed,
        best_epoch=result.best_epoch,
        valid_auc=result.best_metrics["auc"],
        valid_logloss=result.best_metrics["logloss"],
        table_bytes=(baseline or plan).table_bytes,
        training_bytes=model.embedding.training_bytes,
        labels=scored.labels[:, 0],
        probabilities=scored.probabilities[:, 0],
    )
