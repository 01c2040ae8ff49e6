"""What the fingerprints of a store stand for: values as people know them, learned from some raw rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import polars as pl

from features.fingerprint import NULL_FINGERPRINT, fingerprint
from features.ops.gap import FUTURE
from features.ops.time import PARTS
from features.pipeline import FeaturePipeline
from features.spec import (
    BucketFeature,
    CrossFeature,
    FrequencyFeature,
    IdFeature,
    IdsFeature,
    RecencyFeature,
    TimeFeature,
)

ValueNames = dict[str, dict[int, str]]
"""Feature -> fingerprint -> the value."""

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_LONGEST = 40


def value_names(pipeline: FeaturePipeline, frame: pl.DataFrame | None = None) -> ValueNames:
    """Names for the values of id features, crosses and lists.

    Parts of a time and buckets are known by themselves; all other values are those that occur in the frame.

    Args:
        pipeline: fitted.
        frame: raw rows; the more, the more values have a name.

    Raises:
        DataError: A column or a value is wrong.

    Example:
        >>> from features.spec import FeatureSpec
        >>> from features.validation import validate
        >>> spec = validate(FeatureSpec, {"features": [{"type": "id", "name": "city"}], "labels": ["click"]})
        >>> frame = pl.DataFrame({"city": ["Rome", None]})
        >>> sorted(value_names(FeaturePipeline(spec).fit(frame), frame)["city"].values())
        ['Rome', 'missing']
    """
    state = pipeline.state()
    names: ValueNames = {}
    for feature in pipeline.spec.features:
        known: list[str] = []
        match feature:
            case TimeFeature():
                values = PARTS[feature.part]
                known = [_WEEKDAYS[v] if feature.part == "weekday" else str(v) for v in range(values.stop)]
            case BucketFeature():
                known = _ranges(feature.edges or state[feature.name]["edges"])
            case FrequencyFeature():
                known = [f"bucket {i} of {feature.buckets}" for i in range(feature.buckets)]
            case RecencyFeature():
                known = [f"bucket {i} of {feature.buckets}" for i in range(feature.buckets)]
        names[feature.name] = {NULL_FINGERPRINT: "missing"} | {fingerprint(str(i)): v for i, v in enumerate(known)}
        if isinstance(feature, RecencyFeature):
            names[feature.name][FUTURE] = "after the event"
    if frame is not None and frame.height:
        _learn(pipeline, frame, names)
    return names


def _learn(pipeline: FeaturePipeline, frame: pl.DataFrame, names: ValueNames) -> None:
    derived = pipeline.derive(frame).collect()
    batch = pipeline.encode_frame(frame)
    ids = {name: batch.ids[:, place].numpy() for place, name in enumerate(pipeline.layout.id_names)}
    for feature in pipeline.spec.features:
        if isinstance(feature, IdFeature):
            _name(names[feature.name], ids[feature.name], derived.get_column(feature.column).item)
    for feature in pipeline.spec.features:
        if isinstance(feature, CrossFeature):
            parts = [(names[part], ids[part]) for part in feature.of]

            def cross(row: int, parts: list[tuple[dict[int, str], np.ndarray]] = parts) -> str:
                return " x ".join(known.get(int(codes[row]), "?") for known, codes in parts)

            _name(names[feature.name], ids[feature.name], cross)
        elif isinstance(feature, IdsFeature):
            _name_elements(names[feature.name], feature, derived)


def _name(names: dict[int, str], codes: np.ndarray, value: Callable[[int], object]) -> None:
    for code, row in zip(*np.unique(codes, return_index=True), strict=True):
        if (found := value(int(row))) is not None:
            names.setdefault(int(code), _cut(str(found)))


def _name_elements(names: dict[int, str], feature: IdsFeature, frame: pl.DataFrame) -> None:
    column = frame.get_column(feature.column)
    if feature.separator is not None and column.dtype == pl.String:
        column = column.str.split(feature.separator)
    if not isinstance(column.dtype, pl.List | pl.Array):
        return
    for value in column.explode().unique().drop_nulls().cast(pl.String, strict=False).drop_nulls().to_list():
        names.setdefault(fingerprint(value), _cut(value))


def _ranges(edges: list[float]) -> list[str]:
    """What each bucket holds.

    >>> _ranges([0, 10])
    ['below 0', '0 to 10', 'from 10']
    """
    if not edges:
        return ["any"]
    middle = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
    return [f"below {edges[0]:g}", *middle, f"from {edges[-1]:g}"]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 2] + ".."
