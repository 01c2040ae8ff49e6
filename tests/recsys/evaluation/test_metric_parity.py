"""Every metric that scikit-learn, torchmetrics and TorchRec share with us, on ties, weights and empty groups."""

from __future__ import annotations

import pytest

from benchmarks.metrics_parity import LIBRARIES, TOLERANCE, sample

METRICS = {"scikit-learn": 15, "torchmetrics": 10, "torchrec": 8}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_metrics_are_those_of(library: str, seed: int) -> None:
    pytest.importorskip("sklearn" if library == "scikit-learn" else library)
    pairs = list(LIBRARIES[library](seed))
    assert len({pair.metric for pair in pairs}) == len(pairs) == METRICS[library]
    assert {pair.metric: pair.apart for pair in pairs if not pair.apart <= TOLERANCE} == {}


def test_the_samples_have_ties_weights_of_0_and_groups_of_one_class() -> None:
    y, p, w, group = sample(0)
    assert len(set(p)) < 30
    assert (w == 0).any()
    assert any(len(set(y[group == key])) == 1 for key in set(group.tolist()))
    assert len(set(sample(0, ties=False)[1])) == 700
