"""Raw rows to probabilities, in this process: the pipeline and the model of a bundle behind one call."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from features.batch import Batch
from features.errors import ArtifactError, ConfigError, DataError
from features.spec import FeatureSpec, NumberFeature, VectorFeature
from recsys.serving.bundle import Bundle, load_bundle, making_sense
from recsys.serving.calibration import sigmoid
from recsys.serving.network_inputs import NetworkInputs
from recsys.serving.registry import Registry, is_model_uri
from recsys.serving.small_frames import FrameEncoder

TOO_LARGE = "a number is so large that there is no probability"

_WARM_UP_ROWS = (1, 1, 64)
_FEW = 8


class Scorer:
    """Scores rows with a trained model.

    What lies between encoding and network is one compiled call (`NetworkInputs`); the network runs in torch's inference
    mode.  Once made it is warm: everything is compiled, the first row takes no longer than the next.  Several threads
    may share one.

    Args:
        bundle: a loaded bundle; `Scorer.load` takes its place.
        threads: of torch in this whole process; as they are when left out. For small requests one is the fastest.

    Attributes:
        bundle: as given.
        encode_frame: encodes frames, small ones without the cost of planning a query.

    Raises:
        ArtifactError: the bundle's plan contradicts its table.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.bundle = bundle
        self.encode_frame = FrameEncoder(bundle.pipeline)
        self._inputs = NetworkInputs(bundle.model)
        self._network = bundle.model.network.eval()
        self._probabilities = bundle.calibration or sigmoid
        nulls = dict.fromkeys(self.spec.feature_columns)
        for rows in _WARM_UP_ROWS:
            self.score([nulls] * rows)

    @classmethod
    def load(cls, place: Path | str, *, tracking_uri: str | None = None, threads: int | None = None) -> Scorer:
        """Loads a bundle.

        Args:
            place: the bundle's folder, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
            tracking_uri: the registry's store, for a registered model.
            threads: as above.

        Raises:
            ConfigError: a registered model is named, and no store.
            ArtifactError: it is missing, damaged or of another release.
        """
        folder = Path(place)
        if is_model_uri(str(place)):
            if tracking_uri is None:
                raise ConfigError(
                    "a registered model is found in a store",
                    field="tracking_uri",
                    found=f"{place} alone",
                    mend="name it, such as tracking_uri='sqlite:///work/mlflow.db'",
                )
            folder = Registry(tracking_uri, create=False).bundle_of(str(place))
        bundle = load_bundle(folder)
        with making_sense(folder):
            return cls(bundle, threads=threads)

    @property
    def spec(self) -> FeatureSpec:
        """The columns a row needs."""
        return self.bundle.pipeline.spec

    def score(
        self,
        rows: Mapping[str, Any] | Sequence[Mapping[str, Any]] | pl.DataFrame | Batch,
        *,
        shared: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """The probabilities of rows; no label is needed.

        Args:
            rows: one row or several as mappings from column to value, a frame of B rows, or an encoded batch.
            shared: columns that all rows have in common, such as the user's beside many candidates: encoded once. With
                mappings only, and in none of them.

        Returns:
            [B, T] float64, a column a task.

        Raises:
            ConfigError: columns are shared by rows that are no mappings.
            DataError: a feature's column is missing, given twice or of the wrong dtype; the batch is of another model;
                or a number is so large that there is no probability.
            ArtifactError: the model gives no probability, whatever the numbers.
        """
        pipeline = self.bundle.pipeline
        if isinstance(rows, pl.DataFrame | Batch):
            if shared:
                raise ConfigError(
                    "rows of a frame or a batch have all their columns",
                    field="shared",
                    mend="give the rows as mappings, or the shared columns as columns",
                )
            batch = self._inputs.check(rows if isinstance(rows, Batch) else self.encode_frame(rows))
        else:
            batch = pipeline.encode(rows, shared=shared)
        logits = self._logits(batch)
        if not _finite(logits):
            found = self.without_probability(batch)
            raise DataError(
                f"{TOO_LARGE} (in {len(found)} row{'s' if len(found) > 1 else ''})",
                field=next(iter(found.values())),
                expected="numbers of the size that the model was trained on",
                mend="write null for what is not known, or train with `clip`",
            )
        return self._probabilities(logits)

    def without_probability(self, batch: Batch) -> dict[int, str]:
        """The rows in which a number is so large that the network overflows, and the column of the largest.

        Args:
            batch: encoded by this model's pipeline.

        Raises:
            ArtifactError: the model gives no probability, whatever the numbers.
        """
        rows = np.flatnonzero(~np.isfinite(self._logits(batch)).all(1))
        if not len(rows):
            return {}
        bad = batch.rows(rows.tolist())
        without = dataclasses.replace(bad, dense=torch.zeros_like(bad.dense), vectors=torch.zeros_like(bad.vectors))
        if not np.isfinite(self._logits(without)).all():
            raise ArtifactError(
                "the model gives no probability, whatever the numbers",
                found=f"{len(rows)} of {len(batch)} rows",
                mend="train it again, or convert it again",
            )
        layout = self.bundle.pipeline.layout
        names = list(layout.dense_names)
        for name, size in zip(layout.vector_names, layout.vector_sizes, strict=True):
            names += [name] * size
        columns = {f.name: f.column for f in self.spec.features if isinstance(f, NumberFeature | VectorFeature)}
        largest = torch.cat((bad.dense, bad.vectors), 1).abs().argmax(1).tolist()
        return {row: columns.get(names[place], names[place]) for row, place in zip(rows.tolist(), largest, strict=True)}

    def _logits(self, batch: Batch) -> np.ndarray:
        """[B, T] of an encoded batch."""
        with torch.inference_mode():
            logits: np.ndarray = self._network(self._inputs(batch)).numpy()
        return logits


def _finite(logits: np.ndarray) -> bool:
    """Whether all are; of a few, numpy takes ten times as long to say it."""
    if logits.size <= _FEW:
        return all(map(math.isfinite, logits.ravel().tolist()))
    return bool(np.isfinite(logits).all())
