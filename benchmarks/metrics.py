"""How long exact metrics take: the AUC with its interval beside a bare sort and scikit-learn, AUC within groups.

Ten million rows, base rate .2, scores that are all different.  A bare sort is `np.sort` of the same array, on the one
core that it uses; ours uses two.  Sides alternate in one process, so that a slow spell of the machine meets all, and
medians are compared.  The loop over groups sorts the rows by group once, too, and takes each group's AUC over all its
pairs, which for ten rows is the fastest that numpy has; scikit-learn's time is that of its first groups, scaled.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.harness import Bar, Outcome, Settings, main
from recsys.evaluation.auc import group_auc
from recsys.evaluation.intervals import auc_interval

ROWS, GROUPS = 10_000_000, 1_000_000
TURNS = 7
SKLEARN_TURNS = 3
SKLEARN_GROUPS = 2000


def measure(settings: Settings) -> Outcome:
    """Seconds of the exact AUC with its interval, of a sort, of scikit-learn, and of AUC within groups."""
    rows, groups = (ROWS // 20, GROUPS // 20) if settings.quick else (ROWS, GROUPS)
    scores, labels = sample(rows)
    bars: list[Bar] = []
    figures: dict[str, Any] = {"rows": rows}
    for kind in ("float64", "float32"):
        found = of_auc(labels, scores.astype(kind), settings)
        figures[kind] = found
        bars += [
            Bar(f"AUC with interval over a bare sort, {kind}", found["ours"] / found["sort"], "<=", 1.5),
            Bar(f"scikit-learn's roc_auc_score over ours, {kind}", ratio(found, "sklearn", "ours"), ">=", 3),
        ]
    found = of_groups(labels, scores, groups, settings)
    figures["groups"] = found
    bars.append(Bar("a Python loop over groups over our GAUC", found["loop"] / found["ours"], ">=", 20))
    return Outcome(bars, figures, threads=2)


def sample(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels drawn from them."""
    rng = np.random.default_rng(0)
    scores = 1 / (1 + np.exp(1.6 - rng.standard_normal(rows)))
    return scores, (rng.random(rows) < scores).astype(np.float32)


def of_auc(labels: np.ndarray, scores: np.ndarray, settings: Settings) -> dict[str, float]:
    """Median seconds of each side, and how far the two AUCs are apart."""
    auc_interval(labels[:200_000], scores[:200_000])  # compiled here
    sides: dict[str, Callable[[], Any]] = {
        "sort": lambda: np.sort(scores),
        "ours": lambda: auc_interval(labels, scores),
    }
    peer = sklearn_auc(settings)
    times: dict[str, list[float]] = {}
    out: dict[str, float] = {}
    for turn in range(TURNS):
        if peer is not None and turn < SKLEARN_TURNS:
            out["difference"] = abs(peer(labels, scores) - auc_interval(labels, scores).value)
            sides["sklearn"] = lambda: peer(labels, scores)
        else:
            sides.pop("sklearn", None)
        for name, side in sides.items():
            times.setdefault(name, []).append(seconds(side))
        settings.log(f"{scores.dtype} turn {turn + 1}: " + ", ".join(f"{n} {t[-1]:.3f} s" for n, t in times.items()))
    return {**{name: statistics.median(own) for name, own in times.items()}, **out}


def of_groups(labels: np.ndarray, scores: np.ndarray, groups: int, settings: Settings) -> dict[str, float]:
    """Median seconds of each side; keys are random 64-bit integers and rows lie in no order."""
    rng = np.random.default_rng(1)
    group = rng.integers(-(2**62), 2**62, groups)[rng.integers(0, groups, len(labels))]
    group_auc(labels[:200_000], scores[:200_000], group[:200_000])
    ours = [seconds(lambda: group_auc(labels, scores, group)) for _ in range(3)]
    value: list[float] = []
    loop = seconds(lambda: value.append(looped(labels, scores, group)))
    ours += [seconds(lambda: group_auc(labels, scores, group)) for _ in range(2)]
    out = {"groups": float(groups), "ours": statistics.median(ours), "loop": loop}
    out["difference"] = abs(value[0] - group_auc(labels, scores, group).mean())
    peer = sklearn_auc(settings)
    if peer is not None:
        few = seconds(lambda: looped(labels, scores, group, peer, SKLEARN_GROUPS))
        out["loop_sklearn"] = few / SKLEARN_GROUPS * groups
    settings.log("groups: " + ", ".join(f"{name} {value:.4g}" for name, value in out.items()))
    return out


def looped(
    labels: np.ndarray,
    scores: np.ndarray,
    group: np.ndarray,
    of_group: Callable[[np.ndarray, np.ndarray], float] | None = None,
    first: int | None = None,
) -> float:
    """GAUC by a loop over groups in Python."""
    order = np.argsort(group)
    y, s, keys = labels[order] > 0, scores[order], group[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1], True])
    total = rows = 0.0
    for begin, end in itertools.islice(itertools.pairwise(starts.tolist()), first):
        of_rows, these = y[begin:end], s[begin:end]
        positives, negatives = these[of_rows], these[~of_rows]
        if len(positives) == 0 or len(negatives) == 0:
            continue
        if of_group is not None:
            value = of_group(of_rows, these)
        else:
            above, negatives = positives[:, None], negatives[None, :]
            value = float(np.mean((above > negatives) + 0.5 * (above == negatives)))
        total += value * (end - begin)
        rows += end - begin
    return total / rows


def sklearn_auc(settings: Settings) -> Callable[[np.ndarray, np.ndarray], float] | None:
    """scikit-learn's function, or None where it is not installed."""
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError:
        settings.log("scikit-learn is not installed: its bar is not measured")
        return None
    return lambda labels, scores: float(roc_auc_score(labels, scores))


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(found: dict[str, float], above: str, below: str) -> float | None:
    """One time over another, if both were measured."""
    return found[above] / found[below] if above in found else None


if __name__ == "__main__":
    sys.exit(main("metrics", measure))
