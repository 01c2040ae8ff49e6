"""Our metrics beside those of scikit-learn, torchmetrics and TorchRec, on ties, weights and groups of one class.

Bar: no value differs by more than 1e-6.  They run in this environment, which has them (torchmetrics and TorchRec by the
extra `torchrec`); obp, which cannot be in it, has one of its own: see `off_policy`.  TorchRec's AUC, GAUC and session
metrics take tied rows in the order a sort leaves them in, and torchmetrics' retrieval metrics do so too: these are
compared on scores that all differ.  TorchRec averages GAUC over groups, not over rows: ours is put together as theirs.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.harness import Bar, Outcome, Settings, main
from recsys.evaluation import calibration, metrics
from recsys.evaluation.auc import group_auc
from recsys.evaluation.ranking import rank_requests

TOLERANCE = 1e-6
SEEDS = 20
_CUTS = (1, 5, 50)

Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Labels, probabilities, weights and groups, [N] each."""


@dataclass(frozen=True)
class Pair:
    """A metric as we have it and as another library has it; single values, or one a request."""

    metric: str
    ours: np.ndarray | float
    theirs: np.ndarray | float

    @property
    def apart(self) -> float:
        """The largest difference; infinite if they are not as many."""
        ours, theirs = np.asarray(self.ours, dtype=np.float64), np.asarray(self.theirs, dtype=np.float64)
        return float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("inf")


def measure(settings: Settings) -> Outcome:
    """The largest difference of every metric that we share with each library, over samples of 700 rows."""
    bars, figures = [], {}
    for library, pairs_of in LIBRARIES.items():
        settings.log(f"{library} ...")
        worst: dict[str, float] = {}
        for seed in range(3 if settings.quick else SEEDS):
            for pair in pairs_of(seed):
                worst[pair.metric] = max(worst.get(pair.metric, 0.0), pair.apart)
        bars.append(Bar(f"{library}: largest difference of {len(worst)} metrics", max(worst.values()), "<=", TOLERANCE))
        figures[library] = {"version": importlib.metadata.version(library), "largest_difference": worst}
    return Outcome(bars, figures)


def sample(seed: int, ties: bool = True) -> Rows:
    """700 rows, some of weight 0, in 60 groups, some of one class; scores with many ties, or none."""
    rng = np.random.default_rng(seed)
    rows = 700
    p = rng.integers(1, 30, rows) / 30 if ties else rng.permutation(rows) / rows * 0.98 + 0.01
    group = rng.integers(0, 60, rows)
    y = (rng.random(rows) < p) * (group % 7 > 0)
    return y.astype(float), p, rng.integers(0, 4, rows) * 0.5, group


def scikit_learn(seed: int) -> Iterator[Pair]:
    """Without and with weights; GAUC by a loop over groups."""
    from sklearn import metrics as sk

    y, p, w, group = sample(seed)
    for given, suffix in ((None, ""), (w, ", weighted")):
        found = metrics.evaluate(y, p, given, group)
        yield Pair(f"AUC{suffix}", found["auc"], sk.roc_auc_score(y, p, sample_weight=given))
        yield Pair(f"PR-AUC{suffix}", found["pr_auc"], sk.average_precision_score(y, p, sample_weight=given))
        yield Pair(f"logloss{suffix}", found["logloss"], sk.log_loss(y, p, sample_weight=given))
        yield Pair(f"Brier{suffix}", found["brier"], sk.brier_score_loss(y, p, sample_weight=given))
        values, shares = [], []
        for key in np.unique(group):
            rows = (group == key) & (w > 0 if given is not None else True)
            if len(set(y[rows])) == 2:
                weights = None if given is None else w[rows]
                values.append(sk.roc_auc_score(y[rows], p[rows], sample_weight=weights))
                shares.append(rows.sum() if weights is None else weights.sum())
        yield Pair(f"GAUC{suffix}", found["gauc"], float(np.average(values, weights=shares)))
        yield Pair(f"groups of both classes{suffix}", found["gauc_groups"], len(values))
    for k in _CUTS:
        theirs = [sk.ndcg_score(a[None], b[None], k=k) for a, b in _per_group(y, p, group) if a.any() and len(a) > 1]
        yield Pair(f"NDCG@{k}", rank_requests(y, p, group, k).ndcg, np.array(theirs))


