"""What a trained model keeps when its table or its features change, and how soon it is as good as one made anew.

MovieLens-1M with the settings of configs/movielens_1m.yaml.  A trained model is taken over into other shapes: twice,
one and a half times and half the rows, zip added, occupation dropped, movie_id reset, and nothing changed.  Test AUC
before, right after, after one and after three more epochs (with the config's rates, and with rates that fall to 0),
and of a model trained from scratch in that shape.  A seed redraws the split, the weights, the order of rows and the
hashes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, Bar, Outcome, Settings, main
from features.loading.loader import Loader
from features.recipes import RECIPES
from features.storage.splits import RandomSplit
from features.storage.store import Store, build_store
from pipelines.config import ExperimentConfig, load_config
from recsys.embeddings import plan_embedding
from recsys.embeddings.plan import IdCounts
from recsys.evaluation.metrics import evaluate
from recsys.models import CTRModel
from recsys.models.warm_start import WarmStartReport, warm_start
from recsys.training import Trainer, predict

CONFIG = ROOT / "configs" / "movielens_1m.yaml"
SEEDS = (0, 1, 2)
MORE_EPOCHS = 3
SHAPES: dict[str, tuple[str, ...]] = {
    "unchanged": (),
    "rows x 2": ("embedding.rows=8000",),
    "rows x 1.5": ("embedding.rows=6000",),
    "rows x 0.5": ("embedding.rows=2000",),
    "zip added": ("embedding.chunks.features.zip=2",),
    "occupation dropped": ("embedding.chunks.features.occupation=0",),
    "movie_id reset": (),
}
"""Name of a change -> what it overrides in the config; a reset changes no shape."""
RESET = {"movie_id reset": ("movie_id",)}
KEYS = ("change", "seed")
GAP = -0.002
"""AUC that may be missing to a model from scratch after three more epochs."""


class Lab:
    """One seed's data, and the few things done with it."""

    def __init__(self, folder: Path, seed: int, quick: bool) -> None:
        self.folder, self.seed = folder, seed
        quicker = ("train.epochs=2", "train.batch_size=2048") if quick else ()
        self.common = (*quicker, f"seed={seed}", f"embedding.hash_seed={seed}", "train.threads=1")
        config = self.config()
        events = RECIPES["movielens_1m"].load(None, **config.data.params)
        split = RandomSplit(fractions=(0.8, 0.1, 0.1), seed=seed)
        self.store: Store = build_store(events, config.spec, split, folder / "store")
        self.counts: IdCounts = self.store.id_counts("train")

    def config(self, *overrides: str) -> ExperimentConfig:
        """The shipped config with a shape's overrides."""
        return load_config(CONFIG, [*self.common, *overrides])

    def model(self, config: ExperimentConfig) -> CTRModel:
        """A fresh model."""
        plan = plan_embedding(self.store.layout, config.embedding, self.counts)
        optimizer = config.train.optimizer_of_table
        return CTRModel(self.store.layout, plan, config.model, seed=self.seed, optimizer=optimizer)

    def train(self, config: ExperimentConfig, model: CTRModel, **changes: Any) -> tuple[CTRModel, int]:
        """Trains with some settings changed; the model keeps the best epoch, whose number is returned too."""
        settings = config.train.model_copy(update=changes)
        train = Loader(self.store, "train", settings.batch_size, shuffle_seed=self.seed)
        valid = Loader(self.store, "valid", settings.eval_batch_size)
        with tempfile.TemporaryDirectory(dir=self.folder) as checkpoints:
            result = Trainer(model, settings, seed=self.seed, folder=Path(checkpoints)).fit(train, valid)
        return model, result.best_epoch

    def auc(self, model: CTRModel) -> float:
        """AUC on the test split."""
        scored = predict(model, Loader(self.store, "test", 16_384))
        assert scored.labels is not None
        return float(evaluate(scored.labels, scored.probabilities)["auc"])

    def taken_over(
        self, old: CTRModel, config: ExperimentConfig, change: str, by_traffic: bool = True
    ) -> tuple[CTRModel, WarmStartReport]:
        """A fresh model filled from the trained one; merged by traffic, or as if no value of a hashed field were known,
        which leaves the hash space they share."""
        model, counts = self.model(config), dict(self.counts)
        if not by_traffic:
            hashed = [f.name for f in model.plan.features if f.region != "exact"]
            counts |= {name: (counts[name][0][:0], counts[name][1][:0]) for name in hashed}
        return model, warm_start(model, old, counts, reset=RESET.get(change, ()))


