"""A model trained with thresholds loses the values that did not pass them; told by feature."""

from __future__ import annotations

from typing import Any

from features.errors import ConfigError
from features.storage.store import Store
from pipelines.console import Console, bytes_text
from recsys.embeddings import EmbeddingPlan
from recsys.models import CTRModel
from recsys.search.thresholds import compact_by_thresholds


def check_thresholds(plan: EmbeddingPlan, processes: int) -> None:
    """Refuses a model without a table, and several processes.

    Raises:
        ConfigError: It is one, or there are some.
    """
    if not plan.rows:
        raise ConfigError(
            "there is no table whose values thresholds could judge",
            field="thresholds",
            found="no feature with chunks",
            mend="give one chunks in embedding.chunks, or leave the section out",
        )
    if processes > 1:
        raise ConfigError(
            "thresholds are learned in one process",
            field="thresholds",
            found=f"{processes} processes",
            mend="train without torchrun, or leave the section out",
        )


def without_what_did_not_pass(model: CTRModel, store: Store, console: Console) -> tuple[CTRModel, dict[str, Any]]:
    """The compact model, and what is left of the one that a `ThresholdTrainer` trained.

    Returns:
        The model; and features (name, threshold, values before and kept, their share), pruned_features (those of which
        nothing is left), old_table_bytes.
    """
    compact, report = compact_by_thresholds(model, store.id_counts("train"))
    lines = [
        {
            "feature": line.feature,
            "region": line.region,
            "threshold": round(report.thresholds[line.feature], 4),
            "values": line.before,
            "kept": line.kept,
            "share": line.share,
        }
        for line in report.features
    ]
    console.table("values that passed their feature's threshold", lines)
    old, new = model.plan.table_bytes, compact.plan.table_bytes
    console.note(f"table: {bytes_text(old)} as trained, {bytes_text(new)} without what did not pass, {new / old:.3f}x")
    return compact, {"features": lines, "pruned_features": report.pruned_features, "old_table_bytes": old}
