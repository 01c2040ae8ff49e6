"""Where the decisions about a version are kept, and the one by which it was promoted."""

from __future__ import annotations

from typing import Any

from features.files import read_json
from recsys.serving.registry import ModelVersion, Registry


def promotions_folder(version: ModelVersion) -> str:
    """The folder of a version's decisions among the files of its run, which may have been registered more than once."""
    return f"promotions/{version.name}-{version.version}"


def newest_promotion(registry: Registry, version: ModelVersion) -> dict[str, Any] | None:
    """The newest decision by which a version was promoted; None if there is none.

    Returns:
        `decided_at`, `data` and `rows` (what it was measured on), and `conditions`, each with `condition`, `value`,
        `bound` and `met`.

    Raises:
        ArtifactError: The registry does not answer, or the decision is damaged.
    """
    if not version.run_id:
        return None
    # Names begin with the time.
    for path in reversed(registry.files_of(version.run_id, promotions_folder(version))):
        if not path.endswith(".json"):
            continue
        found = read_json(registry.file_of(version.run_id, path), mend="it was damaged in the MLflow store")
        if found.get("decision") == "promoted":
            return {name: found[name] for name in ("decided_at", "data", "rows", "conditions")}
    return None
