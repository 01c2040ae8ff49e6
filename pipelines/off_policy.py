"""What would a policy made of a model have earned? A log of another policy answers, with its propensities."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from features.errors import ConfigError
from features.files import write_json
from pipelines.bandit_log import LogColumns, candidates_of, every_candidate, read_log, usable
from pipelines.console import Console
from pipelines.cross_fit import cross_fit
from pipelines.workspace import Run, run_at
from recsys.evaluation.off_policy import (
    BanditLog,
    Estimate,
    Evaluation,
    TargetPolicy,
    assign_folds,
    epsilon_greedy,
    epsilon_greedy_slate,
    evaluate_policy,
    logits,
    plackett_luce,
    softmax,
)
from recsys.evaluation.report import cell_text
from recsys.serving.registry import Registry, is_model_uri
from recsys.serving.scorer import Scorer

_PIECE = 65_536
"""Pairs of a row and a candidate scored at a time."""
_AS_IT_IS = (
    "the reward model is the model as it is: if it saw rows of this log in training, dm, dr and switch-dr believe it "
    "too much (--folds 5 cross-fits it), and a policy made of it looks better than it is"
)


@dataclass(frozen=True)
class Policy:
    """How the evaluated policy uses a model's log odds."""

    kind: Literal["softmax", "epsilon-greedy"] = "softmax"
    temperature: float = 1.0
    """Of softmax."""
    epsilon: float = 0.1
    """Of epsilon-greedy."""
    slate: bool = False
    """Fill the positions of a slate without showing anything twice, in place of each position on its own."""

    def chances(self, scores: np.ndarray, positions: int) -> np.ndarray:
        """[N, K], or [N, K, P] of a slate, from scores [N, K]."""
        match self.kind, self.slate:
            case "softmax", False:
                return softmax(scores, self.temperature)
            case "softmax", True:
                return plackett_luce(scores, self.temperature, positions)
            case _, False:
                return epsilon_greedy(scores, self.epsilon)
            case _:
                return epsilon_greedy_slate(scores, self.epsilon, positions)

    @property
    def text(self) -> str:
        """For people."""
        knob = f"temperature {self.temperature:g}" if self.kind == "softmax" else f"epsilon {self.epsilon:g}"
        return f"{self.kind} with {knob}{', slates without repeats' if self.slate else ''}"


_COLUMNS, _POLICY = LogColumns(), Policy()


