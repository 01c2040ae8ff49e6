"""Every metric that scikit-learn, torchmetrics and TorchRec share with us, on ties, weights and empty groups.

TorchRec's AUC, GAUC and session metrics take tied rows in the order a sort leaves them in, and torchmetrics' retrieval
metrics do so too: these are compared on scores that all differ.  TorchRec averages GAUC over groups, not over rows, and
divides a recall of all sessions together: our figures are put together as theirs.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from recsys.evaluation import calibration, metrics
from recsys.evaluation.auc import group_auc
from recsys.evaluation.ranking import rank_requests

CLOSE = 1e-6
SEEDS = range(4)


def sample(seed: int, ties: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities, weights (some 0) and groups, among them some of one class."""
    rng = np.random.default_rng(seed)
    rows = 700
    p = rng.integers(1, 30, rows) / 30 if ties else rng.permutation(rows) / rows * 0.98 + 0.01
    group = rng.integers(0, 60, rows)
    y = (rng.random(rows) < p) * (group % 7 > 0)
    return y.astype(float), p, rng.integers(0, 4, rows) * 0.5, group


def per_group(y: np.ndarray, p: np.ndarray, group: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(y[group == key], p[group == key]) for key in dict.fromkeys(group.tolist())]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_scikit_learn(seed: int, weighted: bool) -> None:
    y, p, w, group = sample(seed)
    given = w if weighted else None
    found = metrics.evaluate(y, p, given, group)
    assert found["auc"] == pytest.approx(sk.roc_auc_score(y, p, sample_weight=given), abs=CLOSE)
    assert found["pr_auc"] == pytest.approx(sk.average_precision_score(y, p, sample_weight=given), abs=CLOSE)
    assert found["logloss"] == pytest.approx(sk.log_loss(y, p, sample_weight=given), abs=CLOSE)
    assert found["brier"] == pytest.approx(sk.brier_score_loss(y, p, sample_weight=given), abs=CLOSE)
    values, shares = [], []
    for key in np.unique(group):
        rows = (group == key) & (w > 0 if weighted else True)
        if len(set(y[rows])) == 2:
            values.append(sk.roc_auc_score(y[rows], p[rows], sample_weight=w[rows] if weighted else None))
            shares.append(w[rows].sum() if weighted else rows.sum())
    assert found["gauc"] == pytest.approx(np.average(values, weights=shares), abs=CLOSE)
    assert found["gauc_groups"] == len(values) < 60 == found["gauc_groups_single_class"] + len(values)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [1, 5, 50])
def test_ranking_of_scikit_learn_and_torchmetrics(seed: int, k: int) -> None:
    retrieval = pytest.importorskip("torchmetrics.functional.retrieval")
    y, p, _, group = sample(seed, ties=True)
    ndcg = [sk.ndcg_score(a[None], b[None], k=k) for a, b in per_group(y, p, group) if a.any() and len(a) > 1]
    np.testing.assert_allclose(rank_requests(y, p, group, k).ndcg, ndcg, atol=CLOSE)
    y, p, _, group = sample(seed, ties=False)
    found = rank_requests(y, p, group, k)
    groups = [tuple(map(torch.from_numpy, (b, a.astype(int)))) for a, b in per_group(y, p, group) if a.any()]
    assert len(found.ndcg) == len(groups)
    for ours, theirs in (
        (found.ndcg, [retrieval.retrieval_normalized_dcg(b, a, top_k=k) for b, a in groups]),
        (found.recall, [retrieval.retrieval_recall(b, a, top_k=k) for b, a in groups]),
        (found.reciprocal_rank, [retrieval.retrieval_reciprocal_rank(b, a) for b, a in groups]),
    ):
        np.testing.assert_allclose(ours, torch.stack(theirs), atol=CLOSE)


@pytest.mark.parametrize("seed", SEEDS)
def test_torchmetrics(seed: int) -> None:
    peer = pytest.importorskip("torchmetrics.functional.classification")
    y, p, _, _ = sample(seed)
    scores, labels = torch.from_numpy(p), torch.from_numpy(y.astype(int))
    found = metrics.evaluate(y, p)
    assert found["auc"] == pytest.approx(float(peer.binary_auroc(scores, labels)), abs=CLOSE)
    assert found["pr_auc"] == pytest.approx(float(peer.binary_average_precision(scores, labels)), abs=CLOSE)
    # its bins are of equal width: with scores that sit in ten of them, both have the same bins
    tenths = (np.floor(p * 10).clip(0, 9) + 0.5) / 10
    theirs = peer.binary_calibration_error(torch.from_numpy(tenths), labels, n_bins=10, norm="l1")
    assert calibration.expected_calibration_error(y, tenths, bins=700) == pytest.approx(float(theirs), abs=CLOSE)


@pytest.mark.parametrize("seed", SEEDS)
def test_torchrec(seed: int) -> None:
    pytest.importorskip("torchrec")
    from torchrec.metrics import auprc, mse, ne
    from torchrec.metrics import calibration as ratio

    y, p, w, _ = sample(seed)
    found = metrics.evaluate(y, p, w)
    labels, scores, weights = (torch.from_numpy(column)[None] for column in (y, p, w))
    states = ne.get_ne_states(labels, scores, weights, 1e-12)
    parts = (states[name] for name in ("cross_entropy_sum", "weighted_num_samples", "pos_labels", "neg_labels"))
    assert found["normalised_entropy"] == pytest.approx(float(ne.compute_ne(*parts, 1e-12)), abs=CLOSE)
    ratios = ratio.get_calibration_states(labels, scores, weights)
    theirs = ratio.compute_calibration(ratios["calibration_num"], ratios["calibration_denom"])
    assert found["calibration_ratio"] == pytest.approx(float(theirs), abs=CLOSE)
    squares = mse.compute_error_sum(labels, scores, weights)
    assert found["brier"] == pytest.approx(float(mse.compute_mse(squares, weights.sum(-1))), abs=CLOSE)
    assert found["pr_auc"] == pytest.approx(float(auprc.compute_auprc(1, scores, labels, weights)), abs=CLOSE)


@pytest.mark.parametrize("seed", SEEDS)
def test_torchrec_where_it_does_not_average_ties(seed: int) -> None:
    pytest.importorskip("torchrec")
    from torchrec.metrics import auc, gauc, ndcg

    y, p, w, group = sample(seed, ties=False)
    labels, scores, weights = (torch.from_numpy(column)[None] for column in (y, p, w))
    assert metrics.auc(y, p, w) == pytest.approx(float(auc.compute_auc(1, [scores], [labels], [weights])), abs=CLOSE)
    order = np.argsort(group, kind="stable")
    labels, scores = labels[:, order].float(), scores[:, order].float()
    lengths = torch.from_numpy(np.bincount(group))
    states = gauc.get_auc_states(labels, scores, torch.ones_like(labels), lengths)
    within = group_auc(y, p, group)
    assert within.values.mean() == pytest.approx(float(states["auc_sum"] / states["num_samples"]), abs=CLOSE)
    assert len(within.values) == int(states["num_samples"])
    keys = torch.from_numpy(group[order])[None]
    states = ndcg._get_ndcg_states(
        labels=labels,
        predictions=scores,
        weights=torch.ones_like(labels),
        session_ids=keys,
        exponential_gain=False,
        k=5,
        report_ndcg_as_decreasing_curve=False,
    )
    ours = rank_requests(y, p, group, 5)
    assert ours.ndcg.mean() == pytest.approx(float(states["sum_ndcg"]) / len(ours.ndcg), abs=CLOSE)
