"""Our metrics beside those of scikit-learn, torchmetrics and TorchRec, on ties, weights and groups of one class.

Bar: no value differs by more than 1e-6.  The peers run in an environment of their own with pinned versions, and say
them; obp, which none but old releases of Python may install, has another one: see `off_policy`.  How each library is
asked says `scripts/metric_values.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.harness import Bar, Outcome, Settings, main
from benchmarks.peers import METRICS, call, prepare
from benchmarks.scripts.metric_values import CUTS, Rows, tenths
from recsys.evaluation import calibration, metrics
from recsys.evaluation.auc import group_auc
from recsys.evaluation.ranking import rank_requests

TOLERANCE = 1e-6
SEEDS = 20

Sample = dict[str, dict[str, np.ndarray]]
"""Rows with `ties` and with `no ties`."""


def measure(settings: Settings) -> Outcome:
    """The largest difference of every metric that we share with each library, over samples of 700 rows."""
    samples = [sample(seed) for seed in range(3 if settings.quick else SEEDS)]
    prepare(METRICS, settings.log)
    settings.log(f"asking {METRICS.name} ...")
    plain = [{kind: {name: v.tolist() for name, v in rows.items()} for kind, rows in both.items()} for both in samples]
    answer = call(METRICS, {"samples": plain}, threads=1)
    bars, figures = [], {}
    for library, values in answer["values"].items():
        worst: dict[str, float] = {}
        for both, theirs in zip(samples, values, strict=True):
            for metric, apart in differences(library, both, theirs).items():
                worst[metric] = max(worst.get(metric, 0.0), apart)
        version = answer["versions"][library]
        settings.log(f"{library} {version}: {max(worst.values()):.1e}")
        what = f"{library} {version}: largest difference of {len(worst)} metrics"
        bars.append(Bar(what, max(worst.values()), "<=", TOLERANCE))
        figures[library] = {"version": version, "largest_difference": worst}
    return Outcome(bars, figures, threads=1)


def sample(seed: int) -> Sample:
    """700 rows, some of weight 0, in 60 groups, some of one class; scores with many ties, and others with none."""
    rows = 700

    def drawn(ties: bool) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        p = rng.integers(1, 30, rows) / 30 if ties else rng.permutation(rows) / rows * 0.98 + 0.01
        group = rng.integers(0, 60, rows)
        y = (rng.random(rows) < p) * (group % 7 > 0)
        weights = rng.integers(0, 4, rows) * 0.5
        return {"labels": y.astype(float), "probabilities": p, "weights": weights, "groups": group}

    return {"ties": drawn(True), "no ties": drawn(False)}


def differences(library: str, both: Sample, theirs: Mapping[str, Any]) -> dict[str, float]:
    """How far each metric of a library is from ours at most; infinite if there are not as many values.

    Raises:
        KeyError: They gave other metrics than we have of it.
    """
    ours = OURS[library](both["ties"], both["no ties"])
    if ours.keys() != theirs.keys():
        raise KeyError(f"{library}: metrics of one side alone are {sorted(ours.keys() ^ theirs.keys())}")
    return {metric: _apart(value, theirs[metric]) for metric, value in ours.items()}


def _apart(ours: Any, theirs: Any) -> float:
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    return float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")


def _as_scikit_learn(ties: Rows, _: Rows) -> dict[str, Any]:
    y, p, w, group = ties.values()
    out: dict[str, Any] = {}
    for given, suffix in ((None, ""), (w, ", weighted")):
        found = metrics.evaluate(y, p, given, group)
        for metric, name in (
            ("AUC", "auc"),
            ("PR-AUC", "pr_auc"),
            ("logloss", "logloss"),
            ("Brier", "brier"),
            ("GAUC", "gauc"),
            ("groups of both classes", "gauc_groups"),
        ):
            out[metric + suffix] = found[name]
    return out | {f"NDCG@{k}": rank_requests(y, p, group, k).ndcg for k in CUTS}


def _as_torchmetrics(ties: Rows, no_ties: Rows) -> dict[str, Any]:
    y, p, _, _ = ties.values()
    found, middles = metrics.evaluate(y, p), tenths(p)
    ece = calibration.expected_calibration_error(y, middles, bins=len(y))
    out: dict[str, Any] = {"AUC": found["auc"], "PR-AUC": found["pr_auc"], "ECE": ece}
    y, p, _, group = no_ties.values()
    for k in CUTS:
        ranked = rank_requests(y, p, group, k)
        out |= {f"NDCG@{k}": ranked.ndcg, f"recall@{k}": ranked.recall, "reciprocal rank": ranked.reciprocal_rank}
    return out


def _as_torchrec(ties: Rows, no_ties: Rows) -> dict[str, Any]:
    y, p, w, _ = ties.values()
    found = metrics.evaluate(y, p, w)
    y, p, w, group = no_ties.values()
    within = group_auc(y, p, group)
    return {
        "normalised entropy": found["normalised_entropy"],
        "calibration ratio": found["calibration_ratio"],
        "Brier": found["brier"],
        "PR-AUC": found["pr_auc"],
        "AUC": metrics.auc(y, p, w),
        "GAUC": within.values.mean(),
        "groups of both classes": len(within.values),
        "NDCG@5": rank_requests(y, p, group, 5).ndcg.mean(),
    }


OURS: dict[str, Callable[[Rows, Rows], dict[str, Any]]] = {
    "scikit-learn": _as_scikit_learn,
    "torchmetrics": _as_torchmetrics,
    "torchrec": _as_torchrec,
}


if __name__ == "__main__":
    raise SystemExit(main("metrics_parity", measure))
