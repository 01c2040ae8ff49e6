"""Where every feature's rows lie: the regions of the one table, their sizes and their bytes.

A plan is made from the layout, the config and the distinct values seen in training.  It is a small JSON object;
the index of exact values travels beside it as two arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from features.errors import ArtifactError, ConfigError, nearest
from features.layout import Layout
from recsys.embeddings.addressing import HASH_VERSION, exact_key
from recsys.embeddings.config import EmbeddingConfig
from recsys.embeddings.formats import FormatName, RowFormat

INDEX_BYTES = 12
"""Bytes of one entry of the exact index: an int64 key and an int32 row."""

IdCounts = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Feature name -> (distinct fingerprints int64, how often each was seen)."""


@dataclass(frozen=True)
class FeaturePlan:
    """The rows of one feature."""

    name: str
    bag: bool
    """Several values a row, pooled."""
    chunks: int
    values: int
    """Distinct values seen in training."""
    region: str
    """exact, shared, own (rows hashed into by this feature only) or dropped (no chunks)."""
    base: int
    """First row that ids not in the exact index hash to."""
    span: int
    """Number of rows that ids not in the exact index hash to."""
    exact_base: int = 0
    """First row of the feature's exact segment; it is values * chunks rows long."""


@dataclass(frozen=True)
class EmbeddingPlan:
    """The address space of the table."""

    kind: str
    width: int
    rows: int
    """All rows: hashed ones first, exact segments after them in order of feature name; 0 without lookups."""
    features: tuple[FeaturePlan, ...]
    """Single-valued features in layout order, then bags in layout order."""
    init_scale: float
    format: FormatName = "fp32"
    hash_seed: int = 0
    hash_version: int = HASH_VERSION
    exact_keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), compare=False, repr=False)
    exact_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32), compare=False, repr=False)

    @property
    def exact_values(self) -> int:
        """Entries of the exact index."""
        return sum(f.values for f in self.features if f.region == "exact")

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored row, its scale included."""
        return RowFormat(self.format, self.width).row_bytes

    @property
    def lookups(self) -> int:
        """Rows read for one example (a bag counts its chunks once)."""
        return sum(f.chunks for f in self.features)

    @property
    def output_width(self) -> int:
        """Floats an example gets from the table."""
        return self.lookups * self.width

    @property
    def table_bytes(self) -> int:
        """Bytes of everything indexed by ids: rows, their scales, and the exact index."""
        return self.rows * self.row_bytes + self.exact_values * INDEX_BYTES

    def summary(self) -> list[dict[str, Any]]:
        """One line a feature: region, distinct values, chunks, width, rows it can reach, bytes of its own rows."""
        lines = []
        for f in self.features:
            exact_rows = f.values * f.chunks if f.region == "exact" else 0
            own = exact_rows + (f.span if self.kind != "multiplexed" and f.chunks else 0)
            lines.append(
                {
                    "feature": f.name,
                    "kind": "bag" if f.bag else "id",
                    "region": f.region,
                    "values": f.values,
                    "chunks": f.chunks,
                    "width": f.chunks * self.width,
                    "rows": exact_rows or (f.span if f.chunks else 0),
                    "bytes": own * self.row_bytes + (f.values * INDEX_BYTES if f.region == "exact" else 0),
                }
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """The plan without its exact index."""
        return {
            "kind": self.kind,
            "width": self.width,
            "rows": self.rows,
            "init_scale": self.init_scale,
            "format": self.format,
            "hash_seed": self.hash_seed,
            "hash_version": self.hash_version,
            "features": [asdict(f) for f in self.features],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EmbeddingPlan:
        """Reads what `to_json` wrote; the exact index is zeros of the right length, to be filled from weights.

        Raises:
            ArtifactError: the plan was made with another hash version.
        """
        if data["hash_version"] != HASH_VERSION:
            raise ArtifactError(
                "the model was made with another hash",
                field="hash_version",
                found=data["hash_version"],
                expected=HASH_VERSION,
                mend="train it again, or load it with the release that wrote it",
            )
        features = tuple(FeaturePlan(**f) for f in data["features"])
        plan = cls(
            data["kind"],
            data["width"],
            data["rows"],
            features,
            data["init_scale"],
            data["format"],
            data["hash_seed"],
        )
        n = plan.exact_values
        return replace(plan, exact_keys=np.zeros(n, np.int64), exact_rows=np.zeros(n, np.int32))


def plan_embedding(layout: Layout, config: EmbeddingConfig, id_counts: IdCounts) -> EmbeddingPlan:
    """Lays out the table.

    Args:
        layout: the features, by name and sort.
        config: what the user asked for.
        id_counts: distinct training fingerprints of every feature (the training split's only).

    Returns:
        The plan.  A feature's hashed rows depend on its own name, `rows` and, for `hashed`, the features' sizes;
        never on the order of features.

    Raises:
        ConfigError: a chunk or exact override names no feature, or the table would be too large to address.
    """
    names = [(n, False) for n in layout.id_names] + [(n, True) for n in layout.bag_names]
    known = [n for n, _ in names]
    _check_names("embedding.chunks.features", config.chunks.features, known)
    _check_names("embedding.exact.features", config.exact.features, known)
    values = {n: len(id_counts[n][0]) if n in id_counts else 0 for n in known}
    chunks = {n: config.chunks.of(n) for n in known}
    collisionless = config.kind == "collisionless"
    exact = {n for n in known if chunks[n] and (collisionless or config.exact.of(n, values[n]))}
    segments, hashed_rows = _hashed_segments(config, known, chunks, values, exact)
    exact_base, end = {}, hashed_rows
    for name in sorted(exact):
        exact_base[name] = end
        end += values[name] * chunks[name]
    if end >= 2**31:
        raise ConfigError(
            "the table has more rows than can be addressed",
            field="embedding",
            found=f"{end:,} rows",
            expected="fewer than 2**31",
            mend="lower embedding.rows, or make fewer fields exact",
        )
    features = []
    for name, bag in names:
        base, span = segments.get(name, (0, 0))
        region = "dropped" if not chunks[name] else "exact" if name in exact else None
        region = region or ("shared" if config.kind == "multiplexed" else "own")
        features.append(FeaturePlan(name, bag, chunks[name], values[name], region, base, span, exact_base.get(name, 0)))
    keys, rows = _exact_index([f for f in features if f.region == "exact" and f.values], id_counts, config.hash_seed)
    return EmbeddingPlan(
        kind=config.kind,
        width=config.width,
        rows=end,
        features=tuple(features),
        init_scale=config.init_scale,
        format=config.format,
        hash_seed=config.hash_seed,
        exact_keys=keys,
        exact_rows=rows,
    )


def _hashed_segments(
    config: EmbeddingConfig, names: list[str], chunks: dict[str, int], values: dict[str, int], exact: set[str]
) -> tuple[dict[str, tuple[int, int]], int]:
    """(base, span) of the rows each feature hashes into, and their number."""
    used = [n for n in names if chunks[n]]
    if not used:
        return {}, 0
    if config.kind == "multiplexed":
        return dict.fromkeys(used, (0, config.rows)), config.rows
    # Unseen values of an exact field share one row; the remaining rows are divided among the hashed fields.
    hashed = [n for n in used if n not in exact]
    power = {"proportional": 1.0, "sqrt": 0.5, "equal": 0.0}[config.split]
    weights = {n: max(values[n], 1) ** power for n in hashed}
    total = math.fsum(weights.values())
    segments, end = {}, 0
    for n in sorted(used):
        span = max(int(config.rows * weights[n] / total), 1) if n in weights else 1
        segments[n] = (end, span)
        end += span
    return segments, end


def _exact_index(features: list[FeaturePlan], id_counts: IdCounts, hash_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted keys of all exact values and the first row of each."""
    if not features:
        return np.empty(0, np.int64), np.empty(0, np.int32)
    keys, rows = [], []
    for f in features:
        fingerprints = torch.from_numpy(np.sort(id_counts[f.name][0]))
        keys.append(exact_key(f.name, fingerprints, hash_seed).numpy())
        rows.append(f.exact_base + np.arange(f.values, dtype=np.int64) * f.chunks)
    all_keys, all_rows = np.concatenate(keys), np.concatenate(rows)
    order = np.argsort(all_keys, kind="stable")
    return all_keys[order], all_rows[order].astype(np.int32)


def _check_names(where: str, given: Mapping[str, object], known: list[str]) -> None:
    for name in given:
        if name not in known:
            hint = nearest(name, known)
            raise ConfigError(
                "there is no such id feature",
                field=f"{where}.{name}",
                expected=f"one of {', '.join(known)}",
                mend=f"did you mean {hint!r}?" if hint else "use the name of an id feature",
            )
