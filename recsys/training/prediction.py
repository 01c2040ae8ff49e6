"""Scores a split and keeps what evaluation needs beside the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from features.batch import Batch
from recsys.models.ctr import CTRModel


@dataclass(frozen=True)
class Predictions:
    """Scores and truth of N rows and T tasks, in the order they were read."""

    probabilities: np.ndarray
    """[N, T] float64."""
    labels: np.ndarray | None
    """[N, T] float32."""
    weight: np.ndarray | None
    """[N] float32."""
    group: np.ndarray | None
    """[N] int64 fingerprints."""
    reference: np.ndarray | None
    """[N] float32."""
    logits: np.ndarray | None = None
    """[N, T] float32, of which the probabilities were made."""


@torch.no_grad()
def predict(
    model: CTRModel, batches: Iterable[Batch], calibration: Callable[[np.ndarray], np.ndarray] | None = None
) -> Predictions:
    """Scores every batch in evaluation mode.

    Args:
        model: left in the mode it was in.
        batches: a loader without shuffling.
        calibration: from logits [B, T] to probabilities; the logistic function when left out.

    Returns:
        The predictions of all rows.
    """
    training = model.training
    model.eval()
    columns: dict[str, list[np.ndarray]] = {name: [] for name in Predictions.__dataclass_fields__}
    try:
        for batch in batches:
            logits = model.logits(batch)
            columns["logits"].append(logits.numpy())
            columns["probabilities"].append(
                torch.sigmoid(logits.double()).numpy() if calibration is None else calibration(logits.numpy())
            )
            for name in ("labels", "weight", "group", "reference"):
                value = getattr(batch, name)
                if value is not None:
                    columns[name].append(value.numpy().copy())
    finally:
        model.train(training)
    joined = {name: np.concatenate(parts) if parts else None for name, parts in columns.items()}
    if joined["probabilities"] is None:
        joined["probabilities"] = np.empty((0, max(len(model.layout.label_names), 1)))
    return Predictions(**joined)  # type: ignore[arg-type]
