"""Fits a pipeline on rows that are encoded in the same pass, so that raw files are read once.

What hangs on no state is encoded at once. Of every fitted operator the rows keep what it looks at, 8 bytes a row, from
which the encoded value follows once it is fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from features.frames import SPLIT_COLUMN, schema_of
from features.ops.base import FittedOperator, Operator, Schema
from features.ops.cross import Cross
from features.pipeline import FIT_ROWS, FeaturePipeline

_FLOATS, _WHOLE = "__floats__", "__whole__"
_Arrays = Mapping[str, np.ndarray]


class OnePass:
    """A pipeline that is being fitted.

    Args:
        pipeline: Is fitted in the end.
        assigned: All rows, each with its split.

    Attributes:
        aside: The columns of what fitted operators look at, beside the encoded ones.
        changed: The columns that `complete` needs and changes; none if nothing is fitted.

    Raises:
        DataError: A column is missing or of a wrong dtype.
    """

    def __init__(self, pipeline: FeaturePipeline, assigned: pl.LazyFrame) -> None:
        self.pipeline, self._assigned = pipeline, assigned
        # Learns how the inputs of derived columns are read.
        kinds = schema_of(pipeline.fit_columns(assigned.filter(pl.col(SPLIT_COLUMN) == "train")))
        self._fitted = pipeline.start_fit()
        self._looks: dict[str, list[FittedOperator]] = {name: [] for name in (_FLOATS, _WHOLE)}
        for operator, kind in zip(self._fitted, kinds.values(), strict=True):
            self._looks[_FLOATS if kind.is_float() else _WHOLE].append(operator)
        self.aside = [name for name, operators in self._looks.items() if operators]
        late = {operator.name for operator in self._fitted}
        self._crosses = [
            operator
            for operator in pipeline.operators.values()
            if isinstance(operator, Cross) and late & set(operator.of)
        ]
        wide = [
            name for name, kind in (("ids", "id"), ("dense", "number")) if any(o.kind == kind for o in self._fitted)
        ]
        self.changed = [*wide, *self.aside]
        self._waiting: dict[str, list[np.ndarray]] = {name: [] for name in self.aside}
        self._rows = 0

    def read(self, keep: Sequence[str]) -> pl.LazyFrame:
        """Returns what `FeaturePipeline.transform` does, with 0 for what is not known yet, and the columns aside.

        Args:
            keep: Columns to pass through as they are.
        """
        lazy = self.pipeline.derive(self._assigned)
        schema = schema_of(lazy)
        lazy = lazy.with_columns(
            pl.concat_arr(
                [_without_nulls(operator.fit_expression(schema), name) for operator in self._looks[name]]
            ).alias(name)
            for name in self.aside
        )
        return self.pipeline.encoded(lazy, _encode, labels=True, keep=[*keep, *self.aside])

    def learn(self, columns: _Arrays, train: np.ndarray) -> None:
        """Takes the next rows of all.

        Args:
            columns: Those aside, [rows, operators].
            train: The numbers of the train rows among them.
        """
        if not self.aside:
            return
        for name, waiting in self._waiting.items():
            waiting.append(columns[name].take(train, axis=0))
        self._rows += len(train)
        if self._rows >= FIT_ROWS:
            # The operators are given the same rows together as by `FeaturePipeline.fit`: sums of floats hang on it.
            for name, waiting in self._waiting.items():
                together = np.concatenate(waiting)
                whole = len(together) // FIT_ROWS * FIT_ROWS
                for start in range(0, whole, FIT_ROWS):
                    self._update(name, together[start : start + FIT_ROWS])
                self._waiting[name] = [together[whole:]]
            self._rows %= FIT_ROWS

    def fit(self) -> None:
        """Fits on the train rows that were seen.

        Raises:
            DataError: The numbers are too large.
        """
        for name, waiting in self._waiting.items():
            if self._rows:
                self._update(name, np.concatenate(waiting))
        self.pipeline.end_fit()

    def complete(self, columns: _Arrays) -> None:
        """Puts what is known now into the ids and numbers of some rows, in place.

        Args:
            columns: Those of `changed`, [rows, width].
        """
        layout = self.pipeline.layout
        looks = [
            pl.Series(operator.name, np.ascontiguousarray(columns[name][:, place]), nan_to_null=True)
            for name, operators in self._looks.items()
            for place, operator in enumerate(operators)
        ]
        parts = {part for cross in self._crosses for part in cross.of} - {operator.name for operator in self._fitted}
        looks += [
            pl.Series(part, np.ascontiguousarray(columns["ids"][:, layout.id_names.index(part)])) for part in parts
        ]
        encoded: dict[str, list[pl.Expr]] = {
            operator.name: operator.fitted_expressions(pl.col(operator.name)) for operator in self._fitted
        }
        for cross in self._crosses:
            encoded[cross.name] = [cross.expression([encoded.get(part, [pl.col(part)])[0] for part in cross.of])]
        frame = pl.select(looks).select(
            expression.alias(f"{name}:{number}")
            for name, expressions in encoded.items()
            for number, expression in enumerate(expressions)
        )
        for name, expressions in encoded.items():
            among, wide = (layout.id_names, "ids") if name in layout.id_names else (layout.dense_names, "dense")
            for number in range(len(expressions)):
                columns[wide][:, among.index(name) + number] = frame.get_column(f"{name}:{number}").to_numpy()

    def _update(self, name: str, rows: np.ndarray) -> None:
        for place, operator in enumerate(self._looks[name]):
            operator.update(np.ascontiguousarray(rows[:, place]))


def _encode(operator: Operator, schema: Schema) -> list[pl.Expr]:
    if not isinstance(operator, FittedOperator):
        return operator.expressions(schema)
    kind = pl.Int64 if operator.kind == "id" else pl.Float32
    return [pl.lit(0, dtype=kind)] * operator.outputs


def _without_nulls(look: pl.Expr, name: str) -> pl.Expr:
    return look.fill_null(float("nan")) if name == _FLOATS else look
