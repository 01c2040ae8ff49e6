"""The model card: what a bundle holds, in Markdown for people.  Facts that the bundle knows, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from features.fingerprint import FINGERPRINT_VERSION
from features.pipeline import FeaturePipeline
from recsys.models.ctr import CTRModel
from recsys.serving.calibration import Calibration
from recsys.serving.signature import column_types


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
    plan, config = model.plan, model.config
    parameters = sum(p.numel() for p in model.dense_parameters().values())
    hidden = " x ".join(map(str, config.hidden)) or "none"
    facts = {
        "predicts": ", ".join(f"the probability of `{name}`" for name in pipeline.layout.label_names),
        "calibration": f"{calibration.method}, fitted on the validation split" if calibration else "none",
        "network": f"{config.interaction}, hidden layers {hidden}, {parameters:,} parameters in fp32",
        "embedding table": f"{plan.kind}, {plan.rows:,} rows of {plan.width} values in {plan.format}",
        "bytes of the table and its indices": f"{plan.table_bytes:,}",
        "lookups an example": plan.lookups,
        "feature spec": f"sha256 `{pipeline.spec.digest()}`",
        "encoding of features": f"sha256 `{pipeline.digest()}`",
        "versions": f"fingerprint {FINGERPRINT_VERSION}, hash {plan.hash_version}",
    }
    columns = [(f"`{name}`", kind) for name, kind in column_types(pipeline.spec).items()]
    features = [
        (f"`{line['feature']}`", line["region"], line["chunks"], line["width"], f"{line['values']:,}")
        for line in plan.summary()
    ]
    numbers = [(name, f"{value:.6g}") for name, value in metrics.items() if isinstance(value, int | float)]
    parts = [
        "# Model card",
        _table(("what", "value"), list(facts.items())),
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


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
