"""The code MLflow runs when it loads a registered model: the scorer behind the pyfunc interface.

It is logged as a file, not pickled; the bundle lies beside it as an artefact.
"""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
import polars as pl

from recsys.serving.scorer import Scorer
from recsys.serving.signature import output_names


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
        frame = pl.from_pandas(model_input, nan_to_null=True)
        return pd.DataFrame(self.scorer.score(frame), columns=output_names(self.scorer.spec))


mlflow.models.set_model(ClickModel())
