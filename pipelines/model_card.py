"""The model card of a report (Mitchell et al. 2019): the facts of the model, its training and its test, and its limits.

What only its owner can know, such as who is affected and what it must not be used for, is not made up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from features.errors import list_names
from features.storage.store import Store
from pipelines.prepare import dropped_of
from recsys.evaluation.report import cell_text, interval_text
from recsys.serving.bundle import Bundle
from recsys.serving.model_card import model_facts
from recsys.serving.signature import column_types

_UNSEEN = 0.01
_FEATURES = 3


def model_card(
    bundle: Bundle,
    figures: Mapping[str, Any],
    *,
    name: str,
    tested_on: str,
    origin: str | None = None,
    store: Store | None = None,
    trained: Mapping[str, Any] | None = None,
    limits: Sequence[str] = (),
) -> dict[str, Any]:
    """The card.

    Args:
        bundle: The model.
        figures: What `measure` found.
        name: Of the model.
        tested_on: The rows that were measured, for people.
        origin: Recipe or source of the training rows; None if it is not known.
        store: The prepared data it was trained on, if it is known.
        trained: What the training came to, if it is known.
        limits: What is known beside the figures.

    Returns:
        facts (`what` and `value` a line) and limits (sentences).
    """
    spec = bundle.pipeline.spec
    metrics, intervals = figures["metrics"], figures["intervals"]
    span = figures["days"]
    facts = {
        "model": name,
        **model_facts(bundle.model, bundle.pipeline, bundle.calibration),
        "reads": list_names(f"{column} ({kind})" for column, kind in column_types(spec).items()),
        **_training(store, origin, trained),
        "tested on": f"{tested_on}: {metrics['rows']:,} rows, of which {cell_text(metrics['base_rate'])} positive"
        + ("" if span is None else f", {span[0]} to {span[1]}"),
        "AUC": _figure("auc", metrics, intervals),
        "logloss": _figure("logloss", metrics, intervals),
        "calibration": _figure("calibration_ratio", metrics, intervals) + " clicks expected for each observed",
    }
    return {
        "facts": [{"what": what, "value": value} for what, value in facts.items()],
        "limits": [*limits, *_limits(figures, spec.group)],
    }


def _training(store: Store | None, origin: str | None, trained: Mapping[str, Any] | None) -> dict[str, str]:
    if store is None:
        return {"trained on": "not known here: the model came without its run"}
    manifest, rows = store.manifest, store.rows("train")
    rates = ", ".join(f"{label} {cell_text(rate)}" for label, rate in manifest["label_means"]["train"].items())
    found = {"trained on": f"{origin or store.folder}: {rows:,} rows, positive: {rates}"}
    if "time_range" in manifest:
        found["time of training rows"] = " to ".join(_moment(time) for time in manifest["time_range"]["train"])
    dropped = dropped_of(store) | manifest.get("quarantined", {})
    found["rows left out before"] = ", ".join(f"{why} {count:,}" for why, count in dropped.items()) or "none"
    if trained is not None:
        found["training"] = f"{trained['epochs']} epochs, epoch {trained['best_epoch']} kept"
    return found


def _limits(figures: Mapping[str, Any], group: str | None) -> list[str]:
    metrics, slices = figures["metrics"], figures["slices"]
    found = [f"{name} could not be judged: {why}." for name, why in metrics["undefined"].items()]
    if group is not None:
        found.append(
            f"Intervals of slices and of ECE take rows for independent. Rows of one {group} are alike, so they may be "
            f"too narrow; those of the other metrics are of each {group} drawn as a whole."
        )
    strange = sorted(figures["unseen"].items(), key=lambda item: -item[1])
    strange = [(feature, share) for feature, share in strange if share >= _UNSEEN][:_FEATURES]
    if strange:
        shares = ", ".join(f"{100 * share:.2g} % of the rows for {feature}" for feature, share in strange)
        found.append(f"Values never seen in training: {shares}.")
    calibrations = [one["calibration"] for one in slices["found"] if one["calibration"]]
    off = sum(one["low"] > 1 or one["high"] < 1 for one in calibrations)
    if calibrations:
        found.append(
            f"Calibration is off in {off:,} of {len(calibrations):,} slices, where its 95 % interval leaves out 1; "
            f"by chance alone it would be about {len(calibrations) / 20:.0f}."
        )
    if slices["too_small"]:
        found.append(f"{slices['too_small']:,} slices of fewer than {slices['min_rows']:,} rows were not judged.")
    if slices["rows"] < metrics["rows"]:
        found.append(f"Slices were made of a sample of {slices['rows']:,} of {metrics['rows']:,} rows.")
    if metrics.get("gauc_groups_single_class"):
        found.append(f"{metrics['gauc_groups_single_class']:,} groups hold one class and do not count in GAUC.")
    if len(figures["tasks"]) > 1:
        found.append(f"Slices, importance and intervals are of {next(iter(figures['tasks']))} alone.")
    return found


def _figure(name: str, metrics: Mapping[str, Any], intervals: Mapping[str, Any]) -> str:
    return interval_text(intervals[name]) if name in intervals else cell_text(metrics[name])


def _moment(time: int) -> str:
    return str(np.datetime64(time, "us").astype("datetime64[s]")).replace("T", " ")
