"""What the network of a trained model reads of a value or of an item, as one vector; and where that vector comes from.

For use outside of the model: to find neighbours, to feed another model.  docs/neighbours.md says what such a vector
means and what it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from features.batch import Batch
from features.errors import ConfigError, unknown_name
from features.fingerprint import FINGERPRINT_VERSION
from recsys.embeddings.plan import EmbeddingPlan, FeaturePlan
from recsys.models.ctr import CTRModel
from recsys.serving.bundle import Bundle

VECTORS_VERSION = 1
"""Of the description that travels with exported vectors."""

REGIONS = ("exact", "hot", "shared", "own", "pruned")
"""Where the rows of a value lie: its own (exact, hot), those it hashes to among all features' (shared) or among its
feature's (own), or nowhere: pruning left none of them, and the vector is zeros."""


@dataclass(frozen=True)
class Part:
    """What one feature contributes to a vector."""

    feature: str
    """A feature, or one of its outputs, such as `price:missing`."""
    region: str | None
    """Of the plan: exact, shared, own, or `hot +` one of them; None for numbers and vectors."""
    chunks: int
    """Rows of the table a value; 0 for numbers and vectors."""
    start: int
    """Its first place."""
    width: int


class ValueVectors:
    """The vectors of the values of one feature.

    Args:
        model: trained; its weights are read and never changed.
        feature: single-valued, or a list, whose elements are its values.

    Attributes:
        parts: the one part.

    Raises:
        ConfigError: there is no such embedded feature, or it has no rows of the table.
    """

    def __init__(self, model: CTRModel, feature: str) -> None:
        self._embedding, self._plan = model.embedding, model.plan
        self._feature = embedded_feature(model.plan, feature)
        f = self._feature
        self.parts = [Part(f.name, _region_of(f), f.chunks, 0, f.chunks * model.plan.width)]

    @property
    def width(self) -> int:
        """chunks * width of the table."""
        return self.parts[0].width

    @torch.inference_mode()
    def vectors(self, fingerprints: np.ndarray) -> np.ndarray:
        """[n] int64 -> [n, chunks * width] fp32, chunks side by side as the network reads them."""
        rows = self._rows(fingerprints).flatten().to(torch.int64)
        values: np.ndarray = self._embedding.table.values(rows).numpy()
        return values.reshape(len(fingerprints), self.width)

    def regions(self, fingerprints: np.ndarray) -> np.ndarray:
        """[n] int64 -> [n] int8 places in `REGIONS`."""
        return _regions(self._plan, self._feature, self._rows(fingerprints).numpy())

    def seen(self, regions: np.ndarray) -> list[bool | None]:
        """Whether training saw values of these `regions`; None where nobody knows: hashed ids are in no vocabulary."""
        return _seen(self._plan, self._feature, regions)

    def _rows(self, fingerprints: np.ndarray) -> torch.Tensor:
        return self._embedding.rows_of(self._feature.name, torch.tensor(fingerprints))


class ItemVectors:
    """What the network reads of some features of a row: embeddings (lists pooled), numbers and vectors side by side.

    Args:
        model: trained.
        features: of the spec; the order of the parts is that of the network's input, not this one.

    Attributes:
        parts: where each feature stands in the vector.

    Raises:
        ConfigError: there is no such feature, or it has no rows of the table.
    """

    def __init__(self, model: CTRModel, features: Sequence[str]) -> None:
        self._model, self._plan = model, model.plan
        known = list(dict.fromkeys(_feature_of(name) for name in model.layout.feature_names))
        for name in features:
            _check_known(name, known)
        chosen = set(features)
        places: list[int] = []
        self.parts: list[Part] = []
        for place, name in enumerate(key[0] for key in model.network.input_axis()):  # type: ignore[index]
            if _feature_of(name) not in chosen:
                continue
            if self.parts and self.parts[-1].feature == name:
                last = self.parts.pop()
                self.parts.append(Part(name, last.region, last.chunks, last.start, last.width + 1))
            else:
                f = next((f for f in model.plan.features if f.name == name), None)
                region, chunks = (None, 0) if f is None else (_region_of(f), f.chunks)
                self.parts.append(Part(name, region, chunks, len(places), 1))
            places.append(place)
        for name in features:
            if not any(_feature_of(part.feature) == name for part in self.parts):
                raise _without_rows(name)
        self._places = np.array(places)

    @property
    def width(self) -> int:
        """Numbers a vector."""
        return len(self._places)

    @torch.inference_mode()
    def vectors(self, batch: Batch) -> np.ndarray:
        """[B, width] fp32."""
        inputs: np.ndarray = self._model.inputs_of(batch).numpy()
        return np.ascontiguousarray(inputs[:, self._places])

    def unseen(self, batch: Batch) -> list[list[str]]:
        """For each row the single-valued features whose id training never saw, as far as that is known."""
        found: list[list[str]] = [[] for _ in range(len(batch))]
        names = {part.feature for part in self.parts}
        for column, f in enumerate(f for f in self._plan.features if not f.bag):
            if f.name not in names:
                continue
            rows = self._model.embedding.rows_of(f.name, batch.ids[:, column]).numpy()
            for row, seen in enumerate(_seen(self._plan, f, _regions(self._plan, f, rows))):
                if seen is False:
                    found[row].append(f.name)
        return found


