"""A registered version becomes the champion if declared conditions hold; the evidence stays; the way back is one step.

Evidence and tags are written before the alias moves, and the alias moves in one step: whatever is killed when, the
champion is the old version or the new one.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from features.errors import ArtifactError, ConfigError
from features.files import read_json, write_json
from pipelines.compare import Scored, comparison_page, comparison_result, score_all, slices_of
from pipelines.config import PromoteConfig, SliceBound, load_config
from pipelines.console import Console
from pipelines.evaluate import check_gates
from pipelines.models import OpenedModel, open_model
from pipelines.workspace import write_bytes
from recsys.evaluation.compare import HIGHER_IS_BETTER, Comparison
from recsys.evaluation.metrics import evaluate
from recsys.evaluation.paired_slices import SliceComparison
from recsys.serving.promotions import promotions_folder
from recsys.serving.registry import ModelVersion, Registry
from recsys.serving.scorer import Scorer

CHAMPION = "champion"
DECISION, DECIDED_AT, BEFORE, FAILED = (f"recsys.promotion.{key}" for key in ("decision", "at", "before", "failed"))
"""Tags of a version: what was decided last, when, which version was champion before, which conditions failed."""
NONE = "none"
LATENCY_ROWS = 100
"""Rows of a request whose time is taken."""
_REQUESTS, _WARM, _SHARE = 100, 10, 0.95


def promote(
    name: str,
    console: Console,
    *,
    tracking_uri: str,
    version: int | None = None,
    alias: str = "challenger",
    config: Path | None = None,
    data: str | None = None,
    split: str = "test",
) -> dict[str, Any]:
    """Make a version the champion if the conditions of `promote:` hold.

    Args:
        name: The registered model.
        console: Shows conditions and decision.
        tracking_uri: Store of the registry.
        version: Which version; the one that `alias` points at by default.
        alias: See there.
        config: An experiment whose conditions count; by default those of the config that the version was trained with.
        data: Rows to judge on: prepared data (a folder) or raw rows with labels (a file or glob). By default the data
            that the version was trained with.
        split: Of prepared data.

    Returns:
        name, version, champion (version or None), promoted, conditions, gates_failed (those that do not hold), data,
        rows, decided_at, evidence (path among the artefacts of the version's run).

    Raises:
        ConfigError: No conditions are declared, or the version is the champion already.
        ArtifactError: There is no such model or version; the data cannot be used; another champion came meanwhile.
        DataError: The data is absent or damaged, or lacks a column.
    """
    registry = Registry(tracking_uri, create=False)
    candidate = registry.resolve(f"models:/{name}/{version}" if version is not None else f"models:/{name}@{alias}")
    if not candidate.run_id:
        raise ArtifactError(
            "the version belongs to no run, which would keep the evidence",
            field=candidate.uri,
            mend="register it with `recsys register`",
        )
    champion = registry.alias_of(name, CHAMPION)
    if champion is not None and champion.version == candidate.version:
        raise ConfigError("is the champion already", field=candidate.uri, mend="name another version")
    experiment = load_config(config or registry.file_of(candidate.run_id, "config.yaml"))
    if experiment.promote is None:
        raise ConfigError(
            "no conditions are declared",
            field="promote",
            found=f"none in {config or f'the config of {candidate.uri}'}",
            mend="add promote: to the config, or give --config",
        )
    opened = {f"{name}/{v.version}": open_model(v.uri, tracking_uri) for v in (candidate, champion) if v is not None}
    place = data or str(experiment.store_folder)
    if data is None:
        _check_trained_on(candidate, next(iter(opened.values())), place)
    scored = score_all(opened, place, split, console)
    evidence = _judge(experiment.promote, opened, scored, place, split, console)
    failed = [row["condition"] for row in evidence["conditions"] if not row["met"]]
    result: dict[str, Any] = {
        "name": name,
        "version": candidate.version,
        "champion": champion.version if champion else None,
        "promoted": not failed,
        "gates_failed": failed,
        "conditions": evidence["conditions"],
        "data": scored.text,
        "rows": len(scored.labels),
        "decided_at": _now(),
    }
    decision = {
        **result,
        "decision": "refused" if failed else "promoted",
        "config": str(config) if config else candidate.uri,
        "declared": experiment.promote.model_dump(mode="json"),
        **evidence["measured"],
    }
    with registry.alone():
        _check_unchanged(registry, name, champion)
        result["evidence"] = _keep(registry, candidate, decision, evidence["page"])
        if not failed:
            registry.tag_version(candidate, {BEFORE: str(champion.version) if champion else NONE})
            registry.set_alias(candidate, CHAMPION)
        registry.tag_version(
            candidate,
            {DECISION: decision["decision"], DECIDED_AT: result["decided_at"], FAILED: ", ".join(failed)[:5000]},
        )
    _show(console, result)
    return result


def rollback(name: str, console: Console, *, tracking_uri: str) -> dict[str, Any]:
    """Put the champion back that was before the present one.

    Returns:
        name, version (the champion now), from_version, decided_at.

    Raises:
        ArtifactError: There is no such model, it has no champion, or none was before it.
    """
    registry = Registry(tracking_uri, create=False)
    with registry.alone():
        present = registry.alias_of(name, CHAMPION)
        before = present.tags.get(BEFORE, NONE) if present else NONE
        if present is None or before == NONE:
            raise ArtifactError(
                "there is no champion to go back to",
                field=f"models:/{name}@{CHAMPION}",
                found="no champion" if present is None else f"version {present.version}, which followed none",
                mend="promote a version",
            )
        earlier = registry.resolve(f"models:/{name}/{before}")
        result = {
            "name": name,
            "version": earlier.version,
            "from_version": present.version,
            "decided_at": _now(),
        }
        _keep(registry, present, {**result, "version": present.version, "decision": "rolled back"}, None)
        registry.set_alias(earlier, CHAMPION)
        registry.tag_version(present, {DECISION: "rolled back", DECIDED_AT: str(result["decided_at"])})
    console.note(f"{CHAMPION} of {name}: version {earlier.version} (was {present.version})")
    return result


def history(name: str, console: Console, *, tracking_uri: str) -> dict[str, Any]:
    """Show the versions of a model and all decisions about them.

    Returns:
        name, champion (version or None), versions (oldest first), decisions (oldest first).

    Raises:
        ArtifactError: There is no such model.
    """
    registry = Registry(tracking_uri, create=False)
    versions = registry.versions(name)
    rows = [
        {
            "version": version.version,
            "aliases": ", ".join(version.aliases) or None,
            "registered": version.created.isoformat(timespec="seconds"),
            "last_decision": version.tags.get(DECISION),
            "at": version.tags.get(DECIDED_AT),
            "failed": version.tags.get(FAILED) or None,
        }
        for version in versions
    ]
    kept = [
        (Path(path).name, version.run_id, path)  # the name begins with the time, to the microsecond
        for version in versions
        if version.run_id  # another program may have registered it without one
        for path in registry.files_of(version.run_id, promotions_folder(version))
        if path.endswith(".json")
    ]
    decisions = [
        read_json(registry.file_of(run_id, path), mend="it was damaged in the MLflow store")
        for _, run_id, path in sorted(kept)
    ]
    champion = next((version.version for version in versions if CHAMPION in version.aliases), None)
    console.table(f"versions of {name}", rows)
    console.table(
        "decisions",
        [
            {
                "at": decision["decided_at"],
                "version": decision["version"],
                "decision": decision["decision"],
                "against": decision.get("champion"),
                "failed": ", ".join(decision.get("gates_failed", ())) or None,
            }
            for decision in decisions
        ],
    )
    return {"name": name, "champion": champion, "versions": rows, "decisions": decisions}


def _judge(
    conditions: PromoteConfig,
    opened: Mapping[str, OpenedModel],
    scored: Scored,
    data: str,
    split: str,
    console: Console,
) -> dict[str, Any]:
    """Conditions with what was found, the figures they were judged by, and a page if there is a champion."""
    candidate, *others = opened
    model = opened[candidate]
    metrics = evaluate(scored.labels, scored.scores[candidate], scored.weight, scored.group)
    rows = check_bounds(conditions, metrics)
    plan = model.bundle.model.plan
    if conditions.max_table_bytes is not None:
        rows.append(_limit("table_bytes", plan.table_bytes, conditions.max_table_bytes))
    if conditions.max_latency_ms is not None:
        rows.append(_limit("latency_ms", latency(model, data, split), conditions.max_latency_ms))
    measured: dict[str, Any] = {"metrics": metrics, "table_bytes": plan.table_bytes}
    page = None
    if others:
        comparison = scored.compare()
        slices = SliceComparison((), {})
        min_rows = conditions.slices.min_rows if conditions.slices else None
        if min_rows is not None:
            slices = slices_of(scored, model, data, console, min_rows)
        rows += check_against(conditions, comparison, slices, candidate, others[0])
        compared = comparison_result(opened, scored, comparison, slices)
        page = comparison_page(compared, scored, slices)
        measured["comparison"] = compared
    elif not rows:
        raise ConfigError(
            "there is no champion yet, and all conditions compare with it",
            field="promote",
            expected="bounds, max_table_bytes or max_latency_ms, which need none",
            mend="add such a condition for the first champion",
        )
    return {"conditions": rows, "measured": measured, "page": page}


def check_bounds(conditions: PromoteConfig, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hold metrics against the bounds that need no champion.

    >>> check_bounds(PromoteConfig.model_validate({"bounds": {"auc": {"min": 0.7}}}), {"auc": 0.6})
    [{'condition': 'auc within bounds', 'value': 0.6, 'bound': 'min 0.7', 'met': False}]
    """
    return [
        {
            "condition": f"{gate['metric']} within bounds",
            "value": gate["value"],
            "bound": " and ".join(f"{word} {gate[word]:g}" for word in ("min", "max") if gate[word] is not None),
            "met": gate["met"],
        }
        for gate in check_gates(conditions.bounds, metrics)
    ]


def check_against(
    conditions: PromoteConfig, comparison: Comparison, slices: SliceComparison, candidate: str, champion: str
) -> list[dict[str, Any]]:
    """Hold the differences of a candidate and a champion against the conditions.

    Args:
        conditions: What was declared.
        comparison: Of the two, the candidate first.
        slices: Likewise.
        candidate: Its name there.
        champion: Its name there.

    Returns:
        condition, value, bound, met. A metric that does not exist on the rows meets no condition.
    """
    rows: list[dict[str, Any]] = []

    def gain(metric: str) -> tuple[float, float] | None:
        """The difference and the worse end of its interval, both positive where the candidate is better."""
        found = comparison.of(metric, candidate, champion)
        if found is None:
            return None
        sign = 1 if metric in HIGHER_IS_BETTER else -1
        return sign * found.difference, min(sign * found.low, sign * found.high)

    for metric in conditions.better:
        found = gain(metric)
        rows.append(
            {
                "condition": f"{metric} better",
                "value": None if found is None else f"better by {found[0]:.5g}, at least {found[1]:.5g}",
                "bound": "at least above 0",
                "met": found is not None and found[1] > 0,
            }
        )
    for metric, margin in conditions.not_worse.items():
        found = gain(metric)
        rows.append(
            {
                "condition": f"{metric} not worse",
                "value": None if found is None else f"better by {found[0]:.5g}, at least {found[1]:.5g}",
                "bound": f"at least above {-margin:g}",
                "met": found is not None and found[1] > -margin,
            }
        )
    if conditions.slices is not None:
        rows.append(_slices_condition(conditions.slices, slices))
    return rows


def latency(model: OpenedModel, data: str, split: str) -> float:
    """Milliseconds to score a request of 100 encoded rows, which 95 of 100 requests keep to."""
    rows = model.rows(data, split)
    assert rows is not None  # data is given
    batch = next(iter(rows.read()))
    request = batch.rows([row % len(batch) for row in range(LATENCY_ROWS)])
    scorer = Scorer(model.bundle)
    seconds = []
    for _ in range(_WARM + _REQUESTS):
        started = time.perf_counter()
        scorer.score(request)
        seconds.append(time.perf_counter() - started)
    return float(np.quantile(seconds[_WARM:], _SHARE)) * 1000


def _slices_condition(bound: SliceBound, slices: SliceComparison) -> dict[str, Any]:
    # the interval of the slice alone, not corrected: a gate that errs shall err towards no
    worse = [entry for entry in slices.slices if entry.low > 0]
    worst = max(worse, key=lambda entry: entry.difference, default=None)
    return {
        "condition": "no slice worse",
        "value": None
        if worst is None
        else f"{worst.name}, logloss up by {worst.difference:.5g} on {worst.rows:,} rows",
        "bound": f"up by {bound.max_worse:g} at most, of {len(slices.slices):,} slices",
        "met": worst is None or worst.difference <= bound.max_worse,
    }


def _limit(name: str, value: float, most: float) -> dict[str, Any]:
    return {"condition": f"{name} within budget", "value": value, "bound": f"max {most:g}", "met": value <= most}


def _check_trained_on(candidate: ModelVersion, model: OpenedModel, folder: str) -> None:
    """Refuses prepared data that is there by now in place of what the version was trained on."""
    store = model.store(folder)
    trained_on = candidate.tags.get("recsys.manifest_digest")
    if store is not None and store.digest != trained_on:
        raise ArtifactError(
            "the prepared data is not what the version was trained on: rows of its test split may be among those",
            field=folder,
            found=f"prepared data {store.digest[:12]}",
            expected=(trained_on or "none")[:12],
            mend="give --data with rows that neither model was trained on",
        )


def _check_unchanged(registry: Registry, name: str, champion: ModelVersion | None) -> None:
    now = registry.alias_of(name, CHAMPION)
    if (now and now.version) != (champion and champion.version):
        raise ArtifactError(
            "another champion came while this version was judged",
            field=f"models:/{name}@{CHAMPION}",
            found=f"version {now.version}" if now else "none",
            expected=f"version {champion.version}" if champion else "none",
            mend="run `recsys promote` again, so that it is compared with that one",
        )


def _keep(registry: Registry, version: ModelVersion, decision: Mapping[str, Any], page: str | None) -> str:
    """Keeps a decision among the artefacts of the version's run; returns the path."""
    stem = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / f"{stem}.json", json.loads(json.dumps(decision)))
        if page is not None:
            write_bytes(Path(folder) / f"{stem}.html", page.encode())
        registry.log_files(version.run_id, Path(folder), promotions_folder(version))
    return f"{promotions_folder(version)}/{stem}.json"


def _show(console: Console, result: Mapping[str, Any]) -> None:
    against = f"against version {result['champion']}" if result["champion"] else "without a champion to compare with"
    console.table(
        f"conditions for version {result['version']} of {result['name']}, {against}, {result['rows']:,} rows",
        result["conditions"],
    )
    if result["promoted"]:
        console.note(f"{CHAMPION} of {result['name']}: version {result['version']}")
    else:
        console.note(f"not promoted: {', '.join(result['gates_failed'])}")
    console.note(f"evidence: {result['evidence']} of the version's run")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
