"""FeatureSpec: the one description of the columns, from which everything else follows.

A spec says which columns are features, how each is encoded, and which carry labels, weight, group and time.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from features.errors import ConfigError, did_you_mean, list_names, unknown_name
from features.layout import Layout
from features.sql import roots, row_expressions
from features.validation import Strict

IdDtype = Literal["string", "integer", "boolean"]
TimeUnit = Literal["s", "ms", "us", "ns"]
TimePart = Literal["hour", "weekday", "hour_of_week", "day", "month"]
Pooling = Literal["sum", "mean"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class FeatureBase(Strict):
    """What every feature has."""

    name: Name
    """Name of the feature: rows of the table depend on it, so a new name is a new feature."""
    column: str = ""
    """Column it is read from; the name when not given."""

    @model_validator(mode="before")
    @classmethod
    def _column_is_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("column") and "column" in cls.model_fields and "name" in data:
            return {**data, "column": data["name"]}
        return data


class IdFeature(FeatureBase):
    """One categorical value a row."""

    type: Literal["id"] = "id"
    dtype: IdDtype = "string"
    """What the value is cast to before it is hashed: 7 and "7" are one value under both."""


class IdsFeature(FeatureBase):
    """A list of categorical values a row, pooled by the model."""

    type: Literal["ids"] = "ids"
    dtype: IdDtype = "string"
    """What each element is cast to before it is hashed."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """For text columns: what stands between two elements. Without it the column holds lists."""
    pooling: Literal["sum", "mean"] = "sum"
    """How the model joins the embeddings of one list."""
    max_length: Annotated[int, Field(ge=1)] | None = None
    """Elements kept, from the front."""


class NumberFeature(FeatureBase):
    """One number a row: clip, then log, then standardise; or clip, then the place among quantiles."""

    type: Literal["number"] = "number"
    clip: tuple[float | None, float | None] | None = None
    """Smallest and largest value; null for no bound."""
    log: float | None = None
    """Offset o of ln(x + o); the clip must make x + o > 0."""
    standardise: bool = False
    """Subtract the mean and divide by the standard deviation of the training rows."""
    quantiles: Annotated[int, Field(ge=2, le=1000)] | None = None
    """The number's place from 0 to 1 among this many quantiles of the training rows, linear in between."""
    missing_flag: bool = False
    """Adds a number "NAME:missing" that is 1 where the value is missing."""

    @model_validator(mode="after")
    def _check(self) -> NumberFeature:
        if self.quantiles is not None and (self.log is not None or self.standardise):
            raise ConfigError(
                "quantiles already give a scale",
                field=f"features.{self.name}.quantiles",
                mend="leave log and standardise out",
            )
        low, high = self.clip or (None, None)
        if low is not None and high is not None and low >= high:
            raise ConfigError(
                "clip bounds are not in order",
                field=f"features.{self.name}.clip",
                found=[low, high],
                expected="low < high",
            )
        if self.log is not None and (low is None or low + self.log <= 0):
            raise ConfigError(
                "the logarithm could meet a number that is not positive",
                field=f"features.{self.name}.log",
                found=f"log offset {self.log} with clip {list(self.clip) if self.clip else None}",
                expected="lower clip bound + log offset > 0",
                mend=f"set clip: [0, null] and log: 1, or a lower bound above {-self.log}",
            )
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(handler(self), quantiles=None)


