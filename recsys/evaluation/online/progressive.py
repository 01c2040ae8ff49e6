"""Progressive validation: every chunk of rows in the order of time is predicted first and learned from later."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl

from features.batch import Batch
from features.fingerprint import fingerprint_expr
from features.layout import Layout
from recsys.evaluation.metrics import evaluate
from recsys.evaluation.online.config import AlarmConfig
from recsys.evaluation.online.drift import DriftWatch
from recsys.evaluation.online.logs import INPUT
from recsys.evaluation.online.monitor import METRICS, difference
from recsys.models.ctr import CTRModel
from recsys.training.prediction import predict

FROZEN, LEARNING = "frozen", "learning"


class Learner(Protocol):
    """What learns on; a `Trainer` does."""

    model: CTRModel

    def learn(self, batches: Iterable[Batch]) -> int:
        """Trains on batches once, in their order."""

    def averaged(self) -> AbstractContextManager[None]:
        """Within, the model predicts as it should: with averaged weights, if it has some."""


@dataclass(frozen=True)
class Chunk:
    """Rows that are next to one another in time.

    Attributes:
        window: What it is called: its start as text, or the number of its first row.
        start: Its begin, on any scale of time.
        end: Its end on that scale.
        rows: With labels.
        tested: False for rows that are only learned from.
    """

    window: str | int
    start: int
    end: int
    rows: Batch
    tested: bool = True


class ProgressiveValidation:
    """Holds a model that learns day by day against the same model as it was.

    A chunk is predicted by both models. The learning one is trained on it once its labels would have come: before the
    first chunk that begins `delay` or more after its end. So a prediction never knows more than it could have known.

    Args:
        learner: Trains the model that learns.
        frozen: The same model, which stays as it is.
        delay: How long labels take, on the scale of the chunks.
        batch_size: Rows a training step.
        alarms: When drift is an alarm. Inputs are watched once, beside the predictions of the frozen model.

    Attributes:
        windows: A row a chunk and model: `window`, `model`, `rows`, `METRICS` and `ece`.
        differences: A row a chunk: `window`, `rows`, `learned` (rows up to then), and of AUC and logloss the learning
            model's less the frozen one's with 95 % intervals.
        alarms: A row an alarm: `window`, `model` and the fields of `Alarm`.
    """

    def __init__(
        self, learner: Learner, frozen: CTRModel, *, delay: int, batch_size: int, alarms: AlarmConfig | None = None
    ) -> None:
        self._learner, self._frozen = learner, frozen
        self._delay, self._batch_size = delay, batch_size
        self._watches = {name: DriftWatch(alarms or AlarmConfig()) for name in (FROZEN, LEARNING)}
        self._waiting: deque[Chunk] = deque()
        self._columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._learned = 0
        self.windows: list[dict[str, Any]] = []
        self.differences: list[dict[str, Any]] = []
        self.alarms: list[dict[str, Any]] = []

    def run(self, chunks: Iterable[Chunk]) -> Iterator[dict[str, Any]]:
        """Goes through chunks in the order of time; yields the row of `differences` of each that is tested."""
        for chunk in chunks:
            while self._waiting and self._waiting[0].end + self._delay <= chunk.start:
                self._learned += self._learner.learn(pieces(self._waiting.popleft().rows, self._batch_size))
            if chunk.tested:
                yield self._test(chunk)
            self._waiting.append(chunk)

    def totals(self) -> list[dict[str, Any]]:
        """Exact metrics of each model over all tested rows."""
        y, learning, frozen = self._joined()
        return [{"model": name, **_metrics(y, p)} for name, p in ((LEARNING, learning), (FROZEN, frozen))]

    def difference(self) -> dict[str, Any]:
        """The learning model's AUC and logloss less the frozen one's over all tested rows, with 95 % intervals."""
        return difference(*self._joined())

    def _test(self, chunk: Chunk) -> dict[str, Any]:
        with self._learner.averaged():
            found = {LEARNING: self._predicted(self._learner.model, chunk.rows)}
        found[FROZEN] = self._predicted(self._frozen, chunk.rows)
        assert chunk.rows.labels is not None
        y = chunk.rows.labels[:, 0].numpy().astype(np.float64)
        detectors = sum(watch.detectors() for watch in self._watches.values())
        for name, p in found.items():
            frame = self._frame(chunk.rows, y, p, inputs=name == FROZEN)
            alarms, _ = self._watches[name].update(frame, detectors)
            self.windows.append({"window": chunk.window, "model": name, **_metrics(y, p)})
            self.alarms += [{"window": chunk.window, "model": name, **alarm.to_json()} for alarm in alarms]
        row: dict[str, Any] = {"window": chunk.window, "rows": len(y), "learned": self._learned}
        row |= difference(y, found[LEARNING], found[FROZEN])
        self._columns.append((y, found[LEARNING], found[FROZEN]))
        self.differences.append(row)
        return row

    def _predicted(self, model: CTRModel, rows: Batch) -> np.ndarray:
        return predict(model, pieces(rows, self._batch_size)).probabilities[:, 0]

    def _joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not self._columns:
            return np.empty(0), np.empty(0), np.empty(0)
        y, learning, frozen = (np.concatenate(column) for column in zip(*self._columns, strict=True))
        return y, learning, frozen

    def _frame(self, rows: Batch, y: np.ndarray, p: np.ndarray, *, inputs: bool) -> pl.DataFrame:
        """What is watched of a chunk."""
        columns: dict[str, Any] = {"probability": p, "label": y.astype(np.int8)}
        if inputs:
            columns |= inputs_of(rows, self._frozen.layout)
        place = pl.int_range(pl.len()).cast(pl.String)
        return pl.DataFrame(columns).with_columns(fingerprint_expr(place).alias("key"))


def pieces(rows: Batch, size: int) -> Iterator[Batch]:
    """The rows in batches of a size; the last may be smaller."""
    for start in range(0, len(rows), size):
        yield rows.rows(slice(start, start + size))


def inputs_of(rows: Batch, layout: Layout) -> dict[str, Any]:
    """The numbers and the single-valued ids of encoded rows as inputs to be watched."""
    inputs: dict[str, Any] = {
        INPUT + name: rows.dense[:, place].numpy().astype(np.float64)
        for place, name in enumerate(layout.dense_names)
        if not name.endswith(":missing")
    }
    for place, name in enumerate(layout.id_names):
        inputs[INPUT + name] = pl.Series(rows.ids[:, place].numpy()).cast(pl.String)
    return inputs


def _metrics(y: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    found = {**evaluate(y, p), "mean_prediction": float(p.mean()) if len(p) else None}
    return {name: found[name] for name in ("rows", *METRICS, "ece")}
