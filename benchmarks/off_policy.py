"""Off-policy estimates beside obp's: the same logs, the same policies, every estimator that both have.

Bar: no value differs by more than 1e-6, on both logs of Open Bandit and on a small generated log of slates.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.harness import Bar, Outcome, Settings, main
from benchmarks.peers import OBP, call
from features.recipes import RECIPES
from recsys.evaluation.off_policy import (
    BanditLog,
    TargetPolicy,
    direct_method,
    doubly_robust,
    epsilon_greedy_slate,
    evaluate_policy,
    ips,
    plackett_luce,
    self_normalised_ips,
    softmax,
    switch_doubly_robust,
)

TOLERANCE = 1e-6
LEVEL = 0.95
DRAWS = 2000
SLATE = 3


@dataclass(frozen=True)
class Case:
    """A log, a policy and a reward model."""

    name: str
    log: BanditLog
    probabilities: np.ndarray
    """[N, K, P]."""
    rewards: np.ndarray
    """[N, K, P]."""
    clip: float
    switch: float
    slate: np.ndarray | None = None
    """[N]; None where it is not known which rows are one slate."""


def measure(settings: Settings) -> Outcome:
    """Every shared estimator on the same rows; the largest difference of a value."""
    bars, figures = [], {}
    with tempfile.TemporaryDirectory(prefix="recsys-benchmark-") as folder:
        for case in cases(settings.quick):
            settings.log(f"{case.name} ...")
            mine = values(case)
            theirs = _ask_obp(case, Path(folder) / "log.npz")
            # Ours is cut to what a value can be.
            theirs["values"]["ips bernstein low"] = max(0.0, theirs["values"]["ips bernstein low"])
            worst = max(abs(mine[name] - value) for name, value in theirs["values"].items())
            bars.append(Bar(f"{case.name}: largest difference of a value", worst, "<=", TOLERANCE))
            figures[case.name] = {
                "values": mine,
                "obp": theirs["values"],
                "intervals": {
                    line.estimator: line.interval and [line.interval.low, line.interval.high]
                    for line in _evaluate(case).estimates
                },
                "obp_intervals": theirs["intervals"],
                "versions": theirs["versions"],
            }
    return Outcome(bars, figures, threads=1)


def values(case: Case) -> dict[str, float]:
    """What we make of a case, under the names of the script."""
    log, target = case.log, TargetPolicy.of(case.log, case.probabilities, case.rewards)
    made = {
        "ips": ips(log, target),
        "ips clipped": ips(log, target, clip=case.clip),
        "snips": self_normalised_ips(log, target),
        "dm": direct_method(log, target),
        "dr": doubly_robust(log, target),
        "dr clipped": doubly_robust(log, target, clip=case.clip),
        "switch-dr": switch_doubly_robust(log, target, switch=case.switch),
    }
    out = {name: found.value for name, found in made.items()}
    evaluation = _evaluate(case)
    line = evaluation.estimates[1]
    assert line.bernstein is not None
    out["ips bernstein low"] = line.bernstein.low
    if case.slate is not None:
        out["ips slate"] = evaluation.slate[1].value
    return {name: value for name, value in out.items() if value is not None}


def cases(quick: bool) -> Iterator[Case]:
    """The generated log and, unless a quick run is asked for, the logs of Open Bandit under three policies each."""
    yield generated_slates()
    if quick:
        return
    logs = {behaviour: _open_bandit(behaviour) for behaviour in ("random", "bts")}
    for behaviour, frame in logs.items():
        (other,) = (found for name, found in logs.items() if name != behaviour)
        log = BanditLog(
            frame["item_id"].to_numpy(),
            frame["click"].to_numpy(),
            frame["propensity_score"].to_numpy(),
            actions=80,
            position=frame["position"].to_numpy() - 1,
            positions=SLATE,
        )
        rewards = click_rates(frame, other)
        scores = np.log(rewards / (1 - rewards))
        at_first = scores[:, :, 0]
        policies = {
            "softmax": np.stack([softmax(scores[:, :, place], 1.0) for place in range(SLATE)], axis=2),
            "softmax slate": plackett_luce(at_first, 0.5, SLATE),
            "epsilon-greedy slate": epsilon_greedy_slate(at_first, 0.2, SLATE),
        }
        for name, probabilities in policies.items():
            yield Case(f"{behaviour}, {name}", log, probabilities, rewards, clip=20.0, switch=5.0)


def click_rates(frame: pl.DataFrame, other: pl.DataFrame) -> np.ndarray:
    """[N, 80, 3]: a plain reward model from another log: click rates of item, position and user, each smoothed."""
    base = other["click"].mean()
    assert isinstance(base, float)

    def rates(column: str, keys: pl.Series) -> np.ndarray:
        found = other.group_by(column).agg((pl.col("click").sum() + 50 * base) / (pl.len() + 50) / base)
        joined = keys.to_frame(column).join(found, on=column, how="left", maintain_order="left")
        return joined["click"].fill_null(1.0).to_numpy()

    items = rates("item_id", pl.Series(range(80), dtype=pl.Int64))
    places = rates("position", pl.Series([1, 2, 3], dtype=pl.Int64))
    users = rates("user_feature_1", frame["user_feature_1"])
    return np.clip(base * users[:, None, None] * items[None, :, None] * places[None, None, :], 1e-6, 0.5)


def generated_slates(slates: int = 200, actions: int = 6) -> Case:
    """Whole slates of three with exact propensities, made of integers alone so that it is the same for ever."""
    s, a, k = np.arange(slates)[:, None], np.arange(actions)[None, :], np.arange(SLATE)
    logging = plackett_luce((s * 37 + a * 101) % 97 / 48.5, 1.0, SLATE)
    evaluated = plackett_luce((s * 53 + a * 71) % 89 / 44.5, 0.7, SLATE)
    rewards = 0.1 + 0.5 * (((s * 11 + a * 3)[:, :, None] + 5 * k) % 23) / 23
    # Any order of the actions will do: the propensities are those of the logging policy at each position.
    shown = np.argsort((s * 61 + a * 29) % 83, axis=1, kind="stable")[:, :SLATE]
    action = shown.reshape(-1)
    slate, position = np.repeat(np.arange(slates), SLATE), np.tile(k, slates)
    reward = ((slate * 17 + position * 13 + action * 7) % 101 < 35).astype(np.float64)
    log = BanditLog(
        action, reward, logging[slate, action, position], actions=actions, position=position, positions=SLATE
    )
    return Case("generated slates", log, evaluated[slate], rewards[slate], clip=2.0, switch=1.5, slate=slate)


def _open_bandit(behaviour: str) -> pl.DataFrame:
    return RECIPES["open_bandit"].load(behaviour=behaviour).collect()


def _evaluate(case: Case) -> Any:
    target = TargetPolicy.of(case.log, case.probabilities, case.rewards)
    return evaluate_policy(case.log, target, switch=case.switch, level=LEVEL, draws=DRAWS)


def _ask_obp(case: Case, path: Path) -> dict[str, Any]:
    log = case.log
    np.savez(
        path,
        action=log.action,
        reward=log.reward,
        propensity=log.propensity,
        position=log.place,
        slate=np.arange(len(log)) if case.slate is None else case.slate,
        probabilities=case.probabilities,
        rewards=case.rewards,
    )
    request = {
        "log": str(path),
        "clip": case.clip,
        "switch": case.switch,
        "alpha": 1 - LEVEL,
        "draws": DRAWS,
        "bound": _evaluate(case).max_weight,
        "whole_slates": case.slate is not None,
    }
    return call(OBP, request, threads=1)


if __name__ == "__main__":
    raise SystemExit(main("off_policy", measure))
