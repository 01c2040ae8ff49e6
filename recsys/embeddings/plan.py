"""Where every feature's rows lie: the regions of the one table, their sizes and their bytes.

A plan is made from the layout, the config and the distinct values seen in training.  It is a small JSON object;
the indices of exact values and of hot ids travel beside it as arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from features.errors import ArtifactError, ConfigError, unknown_name
from features.layout import Layout
from recsys.embeddings.addressing import HASH_VERSION, NO_OWNER, WAYS, exact_key
from recsys.embeddings.config import EmbeddingConfig
from recsys.embeddings.formats import SHARED_INT8, FormatName, RowFormat
from recsys.embeddings.hot import hot_memory, most_frequent
from recsys.embeddings.kept import WORD_BYTES, words_of
from recsys.memory import require_memory

SPLITS = {"proportional": 1.0, "sqrt": 0.5, "equal": 0.0}
"""Power of a feature's values with which a `hashed` table's rows are divided."""
HOT_KEY_BYTES = 4
"""Bytes of one entry of the hot index."""

IdCounts = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Feature name -> (distinct fingerprints int64, how often each was seen)."""


@dataclass(frozen=True)
class Pruned:
    """What pruning left of the rows that ids hash to; `base` and `span` of a feature count them as they were before.

    The table begins with the rows that are left, then comes one row of zeros, then the rows of exact values and hot
    ids.  Whatever was pruned is read as the row of zeros: a hashed row by way of the index `KeptRows`; all values of an
    exact field that are not in its index, since its `base` is then the row of zeros, and its `span` 1.
    """

    hashed: int
    """Rows that ids hash to, before; as a `base` this is the row of zeros."""
    left: int
    """How many of them are left; as a row of the table this is the row of zeros."""
    in_reach: dict[str, int]
    """Feature name -> how many of the rows it hashes to are left."""

    @property
    def indexed(self) -> bool:
        """Whether an index leads to the rows that are left; there is none where all are."""
        return self.left < self.hashed

    @property
    def index_bytes(self) -> int:
        """Bytes of the index of rows that are left."""
        return words_of(self.hashed + 1) * WORD_BYTES if self.indexed else 0


@dataclass(frozen=True)
class FeaturePlan:
    """The rows of one feature."""

    name: str
    bag: bool
    """Several values a row, pooled."""
    chunks: int
    values: int
    """Distinct values seen in training; of an exact field that was pruned, those that have rows still."""
    region: str
    """exact, shared, own (rows hashed into by this feature only) or dropped (no chunks)."""
    base: int
    """First row that ids not in the exact index hash to."""
    span: int
    """Number of rows that ids not in the exact index hash to."""
    exact_base: int = 0
    """First row of the feature's exact segment; it is values * chunks rows long."""
    exact_start: int = 0
    """First of the feature's `values` entries in the exact index."""
    hot_slots: int = 0
    """Ids that can own rows."""
    hot_base: int = 0
    """First row of the feature's hot segment; it is hot_slots * chunks rows long."""
    hot_start: int = 0
    """First of the feature's entries in the hot index."""


