"""Vectors of a model's values or items as an Arrow table: made from raw rows piece by piece, or read from a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ArtifactError, ConfigError, DataError, list_names
from features.fingerprint import NULL_FINGERPRINT, fingerprint_expr
from features.frames import first_line, require_column, schema_of
from features.ops.cast import text_expr
from features.ops.lists import list_expr
from features.pipeline import FeaturePipeline
from features.reading.sources import scan
from features.spec import (
    BucketFeature,
    CrossFeature,
    FeatureSpec,
    FrequencyFeature,
    IdFeature,
    IdsFeature,
    RecencyFeature,
    SequenceFeature,
    TimeFeature,
)
from features.sql import roots, row_expressions
from features.value_names import value_names
from pipelines.config import load_config
from pipelines.measure import raw_events
from pipelines.models import OpenedModel, open_model
from recsys.serving.registry import Registry, is_model_uri
from recsys.serving.vectors import REGIONS, VECTORS_VERSION, ItemVectors, ValueVectors, describe, embedded_feature

METADATA = b"recsys.vectors"
"""Key of the description in the schema's metadata."""
VALUE, COUNT, FINGERPRINT, REGION = "value", "count", "fingerprint", "region"
SEEN, UNSEEN, BUNDLE, VECTOR = "seen", "unseen", "bundle", "vector"
ARROW_ENDINGS = (".arrow", ".feather", ".ipc")
ENDINGS = (".parquet", *ARROW_ENDINGS)
BATCH = 65_536
_ELEMENTS = IdsFeature | SequenceFeature
_KNOWN = TimeFeature | BucketFeature | FrequencyFeature | RecencyFeature
_OF_VALUES = (VALUE, COUNT, FINGERPRINT, REGION, SEEN, BUNDLE, VECTOR)
_OF_ITEMS = (COUNT, UNSEEN, BUNDLE, VECTOR)


@dataclass(frozen=True)
class Vectors:
    """Vectors that are made as they are read."""

    about: dict[str, Any]
    """See `recsys.serving.vectors.describe`; `feature` and its `value_dtype`, or `item`: the features of an item."""
    schema: pa.Schema
    rows: int
    batches: Callable[[], Iterator[pa.RecordBatch]]

    def table(self) -> pa.Table:
        """All of them."""
        return pa.Table.from_batches(list(self.batches()), self.schema)


@dataclass(frozen=True)
class Wanted:
    """Which vectors."""

    feature: str | None = None
    """A vector for each value of this feature ..."""
    item: tuple[str, ...] = ()
    """... or for each item: what these features read."""
    keep: tuple[str, ...] = ()
    """Columns of the data carried along: the first value that is there."""
    half: bool = False
    """fp16 in place of fp32."""


def vectors_of(model: str, data: str | None, wanted: Wanted, *, tracking_uri: str) -> Vectors:
    """The vectors of a model.

    Args:
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or the folder of a run or of a bundle.
        data: File or glob of rows that hold the values or items; a run has its own. Not for features whose values are
            known by themselves, such as parts of a time.
        wanted: Which.
        tracking_uri: Store of the registry.

    Raises:
        ConfigError: There is no such feature, its values have no vectors, or there is nothing to take them from; a
            column is to be kept twice or has the name of one of ours.
        ArtifactError: There is no such model.
        DataError: The data is absent, damaged or empty, lacks a column, or a value is wrong.
    """
    name, version = None, None
    if is_model_uri(model):  # an alias may be moved while the model is fetched
        found = Registry(tracking_uri, create=False).resolve(model)
        model, name, version = found.uri, found.name, found.version
    opened = open_model(model, tracking_uri)
    make = _of_values if wanted.feature is not None else _of_items
    return make(opened, data, wanted, {"name": name, "version": version})