def measure_seed(lab: Lab, settings: Settings) -> list[dict[str, Any]]:
    """All changes for one seed."""
    old, epochs = lab.train(lab.config(), lab.model(lab.config()))
    before = lab.auc(old)
    settings.log(f"seed {lab.seed}: AUC {before:.4f} after {epochs} epochs")
    scratch: dict[tuple[str, ...], tuple[float, int]] = {(): (before, epochs)}
    runs = []
    for change, overrides in SHAPES.items():
        config = lab.config(*overrides)
        if overrides not in scratch:
            anew, epochs = lab.train(config, lab.model(config))
            scratch[overrides] = lab.auc(anew), epochs
        model, report = lab.taken_over(old, config, change)
        run: dict[str, Any] = {"change": change, "seed": lab.seed, "before": before, "right_after": lab.auc(model)}
        run["by_hash_space"] = lab.auc(lab.taken_over(old, config, change, by_traffic=False)[0])
        more: dict[str, dict[str, Any]] = {
            "after_1": {"epochs": 1},
            f"after_{MORE_EPOCHS}": {"epochs": MORE_EPOCHS},
            "falling": {"epochs": MORE_EPOCHS, "schedule": "linear"},
        }
        for name, changes in more.items():
            again, _ = lab.taken_over(old, config, change)
            run[name] = lab.auc(lab.train(config, again, **changes)[0])
        run["scratch"], run["scratch_epochs"] = scratch[overrides]
        run["lookups_kept"] = report.lookups_kept
        run["rows_kept"] = report.rows_kept / report.rows
        run["table_bytes"] = model.plan.table_bytes
        runs.append(run)
        settings.log(
            f"seed {lab.seed}, {change}: " + ", ".join(f"{k} {v:.4g}" for k, v in run.items() if k not in KEYS)
        )
    return runs


def measure(settings: Settings) -> Outcome:
    """Test AUC of a trained model taken over into other shapes, and of models trained anew in them."""
    runs = []
    for seed in SEEDS[:1] if settings.quick else SEEDS:
        with tempfile.TemporaryDirectory() as work:
            runs += measure_seed(Lab(Path(work), seed, settings.quick), settings)
    table = [_summary(change, [run for run in runs if run["change"] == change]) for change in SHAPES]
    by_change = {line["change"]: line for line in table}
    last = f"after_{MORE_EPOCHS}"
    bars = [
        Bar(f"AUC moved right after, {change}, largest of the seeds", _largest(runs, change), "<=", most)
        for change, most in (("unchanged", 0.0), ("rows x 2", 0.0), ("zip added", 1e-5))
    ]
    bars += [
        Bar(
            f"AUC after {MORE_EPOCHS} more epochs less that from scratch, {change}",
            by_change[change][last] - by_change[change]["scratch"],
            ">=",
            GAP,
        )
        for change in SHAPES
    ]
    return Outcome(bars, {"table": table, "runs": runs}, threads=1)


def _largest(runs: list[dict[str, Any]], change: str) -> float:
    return max(abs(run["right_after"] - run["before"]) for run in runs if run["change"] == change)


def _summary(change: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    line: dict[str, Any] = {"change": change, "seeds": len(runs)}
    for key in (key for key in runs[0] if key not in KEYS):
        values = np.array([run[key] for run in runs], dtype=np.float64)
        line[key] = round(float(values.mean()), 5)
        if key in ("before", "right_after", "after_1", f"after_{MORE_EPOCHS}", "falling", "scratch") and len(runs) > 1:
            line[f"{key}_std"] = round(float(values.std(ddof=1)), 5)
    return line


if __name__ == "__main__":
    raise SystemExit(main("growing", measure))
