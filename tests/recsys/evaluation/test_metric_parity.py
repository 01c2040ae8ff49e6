"""Every metric that scikit-learn, torchmetrics and TorchRec share with us, on ties, weights and empty groups.

These are the libraries of this environment, whatever their version; the benchmark `metrics_parity` pins them.
"""

from __future__ import annotations

import pytest

from benchmarks.metrics_parity import TOLERANCE, differences, sample
from benchmarks.scripts.metric_values import LIBRARIES

METRICS = {"scikit-learn": 15, "torchmetrics": 10, "torchrec": 8}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_metrics_are_those_of(library: str, seed: int) -> None:
    pytest.importorskip("sklearn" if library == "scikit-learn" else library)
    both = sample(seed)
    apart = differences(library, both, LIBRARIES[library](both["ties"], both["no ties"]))
    assert len(apart) == METRICS[library]
    assert {metric: value for metric, value in apart.items() if not value <= TOLERANCE} == {}


def test_the_samples_have_ties_weights_of_0_and_groups_of_one_class() -> None:
    y, p, w, group = sample(0)["ties"].values()
    assert len(set(p)) < 30
    assert (w == 0).any()
    assert any(len(set(y[group == key])) == 1 for key in set(group.tolist()))
    assert len(set(sample(0)["no ties"]["probabilities"])) == 700


def test_values_that_are_not_as_many_or_of_other_metrics_do_not_pass() -> None:
    both = sample(0)
    theirs = LIBRARIES["scikit-learn"](both["ties"], both["no ties"])
    assert differences("scikit-learn", both, theirs | {"NDCG@5": [1.0]})["NDCG@5"] == float("inf")
    with pytest.raises(KeyError, match=r"\['GAUC'\]"):
        differences("scikit-learn", both, {name: value for name, value in theirs.items() if name != "GAUC"})
