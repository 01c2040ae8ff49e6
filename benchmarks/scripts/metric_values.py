"""The metrics of scikit-learn, torchmetrics and TorchRec on given rows, in the peers' environment.

TorchRec's AUC, GAUC and session metrics take tied rows in the order a sort leaves them in, and torchmetrics' retrieval
metrics do so too: these are taken on scores that all differ.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import numpy as np

CUTS = (1, 5, 50)

Rows = Mapping[str, np.ndarray]
"""`labels`, `probabilities`, `weights` and `groups`, [N] each."""
Values = dict[str, float | list[float]]
"""By metric; those of requests one a request that has a relevant row, in the order of first appearance."""


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Values of every library on every sample.

    Args:
        request: samples, a list of {"ties": rows, "no ties": rows}.

    Returns:
        values by library, a list as long as the samples; versions by library.
    """
    samples = [
        {kind: {name: np.array(column) for name, column in rows.items()} for kind, rows in sample.items()}
        for sample in request["samples"]
    ]
    values = {
        library: [of_sample(sample["ties"], sample["no ties"]) for sample in samples]
        for library, of_sample in LIBRARIES.items()
    }
    return {"values": values, "versions": {library: metadata.version(library) for library in LIBRARIES}}


def scikit_learn(ties: Rows, _: Rows) -> Values:
    """Without and with weights; GAUC by a loop over groups."""
    from sklearn import metrics

    y, p, w, group = _columns(ties)
    out: Values = {}
    for given, suffix in ((None, ""), (w, ", weighted")):
        out[f"AUC{suffix}"] = float(metrics.roc_auc_score(y, p, sample_weight=given))
        out[f"PR-AUC{suffix}"] = float(metrics.average_precision_score(y, p, sample_weight=given))
        out[f"logloss{suffix}"] = float(metrics.log_loss(y, p, sample_weight=given))
        out[f"Brier{suffix}"] = float(metrics.brier_score_loss(y, p, sample_weight=given))
        values, shares = [], []
        for key in np.unique(group):
            rows = (group == key) & (w > 0 if given is not None else True)
            if len(set(y[rows])) == 2:
                weights = None if given is None else w[rows]
                values.append(metrics.roc_auc_score(y[rows], p[rows], sample_weight=weights))
                shares.append(rows.sum() if weights is None else weights.sum())
        out[f"GAUC{suffix}"] = float(np.average(values, weights=shares))
        out[f"groups of both classes{suffix}"] = len(values)
    requests = [(a, b) for a, b in _requests(ties) if len(a) > 1]
    for k in CUTS:
        out[f"NDCG@{k}"] = [float(metrics.ndcg_score(a[None], b[None], k=k)) for a, b in requests]
    return out


def torchmetrics(ties: Rows, no_ties: Rows) -> Values:
    """Its bins of equal width are ours where all scores are in the middle of one: see `tenths`."""
    import torch
    from torchmetrics.functional import classification, retrieval

    y, p, _, _ = _columns(ties)
    scores, labels = torch.from_numpy(p), torch.from_numpy(y.astype(int))
    middles = torch.from_numpy(tenths(p))
    out: Values = {
        "AUC": float(classification.binary_auroc(scores, labels)),
        "PR-AUC": float(classification.binary_average_precision(scores, labels)),
        "ECE": float(classification.binary_calibration_error(middles, labels, n_bins=10, norm="l1")),
    }
    requests = [(torch.from_numpy(b), torch.from_numpy(a.astype(int))) for a, b in _requests(no_ties)]
    for k in CUTS:
        out[f"NDCG@{k}"] = [float(retrieval.retrieval_normalized_dcg(b, a, top_k=k)) for b, a in requests]
        out[f"recall@{k}"] = [float(retrieval.retrieval_recall(b, a, top_k=k)) for b, a in requests]
    out["reciprocal rank"] = [float(retrieval.retrieval_reciprocal_rank(b, a)) for b, a in requests]
    return out


def torchrec(ties: Rows, no_ties: Rows) -> Values:
    """All weighted but those of sessions; its GAUC is the mean over groups, not over rows."""
    import torch
    from torchrec.metrics import auc, auprc, gauc, mse, ndcg, ne
    from torchrec.metrics import calibration as ratio

    labels, scores, weights = (torch.from_numpy(column)[None] for column in _columns(ties)[:3])
    states = ne.get_ne_states(labels, scores, weights, 1e-12)
    parts = (states[name] for name in ("cross_entropy_sum", "weighted_num_samples", "pos_labels", "neg_labels"))
    ratios = ratio.get_calibration_states(labels, scores, weights)
    squares = mse.compute_error_sum(labels, scores, weights)
    out: Values = {
        "normalised entropy": float(ne.compute_ne(*parts, 1e-12)),
        "calibration ratio": float(ratio.compute_calibration(ratios["calibration_num"], ratios["calibration_denom"])),
        "Brier": float(mse.compute_mse(squares, weights.sum(-1))),
        "PR-AUC": float(auprc.compute_auprc(1, scores, labels, weights)),
    }
    y, p, w, group = _columns(no_ties)
    labels, scores, weights = (torch.from_numpy(column)[None] for column in (y, p, w))
    out["AUC"] = float(auc.compute_auc(1, [scores], [labels], [weights]))
    order = np.argsort(group, kind="stable")
    labels, scores = labels[:, order].float(), scores[:, order].float()
    states = gauc.get_auc_states(labels, scores, torch.ones_like(labels), torch.from_numpy(np.bincount(group)))
    out["GAUC"] = float(states["auc_sum"] / states["num_samples"])
    out["groups of both classes"] = int(states["num_samples"])
    states = ndcg._get_ndcg_states(
        labels=labels,
        predictions=scores,
        weights=torch.ones_like(labels),
        session_ids=torch.from_numpy(group[order])[None],
        exponential_gain=False,
        k=5,
        report_ndcg_as_decreasing_curve=False,
    )
    out["NDCG@5"] = float(states["sum_ndcg"]) / len(_requests(no_ties))
    return out


LIBRARIES: dict[str, Callable[[Rows, Rows], Values]] = {
    "scikit-learn": scikit_learn,
    "torchmetrics": torchmetrics,
    "torchrec": torchrec,
}


def tenths(probabilities: np.ndarray) -> np.ndarray:
    """[N] the middle of each probability's tenth."""
    middles: np.ndarray = (np.floor(probabilities * 10).clip(0, 9) + 0.5) / 10
    return middles


def _columns(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return rows["labels"], rows["probabilities"], rows["weights"], rows["groups"]


def _requests(rows: Rows) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels and scores of each group that has a positive."""
    y, p, _, group = _columns(rows)
    parts = [(y[group == key], p[group == key]) for key in dict.fromkeys(group.tolist())]
    return [(a, b) for a, b in parts if a.any()]


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