def read_vectors(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Exported vectors and their description.

    Raises:
        ArtifactError: The file is missing or damaged, or holds no vectors of ours.
    """
    mend = "write it with `recsys export`"
    try:
        if path.suffix in ARROW_ENDINGS:
            with pa.OSFile(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
        else:
            table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError("cannot be read", field=str(path), found=first_line(error), mend=mend) from error
    try:
        about = json.loads((table.schema.metadata or {})[METADATA])
        version = about["vectors_version"]
    except (KeyError, ValueError, TypeError):
        raise ArtifactError("holds no exported vectors", field=str(path), mend=mend) from None
    if version != VECTORS_VERSION:
        raise ArtifactError(
            "was written by another release",
            field=str(path),
            found=f"vectors version {version}",
            expected=VECTORS_VERSION,
            mend=mend,
        )
    return table, about


def matrix_of(table: pa.Table) -> np.ndarray:
    """The vectors of a table, [n, width] fp32."""
    column = table.column(VECTOR).combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return flat.reshape(len(column), column.type.list_size)


def _of_values(opened: OpenedModel, data: str | None, wanted: Wanted, named: Mapping[str, Any]) -> Vectors:
    assert wanted.feature is not None
    bundle = opened.bundle
    embedded_feature(bundle.model.plan, wanted.feature)
    made = ValueVectors(bundle.model, wanted.feature)
    feature = bundle.pipeline.spec.feature(wanted.feature)
    if isinstance(feature, _KNOWN):
        known = value_names(bundle.pipeline)[feature.name]
        texts = [None if code == NULL_FINGERPRINT else text for code, text in known.items()]
        values = pl.DataFrame(
            {VALUE: texts, COUNT: None, FINGERPRINT: list(known)},
            schema={VALUE: pl.String, COUNT: pl.Int64, FINGERPRINT: pl.Int64},
        )
        if data is not None or wanted.keep:
            raise ConfigError(
                "its values are known by themselves, and no data is read for them",
                field=feature.name,
                found=data or f"--keep {','.join(wanted.keep)}",
                mend="leave DATA and --keep out",
            )
        dtype = None
    elif isinstance(feature, IdFeature | IdsFeature | SequenceFeature):
        frame = _rows(opened, data)
        _check_kept(frame, wanted.keep, _OF_VALUES)
        values = _distinct_values(bundle.pipeline, feature, frame, wanted.keep)
        dtype = feature.dtype
    else:
        raise ConfigError(
            f"a value of a {feature.type} feature is made of several columns or elements, not one",
            field=feature.name,
            mend=f"export the rows that make it: --item {feature.name}",
        )

    def columns(part: pl.DataFrame) -> tuple[dict[str, pa.Array], np.ndarray]:
        codes = part.get_column(FINGERPRINT).to_numpy()
        regions = made.regions(codes)
        marks = {REGION: _dictionary(regions, REGIONS), SEEN: pa.array(made.seen(regions), pa.bool_())}
        return marks, made.vectors(codes)

    about = describe(bundle, made.parts, dtype="fp16" if wanted.half else "fp32", **named)
    about |= {"feature": feature.name, "value_dtype": dtype}
    return _vectors(values.select(VALUE, COUNT, *wanted.keep, FINGERPRINT), columns, about, made.width)


def _of_items(opened: OpenedModel, data: str | None, wanted: Wanted, named: Mapping[str, Any]) -> Vectors:
    bundle = opened.bundle
    made = ItemVectors(bundle.model, wanted.item)
    read = columns_of(bundle.pipeline.spec, wanted.item)
    frame = _rows(opened, data)
    schema = schema_of(frame)
    for column in read:
        require_column(column, schema)
    _check_kept(frame, wanted.keep, (*read, *_OF_ITEMS))
    for column in read:
        if column in _OF_ITEMS:
            raise ConfigError(
                "a column of the item has the name of one that is written beside it",
                field=column,
                found=list_names(_OF_ITEMS),
                mend="leave its feature out of --item",
            )
    kept = [pl.col(name).drop_nulls().first() for name in wanted.keep]
    grouped = frame.group_by(read, maintain_order=True).agg(pl.len().cast(pl.Int64).alias(COUNT), *kept)
    items = _collect(bundle.pipeline, frame, grouped)

    def columns(part: pl.DataFrame) -> tuple[dict[str, pa.Array], np.ndarray]:
        batch = bundle.pipeline.encode_frame(_completed(bundle.pipeline, part.lazy().select(read)))
        return {UNSEEN: pa.array(made.unseen(batch), pa.list_(pa.string()))}, made.vectors(batch)

    about = describe(bundle, made.parts, dtype="fp16" if wanted.half else "fp32", **named)
    about |= {"item": list(wanted.item), "columns": read}
    return _vectors(items, columns, about, made.width)


def columns_of(spec: FeatureSpec, features: Sequence[str]) -> list[str]:
    """The columns of the data that some features are read from, those of a cross's parts included."""
    chosen = [spec.feature(name) for name in features]
    parts = [spec.feature(part) for f in chosen if isinstance(f, CrossFeature) for part in f.of]
    return spec.model_copy(update={"features": [*chosen, *parts]}).feature_columns


def _vectors(
    frame: pl.DataFrame,
    columns: Callable[[pl.DataFrame], tuple[dict[str, pa.Array], np.ndarray]],
    about: dict[str, Any],
    width: int,
) -> Vectors:
    """Joins what was found in the data, what is known of it, and the vectors."""
    number = pa.float16() if about["dtype"] == "fp16" else pa.float32()
    kind = pa.list_(pa.field("item", number, nullable=False), width)

    def batch(part: pl.DataFrame) -> pa.RecordBatch:
        arrays = dict(zip(part.columns, part.to_arrow(compat_level=pl.CompatLevel.oldest()).columns, strict=True))
        more, vectors = columns(part)
        arrays |= more
        arrays[BUNDLE] = _dictionary(np.zeros(len(part), np.int8), (about["bundle"],))
        with np.errstate(over="ignore"):
            numbers = vectors.astype(number.to_pandas_dtype())
        if not np.isfinite(numbers).all():
            raise DataError(
                "a number is too large for the vectors",
                field=VECTOR,
                found=float(np.abs(vectors).max()),
                expected=about["dtype"],
                mend="export with --dtype fp32, or scale the number feature",
            )
        arrays[VECTOR] = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), type=kind)
        combined = [a.combine_chunks() if isinstance(a, pa.ChunkedArray) else a for a in arrays.values()]
        fields = [pa.field(name, array.type) for name, array in zip(arrays, combined, strict=True)]
        schema = pa.schema(fields, metadata={METADATA: json.dumps(about, sort_keys=True)})
        return pa.RecordBatch.from_arrays(combined, schema=schema)

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(frame), BATCH):
            yield batch(frame.slice(start, BATCH))

    return Vectors(about, batch(frame.head(1)).schema, len(frame), batches)