class BucketFeature(FeatureBase):
    """A number turned into the id of the bucket it falls in."""

    type: Literal["bucket"] = "bucket"
    edges: list[float] | None = None
    """Given edges; bucket i holds the values from edge i-1 (included) up to edge i (not included)."""
    quantiles: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Number of buckets of about equal size, fitted on the training rows."""

    @model_validator(mode="after")
    def _check(self) -> BucketFeature:
        where = f"features.{self.name}"
        if (self.edges is None) == (self.quantiles is None):
            raise ConfigError("a bucket feature needs either edges or quantiles", field=where, mend="give exactly one")
        if self.edges is not None:
            if not self.edges or len(self.edges) > 1000:
                raise ConfigError(
                    "wrong number of edges",
                    field=f"{where}.edges",
                    found=len(self.edges),
                    expected="1 to 1000",
                )
            if any(b <= a for a, b in zip(self.edges, self.edges[1:], strict=False)):
                raise ConfigError(
                    "edges are not in order",
                    field=f"{where}.edges",
                    found=self.edges,
                    expected="strictly increasing",
                )
        return self


class CrossFeature(Strict):
    """The combination of two or more single-valued id features as one id."""

    type: Literal["cross"] = "cross"
    name: Name
    """Name of the feature."""
    of: Annotated[list[str], Field(min_length=2)]
    """Names of id, bucket, time, recency or frequency features; their order matters."""


class TimeFeature(FeatureBase):
    """A part of a time as an id."""

    type: Literal["time"] = "time"
    part: TimePart
    """hour: 0 to 23 (UTC). weekday: 0 (Monday) to 6. hour_of_week: 0 to 167. day: 1 to 31. month: 1 to 12."""
    unit: TimeUnit | None = None
    """For integer columns: what one step since 1970-01-01 is."""


class CyclicFeature(FeatureBase):
    """A part of a time as two numbers, the sine and the cosine of its place in the cycle."""

    type: Literal["cyclic"] = "cyclic"
    part: TimePart
    """As of a time feature; every month has 31 days."""
    unit: TimeUnit | None = None
    """For integer columns: what one step since 1970-01-01 is."""


class GapBase(FeatureBase):
    """Buckets of the time that passed up to the event, on a logarithmic scale."""

    unit: TimeUnit | None = None
    """For integer times: what one step since 1970-01-01 is."""
    shortest: Annotated[float, Field(ge=1e-6)] = 1.0
    """Seconds; gaps below it are one bucket."""
    longest: Annotated[float, Field(le=1e12)] = 31_536_000.0
    """Seconds; gaps of it and more are one bucket."""
    buckets: Annotated[int, Field(ge=3, le=1000)] = 32
    """Number of buckets, those two included."""

    @model_validator(mode="after")
    def _check_gaps(self) -> GapBase:
        if self.shortest >= self.longest:
            raise ConfigError(
                "bounds are not in order",
                field=f"features.{self.name}.shortest",
                found=[self.shortest, self.longest],
                expected="shortest < longest",
            )
        return self


class RecencyFeature(GapBase):
    """The time from another moment to the event, as the id of a bucket."""

    type: Literal["recency"] = "recency"


class FrequencyFeature(FeatureBase):
    """How often the value occurs in the training rows, as the id of a bucket on a logarithmic scale."""

    type: Literal["frequency"] = "frequency"
    dtype: IdDtype = "string"
    """What the value is cast to before it is counted."""
    buckets: Annotated[int, Field(ge=2, le=256)] = 32
    """Number of buckets, that of unseen and rare values included."""
    min_count: Annotated[int, Field(ge=1)] = 2
    """A value that occurs less often is rare."""
    max_values: Annotated[int, Field(ge=1, le=100_000_000)] = 1_000_000
    """Values kept, the most frequent ones; the others are rare."""


class NgramsFeature(FeatureBase):
    """A text as the list of its runs of n words or characters, pooled by the model."""

    type: Literal["ngrams"] = "ngrams"
    of: Literal["words", "characters"] = "words"
    """What a run is made of."""
    n: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(le=16)]] = (1, 2)
    """Shortest and longest run."""
    lowercase: bool = True
    """Whether capital letters are taken for small ones."""
    pooling: Pooling = "mean"
    """How the model joins the embeddings of one text."""
    max_length: Annotated[int, Field(ge=1)] | None = None
    """Runs kept: the shortest first, from the front."""

    @model_validator(mode="after")
    def _check(self) -> NgramsFeature:
        if self.n[0] > self.n[1]:
            raise ConfigError(
                "sizes are not in order", field=f"features.{self.name}.n", found=list(self.n), expected="[from, to]"
            )
        return self


class SemanticIdFeature(FeatureBase):
    """A list of integer codes, coarse to fine, as the list of its prefixes, pooled by the model."""

    type: Literal["semantic_id"] = "semantic_id"
    depth: Annotated[int, Field(ge=1, le=64)]
    """Codes used, from the front."""
    pooling: Pooling = "sum"
    """How the model joins the embeddings of the prefixes."""


class SequenceFeature(GapBase):
    """The latest of a list of past events, most recent first, pooled by the model."""

    type: Literal["sequence"] = "sequence"
    length: Annotated[int, Field(ge=1)]
    """Events kept."""
    dtype: IdDtype = "string"
    """What each element is cast to before it is hashed."""
    newest: Literal["first", "last"] = "last"
    """Where in the list the most recent event stands."""
    times: str | None = None
    """Column with a list of the events' times: adds a list "NAME:gap" of buckets of the time since each."""
    pooling: Pooling = "mean"
    """How the model joins the embeddings of one list."""


