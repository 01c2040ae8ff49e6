"""The code MLflow runs when it loads a registered model: the scorer behind the pyfunc interface.

It is logged as a file, not pickled; the bundle lies beside it as an artefact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlflow
import pandas as pd
import polars as pl

from recsys.serving.scorer import Scorer
from recsys.serving.signature import column_types, output_names


class ClickModel(mlflow.pyfunc.PythonModel):
    """Raw columns in, one probability a task out."""

    def load_context(self, context: Any) -> None:
        """Open the bundle; MLflow calls this once with the artefacts' paths."""
        self.scorer = Scorer.load(context.artifacts["bundle"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score rows.

        Args:
            context: Given by MLflow.
            model_input: [B] rows with the spec's feature columns; nulls are allowed, unknown columns are left alone.
            params: None are known.

        Returns:
            [B, T] probabilities, one column a task.
        """
        frame = _with_whole_numbers(pl.from_pandas(model_input, nan_to_null=True), column_types(self.scorer.spec))
        return pd.DataFrame(self.scorer.score(frame), columns=output_names(self.scorer.spec))


def _with_whole_numbers(frame: pl.DataFrame, kinds: Mapping[str, str]) -> pl.DataFrame:
    """Whole numbers as such: pandas turns a column of them into floats as soon as one is missing.

    >>> _with_whole_numbers(pl.DataFrame({"at": [7.0, None]}), {"at": "integer"})["at"].to_list()
    [7, None]
    >>> _with_whole_numbers(pl.DataFrame({"at": [7.5, None]}), {"at": "integer"})["at"].to_list()
    [7.5, None]
    """
    floats = [name for name, kind in kinds.items() if kind == "integer" and frame.schema.get(name) == pl.Float64]
    whole = [name for name in floats if (frame[name].drop_nulls() % 1 == 0).all()]
    return frame.with_columns(pl.col(name).cast(pl.Int64) for name in whole)


mlflow.models.set_model(ClickModel())