def off_policy(
    model: str,
    source: str,
    console: Console,
    *,
    tracking_uri: str,
    columns: LogColumns = _COLUMNS,
    policy: Policy = _POLICY,
    candidates: str | None = None,
    reward_model: str | None = None,
    folds: int | None = None,
    clip: float | None = None,
    switch: float = 10.0,
    max_weight: float | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    skip_bad: bool = False,
    track: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Estimate the value of a policy made of a model.

    Every candidate is scored in the context of every row: the candidate's columns take the place of those of what was
    shown, all others stay.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or the folder of a run or of a bundle.
        source: File or glob of the log. It is held in memory, its candidates' scores are not.
        console: Shows the estimates.
        tracking_uri: Store of the registry.
        columns: What the log's columns are called.
        policy: How the model is used.
        candidates: File with a row an action: the action's column and all columns of the model that change with it. By
            default the actions of the log, with those columns that have one value an action.
        reward_model: Another model that guesses rewards; the model itself by default.
        folds: Cross-fit the reward model: train it anew, as its run was, on the rows outside each fold.
        clip: See `importance_weights`.
        switch: See `switch_doubly_robust`.
        max_weight: See `importance_weights`.
        level: Of the intervals.
        draws: Of the bootstrap.
        seed: Of the bootstrap and the folds.
        skip_bad: Leave out rows that cannot be used, and count them; otherwise they are an error.
        track: Log the figures to the MLflow run of the model.
        out: The JSON file; `off_policy.json` in the run's folder, or here, by default.

    Returns:
        model, log, rows, excluded (reason -> rows), actions, candidate_columns, positions (their values), policy,
        reward_model, folds, level, what `Evaluation.to_json` has, out, mlflow_run_id (None unless tracked), seconds.

    Raises:
        ConfigError: Something asked for does not exist or does not go together.
        ArtifactError: There is no such model, or the JSON cannot be written.
        DataError: The log or the candidates are damaged, lack a column, or hold rows that cannot be used.
    """
    started = time.perf_counter()
    judge = reward_model or model
    run, judging = (None if is_model_uri(name) else run_at(name) for name in (model, judge))
    run_id = _mlflow_run(model, run, tracking_uri) if track else None
    scorer = _scorer(model, run, tracking_uri)
    judges = [scorer if judge == model else _scorer(judge, judging, tracking_uri)]
    columns = replace(columns, reward=columns.reward or scorer.spec.labels[0])
    features = list(dict.fromkeys([*scorer.spec.feature_columns, *judges[0].spec.feature_columns]))
    # A fold's model is trained on all columns of the spec, labels and the like included.
    frame, columns = read_log(source, columns, None if folds else features)
    table = candidates_of(frame, columns, candidates, features)
    frame, log, positions, excluded = usable(frame, columns, table, skip_bad)
    group = frame[columns.group].cast(pl.String).to_numpy() if columns.group else None
    fold = np.zeros(len(log), dtype=np.int64)
    if folds:
        console.note(f"cross-fitting: {folds} trainings of {judge}")
        fold = assign_folds(len(log), folds, seed, group)
        judges = cross_fit(judge, judging, frame, fold)
    parts = []
    with console.progress("scoring", len(log)) as task:
        for start in range(0, len(log), max(1, _PIECE // len(table))):
            rows = slice(start, start + max(1, _PIECE // len(table)))
            pairs = every_candidate(frame[rows], table, features)
            scores = _scores(scorer, pairs, columns, len(table))
            rewards = scores if judges[0] is scorer else _rewards(judges, fold[rows], pairs, columns, len(table))
            parts.append(TargetPolicy.of(log.take(rows), policy.chances(logits(scores), log.positions), rewards))
            task.update(sum(len(part.taken) for part in parts))
    found = evaluate_policy(
        log,
        TargetPolicy.concat(parts),
        clip=clip,
        switch=switch,
        max_weight=max_weight,
        level=level,
        draws=draws,
        seed=seed,
        group=group,
    )
    place = out or (run.folder if run else Path()) / "off_policy.json"
    result: dict[str, Any] = {
        "model": model,
        "log": source,
        "rows": len(log),
        "excluded": excluded,
        "actions": len(table),
        "candidate_columns": table.columns,
        "positions": positions,
        "policy": {**asdict(policy), "text": policy.text},
        "reward_model": judge,
        "folds": folds,
        "clip": clip,
        "switch": switch,
        "level": level,
        **found.to_json(),
    }
    if not folds:
        result["warnings"].append(_AS_IT_IS)
    if excluded:
        result["warnings"].append(f"{sum(excluded.values()):,} rows were left out: {_counts(excluded)}")
    result |= {"out": str(place), "mlflow_run_id": run_id, "seconds": round(time.perf_counter() - started, 2)}
    write_json(place, result)
    _show(console, result, found, log)
    if run_id is not None:
        _track(Registry(tracking_uri), run_id, found, place)
    return result


def _scorer(model: str, run: Run | None, tracking_uri: str) -> Scorer:
    if is_model_uri(model):
        return Scorer.load(Registry(tracking_uri, create=False).bundle_of(model))
    return Scorer.load(run.bundle if run else Path(model))


def _scores(scorer: Scorer, pairs: pl.DataFrame, columns: LogColumns, actions: int) -> np.ndarray:
    """[N, K] probabilities of the label that the log's reward is, or of the first."""
    labels = list(scorer.spec.labels)
    task = labels.index(columns.reward) if columns.reward in labels else 0
    return scorer.score(pairs)[:, task].reshape(-1, actions)


def _rewards(
    judges: Sequence[Scorer], fold: np.ndarray, pairs: pl.DataFrame, columns: LogColumns, actions: int
) -> np.ndarray:
    """[N, K] as each row's own reward model has them."""
    rewards = np.empty((len(fold), actions))
    for number in np.unique(fold):
        part = pairs.filter(np.repeat(fold == number, actions))
        rewards[fold == number] = _scores(judges[number], part, columns, actions)
    return rewards


def _show(console: Console, result: dict[str, Any], found: Evaluation, log: BanditLog) -> None:
    percent = f"{result['level']:.0%}"
    console.note(
        f"policy: {result['policy']['text']}, over {result['actions']} candidates; what changes with them: "
        f"{', '.join(result['candidate_columns'])}"
    )
    title = f"value of a row, {len(log):,} rows, {percent} intervals"
    console.table(title, [_line(estimate) for estimate in found.estimates])
    if found.slate:
        rows = []
        for place, estimates in enumerate(found.by_position):
            row = {"position": str(result["positions"][place]), "rows": int((log.place == place).sum())}
            rows.append(row | {estimate.estimator: estimate.value for estimate in estimates})
        console.table("value of a row by position", rows)
        console.table(
            f"value of a slate of {log.positions}, positions independent", [_line(estimate) for estimate in found.slate]
        )
    support = found.support
    console.note(
        f"effective sample size: {support.effective_rows:,.1f} of {support.rows:,} rows "
        f"({support.effective_share:.1%}); largest weight {support.largest_weight:.4g}, mean {support.mean_weight:.4g}"
    )
    whence = "read off the log" if found.max_weight_assumed else "given"
    console.note(f"empirical Bernstein: no weight is above {found.max_weight:.4g} ({whence})")
    for warning in result["warnings"]:
        console.note(f"warning: {warning}")
    console.note(f"all figures: {result['out']}")


def _line(estimate: Estimate) -> dict[str, Any]:
    def text(interval: Any) -> str:
        return "" if interval is None else f"{interval.low:.3g} .. {interval.high:.3g}"

    return {
        "estimator": estimate.estimator,
        "value": estimate.value,
        "bootstrap": text(estimate.interval),
        "empirical Bernstein": text(estimate.bernstein),
        "gain over the log": "" if estimate.gain is None else cell_text(estimate.gain),
        "its bootstrap": text(estimate.gain_interval),
    }


def _counts(excluded: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in excluded.items())


def _mlflow_run(model: str, run: Run | None, tracking_uri: str) -> str:
    """The MLflow run that the model comes from."""
    if is_model_uri(model):
        return Registry(tracking_uri, create=False).resolve(model).run_id
    run_id = run.read("train.json")["mlflow_run_id"] if run else None
    if run_id is None:
        raise ConfigError(
            "the model has no MLflow run to log to",
            field="--track",
            found=model,
            mend="name a registered model or a run that was tracked",
        )
    return str(run_id)


def _track(registry: Registry, run_id: str, found: Evaluation, place: Path) -> None:
    rows: list[tuple[str, float, int]] = []
    for head, estimates in (("off-policy", found.estimates), ("off-policy-slate", found.slate)):
        for estimate in estimates:
            values = {"": estimate.value, "/gain": estimate.gain}
            if estimate.interval is not None:
                values |= {"/low": estimate.interval.low, "/high": estimate.interval.high}
            rows += [
                (f"{head}/{estimate.estimator}{tail}", value, 0) for tail, value in values.items() if value is not None
            ]
    rows += [
        ("off-policy/effective_rows", found.support.effective_rows, 0),
        ("off-policy/largest_weight", found.support.largest_weight, 0),
    ]
    registry.log_metrics(run_id, rows)
    registry.log_files(run_id, place)
