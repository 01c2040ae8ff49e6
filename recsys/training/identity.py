"""Whether stored weights mean in a model what they meant where they were trained: the same plan, network and values.

Shapes alone do not tell: another hash seed, or two features with their chunks swapped, fit and are wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features.errors import ArtifactError
from recsys.models.ctr import CTRModel

LISTED = 8
"""Differences named in an error."""
_MEND = "use the config and the data it was trained with, or take the trained model over with train.warm_start"


def identity_of(model: CTRModel) -> dict[str, Any]:
    """What is stored beside a model's weights, as JSON."""
    return {
        "plan": model.plan.to_json(),
        "network": model.config.model_dump(mode="json"),
        "exact_keys": hashlib.sha256(model.embedding.exact_keys.numpy().tobytes()).hexdigest(),
    }


def check_identity(model: CTRModel, state: Mapping[str, Any], path: Path) -> None:
    """Refuses weights that were trained for another model, before any of them are read.

    Args:
        model: is to take them.
        state: holds what `identity_of` gave when they were stored.
        path: the file, for the error.

    Raises:
        ArtifactError: plan, network or exact values are others; says which part.
    """
    identity = identity_of(model)
    for key in ("plan", "network"):
        theirs, ours = state.get(key), identity[key]
        if theirs != ours:
            found, expected = _differences(theirs or {}, ours)
            raise ArtifactError(
                f"the weights are of another {'plan of the table' if key == 'plan' else 'network'}",
                field=str(path),
                found=found or "nothing about it",
                expected=expected,
                mend=_MEND,
            )
    if state.get("exact_keys") != identity["exact_keys"]:
        raise ArtifactError("the weights' exact fields have other values than the model's", field=str(path), mend=_MEND)


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, str]:
    """The parts of two plans or networks that differ, as text; of features only those that do.

    >>> user, item = {"name": "user", "chunks": 2}, {"name": "item", "chunks": 1}
    >>> _differences({"rows": 8, "features": [user, item]}, {"rows": 8, "features": [user, item | {"chunks": 3}]})
    ('item: chunks 1', 'item: chunks 3')
    >>> _differences({"rows": 8, "features": [user, item]}, {"rows": 9, "features": [user]})
    ('rows 8; item: chunks 1', 'rows 9')
    """
    sides = []
    for values, others in ((theirs, ours), (ours, theirs)):
        parts = [f"{k} {v}" for k, v in values.items() if k != "features" and others.get(k) != v]
        elsewhere = {f["name"]: f for f in others.get("features", [])}
        for feature in values.get("features", []):
            other = elsewhere.get(feature["name"], {})
            own = [f"{k} {v}" for k, v in feature.items() if k != "name" and other.get(k) != v]
            parts += [f"{feature['name']}: {' '.join(own)}"] if own else []
        sides.append("; ".join(parts[:LISTED]) + (f" and {more} more" if (more := len(parts) - LISTED) > 0 else ""))
    return sides[0], sides[1]
