"""obp's own estimators on a log that lies in a file, in the peer's environment.

Only the modules of estimators are imported: the package as a whole asks for torch, seaborn and a scikit-learn of 2021.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Estimates of one log.

    Args:
        request: log (an .npz of action, reward, propensity, position, slate, probabilities [N, K, P], rewards
            [N, K, P]), clip, switch, alpha, draws, bound (of a weight), whole_slates.

    Returns:
        values by estimator, intervals (bootstrap, [low, high]) by estimator, versions.
    """
    estimators, helper, slate = _modules("estimators", "helper", "estimators_slate")
    with np.load(request["log"], allow_pickle=False) as file:
        log = {name: file[name] for name in file.files}
    # Without estimated rewards its methods that need none take the rest.
    inputs: dict[str, Any] = {
        "action": log["action"],
        "reward": log["reward"],
        "pscore": log["propensity"],
        "position": log["position"],
        "action_dist": log["probabilities"],
        "estimated_rewards_by_reg_model": log["rewards"],
    }
    clip, switch = float(request["clip"]), float(request["switch"])
    made = {
        "ips": estimators.InverseProbabilityWeighting(),
        "ips clipped": estimators.InverseProbabilityWeighting(lambda_=clip),
        "snips": estimators.SelfNormalizedInverseProbabilityWeighting(),
        "dm": estimators.DirectMethod(),
        "dr": estimators.DoublyRobust(),
        "dr clipped": estimators.DoublyRobust(lambda_=clip),
        "switch-dr": estimators.SwitchDoublyRobust(lambda_=switch),
    }
    values = {name: float(estimator.estimate_policy_value(**inputs)) for name, estimator in made.items()}
    rounds = made["ips"]._estimate_round_rewards(**inputs)
    delta = request["alpha"] / 2  # of one side
    values["ips bernstein low"] = float(
        helper.estimate_bernstein_lower_bound(rounds, x_max=float(request["bound"]), delta=delta)
    )
    if request["whole_slates"]:
        rows = np.arange(len(log["action"]))
        values["ips slate"] = float(
            slate.SlateIndependentIPS(len_list=log["probabilities"].shape[2]).estimate_policy_value(
                slate_id=log["slate"],
                reward=log["reward"],
                position=log["position"],
                pscore_item_position=log["propensity"],
                evaluation_policy_pscore_item_position=log["probabilities"][rows, log["action"], log["position"]],
            )
        )
    intervals = {}
    for name in ("ips", "dm", "dr", "switch-dr"):
        found = made[name].estimate_interval(
            **inputs, alpha=request["alpha"], n_bootstrap_samples=request["draws"], random_state=0
        )
        intervals[name] = [float(end) for key, end in found.items() if key != "mean"]
    versions = {name: metadata.version(name) for name in ("obp", "numpy", "scikit-learn")}
    return {"values": values, "intervals": intervals, "versions": versions}


def _modules(*names: str) -> list[Any]:
    """Modules of `obp.ope`, without what the packages around them import."""
    root = Path(str(metadata.distribution("obp").locate_file("obp")))
    for name, folder in (("obp", root), ("obp.ope", root / "ope")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    importlib.import_module("sklearn.utils")  # looks whether torch is there
    # Named in the annotations of its checks of tensors, none of which is called here.
    sys.modules["torch"] = types.SimpleNamespace(tensor=None, Tensor=None)  # type: ignore[assignment]
    modules = [importlib.import_module(f"obp.ope.{name}") for name in names]
    del sys.modules["torch"]
    return modules


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