class VectorFeature(FeatureBase):
    """A list of floats of fixed size a row, used as it is."""

    type: Literal["vector"] = "vector"
    size: Annotated[int, Field(ge=1, le=65536)]
    """Numbers a row."""


Feature = Annotated[
    IdFeature
    | IdsFeature
    | NumberFeature
    | BucketFeature
    | CrossFeature
    | TimeFeature
    | CyclicFeature
    | RecencyFeature
    | FrequencyFeature
    | NgramsFeature
    | SemanticIdFeature
    | SequenceFeature
    | VectorFeature,
    Field(discriminator="type"),
]


class FeatureSpec(Strict):
    """The description of the columns.

    Example:
        >>> from features.validation import validate
        >>> spec = validate(FeatureSpec, {
        ...     "features": [
        ...         {"type": "id", "name": "user"},
        ...         {"type": "number", "name": "age", "missing_flag": True},
        ...     ],
        ...     "labels": ["click"],
        ... })
        >>> spec.layout.id_names, spec.layout.dense_names
        (('user',), ('age', 'age:missing'))
    """

    features: Annotated[list[Feature], Field(min_length=1)]
    """The features; their order is the order of the encoded columns and has no effect on their values."""
    derive: Annotated[dict[Name, str], Field(default_factory=dict)]
    """Columns computed before the operators: name -> SQL expression over the columns of the same row."""
    labels: Annotated[list[str], Field(min_length=1)]
    """Label columns: one or several binary tasks."""
    weight: str | None = None
    """Column with the weight of a row."""
    group: str | None = None
    """Column with the key by which grouped metrics are computed, such as the user."""
    time: str | None = None
    """Column with the time of the event."""
    time_unit: TimeUnit = "us"
    """What one step of an integer time column is."""
    reference: str | None = None
    """Column with a reference probability to compare with: carried along, never an input."""

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(handler(self), derive={})

    @model_validator(mode="after")
    def _check(self) -> FeatureSpec:
        _check_unique("features", [feature.name for feature in self.features])
        _check_unique("labels", self.labels)
        outcomes = {f"labels ({label})": label for label in self.labels}
        outcomes |= {key: column for key in ("weight", "reference") if (column := getattr(self, key))}
        derived = row_expressions(self.derive)
        for role in ("labels", "weight", "reference", "group", "time"):
            named = getattr(self, role)
            for column in named if isinstance(named, list) else [named]:
                if column in self.derive:
                    raise ConfigError(
                        f"column {column!r} is derived", field=role, expected="a column of the data", mend="name one"
                    )
        for feature in self.features:
            if isinstance(feature, CrossFeature):
                self._check_cross(feature)
                continue
            for role, column in outcomes.items():
                if column in {root for read in _columns(feature) for root in roots(read, derived)}:
                    raise ConfigError(
                        f"column {column!r} is also the spec's {role}: the answer would leak into the input",
                        field=f"features.{feature.name}",
                        mend="remove the feature",
                    )
            if self.time is None and _reads_time(feature):
                raise ConfigError(
                    "the time of the event is not known",
                    field=f"features.{feature.name}",
                    mend="name the column of the event's time as the spec's time",
                )
        for role in ("weight", "reference", "group", "time"):
            if (column := getattr(self, role)) is not None and column in self.labels:
                raise ConfigError(f"column {column!r} is also a label", field=role, mend="name another column")
        return self

    def _check_cross(self, cross: CrossFeature) -> None:
        single = [item.name for item in self.features if isinstance(item, _SINGLE)]
        for name in cross.of:
            if name not in single:
                raise ConfigError(
                    f"cross of {name!r}, which is not a single-valued id feature of this spec",
                    field=f"features.{cross.name}.of",
                    expected=f"names of id, bucket, time, recency or frequency features: {list_names(single)}",
                    mend=did_you_mean(name, single),
                )
        _check_unique(f"features.{cross.name}.of", cross.of)

    @property
    def layout(self) -> Layout:
        """Names and sizes of everything in a Batch."""
        ids, bags, poolings, dense, vectors, sizes = [], [], [], [], [], []
        for feature in self.features:
            match feature:
                case IdsFeature() | NgramsFeature() | SemanticIdFeature() | SequenceFeature():
                    gaps = isinstance(feature, SequenceFeature) and feature.times is not None
                    names = [feature.name, f"{feature.name}:gap"] if gaps else [feature.name]
                    bags.extend(names)
                    poolings.extend([feature.pooling] * len(names))
                case NumberFeature():
                    dense.append(feature.name)
                    if feature.missing_flag:
                        dense.append(f"{feature.name}:missing")
                case CyclicFeature():
                    dense.extend([f"{feature.name}:sin", f"{feature.name}:cos"])
                case VectorFeature():
                    vectors.append(feature.name)
                    sizes.append(feature.size)
                case _:
                    ids.append(feature.name)
        return Layout(
            id_names=tuple(ids),
            bag_names=tuple(bags),
            bag_poolings=tuple(poolings),
            dense_names=tuple(dense),
            vector_names=tuple(vectors),
            vector_sizes=tuple(sizes),
            label_names=tuple(self.labels),
            has_weight=self.weight is not None,
            has_group=self.group is not None,
            has_time=self.time is not None,
            has_reference=self.reference is not None,
        )

    @property
    def feature_columns(self) -> list[str]:
        """The columns of the data that features are read from, each once, in spec order."""
        derived = row_expressions(self.derive)
        columns = [column for item in self.features for column in self.columns_of(item)]
        return list(dict.fromkeys(root for column in columns for root in sorted(roots(column, derived))))

    def columns_of(self, feature: Feature) -> list[str]:
        """The columns that one feature reads, derived ones and the event's time included."""
        times = [self.time] if self.time is not None and _reads_time(feature) else []
        return [*_columns(feature), *times]

    def feature(self, name: str) -> Feature:
        """Returns the feature of that name.

        Raises:
            ConfigError: There is none.
        """
        for feature in self.features:
            if feature.name == name:
                return feature
        names = [feature.name for feature in self.features]
        raise unknown_name("no such feature", name, names, field=name)

    def digest(self) -> str:
        """Returns the hex SHA-256 of the spec in canonical JSON."""
        return digest_json(self.model_dump(mode="json"))


def digest_json(data: object) -> str:
    """Returns the hex SHA-256 of `data` as JSON with sorted keys and no blanks.

    Example:
        >>> digest_json({"b": 1, "a": 2}) == digest_json({"a": 2, "b": 1})
        True
    """
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


_SINGLE = (IdFeature, BucketFeature, TimeFeature, RecencyFeature, FrequencyFeature)


def _columns(feature: Feature) -> list[str]:
    if isinstance(feature, CrossFeature):
        return []
    times = feature.times if isinstance(feature, SequenceFeature) else None
    return [feature.column] if times is None else [feature.column, times]


def _reads_time(feature: Feature) -> bool:
    return isinstance(feature, RecencyFeature) or (isinstance(feature, SequenceFeature) and feature.times is not None)


def _without(data: dict[str, Any], **unused: Any) -> dict[str, Any]:
    """Leaves out what stands at its default and came later than the first specs, whose digests stay."""
    return {key: value for key, value in data.items() if key not in unused or value != unused[key]}


def _check_unique(where: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError("name is used twice", field=where, found=name, mend="rename or remove one of them")
        seen.add(name)
