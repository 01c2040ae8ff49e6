"""A click probability from a raw row, in process: how long, in which parts, and in which row formats.

Criteo form: 13 numbers and 26 categories of the Criteo sample, one million rows of width 16, DCN-v2 with a feed-forward
network of 256 x 128, isotonic calibration, one thread.  The weights are random, which no time depends on, and the
calibration is fitted to clicks drawn by a flatter curve than the model's own.  Every format runs in processes of its
own, and the formats take turns.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Bar, Outcome, Settings, child, main
from features.pipeline import FeaturePipeline
from features.recipes import RECIPES
from features.spec import FeatureSpec
from features.validation import validate
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.models.convert import convert
from recsys.serving.bundle import save_bundle
from recsys.serving.calibration import fit_calibration, sigmoid
from recsys.training import predict

FORMATS_TIMED = ("fp32", "int8", "int4")
ROWS, FITTED_ON, SCORED = 1_000_000, 100_000, 20_000
TURNS, CALLS = 3, 4000


def measure(settings: Settings) -> Outcome:
    """Time from a raw row to a probability, its parts, and the same in int8 and int4."""
    calls, turns = (1000, 1) if settings.quick else (CALLS, TURNS)
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in FORMATS_TIMED}
    with tempfile.TemporaryDirectory() as folder:
        bundles = write_bundles(Path(folder))
        for turn in range(turns):
            for name, bundle in bundles.items():
                request = {"bundle": str(bundle), "calls": calls, "rows": SCORED}
                answer = child([sys.executable, "-m", "benchmarks.scripts.score_requests"], request, threads=1)
                answers[name].append(answer)
                one, many = answer["one"], answer["candidates"]
                settings.log(
                    f"turn {turn + 1} of {turns}: {name}: 1 row {one['p50']:.3f} ms, p99 {one['p99']:.3f}; "
                    f"500 candidates {many['p50']:.2f} ms"
                )
    median = {
        (name, kind, part): statistics.median(answer[kind][part] for answer in own)
        for name, own in answers.items()
        for kind in ("one", "candidates")
        for part in own[0][kind]
    }

    def outside(kind: str) -> float:
        within = median["fp32", kind, "encode"] + median["fp32", kind, "network"]
        return 1 - within / median["fp32", kind, "p50"]

    bars = [
        Bar("1 row, p50 in ms", median["fp32", "one", "p50"], "<=", 0.35),
        Bar("1 row, p99 in ms", median["fp32", "one", "p99"], "<=", 1.0),
        Bar("500 candidates of one user, p50 in ms", median["fp32", "candidates", "p50"], "<=", 9.0),
        Bar("share outside of encoding and network, 1 row", outside("one"), "<=", 0.15),
        Bar("share outside of encoding and network, 500 candidates", outside("candidates"), "<=", 0.15),
        *(
            Bar(f"{name} over fp32, {text}", median[name, kind, "p50"] / median["fp32", kind, "p50"], "<=", 1.1)
            for name in FORMATS_TIMED[1:]
            for kind, text in (("one", "1 row"), ("candidates", "500 candidates"))
        ),
        Bar(
            f"largest difference to the trainer's probability, {SCORED:,} rows",
            max(answer["difference"] for own in answers.values() for answer in own),
            "<=",
            1e-6,
        ),
    ]
    figures = {
        "calls": calls,
        "table_bytes": {name: own[0]["table_bytes"] for name, own in answers.items()},
        "median": {"/".join(key): round(value, 4) for key, value in median.items()},
        "runs": answers,
    }
    return Outcome(bars, figures, threads=1)


def write_bundles(folder: Path) -> dict[str, Path]:
    """The model of the Criteo form in every format that is timed."""
    recipe = RECIPES["criteo"]
    events = recipe.load(None).head(FITTED_ON).collect()
    pipeline = FeaturePipeline(validate(FeatureSpec, recipe.spec_hint)).fit(events)
    encoded = pipeline.encode_frame(events)
    counts = {
        name: np.unique(encoded.ids[:, place].numpy(), return_counts=True)
        for place, name in enumerate(pipeline.layout.id_names)
    }
    plan = plan_embedding(pipeline.layout, EmbeddingConfig(rows=ROWS, width=16, init_scale=1.0), counts)
    network = ModelConfig(interaction="dcnv2", cross_layers=2, hidden=(256, 128))
    model = CTRModel(pipeline.layout, plan, network, kernel="torch").eval()
    logits = predict(model, [encoded]).logits
    assert logits is not None
    clicks = np.random.default_rng(0).random(logits.shape) < sigmoid(0.5 * logits)
    calibration = fit_calibration("isotonic", logits, clicks)
    bundles = {}
    for name in FORMATS_TIMED:
        own = model if name == "fp32" else convert(model, name)
        bundles[name] = save_bundle(folder / name, model=own, pipeline=pipeline, calibration=calibration)
    return bundles


if __name__ == "__main__":
    sys.exit(main("serving", measure))