def _distinct_values(
    pipeline: FeaturePipeline,
    feature: IdFeature | IdsFeature | SequenceFeature,
    frame: pl.LazyFrame,
    keep: Sequence[str],
) -> pl.DataFrame:
    """The values in the order in which they come: as the text that is hashed, their number and fingerprint."""
    schema = schema_of(frame)
    for column in sorted(roots(feature.column, row_expressions(pipeline.spec.derive))):
        require_column(column, schema)
    derived = pipeline.derive(_completed(pipeline, frame, keep))
    dtype = schema_of(derived)[feature.column]
    if isinstance(feature, _ELEMENTS):
        derived, dtype = _elements(derived, feature, dtype)
    text, _ = text_expr(pl.col(feature.column), dtype, feature.dtype, feature.column)
    kept = [pl.col(name).drop_nulls().first() for name in keep]
    found = (
        derived.select(text.alias(VALUE), *keep)
        .group_by(VALUE, maintain_order=True)
        .agg(pl.len().cast(pl.Int64).alias(COUNT), *kept)
        .with_columns(fingerprint_expr(pl.col(VALUE)).alias(FINGERPRINT))
    )
    return _collect(pipeline, frame, found)


def _elements(
    frame: pl.LazyFrame, feature: IdsFeature | SequenceFeature, dtype: pl.DataType
) -> tuple[pl.LazyFrame, pl.DataType]:
    """A row an element; a missing list is one missing element, an empty one none."""
    inner: pl.DataType = pl.String()
    if isinstance(feature, IdsFeature) and feature.separator is not None:
        pieces = pl.col(feature.column).cast(pl.String).str.split(feature.separator)
        lists = pieces.list.eval(pl.element().filter(pl.element() != ""))
    else:
        lists, inner = list_expr(feature.column, dtype, "a list", "give rows as they were in training")
    some = pl.col(feature.column).is_null() | (pl.col(feature.column).list.len() > 0)
    return frame.with_columns(lists.alias(feature.column)).filter(some).explode(feature.column), inner


def _rows(opened: OpenedModel, data: str | None) -> pl.LazyFrame:
    """The raw rows that are named, else those of the model's run."""
    if data is not None:
        if (Path(data) / "manifest.json").is_file():
            raise ConfigError(
                "prepared data holds fingerprints, and no values",
                field=data,
                mend="name the raw rows: a file or a glob",
            )
        return scan(data)
    if opened.run is None:
        raise ConfigError(
            "the values are not in the model: ids that hash are in no vocabulary",
            field=opened.name,
            found="a model without its run",
            mend="name a file or glob of rows that hold them",
        )
    return raw_events(load_config(opened.run.folder / "config.yaml"))


def _completed(pipeline: FeaturePipeline, frame: pl.LazyFrame, keep: Sequence[str] = ()) -> pl.LazyFrame:
    """The frame with nulls for the features' columns that it lacks; those that are not kept go."""
    columns = pipeline.spec.feature_columns
    have = set(schema_of(frame).names())
    lacking = [pl.lit(None).alias(name) for name in columns if name not in have]
    return frame.with_columns(lacking).select(*columns, *(name for name in keep if name not in columns))


def _collect(pipeline: FeaturePipeline, frame: pl.LazyFrame, wanted: pl.LazyFrame) -> pl.DataFrame:
    try:
        found = wanted.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise pipeline.explain(_completed(pipeline, frame), error, labels=False) from error
    if not len(found):
        raise DataError("there is no value to export", mend="give a file that has rows")
    return found


def _check_kept(frame: pl.LazyFrame, keep: Sequence[str], taken: Sequence[str]) -> None:
    have = schema_of(frame)
    for i, column in enumerate(keep):
        require_column(column, have, role="columns to keep")
        if column in keep[:i]:
            raise ConfigError("column is to be kept twice", field=column, mend="name it once in --keep")
        if column in taken:
            raise ConfigError(
                "column to keep has the name of one that is there already",
                field=column,
                found=list_names(taken),
                mend="leave it out of --keep, or rename it in the data",
            )


def _dictionary(places: np.ndarray, names: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(places, pa.int8()), pa.array(names, pa.string()))
