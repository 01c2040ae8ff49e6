"""The model card: what a bundle holds, in Markdown for people.  Facts that the bundle knows, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from features.fingerprint import FINGERPRINT_VERSION
from features.pipeline import FeaturePipeline
from recsys.models.ctr import CTRModel
from recsys.serving.calibration import Calibration
from recsys.serving.signature import column_types, output_names


def model_card(
    model: CTRModel, pipeline: FeaturePipeline, calibration: Calibration | None, metrics: Mapping[str, Any]
) -> str:
    """The card's text; equal models have equal cards.

    Args:
        model: what is saved.
        pipeline: fitted.
        calibration: None for a model without.
        metrics: those that are numbers are shown.
    """
    columns = [(f"`{name}`", kind) for name, kind in column_types(pipeline.spec).items()]
    features = [
        (f"`{line['feature']}`", line["region"], line["chunks"], line["width"], f"{line['values']:,}")
        for line in model.plan.summary()
    ]
    numbers = [(name, f"{value:.6g}") for name, value in metrics.items() if isinstance(value, int | float)]
    parts = [
        "# Model card",
        _table(("what", "value"), list(model_facts(model, pipeline, calibration).items())),
        "## Input columns",
        "Each may be null; other columns are not read.",
        _table(("column", "type"), columns),
    ]
    if features:
        head = ("feature", "region", "chunks", "width", "values in training")
        parts += ["## Embedded features", _table(head, features)]
    if numbers:
        parts += ["## Metrics", "As measured when the bundle was written.", _table(("metric", "value"), numbers)]
    return "\n\n".join(parts) + "\n"


def model_facts(model: CTRModel, pipeline: FeaturePipeline, calibration: Calibration | None) -> dict[str, str]:
    """What a model gives and is made of; every card of a model says it in these words.

    Args:
        model: trained.
        pipeline: fitted.
        calibration: None for a model without.
    """
    plan, config = model.plan, model.config
    parameters = sum(p.numel() for p in model.dense_parameters().values())
    hidden = " x ".join(map(str, config.hidden)) or "none"
    outputs = zip(output_names(pipeline.spec), pipeline.spec.labels, strict=True)
    return {
        "predicts": ", ".join(f"{output}, the probability of {label}" for output, label in outputs),
        "calibrated by": f"{calibration.method}, fitted on the validation split" if calibration else "nothing",
        "network": f"{config.interaction}, hidden layers {hidden}, {parameters:,} parameters in fp32",
        "embedding table": f"{plan.kind}, {plan.rows:,} rows of {plan.width} values in {plan.format_name}",
        "bytes of the table and its indices": f"{plan.table_bytes:,}",
        "lookups an example": f"{plan.lookups:,}",
        "feature spec": f"sha256 {pipeline.spec.digest()}",
        "encoding of features": f"sha256 {pipeline.digest()}",
        "versions": f"fingerprint {FINGERPRINT_VERSION}, hash {plan.hash_version}",
    }


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