@dataclass(frozen=True)
class EmbeddingPlan:
    """The address space of the table."""

    kind: str
    width: int
    rows: int
    """All rows: hashed ones first, then exact segments, then hot ones, each in order of feature name; 0 without
    lookups."""
    features: tuple[FeaturePlan, ...]
    """Single-valued features in layout order, then bags in layout order."""
    init_scale: float
    format: FormatName = "fp32"
    step: float | None = None
    """The step that all int8 rows share (a model converted for serving); None for a scale a row."""
    hash_seed: int = 0
    hash_version: int = HASH_VERSION
    key_bits: int = 32
    """Bits of an entry of the exact index: 32, or 64 when two training values of one exact feature share 32."""
    exact_keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32), compare=False, repr=False)
    """The exact index: a segment of keys an exact feature, in order of feature name; ascending within a segment."""
    hot_half_life: int = 1000
    """Steps after which evidence for an id of the hot region counts half."""
    hot_expire: int | None = None
    """Steps after which an owner that was not seen loses its slot."""
    hot_keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32), compare=False, repr=False)
    """The hot index at the start of training: a segment of keys a feature, in order of feature name."""
    hot_shares: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32), compare=False, repr=False)
    """Share of the feature's training values that each of `hot_keys` took, 0 for an empty slot."""
    pruned: Pruned | None = None
    """What is left of the hashed rows; None of a table that was not pruned."""

    @property
    def hashed(self) -> int:
        """Rows that ids hash to, those that were pruned among them."""
        if self.pruned is not None:
            return self.pruned.hashed
        return max((f.base + f.span for f in self.features if f.chunks), default=0)

    @property
    def stored(self) -> EmbeddingPlan:
        """The plan with hashed segments as they lie in the table: of a pruned one, all that is left is one segment."""
        if self.pruned is None:
            return self
        left = self.pruned.left + 1
        return replace(self, features=tuple(replace(f, base=0, span=left) if f.chunks else f for f in self.features))

    @property
    def exact_values(self) -> int:
        """Entries of the exact index."""
        return sum(f.values for f in self.features if f.region == "exact")

    @property
    def row_format(self) -> RowFormat:
        """How a row is stored."""
        return RowFormat(self.format, self.width, self.step)

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored row, its own scale included."""
        return self.row_format.row_bytes

    @property
    def format_name(self) -> str:
        """The format as `recsys convert` knows it: fp32 and so on, or int8-table where all rows share a step."""
        return self.format if self.step is None else SHARED_INT8

    @property
    def hot_slots(self) -> int:
        """Entries of the hot index."""
        return sum(f.hot_slots for f in self.features)

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
        """Bytes of everything indexed by ids: rows, their scales, the exact and the hot index, and that of the rows
        which pruning left."""
        indices = sum(map(self.index_bytes_of, self.features))
        return self.rows * self.row_bytes + indices + (self.pruned.index_bytes if self.pruned else 0)

    def index_bytes_of(self, feature: FeaturePlan) -> int:
        """Bytes of a feature's part of the exact and the hot index."""
        exact = feature.values * self.key_bits // 8 if feature.region == "exact" else 0
        return exact + feature.hot_slots * HOT_KEY_BYTES

    def summary(self) -> list[dict[str, Any]]:
        """One line a feature: region, distinct values, chunks, width, hot slots, rows in reach, bytes of its own."""
        lines = []
        for f in self.features:
            exact = f.region == "exact"
            exact_rows, hot_rows = f.values * f.chunks if exact else 0, f.hot_slots * f.chunks
            span = self.pruned.in_reach[f.name] if self.pruned and f.chunks else f.span
            own = exact_rows + hot_rows + (span if self.kind != "multiplexed" and f.chunks else 0)
            lines.append(
                {
                    "feature": f.name,
                    "kind": "bag" if f.bag else "id",
                    "region": f"hot + {f.region}" if f.hot_slots else f.region,
                    "values": f.values,
                    "chunks": f.chunks,
                    "width": f.chunks * self.width,
                    "hot_slots": f.hot_slots,
                    "rows": exact_rows or (span + hot_rows if f.chunks else 0),
                    "bytes": own * self.row_bytes + self.index_bytes_of(f),
                }
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """The plan without its indices."""
        return {
            "kind": self.kind,
            "width": self.width,
            "rows": self.rows,
            "init_scale": self.init_scale,
            "format": self.format,
            "hash_seed": self.hash_seed,
            "hash_version": self.hash_version,
            "key_bits": self.key_bits,
            "hot_half_life": self.hot_half_life,
            "hot_expire": self.hot_expire,
            "features": [asdict(f) for f in self.features],
            **({"step": self.step} if self.step is not None else {}),
            **({"pruned": asdict(self.pruned)} if self.pruned else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EmbeddingPlan:
        """Reads what `to_json` wrote; the indices are empty ones of the right length, to be filled from weights.

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
            data.get("step"),
            data["hash_seed"],
            key_bits=data["key_bits"],
            hot_half_life=data["hot_half_life"],
            hot_expire=data["hot_expire"],
            pruned=Pruned(**data["pruned"]) if "pruned" in data else None,
        )
        return replace(
            plan,
            exact_keys=np.zeros(plan.exact_values, np.int32 if plan.key_bits == 32 else np.int64),
            hot_keys=np.full(plan.hot_slots, NO_OWNER, np.int32),
            hot_shares=np.zeros(plan.hot_slots, np.float32),
        )


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
        ConfigError: an override names no feature, an exact feature is to be hot, there are fewer rows than features
            that hash into rows of their own, or the table would be too large to address.
    """
    names = [(n, False) for n in layout.id_names] + [(n, True) for n in layout.bag_names]
    known = [n for n, _ in names]
    _check_names("embedding.chunks.features", config.chunks.features, known)
    _check_names("embedding.exact.features", config.exact.features, known)
    _check_names("embedding.hot.features", config.hot.features, known)
    values = {n: len(id_counts[n][0]) if n in id_counts else 0 for n in known}
    chunks = {n: config.chunks.of(n) for n in known}
    collisionless = config.kind == "collisionless"
    exact = {n for n in known if chunks[n] and (collisionless or config.exact.of(n, values[n]))}
    hot = _hot_slots(config, [n for n in known if chunks[n]], exact, id_counts)
    _check_not_exact(hot, exact, config)
    require_memory([hot_memory(sum(hot.values()))])
    segments, hashed_rows = _hashed_segments(config, known, chunks, values, exact)
    exact_base, exact_start, end, entries = {}, {}, hashed_rows, 0
    for name in sorted(exact):
        exact_base[name], exact_start[name] = end, entries
        end += values[name] * chunks[name]
        entries += values[name]
    hot_base, hot_start, slots = {}, {}, 0
    for name, size in hot.items():
        hot_base[name], hot_start[name] = end, slots
        end += size * chunks[name]
        slots += size
    if end >= 2**31:
        raise ConfigError(
            "the table has more rows than can be addressed",
            field="embedding",
            found=f"{end:,} rows",
            expected="fewer than 2**31",
            mend="lower embedding.rows or embedding.hot, or make fewer fields exact",
        )
    features = []
    for name, bag in names:
        base, span = segments.get(name, (0, 0))
        region = "dropped" if not chunks[name] else "exact" if name in exact else None
        region = region or ("shared" if config.kind == "multiplexed" else "own")
        features.append(
            FeaturePlan(
                name,
                bag,
                chunks[name],
                values[name],
                region,
                base,
                span,
                exact_base=exact_base.get(name, 0),
                exact_start=exact_start.get(name, 0),
                hot_slots=hot.get(name, 0),
                hot_base=hot_base.get(name, 0),
                hot_start=hot_start.get(name, 0),
            )
        )
    hot_keys, hot_shares = _first_owners(config, hot, id_counts)
    keys = exact_index({n: id_counts[n][0] for n in exact if values[n]}, config.hash_seed)
    return EmbeddingPlan(
        kind=config.kind,
        width=config.width,
        rows=end,
        features=tuple(features),
        init_scale=config.init_scale,
        format=config.format,
        hash_seed=config.hash_seed,
        key_bits=keys.itemsize * 8,
        exact_keys=keys,
        hot_half_life=config.hot.half_life,
        hot_expire=config.hot.expire,
        hot_keys=hot_keys,
        hot_shares=hot_shares,
    )


def exact_index(fingerprints: Mapping[str, np.ndarray], hash_seed: int = 0) -> np.ndarray:
    """The exact index of some features.

    Args:
        fingerprints: feature name -> its distinct values, int64.
        hash_seed: that of the plan.

    Returns:
        [K] int32 keys, a segment a feature in order of name, ascending within a segment; int64 keys if two values of
        one feature have the same 32 bits.
    """
    for bits in (32, 64):
        segments = [
            np.unique(exact_key(name, torch.from_numpy(fingerprints[name]), bits, hash_seed).numpy())
            for name in sorted(fingerprints)
        ]
        if all(len(s) == len(fingerprints[name]) for s, name in zip(segments, sorted(fingerprints), strict=True)):
            break
    return np.concatenate(segments) if segments else np.empty(0, np.int32)


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
    if len(hashed) > config.rows:
        raise ConfigError(
            "there are fewer rows than features that hash into rows of their own",
            field="embedding.rows",
            found=f"{config.rows} rows, {len(hashed)} features",
            mend="raise it, or drop features (embedding.chunks)",
        )
    power = SPLITS[config.split]
    weights = {n: max(values[n], 1) ** power for n in hashed}
    total = math.fsum(weights.values())
    segments, end = {}, 0
    for n in sorted(used):
        span = max(int(config.rows * weights[n] / total), 1) if n in weights else 1
        segments[n] = (end, span)
        end += span
    return segments, end


def head_of(id_counts: IdCounts, names: Sequence[str], ids: int) -> dict[str, np.ndarray]:
    """The ids seen most often over several features; of equals, those with the smaller fingerprint, then
    of the feature named first.

    Args:
        id_counts: distinct fingerprints of the features, and how often each was seen.
        names: the features; one without counts has no ids.
        ids: how many, at most.

    Returns:
        Feature name -> int64 fingerprints ascending, perhaps none.

    >>> counts = {"a": (np.array([5, 6]), np.array([9, 1])), "b": (np.array([7]), np.array([3]))}
    >>> {name: head.tolist() for name, head in head_of(counts, ["a", "b"], 2).items()}
    {'a': [5], 'b': [7]}
    """
    nothing = np.empty(0, np.int64), np.empty(0, np.int64)
    counts = [id_counts.get(name, nothing) for name in names]
    fingerprints, seen = (np.concatenate([np.empty(0, np.int64), *(c[i] for c in counts)]) for i in (0, 1))
    owner = np.repeat(np.arange(len(names)), [len(c[0]) for c in counts])
    chosen = np.lexsort((fingerprints, -seen))[:ids]
    return {name: np.sort(fingerprints[chosen][owner[chosen] == i]) for i, name in enumerate(names)}


def _hot_slots(config: EmbeddingConfig, used: list[str], exact: set[str], id_counts: IdCounts) -> dict[str, int]:
    """Slots of each feature that has any, in order of feature name."""
    slots = {n: config.hot.features[n] for n in used if n in config.hot.features}
    if config.hot.slots:
        others = sorted(n for n in used if n not in exact and n not in slots)
        if not others:
            collisionless = config.kind == "collisionless"
            raise ConfigError(
                "there is no feature whose ids could be hot",
                field="embedding.hot.slots",
                found=f"{config.hot.slots} slots, and every feature is exact, without chunks, or has slots of its own",
                mend="leave it out" + ("" if collisionless else ", or lower embedding.exact.max_values"),
            )
        slots |= {n: len(head) for n, head in head_of(id_counts, others, config.hot.slots).items() if len(head)}
    return {n: -(-slots[n] // WAYS) * WAYS for n in sorted(slots)}


def _first_owners(config: EmbeddingConfig, hot: dict[str, int], id_counts: IdCounts) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the hot index at the start of training, and the share of its feature's values each key took."""
    keys, shares = [np.empty(0, np.int32)], [np.empty(0, np.float32)]
    for name, slots in hot.items():
        if config.hot.start == "counts" and name in id_counts and len(id_counts[name][0]):
            own_keys, own_shares = most_frequent(name, slots, *id_counts[name], config.hash_seed)
        else:
            own_keys, own_shares = np.full(slots, NO_OWNER, np.int32), np.zeros(slots, np.float32)
        keys.append(own_keys)
        shares.append(own_shares)
    return np.concatenate(keys), np.concatenate(shares)


def _check_not_exact(hot: dict[str, int], exact: set[str], config: EmbeddingConfig) -> None:
    for name in hot:
        if name in exact:
            raise ConfigError(
                "every value of an exact feature has rows of its own: it has no hot ones",
                field=f"embedding.hot.features.{name}",
                found=config.hot.features[name],
                mend="leave it out"
                + ("" if config.kind == "collisionless" else f", or set embedding.exact.features.{name} to false"),
            )


def _check_names(where: str, given: Mapping[str, object], known: list[str]) -> None:
    for name in given:
        if name not in known:
            what, otherwise = "there is no such id feature", "use the name of an id feature"
            raise unknown_name(what, name, known, field=f"{where}.{name}", otherwise=otherwise)
