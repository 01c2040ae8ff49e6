"""Drift: how far new rows are from those that the pipeline was fitted on, feature by feature, and in their columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from features.columns import Columns
from features.errors import ArtifactError, list_names
from features.files import cannot_write
from features.fingerprint import NULL_FINGERPRINT
from features.layout import Layout
from features.storage.shards import read_shard
from features.validation import Strict

_BUCKET_BITS = 6
_SEEN_BITS = 20
_SAMPLE_ROWS = 200_000
_FULLEST = 0.9
_FLAG = ":missing"


class DriftConfig(Strict):
    """From where on a change is said; nothing is done about it."""

    psi: float = Field(0.25, gt=0)
    """Population stability index of a feature's buckets, above what as many rows give by chance."""
    unseen: float = Field(0.5, ge=0, le=1)
    """Share of values of an id feature that no row before had."""
    missing: float = Field(0.1, ge=0, le=1)
    """Change of the share of missing values."""


@dataclasses.dataclass
class Profile:
    """Counts of encoded rows, of a size that does not hang on their number.

    Attributes:
        edges: Of each number: edges of its buckets.
        buckets: int64 counts. Of an id feature or a bag 64, by the first bits of the fingerprint; of a number one
            more than edges; of a label two.
        missing: Of an id feature, a bag or a number with a missing flag: how many values are missing.
        seen: Of an id feature or a bag: 2**20 booleans, true where the first bits of a fingerprint point.
        unseen: How many values of it pointed where no row before did; only with rows to compare with.
    """

    edges: dict[str, np.ndarray]
    buckets: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    missing: dict[str, int] = dataclasses.field(default_factory=dict)
    seen: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    unseen: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, batch: pa.RecordBatch, layout: Layout, before: Profile | None = None) -> None:
        """Counts the rows of a shard; `before` says which ids are not new."""
        columns = Columns.of(batch, layout)
        for name, values in _fingerprints(columns, layout):
            unsigned = values.view(np.uint64)
            self._count(name, (unsigned >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64), 1 << _BUCKET_BITS)
            there = values != NULL_FINGERPRINT
            self.missing[name] = self.missing.get(name, 0) + int(len(values) - there.sum())
            bits = (unsigned[there] >> np.uint64(64 - _SEEN_BITS)).astype(np.int64)
            if before is not None:
                self.unseen[name] = self.unseen.get(name, 0) + int((~before.seen[name][bits]).sum())
            self.seen.setdefault(name, np.zeros(1 << _SEEN_BITS, dtype=bool))[bits] = True
        for place, name in enumerate(layout.dense_names):
            numbers = columns.wide["dense"][:, place].numpy()
            if name.endswith(_FLAG):
                number = name.removesuffix(_FLAG)
                self.missing[number] = self.missing.get(number, 0) + int(numbers.sum())
            else:
                edges = self.edges[name]
                self._count(name, np.searchsorted(edges, numbers, side="right"), len(edges) + 1)
        for place, name in enumerate(layout.label_names):
            self._count(f"label {name}", columns.wide["labels"][:, place].numpy().astype(np.int64), 2)

    def save(self, path: Path) -> None:
        """Writes it.

        Raises:
            ArtifactError: It cannot be written.
        """
        tensors = {f"edges {name}": value for name, value in self.edges.items()}
        tensors |= {f"buckets {name}": value for name, value in self.buckets.items()}
        tensors |= {f"missing {name}": np.array([value]) for name, value in self.missing.items()}
        tensors |= {f"seen {name}": np.packbits(value) for name, value in self.seen.items()}
        try:
            save_file(dict(sorted(tensors.items())), path)
        except OSError as error:
            raise cannot_write(path, error) from error

    @staticmethod
    def load(path: Path) -> Profile:
        """Reads what `save` wrote.

        Raises:
            ArtifactError: It is missing or damaged.
        """
        profile = Profile({})
        try:
            for key, value in load_file(path).items():
                kind, _, name = key.partition(" ")
                match kind:
                    case "edges":
                        profile.edges[name] = value
                    case "buckets":
                        profile.buckets[name] = value
                    case "missing":
                        profile.missing[name] = int(value[0])
                    case "seen":
                        profile.seen[name] = np.unpackbits(value).astype(bool)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(
                "file is missing or damaged", field=str(path), found=error, mend="`recsys prepare --rebuild`"
            ) from error
        return profile

    def _count(self, name: str, places: np.ndarray, length: int) -> None:
        counts = np.bincount(places, minlength=length).astype(np.int64)
        self.buckets[name] = self.buckets[name] + counts if name in self.buckets else counts