def torchmetrics(seed: int) -> Iterator[Pair]:
    """Its bins of equal width are ours where all scores are in the middle of one."""
    from torchmetrics.functional import classification, retrieval

    y, p, _, group = sample(seed)
    scores, labels = torch.from_numpy(p), torch.from_numpy(y.astype(int))
    found = metrics.evaluate(y, p)
    yield Pair("AUC", found["auc"], float(classification.binary_auroc(scores, labels)))
    yield Pair("PR-AUC", found["pr_auc"], float(classification.binary_average_precision(scores, labels)))
    tenths = (np.floor(p * 10).clip(0, 9) + 0.5) / 10
    theirs = classification.binary_calibration_error(torch.from_numpy(tenths), labels, n_bins=10, norm="l1")
    yield Pair("ECE", calibration.expected_calibration_error(y, tenths, bins=700), float(theirs))
    y, p, _, group = sample(seed, ties=False)
    groups = [tuple(map(torch.from_numpy, (b, a.astype(int)))) for a, b in _per_group(y, p, group) if a.any()]
    for k in _CUTS:
        ours = rank_requests(y, p, group, k)
        ndcg = [retrieval.retrieval_normalized_dcg(b, a, top_k=k) for b, a in groups]
        recall = [retrieval.retrieval_recall(b, a, top_k=k) for b, a in groups]
        yield Pair(f"NDCG@{k}", ours.ndcg, torch.stack(ndcg).numpy())
        yield Pair(f"recall@{k}", ours.recall, torch.stack(recall).numpy())
    reciprocal = [retrieval.retrieval_reciprocal_rank(b, a) for b, a in groups]
    yield Pair("reciprocal rank", ours.reciprocal_rank, torch.stack(reciprocal).numpy())


def torchrec(seed: int) -> Iterator[Pair]:
    """All weighted but those of sessions."""
    from torchrec.metrics import auc, auprc, gauc, mse, ndcg, ne
    from torchrec.metrics import calibration as ratio

    y, p, w, group = sample(seed)
    found = metrics.evaluate(y, p, w)
    labels, scores, weights = (torch.from_numpy(column)[None] for column in (y, p, w))
    states = ne.get_ne_states(labels, scores, weights, 1e-12)
    parts = (states[name] for name in ("cross_entropy_sum", "weighted_num_samples", "pos_labels", "neg_labels"))
    yield Pair("normalised entropy", found["normalised_entropy"], float(ne.compute_ne(*parts, 1e-12)))
    ratios = ratio.get_calibration_states(labels, scores, weights)
    theirs = ratio.compute_calibration(ratios["calibration_num"], ratios["calibration_denom"])
    yield Pair("calibration ratio", found["calibration_ratio"], float(theirs))
    squares = mse.compute_error_sum(labels, scores, weights)
    yield Pair("Brier", found["brier"], float(mse.compute_mse(squares, weights.sum(-1))))
    yield Pair("PR-AUC", found["pr_auc"], float(auprc.compute_auprc(1, scores, labels, weights)))
    y, p, w, group = sample(seed, ties=False)
    labels, scores, weights = (torch.from_numpy(column)[None] for column in (y, p, w))
    yield Pair("AUC", metrics.auc(y, p, w), float(auc.compute_auc(1, [scores], [labels], [weights])))
    order = np.argsort(group, kind="stable")
    labels, scores = labels[:, order].float(), scores[:, order].float()
    states = gauc.get_auc_states(labels, scores, torch.ones_like(labels), torch.from_numpy(np.bincount(group)))
    within = group_auc(y, p, group)
    yield Pair("GAUC", float(within.values.mean()), float(states["auc_sum"] / states["num_samples"]))
    yield Pair("groups of both classes", len(within.values), int(states["num_samples"]))
    states = ndcg._get_ndcg_states(
        labels=labels,
        predictions=scores,
        weights=torch.ones_like(labels),
        session_ids=torch.from_numpy(group[order])[None],
        exponential_gain=False,
        k=5,
        report_ndcg_as_decreasing_curve=False,
    )
    ours = rank_requests(y, p, group, 5).ndcg
    yield Pair("NDCG@5", float(ours.mean()), float(states["sum_ndcg"]) / len(ours))


LIBRARIES: dict[str, Callable[[int], Iterator[Pair]]] = {
    "scikit-learn": scikit_learn,
    "torchmetrics": torchmetrics,
    "torchrec": torchrec,
}


def _per_group(y: np.ndarray, p: np.ndarray, group: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels and scores of each group, in the order of first appearance."""
    return [(y[group == key], p[group == key]) for key in dict.fromkeys(group.tolist())]


if __name__ == "__main__":
    raise SystemExit(main("metrics_parity", measure))
