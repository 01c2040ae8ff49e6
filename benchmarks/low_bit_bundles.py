"""What int8 and int4 bundles save and cost: bytes and AUC of models trained in fp32 and converted afterwards.

int8 comes with a scale a row, and with one step for the whole table (`int8-table`).

MovieLens-1M and the Criteo sample as `configs/` have them, three seeds of weights and hashes, one split: the test rows
are the same for all seeds, so that the interval of a difference holds the chance of rows and of seeds.  Beside the
conversion stand the same models trained in the format (on a master copy), which is the other way to such a bundle.
What they take to answer is in `benchmarks.serving`.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, Bar, Outcome, Settings, main
from features.loading.loader import Loader
from features.storage.store import Store
from pipelines.config import ExperimentConfig, load_config
from pipelines.console import Console
from pipelines.prepare import prepare
from recsys.embeddings import plan_embedding
from recsys.evaluation.metrics import auc, logloss
from recsys.evaluation.paired import paired_auc, paired_logloss
from recsys.models import CTRModel
from recsys.models.convert import convert, rounding_error
from recsys.serving.bundle import save_bundle
from recsys.training import Trainer, predict

LOW_BIT = {"int8": 0.0005, "int8-table": 0.0005, "int4": 0.001}
"""Formats, with the AUC that a conversion may lose."""
TRAINED = ("int8", "int4")
DATA = {"MovieLens-1M": "movielens_1m", "Criteo": "criteo"}
"""Data sets, with their configs."""
SEEDS = (0, 1, 2)
LEAST_RATIO = 4.0


@dataclass(frozen=True)
class Scored:
    """One model on the test rows.

    Attributes:
        table_bytes: Rows with their scales, and indices.
        bundle_bytes: All files of the bundle.
        rounding: What conversion did to the rows, relative to their norm; 0 for a model as it was trained.
        labels: [N].
        probabilities: [N].
    """

    table_bytes: int
    bundle_bytes: int
    rounding: float
    labels: np.ndarray
    probabilities: np.ndarray


def measure(settings: Settings) -> Outcome:
    """Table bytes and AUC of int8 and int4 bundles against fp32."""
    bars: list[Bar] = []
    figures: dict[str, Any] = {}
    parts = settings.parts or DATA.values()
    for title, name in DATA.items():
        if name in parts:
            scored = _train_and_convert(name, settings)
            found = compare(scored)
            figures[name] = found
            for line in found:
                settings.log(f"{title}: {_text(line)}")
            bars += bars_of(title, found)
    return Outcome(bars, figures, threads=1)


def compare(scored: dict[str, list[Scored]]) -> list[dict[str, Any]]:
    """A line a way to a small bundle: its size and its metrics against fp32, one model a seed on the same rows.

    Args:
        scored: Of `fp32` and of every other way the models, one a seed.
    """
    whole = scored["fp32"]
    labels = whole[0].labels
    before = np.stack([one.probabilities for one in whole])
    lines = []
    for name, own in scored.items():
        after = np.stack([one.probabilities for one in own])
        line: dict[str, Any] = {
            "way": name,
            "table_bytes": own[0].table_bytes,
            "table_ratio": whole[0].table_bytes / own[0].table_bytes,
            "bundle_bytes": own[0].bundle_bytes,
            "bundle_ratio": whole[0].bundle_bytes / own[0].bundle_bytes,
            "rounding_error": statistics.mean(one.rounding for one in own),
            "auc": statistics.mean(auc(labels, one.probabilities) for one in own),
            "logloss": statistics.mean(logloss(labels, one.probabilities) for one in own),
            "max_change": float(np.abs(after - before).max()),
        }
        if name != "fp32":
            line["auc_loss"] = paired_auc(labels, before, after).to_json()
            line["logloss_gain"] = paired_logloss(labels, before, after).to_json()
        lines.append(line)
    return lines


def bars_of(title: str, found: Sequence[dict[str, Any]]) -> list[Bar]:
    """Size and AUC of the converted models of a data set, as the issue asks for them."""
    by_way = {line["way"]: line for line in found}
    bars = []
    for name, most in LOW_BIT.items():
        line = by_way[f"{name}, converted"]
        bars.append(Bar(f"{title}, {name}: times smaller table", line["table_ratio"], ">=", LEAST_RATIO))
        bars.append(Bar(f"{title}, {name}: AUC lost by conversion", line["auc_loss"]["mean"], "<=", most))
    return bars


def _text(line: dict[str, Any]) -> str:
    text = f"{line['way']:21} {line['table_bytes']:>9,} bytes ({line['table_ratio']:.2f}x)  AUC {line['auc']:.5f}"
    if "auc_loss" in line:
        loss = line["auc_loss"]
        text += f"  lost {loss['mean']:+.5f} [{loss['low']:+.5f}, {loss['high']:+.5f}]"
    return f"{text}  logloss {line['logloss']:.5f}  rows differ by {line['rounding_error']:.2%}"


def _train_and_convert(name: str, settings: Settings) -> dict[str, list[Scored]]:
    """Trains every seed in a process of its own, one after the other."""
    config = load_config(ROOT / "configs" / f"{name}.yaml", ["train.threads=1", "tracking.enabled=false"])
    seeds = SEEDS[:1] if settings.quick else SEEDS
    scored: dict[str, list[Scored]] = {}
    with tempfile.TemporaryDirectory(prefix="recsys-benchmark-") as work:
        config = config.model_copy(update={"workspace": Path(work)})
        prepare(config, Console(quiet=True))
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            for seed in seeds:
                for way, one in pool.submit(_seed, config, seed, settings.quick).result().items():
                    scored.setdefault(way, []).append(one)
                settings.log(f"{name}: seed {seed} is done")
    return scored


def _seed(config: ExperimentConfig, seed: int, quick: bool) -> dict[str, Scored]:
    """Every way of one seed: trained in fp32, converted, and trained in the format."""
    store = Store.open(config.store_folder)
    model = _trained(config, store, seed, "fp32", quick)
    scored = {"fp32": _score(store, model, model)}
    for name in LOW_BIT:
        scored[f"{name}, converted"] = _score(store, convert(model, name), model)
    for name in TRAINED:
        own = _trained(config, store, seed, name, quick)
        scored[f"{name}, trained"] = _score(store, own, own)
    return scored


def _trained(config: ExperimentConfig, store: Store, seed: int, name: str, quick: bool) -> CTRModel:
    embedding = config.embedding.model_copy(update={"hash_seed": seed, "format": name})
    change = {"table_master": name != "fp32", **({"epochs": 1} if quick else {})}
    train = config.train.model_copy(update=change)
    plan = plan_embedding(store.layout, embedding, store.id_counts("train"))
    model = CTRModel(store.layout, plan, config.model, seed=seed, optimizer=train.optimizer_of_table)
    with tempfile.TemporaryDirectory() as checkpoints:
        Trainer(model, train, seed=seed, folder=Path(checkpoints)).fit(
            Loader(store, "train", train.batch_size, shuffle_seed=seed), Loader(store, "valid", train.eval_batch_size)
        )
    return model.eval()


def _score(store: Store, model: CTRModel, original: CTRModel) -> Scored:
    found = predict(model, Loader(store, "test", 16_384))
    assert found.labels is not None
    with tempfile.TemporaryDirectory() as folder:
        bundle = save_bundle(Path(folder) / "bundle", model=model, pipeline=store.pipeline)
        size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    rounding = 0.0 if model is original else rounding_error(original, model)
    return Scored(model.plan.table_bytes, size, rounding, found.labels[:, 0], found.probabilities[:, 0])


if __name__ == "__main__":
    raise SystemExit(main("low_bit_bundles", measure, parts=tuple(DATA.values())))
