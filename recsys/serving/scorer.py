"""Raw rows to probabilities, in this process: the pipeline and the model of a bundle behind one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from features.batch import Batch
from features.spec import FeatureSpec
from recsys.serving.bundle import Bundle, load_bundle


class Scorer:
    """Scores rows with a trained model.

    Args:
        bundle: a loaded bundle; `Scorer.load` takes its folder.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @classmethod
    def load(cls, folder: Path | str) -> Scorer:
        """Loads a bundle.

        Raises:
            ArtifactError: it is missing, damaged or of another release.
        """
        return cls(load_bundle(Path(folder)))

    @property
    def spec(self) -> FeatureSpec:
        """The columns a row needs."""
        return self.bundle.pipeline.spec

    def score(self, rows: Mapping[str, Any] | Sequence[Mapping[str, Any]] | pl.DataFrame | Batch) -> np.ndarray:
        """The probabilities of rows; no label is needed.

        Args:
            rows: one row or several as mappings from column to value, a frame of B rows, or an encoded batch.

        Returns:
            [B, T] float64, a column a task.

        Raises:
            DataError: a feature's column is missing or of the wrong dtype.
        """
        pipeline, model = self.bundle.pipeline, self.bundle.model
        if isinstance(rows, Batch):
            batch = rows
        elif isinstance(rows, pl.DataFrame):
            batch = pipeline.encode_frame(rows)
        else:
            batch = pipeline.encode(rows)
        with torch.no_grad():
            probabilities: np.ndarray = torch.sigmoid(model.logits(batch).double()).numpy()
        return probabilities