def embedded_feature(plan: EmbeddingPlan, name: str) -> FeaturePlan:
    """The plan of a feature that has rows of the table.

    Raises:
        ConfigError: there is no such embedded feature, or it has no rows.
    """
    features = {f.name: f for f in plan.features}
    _check_known(name, list(features), "embedded feature")
    if not features[name].chunks:
        raise _without_rows(name)
    return features[name]


def describe(
    bundle: Bundle, parts: Sequence[Part], *, dtype: str, name: str | None = None, version: int | None = None
) -> dict[str, Any]:
    """What vectors must carry so that nobody mixes them with those of another model: a JSON object.

    Args:
        bundle: the model they come from.
        parts: of what they are made.
        dtype: of their numbers: fp32 or fp16.
        name: of the registered model.
        version: of it.
    """
    plan = bundle.model.plan
    return {
        "vectors_version": VECTORS_VERSION,
        "model": {"name": name, "version": version},
        "bundle": bundle.digest,
        "fingerprint_version": FINGERPRINT_VERSION,
        "hash_version": plan.hash_version,
        "hash_seed": plan.hash_seed,
        "format": plan.format_name,
        "dtype": dtype,
        "width": sum(part.width for part in parts),
        "table_width": plan.width,
        "parts": [asdict(part) for part in parts],
    }


def _regions(plan: EmbeddingPlan, f: FeaturePlan, rows: np.ndarray) -> np.ndarray:
    """[n, chunks] rows of values of a feature -> [n] int8 places in `REGIONS`."""
    first = rows[:, 0]
    hashed = REGIONS.index("shared" if plan.kind == "multiplexed" else "own")
    found = np.full(len(rows), hashed, np.int8)
    if f.region == "exact":
        found[(first >= f.exact_base) & (first < f.exact_base + f.values * f.chunks)] = REGIONS.index("exact")
    if f.hot_slots:
        found[(first >= f.hot_base) & (first < f.hot_base + f.hot_slots * f.chunks)] = REGIONS.index("hot")
    if plan.pruned is not None:
        found[(rows == plan.pruned.left).all(1)] = REGIONS.index("pruned")
    return found


def _seen(plan: EmbeddingPlan, f: FeaturePlan, regions: np.ndarray) -> list[bool | None]:
    # of a pruned exact field, what is not in the index was pruned or never seen
    others = False if f.region == "exact" and plan.pruned is None else None
    own = (REGIONS.index("exact"), REGIONS.index("hot"))
    return [True if region in own else others for region in regions.tolist()]


def _region_of(f: FeaturePlan) -> str:
    return f"hot + {f.region}" if f.hot_slots else f.region


def _feature_of(output: str) -> str:
    """The feature that an output belongs to: `price` for `price:missing`."""
    return output.partition(":")[0]


def _check_known(name: str, known: Sequence[str], what: str = "feature") -> None:
    if name not in known:
        raise unknown_name(f"there is no such {what}", name, known, field=name)


def _without_rows(name: str) -> ConfigError:
    return ConfigError(
        "the feature has no rows of the table, so no value of it has a vector",
        field=name,
        found="0 chunks",
        mend="name another feature, or train with embedding.chunks above 0 for it",
    )