def profile_of(shards: Sequence[Path], layout: Layout, before: Profile | None) -> Profile:
    """Returns the profile of encoded rows; its numbers' buckets are those of `before`, or hold as many rows each.

    Args:
        shards: Their files, of which one at a time is in memory.
        layout: What a row holds.
        before: The profile of the rows that the pipeline was fitted on, if these are others.
    """
    profile = Profile(_edges(shards, layout) if before is None else before.edges)
    for shard in shards:
        profile.add(read_shard(shard), layout, before)
    return profile


def compare(before: Profile, now: Profile, limits: DriftConfig) -> list[dict[str, Any]]:
    """Returns the drift of each feature and label: psi, unseen share, missing share before and now, what passes.

    The population stability index is sum((p - q) * log(p / q)) over buckets, half a row added to each. `chance` is
    what rows of the same distribution give: (buckets - 1) * (1 / rows before + 1 / rows now). The unseen share is
    corrected for values that share a bit of the memory with another one; it is null where that is too full.
    """
    drift = []
    for name, counts in now.buckets.items():
        old = before.buckets[name]
        rows, rows_before = int(counts.sum()), int(old.sum())
        entry: dict[str, Any] = {"feature": name, "psi": round(psi(old, counts), 4), "chance": 0.0}
        if rows and rows_before:
            entry["chance"] = round((len(counts) - 1) * (1 / rows + 1 / rows_before), 4)
        entry |= {"unseen": None, "missing_before": None, "missing": None}
        passed = ["psi"] if entry["psi"] - entry["chance"] > limits.psi else []
        if name in now.missing and rows and rows_before:
            entry["missing_before"] = round(before.missing[name] / rows_before, 4)
            entry["missing"] = round(now.missing[name] / rows, 4)
            passed += ["missing"] if abs(entry["missing"] - entry["missing_before"]) > limits.missing else []
        full = float(before.seen[name].mean()) if name in before.seen else 1.0
        if full <= _FULLEST and rows > now.missing[name]:
            share = now.unseen.get(name, 0) / (rows - now.missing[name])
            entry["unseen"] = round(min(share / (1 - full), 1.0), 4)
            passed += ["unseen"] if entry["unseen"] > limits.unseen else []
        drift.append({**entry, "passed": list_names(passed)})
    return drift


def schema_drift(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns how columns changed.

    Example:
        >>> schema_drift({"a": "Int64", "b": "String"}, {"a": "String", "c": "String"})
        ['column b is gone', 'column c is new', 'column a is String, was Int64']
    """
    return [
        *(f"column {name} is gone" for name in before if name not in now),
        *(f"column {name} is new" for name in now if name not in before),
        *(f"column {name} is {now[name]}, was {kind}" for name, kind in before.items() if now.get(name, kind) != kind),
    ]


def psi(before: np.ndarray, now: np.ndarray) -> float:
    """Returns the population stability index of two columns of counts: sum((p - q) * log(p / q)) over buckets.

    Half a row is added to each bucket, so that an empty one has a logarithm.

    Args:
        before: [B] rows a bucket.
        now: [B] rows a bucket.

    Example:
        >>> round(psi(np.array([50, 50]), np.array([80, 20])), 3)
        0.406
    """
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (before, now))
    return float(((p - q) * np.log(p / q)).sum())


def _fingerprints(columns: Columns, layout: Layout) -> Iterator[tuple[str, np.ndarray]]:
    for place, name in enumerate(layout.id_names):
        yield name, np.ascontiguousarray(columns.wide["ids"][:, place].numpy())
    for name, (values, _) in zip(layout.bag_names, columns.bags, strict=True):
        yield name, values.numpy()


def _edges(shards: Sequence[Path], layout: Layout) -> dict[str, np.ndarray]:
    """Deciles of each number on up to 200,000 rows, evenly spaced."""
    step = max(1, -(-sum(read_shard(shard).num_rows for shard in shards) // _SAMPLE_ROWS))
    tables = [Columns.of(read_shard(shard), layout).wide["dense"].numpy()[::step].copy() for shard in shards]
    sample = np.concatenate(tables) if tables else np.empty((0, len(layout.dense_names)))
    shares = np.arange(1, 10) / 10
    return {
        name: np.unique(np.quantile(sample[:, place], shares, method="inverted_cdf"))
        for place, name in enumerate(layout.dense_names)
        if not name.endswith(_FLAG)
    }
