"""FeaturePipeline: fitted operators that encode a frame of a million rows or one request, to the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

from features.batch import Batch
from features.columns import BAG_PREFIX, Columns, column_types, record_batch
from features.errors import ArtifactError, ConfigError, DataError
from features.files import read_json, write_json
from features.fingerprint import FINGERPRINT_VERSION, check_fingerprint_version
from features.frames import first_line, iterate, require_column, schema_of
from features.layout import Layout
from features.ops.base import FittedOperator, Operator
from features.ops.bucket import Bucket
from features.ops.cross import Cross
from features.ops.id import Id
from features.ops.ids import Ids
from features.ops.number import Number
from features.ops.outcome import EventTime, Outcome
from features.ops.time import Time
from features.ops.vector import Vector
from features.spec import (
    BucketFeature,
    CrossFeature,
    Feature,
    FeatureSpec,
    IdFeature,
    IdsFeature,
    NumberFeature,
    TimeFeature,
    VectorFeature,
    digest_json,
)
from features.validation import validate

PIPELINE_VERSION = 1
_FILE = "pipeline.json"
_FIT_ROWS = 131_072
_MEND_FILE = "prepare the data again"

Row = Mapping[str, Any]


class FeaturePipeline:
    """Encodes rows as a spec says.

    Args:
        spec: The description of the columns.

    Example:
        >>> from features.validation import validate
        >>> spec = validate(FeatureSpec, {
        ...     "features": [{"type": "id", "name": "user"}, {"type": "number", "name": "age", "standardise": True}],
        ...     "labels": ["click"],
        ... })
        >>> pipeline = FeaturePipeline(spec).fit(pl.DataFrame({"user": ["a", "b"], "age": [20, 40]}))
        >>> pipeline.encode({"user": "a", "age": 50}).dense
        tensor([[2.]])
        >>> pipeline.encode({"user": "a", "aeg": 50})
        Traceback (most recent call last):
        features.errors.DataError: age: column is missing. Found: columns user, aeg. Mend: did you mean 'aeg'?
    """

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self.layout: Layout = spec.layout
        self._operators: dict[str, Operator | Cross] = {item.name: _operator(item) for item in spec.features}
        self._encoders: _Encoders | None = None

    def fit(self, frame: pl.LazyFrame | pl.DataFrame) -> FeaturePipeline:
        """Learns the statistics of number and bucket features in one streaming pass.

        Args:
            frame: Training rows; labels need not be there.

        Raises:
            DataError: A column is missing or of a wrong dtype, or there is no row.
        """
        lazy = frame.lazy()
        schema = schema_of(lazy)
        fitted = [item for item in self._operators.values() if isinstance(item, FittedOperator)]
        wanted = []
        for number, operator in enumerate(fitted):
            require_column(operator.column, schema)
            wanted.append(operator.fit_expression(schema[operator.column]).alias(str(number)))
            operator.start()
        rows = 0
        if wanted:
            try:
                for piece in iterate(lazy.select(wanted), _FIT_ROWS):
                    rows += piece.height
                    for number, operator in enumerate(fitted):
                        column = piece.get_column(str(number))
                        operator.update(column.fill_null(float("nan")).to_numpy())
            except (pl.exceptions.PolarsError, OSError) as error:
                raise self.explain(lazy, error, labels=False) from error
            if not rows:
                raise DataError("there is no row to fit on", mend="check the input and the split")
        for operator in fitted:
            operator.finish()
        self._encoders = None
        return self

    def transform(
        self, frame: pl.LazyFrame | pl.DataFrame, *, labels: bool = True, keep: Sequence[str] = ()
    ) -> pl.LazyFrame:
        """Returns the encoded columns, lazily.

        `ids` Array(Int64, F), `bag:NAME` List(Int64), `dense` Array(Float32, N), `vectors` Array(Float32, V), and
        with labels `labels` Array(Float32, T), `weight`, `group`, `time`, `reference` as far as the spec has them.
        A column of width 0 is left out. A bad value fails when the result is collected; `encode_frame` collects
        and explains such a failure.

        Args:
            frame: Rows.
            labels: False for rows to be scored: no label, weight, group, time or reference is read.
            keep: Columns of the frame to pass through as they are.

        Raises:
            DataError: A column is missing or of a wrong dtype.
        """
        self._check_fitted()
        lazy = frame.lazy()
        schema = schema_of(lazy)
        singles: dict[str, pl.Expr] = {}
        dense: list[pl.Expr] = []
        vectors: list[pl.Expr] = []
        columns: dict[str, pl.Expr] = {}
        for name, operator in self._operators.items():
            if isinstance(operator, Cross):
                continue
            require_column(operator.column, schema)
            expressions = operator.expressions(schema[operator.column])
            if isinstance(operator, Ids):
                columns[BAG_PREFIX + name] = expressions[0]
            elif isinstance(operator, Number):
                dense.extend(expressions)
            elif isinstance(operator, Vector):
                vectors.extend(expressions)
            else:
                singles[name] = expressions[0]
        for name, operator in self._operators.items():
            if isinstance(operator, Cross):
                singles[name] = operator.expression([singles[part] for part in operator.of])
        if singles:
            columns["ids"] = pl.concat_arr([singles[name] for name in self.layout.id_names])
        if dense:
            columns["dense"] = pl.concat_arr(dense)
        if vectors:
            columns["vectors"] = pl.concat_arr(vectors)
        if labels:
            side = self._side_operators()
            for role, operators in side.items():
                encoded = []
                for operator in operators:
                    require_column(operator.column, schema, role=role)
                    encoded.extend(operator.expressions(schema[operator.column]))
                columns[role] = pl.concat_arr(encoded) if role == "labels" else encoded[0]
        # A literal, from a column of nulls, is one row: with_columns repeats it for every row of the frame.
        encoded_columns = lazy.with_columns(expression.alias(name) for name, expression in columns.items())
        return encoded_columns.select(*columns, *keep)

    def encode_frame(self, frame: pl.LazyFrame | pl.DataFrame, *, labels: bool = False) -> Batch:
        """Encodes all rows of a frame that fits into memory, by way of `transform`.

        Raises:
            DataError: A column or a value is wrong; names the column, a sample and the number of bad rows.
        """
        lazy = frame.lazy()
        transformed = self.transform(lazy, labels=labels)
        try:
            collected = transformed.collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self.explain(lazy, error, labels=labels) from error
        types = column_types(self.layout, labels=labels)
        return Columns.of(record_batch(collected, types), self.layout).slice(0, collected.height)

    def encode(self, rows: Row | Sequence[Row], *, labels: bool = False) -> Batch:
        """Encodes one request, or a few, in plain Python.

        Args:
            rows: A row is a mapping from column to value. A missing value is None; an absent key is an error.
            labels: Whether to read labels, weight, group, time and reference too.

        Raises:
            DataError: A key is absent or a value is wrong.
        """
        self._check_fitted()
        if self._encoders is None:
            self._encoders = _Encoders(self)
        return self._encoders(rows, labels=labels)

    def explain(self, frame: pl.LazyFrame, error: BaseException, *, labels: bool) -> DataError:
        """Returns the readable reason for a failure to collect what `transform` returned for `frame`.

        It looks at the data again, for values that an operator cannot take.
        """
        try:
            schema = frame.collect_schema()
            operators = [item for item in self._operators.values() if isinstance(item, Operator)]
            if labels:
                operators += [item for items in self._side_operators().values() for item in items]
            problems = [problem for item in operators for problem in item.problems(schema[item.column])]
            tests = [
                expression
                for number, problem in enumerate(problems)
                for expression in (
                    problem.bad.sum().alias(f"{number}:count"),
                    pl.col(problem.column).filter(problem.bad).first().alias(f"{number}:sample"),
                )
            ]
            found = frame.select(tests).collect().row(0, named=True) if tests else {}
            for number, problem in enumerate(problems):
                if count := found[f"{number}:count"]:
                    return problem.error(_plain_list(found[f"{number}:sample"]), count)
        except (pl.exceptions.PolarsError, OSError):
            # The data cannot be read a second time either: the first failure is the one to show.
            pass
        return DataError("data cannot be read", found=first_line(error), mend="check the input files")

    def state(self) -> dict[str, Any]:
        """Returns what was fitted, by feature, as plain JSON."""
        fitted = {
            name: operator.state() for name, operator in self._operators.items() if isinstance(operator, FittedOperator)
        }
        return {name: state for name, state in fitted.items() if state is not None}

    def digest(self) -> str:
        """Returns the hex SHA-256 of everything that decides how a row is encoded."""
        return digest_json(
            {"spec": self.spec.digest(), "state": self.state(), "fingerprint_version": FINGERPRINT_VERSION}
        )

    def save(self, folder: Path) -> None:
        """Writes spec and state into `folder` as JSON.

        Raises:
            ArtifactError: It cannot be written.
        """
        self._check_fitted()
        write_json(
            Path(folder) / _FILE,
            {
                "version": PIPELINE_VERSION,
                "fingerprint_version": FINGERPRINT_VERSION,
                "spec": self.spec.model_dump(mode="json"),
                "state": self.state(),
                "digest": self.digest(),
            },
        )

    @staticmethod
    def load(folder: Path) -> FeaturePipeline:
        """Reads what `save` wrote.

        Raises:
            ArtifactError: It is missing, damaged or of another version.
        """
        path = Path(folder) / _FILE
        data = read_json(path, mend=_MEND_FILE)
        found = data.get("version") if isinstance(data, dict) else None
        if found != PIPELINE_VERSION:
            raise ArtifactError(
                "version is another one", field=str(path), found=found, expected=PIPELINE_VERSION, mend=_MEND_FILE
            )
        check_fingerprint_version(
            data.get("fingerprint_version"), str(path), "prepare the data again, and train again what was trained on it"
        )
        try:
            pipeline = FeaturePipeline(validate(FeatureSpec, data["spec"]))
            for name, state in data["state"].items():
                operator = pipeline._operators[name]
                if isinstance(operator, FittedOperator):
                    operator.restore(state)
            intact = pipeline.digest() == data["digest"]
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise ArtifactError("file is damaged", field=str(path), found=first_line(error), mend=_MEND_FILE) from error
        if not intact:
            raise ArtifactError("file does not match its digest", field=str(path), mend=_MEND_FILE)
        pipeline._check_fitted()
        return pipeline

    def _check_fitted(self) -> None:
        for name, operator in self._operators.items():
            if isinstance(operator, FittedOperator) and not operator.fitted:
                raise ConfigError(
                    "the pipeline is not fitted", field=f"features.{name}", mend="call fit with the training rows first"
                )

    def _side_operators(self) -> dict[str, list[Operator]]:
        spec = self.spec
        side: dict[str, list[Operator]] = {"labels": [Outcome("label", column) for column in spec.labels]}
        if spec.weight is not None:
            side["weight"] = [Outcome("weight", spec.weight)]
        if spec.group is not None:
            # The group of a row is the id it has as a feature, where it is one.
            dtypes = [item.dtype for item in spec.features if item.type == "id" and item.column == spec.group]
            side["group"] = [Id(spec.group, spec.group, dtypes[0] if dtypes else "string")]
        if spec.time is not None:
            side["time"] = [EventTime(spec.time, spec.time_unit)]
        if spec.reference is not None:
            side["reference"] = [Outcome("reference", spec.reference)]
        return side


class _Encoders:
    """The functions from value to code of all operators, built once for many requests."""

    def __init__(self, pipeline: FeaturePipeline) -> None:
        self.layout = pipeline.layout
        operators = pipeline._operators
        simple = [name for name in self.layout.id_names if not isinstance(operators[name], Cross)]
        self.order = [*simple, *(name for name in self.layout.id_names if name not in simple)]
        place = {name: number for number, name in enumerate(self.order)}
        self.singles = [_bound(operators[name]) for name in simple]
        self.crosses: list[tuple[Cross, list[int]]] = []
        for operator in operators.values():
            if isinstance(operator, Cross):
                self.crosses.append((operator, [place[part] for part in operator.of]))
        # Crosses are computed last; this brings the ids back into the order of the layout.
        reorder = [place[name] for name in self.layout.id_names]
        self.reorder = None if reorder == sorted(reorder) else torch.tensor(reorder)
        self.bags = [_bound(operators[name]) for name in self.layout.bag_names]
        self.numbers = [_bound(item) for item in operators.values() if isinstance(item, Number)]
        self.vectors = [_bound(operators[name]) for name in self.layout.vector_names]
        self.side = {
            role: [_bound(operator) for operator in items] for role, items in pipeline._side_operators().items()
        }

    def __call__(self, rows: Row | Sequence[Row], *, labels: bool) -> Batch:
        if isinstance(rows, Mapping):
            rows = [rows]
        ids: list[int] = []
        dense: list[float] = []
        vectors: list[float] = []
        bags: list[list[list[int]]] = [[] for _ in self.bags]
        side: dict[str, list[Any]] = {role: [] for role in self.side} if labels else {}
        row: Row = {}
        try:
            for row in rows:
                start = len(ids)
                for column, encode in self.singles:
                    ids.append(encode(row[column]))
                for cross, places in self.crosses:
                    ids.append(cross.encode([ids[start + place] for place in places]))
                for column, encode in self.numbers:
                    dense.extend(encode(row[column]))
                for column, encode in self.vectors:
                    vectors.extend(encode(row[column]))
                for bag, (column, encode) in zip(bags, self.bags, strict=True):
                    bag.append(encode(row[column]))
                for role, values in side.items():
                    values.extend(encode(row[column]) for column, encode in self.side[role])
        except KeyError as error:
            # Only for a key that the row lacks: an operator raises DataError.
            require_column(str(error.args[0]), row)
            raise
        count, layout = len(rows), self.layout
        table = torch.tensor(ids, dtype=torch.int64).reshape(count, len(layout.id_names))
        flat = [value for bag in bags for codes in bag for value in codes]
        lengths = [len(codes) for bag in bags for codes in bag]
        batch = Batch(
            ids=table if self.reorder is None else table.index_select(1, self.reorder),
            bag_values=torch.tensor(flat, dtype=torch.int64),
            bag_lengths=torch.tensor(lengths, dtype=torch.int64).reshape(len(bags), count),
            dense=torch.tensor(dense, dtype=torch.float32).reshape(count, len(layout.dense_names)),
            vectors=torch.tensor(vectors, dtype=torch.float32).reshape(count, layout.vector_width),
        )
        for role, values in side.items():
            dtype = torch.int64 if role in ("group", "time") else torch.float32
            shape = (count, len(layout.label_names)) if role == "labels" else (count,)
            setattr(batch, role, torch.tensor(values, dtype=dtype).reshape(shape))
        return batch


def _bound(operator: Operator | Cross) -> tuple[str, Callable[[Any], Any]]:
    assert isinstance(operator, Operator)
    return operator.column, operator.encoder()


def _operator(feature: Feature) -> Operator | Cross:
    match feature:
        case IdFeature():
            return Id(feature.name, feature.column, feature.dtype)
        case IdsFeature():
            return Ids(feature)
        case NumberFeature():
            return Number(feature)
        case BucketFeature():
            return Bucket(feature)
        case TimeFeature():
            return Time(feature)
        case VectorFeature():
            return Vector(feature)
        case CrossFeature():
            return Cross(feature)


def _plain_list(value: Any) -> Any:
    return value.to_list() if isinstance(value, pl.Series) else value
