"""FeaturePipeline: fitted operators that encode a frame of a million rows or one request, to the same bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from features.batch import Batch
from features.columns import BAG_PREFIX, Columns, column_types, record_batch
from features.derived import Derived
from features.errors import ArtifactError, ConfigError, DataError
from features.files import read_json, read_table, write_json, write_table
from features.fingerprint import FINGERPRINT_VERSION, check_fingerprint_version
from features.frames import first_line, iterate, require_column, schema_of
from features.layout import Layout
from features.ops.base import FittedOperator, Operator, Problem, Schema
from features.ops.bucket import Bucket
from features.ops.cross import Cross
from features.ops.cyclic import Cyclic
from features.ops.frequency import Frequency
from features.ops.id import Id
from features.ops.ids import Ids
from features.ops.ngrams import Ngrams
from features.ops.number import Number
from features.ops.outcome import EventTime, Outcome
from features.ops.recency import Recency
from features.ops.semantic_id import SemanticId
from features.ops.sequence import Sequence as SequenceOperator
from features.ops.time import Time
from features.ops.vector import Vector
from features.request import RequestEncoder, Row
from features.spec import (
    BucketFeature,
    CrossFeature,
    CyclicFeature,
    Feature,
    FeatureSpec,
    FrequencyFeature,
    IdFeature,
    IdsFeature,
    NgramsFeature,
    NumberFeature,
    RecencyFeature,
    SemanticIdFeature,
    SequenceFeature,
    TimeFeature,
    VectorFeature,
    digest_json,
)
from features.validation import validate

PIPELINE_VERSION = 1
_FILE = "pipeline.json"
FIT_ROWS = 131_072
"""Rows that a fitted operator is given together: what it learns hangs on it, in the last bits."""
_MEND_FILE = "prepare the data again"


class FeaturePipeline:
    """Encodes rows as a spec says.

    Args:
        spec: The description of the columns.

    Attributes:
        operators: What encodes each feature, by its name.

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
        self.operators: dict[str, Operator | Cross] = {item.name: _operator(item, spec) for item in spec.features}
        self._derived = Derived(spec.derive)
        self._request: RequestEncoder | None = None

    def fit(self, frame: pl.LazyFrame | pl.DataFrame) -> FeaturePipeline:
        """Learns the statistics of number, bucket and frequency features in one streaming pass.

        Args:
            frame: Training rows; labels need not be there.

        Raises:
            DataError: A column is missing or of a wrong dtype, or there is no row.
        """
        columns = self.fit_columns(frame)
        try:
            return self.fit_on(columns)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self.explain(frame.lazy(), error, labels=False) from error

    def fit_columns(self, frame: pl.LazyFrame | pl.DataFrame) -> pl.LazyFrame:
        """Learns from the schema how the inputs of derived columns are read, and returns what `fit_on` takes.

        Parts of the training rows give parts of it: they may be computed apart and put together in their order.

        Args:
            frame: Training rows, or some of them.

        Returns:
            A Float64 or Int64 column for each fitted operator, by its number; no column if there is none.

        Raises:
            DataError: A column is missing or of a wrong dtype.
        """
        lazy = frame.lazy()
        if self._derived.inputs:
            self._derived.fit(schema_of(lazy))
            lazy = self.derive(lazy)
        schema = schema_of(lazy)
        wanted = []
        for number, operator in enumerate(self.fitted_operators()):
            require_column(operator.column, schema)
            wanted.append(operator.fit_expression(schema).alias(str(number)))
        return lazy.select(wanted)

    def fit_on(self, columns: pl.LazyFrame) -> FeaturePipeline:
        """Learns from what `fit_columns` returned for all training rows, in their order and in one streaming pass.

        Raises:
            DataError: There is no row.
        """
        fitted = self.start_fit()
        rows = 0
        for piece in iterate(columns, FIT_ROWS) if fitted else ():
            rows += piece.height
            for number, operator in enumerate(fitted):
                column = piece.get_column(str(number))
                column = column.fill_null(float("nan")) if column.dtype.is_float() else column
                operator.update(column.to_numpy())
        if fitted and not rows:
            raise DataError("there is no row to fit on", mend="check the input and the split")
        self.end_fit()
        return self

    def start_fit(self) -> list[FittedOperator]:
        """Returns the fitted operators, which forget what they know and wait to be given rows."""
        fitted = self.fitted_operators()
        for operator in fitted:
            operator.start()
        return fitted

    def end_fit(self) -> None:
        """Makes of the rows that the fitted operators were given what they encode by.

        Raises:
            DataError: The numbers are too large.
        """
        for operator in self.fitted_operators():
            operator.finish()
        self._request = None

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
        return self.encoded(
            self.derive(frame), lambda operator, schema: operator.expressions(schema), labels=labels, keep=keep
        )

    def derive(self, frame: pl.LazyFrame | pl.DataFrame) -> pl.LazyFrame:
        """Returns the frame with the derived columns of the spec, lazily.

        Raises:
            DataError: A column is missing or of a wrong dtype, or an expression does not fit its columns.
        """
        lazy = frame.lazy()
        return self._derived.apply(lazy, schema_of(lazy)) if self._derived.inputs else lazy

    def input_problems(self, schema: Schema) -> list[Problem]:
        """Returns the tests for values of the derived columns' inputs that cannot be read as the training rows were.

        Raises:
            DataError: An input is missing.
        """
        for column in self._derived.inputs:
            require_column(column, schema, role="derive")
        # Before the pipeline is fitted every input is read as what it is.
        return self._derived.problems(schema) if self._derived.kinds else []

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

    def encode(self, rows: Row | Sequence[Row], *, shared: Row | None = None, labels: bool = False) -> Batch:
        """Encodes one request, or a few, in plain Python.

        Args:
            rows: A row is a mapping from column to value. A missing value is None; an absent key is an error.
            shared: Columns that all rows have in common, such as the user's of many candidates: encoded once.
            labels: Whether to read labels, weight, group, time and reference too.

        Raises:
            DataError: A key is absent or given twice, or a value is wrong.
        """
        self._check_fitted()
        if self._request is None:
            operators = list(self.operators.values())
            self._request = RequestEncoder(self.layout, operators, self.side_operators(), self._derived)
        return self._request(rows, shared=shared, labels=labels)

    def explain(self, frame: pl.LazyFrame, error: BaseException, *, labels: bool) -> DataError:
        """Returns the readable reason for a failure to collect what `transform` returned for `frame`.

        It looks at the data again, for values that an operator cannot take.
        """
        try:
            problem = _first_problem(frame, self._derived.problems(frame.collect_schema()))
            problem = problem or self._derived.explain(frame)
            if problem is None:
                derived = self.derive(frame)
                schema = derived.collect_schema()
                operators = [item for item in self.operators.values() if isinstance(item, Operator)]
                if labels:
                    operators += [item for items in self.side_operators().values() for item in items]
                problem = _first_problem(derived, [found for item in operators for found in item.problems(schema)])
            if problem is not None:
                return problem
        except (pl.exceptions.PolarsError, OSError):
            # The data cannot be read a second time either: the first failure is the one to show.
            pass
        return DataError("data cannot be read", found=first_line(error), mend="check the input files")

    def state(self) -> dict[str, Any]:
        """Returns what was fitted, by feature, as plain JSON."""
        fitted = {
            name: operator.state() for name, operator in self.operators.items() if isinstance(operator, FittedOperator)
        }
        return {name: state for name, state in fitted.items() if state is not None}

    def digest(self) -> str:
        """Returns the hex SHA-256 of everything that decides how a row is encoded."""
        described = {"spec": self.spec.digest(), "state": self.state(), "fingerprint_version": FINGERPRINT_VERSION}
        return digest_json(described | self._inputs())

    def save(self, folder: Path) -> None:
        """Writes spec and state into `folder`: JSON, and an Arrow file for each state too large for that.

        Raises:
            ArtifactError: It cannot be written.
        """
        self._check_fitted()
        for name, operator in self.operators.items():
            if isinstance(operator, FittedOperator) and (table := operator.table()) is not None:
                write_table(Path(folder) / _table_file(name), table)
        write_json(
            Path(folder) / _FILE,
            {
                "version": PIPELINE_VERSION,
                "fingerprint_version": FINGERPRINT_VERSION,
                "spec": self.spec.model_dump(mode="json"),
                "state": self.state(),
                "digest": self.digest(),
            }
            | self._inputs(),
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
                operator = pipeline.operators[name]
                if isinstance(operator, FittedOperator):
                    operator.restore(state)
                    if "table" in state:
                        operator.restore_table(read_table(Path(folder) / _table_file(name), mend=_MEND_FILE))
            pipeline._derived.restore(data.get("inputs", {}))
            intact = pipeline.digest() == data["digest"]
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise ArtifactError("file is damaged", field=str(path), found=first_line(error), mend=_MEND_FILE) from error
        if not intact:
            raise ArtifactError("file does not match its digest", field=str(path), mend=_MEND_FILE)
        pipeline._check_fitted()
        return pipeline

    def encoded(
        self,
        lazy: pl.LazyFrame,
        encode: Callable[[Operator, Schema], list[pl.Expr]],
        *,
        labels: bool,
        keep: Sequence[str],
    ) -> pl.LazyFrame:
        """Returns what `transform` does, of a frame with its derived columns.

        Args:
            lazy: Rows, as `derive` returns them.
            encode: Makes the expressions of an operator, given the schema of the rows; crosses follow from them.
            labels: As for `transform`.
            keep: As for `transform`.

        Raises:
            DataError: A column is missing or of a wrong dtype.
        """
        schema = schema_of(lazy)
        singles: dict[str, pl.Expr] = {}
        dense: list[pl.Expr] = []
        vectors: list[pl.Expr] = []
        bags: list[pl.Expr] = []
        columns: dict[str, pl.Expr] = {}
        for name, operator in self.operators.items():
            if isinstance(operator, Cross):
                continue
            for column in operator.columns:
                require_column(column, schema)
            expressions = encode(operator, schema)
            if operator.kind == "id":
                singles[name] = expressions[0]
            else:
                {"bag": bags, "number": dense, "vector": vectors}[operator.kind].extend(expressions)
        for name, operator in self.operators.items():
            if isinstance(operator, Cross):
                singles[name] = operator.expression([singles[part] for part in operator.of])
        for name, expression in zip(self.layout.bag_names, bags, strict=True):
            columns[BAG_PREFIX + name] = expression
        if singles:
            columns["ids"] = pl.concat_arr([singles[name] for name in self.layout.id_names])
        if dense:
            columns["dense"] = pl.concat_arr(dense)
        if vectors:
            columns["vectors"] = pl.concat_arr(vectors)
        if labels:
            side = self.side_operators()
            for role, operators in side.items():
                encoded = []
                for operator in operators:
                    require_column(operator.column, schema, role=role)
                    encoded.extend(operator.expressions(schema))
                columns[role] = pl.concat_arr(encoded) if role == "labels" else encoded[0]
        # A literal, from a column of nulls, is one row: with_columns repeats it for every row of the frame.
        encoded_columns = lazy.with_columns(expression.alias(name) for name, expression in columns.items())
        return encoded_columns.select(*columns, *keep)

    def fitted_operators(self) -> list[FittedOperator]:
        """Returns those that learn from the training rows, in the order of the spec."""
        return [item for item in self.operators.values() if isinstance(item, FittedOperator)]

    def side_operators(self) -> dict[str, list[Operator]]:
        """Returns what encodes labels, weight, group, time and reference, by role, as far as the spec has them."""
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

    def _inputs(self) -> dict[str, Any]:
        """How the inputs of derived columns are read, where there are any."""
        return {"inputs": self._derived.kinds} if self._derived.inputs else {}

    def _check_fitted(self) -> None:
        if self._derived.kinds is None:
            raise ConfigError(
                "the pipeline is not fitted", field="derive", mend="call fit with the training rows first"
            )
        for name, operator in self.operators.items():
            if isinstance(operator, FittedOperator) and not operator.fitted:
                raise ConfigError(
                    "the pipeline is not fitted", field=f"features.{name}", mend="call fit with the training rows first"
                )


def _operator(feature: Feature, spec: FeatureSpec) -> Operator | Cross:
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
        case CyclicFeature():
            return Cyclic(feature)
        case RecencyFeature():
            # The spec refuses one without the event's time.
            return Recency(feature, str(spec.time), spec.time_unit)
        case FrequencyFeature():
            return Frequency(feature)
        case NgramsFeature():
            return Ngrams(feature)
        case SemanticIdFeature():
            return SemanticId(feature)
        case SequenceFeature():
            return SequenceOperator(feature, spec.time, spec.time_unit)
        case VectorFeature():
            return Vector(feature)
        case CrossFeature():
            return Cross(feature)


def _table_file(name: str) -> str:
    return f"{name}.arrow"


def _first_problem(frame: pl.LazyFrame, problems: Sequence[Problem]) -> DataError | None:
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
    return None


def _plain_list(value: Any) -> Any:
    return value.to_list() if isinstance(value, pl.Series) else value
