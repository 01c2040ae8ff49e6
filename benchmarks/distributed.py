"""Training in two processes beside training in one: the same losses, and checkpoints that go both ways.

Bars: over 50 steps no loss differs by more than 1e-6, for every sharding and optimizer; nor do the losses after a
checkpoint that was written by two processes and read by one, and the other way round.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Bar, Outcome, Settings, child, main
from features.recipes import RECIPES
from features.storage.splits import RandomSplit
from features.storage.store import build_store
from pipelines.config import load_config

STEPS = 50
CHECKPOINT, CUT = 25, 30
TARGET = 1e-6
THREADS = 1
RATES = {"rowwise_adagrad": 0.05, "sgd": 1.0}
SHARDINGS = {
    "rowwise_adagrad": ("row_wise", "table_wise", "auto"),
    "sgd": ("row_wise", "column_wise", "table_wise", "auto"),
}


def measure(settings: Settings) -> Outcome:
    """Losses of one and of two processes over 50 steps, and after checkpoints that change the number of processes."""
    batch_size = 512 if settings.quick else 4096
    with tempfile.TemporaryDirectory(prefix="recsys-benchmark-") as name:
        folder = Path(name)
        config = load_config(ROOT / "configs" / "synthetic.yaml")
        settings.log("preparing synthetic events")
        events = RECIPES["synthetic"].load(None, rows=int(STEPS * batch_size * 1.15), seed=0)
        build_store(events, config.spec, RandomSplit(fractions=(0.9, 0.05, 0.05), seed=0), folder / "store")
        common = {
            "embedding": config.embedding.model_dump(mode="json"),
            "model": config.model.model_dump(mode="json"),
            "seed": 0,
        }
        train = {"batch_size": batch_size, "checkpoint_steps": CHECKPOINT, "threads": THREADS}
        cases = {
            f"{optimizer}, {sharding}": {
                **common,
                "train": {
                    **train,
                    "table_optimizer": optimizer,
                    "table_learning_rate": RATES[optimizer],
                    "distributed": {"sharding": sharding},
                },
            }
            for optimizer, shardings in SHARDINGS.items()
            for sharding in shardings
        }

        def run(where: str, processes: int | None, **more: Any) -> dict[str, dict[str, Any]]:
            settings.log(f"{len(cases)} trainings, {where}")
            named = [{**case, **more, "folder": str(folder / where / name)} for name, case in cases.items()]
            return dict(zip(cases, run_cases(folder / "store", named, processes), strict=True))

        whole = {"one process": run("one process", None), "torchrun 2": run("torchrun 2", 2)}
        whole["torchrun 1"] = run("torchrun 1", 1)
        for where, processes in (("cut one", None), ("cut 2", 2)):
            run(where, processes, cut=CUT)
        resumed = {}
        for what, written, processes in (
            ("2 to 1", "cut 2", None),
            ("2 to torchrun 1", "cut 2", 1),
            ("2 to 2", "cut 2", 2),
            ("1 to 2", "cut one", 2),
        ):
            shutil.copytree(folder / written, folder / what)
            resumed[what] = run(what, processes, resume=True)
    one = whole["one process"]
    bars, figures = [], {}
    for name in cases:
        whole_runs = {
            where: largest_difference(one[name], whole[where][name]) for where in ("torchrun 1", "torchrun 2")
        }
        after = {what: largest_difference(one[name], answer[name]) for what, answer in resumed.items()}
        two = whole["torchrun 2"][name]
        figures[name] = {
            "largest difference of a loss to one process": whole_runs,
            "largest difference of torchrun 2 to torchrun 1": largest_difference(whole["torchrun 1"][name], two),
            "largest difference of a loss after a checkpoint": after,
            "difference of the validation AUC": abs(one[name]["metrics"]["auc"] - two["metrics"]["auc"]),
            "first and last loss": [one[name]["losses"]["1"], one[name]["losses"][str(STEPS)]],
            "parts": two["parts"],
        }
        bars += [
            Bar(f"largest difference of a loss, 2 processes and 1, {name}", max(whole_runs.values()), "<=", TARGET),
            Bar(
                f"the same after a checkpoint from 2 to 1, 1 to 2 and 2 to 2, {name}", max(after.values()), "<=", TARGET
            ),
        ]
    return Outcome(bars, {"steps": STEPS, "batch_size": batch_size, **figures}, threads=THREADS)


def run_cases(store: Path, cases: Sequence[Mapping[str, Any]], processes: int | None) -> list[dict[str, Any]]:
    """Run `benchmarks.scripts.train_distributed`.

    Args:
        store: The prepared data.
        cases: As the script describes them.
        processes: How many `torchrun` starts; None for an ordinary process.

    Returns:
        The result of every case.
    """
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"] if processes else []
    with tempfile.TemporaryDirectory(prefix="recsys-cases-") as folder:
        request = Path(folder) / "request.json"
        request.write_text(json.dumps({"store": str(store), "cases": list(cases)}), encoding="utf-8")
        command = [sys.executable, "-m", *launch, "benchmarks.scripts.train_distributed", str(request)]
        return list(child(command, {}, threads=THREADS)["results"])


def largest_difference(one: Mapping[str, Any], other: Mapping[str, Any], steps: int = STEPS) -> float:
    """The largest difference between the losses of two runs at the same step, over the steps that the other has."""
    shared = [step for step in other["losses"] if int(step) <= steps]
    return max(abs(one["losses"][step] - other["losses"][step]) for step in shared)


if __name__ == "__main__":
    sys.exit(main("distributed", measure))
