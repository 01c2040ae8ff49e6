"""The log of predictions: what was answered, with the inputs, for whoever joins labels later.

Rows wait in memory, a bounded number of them, and a thread writes them away. Whatever goes wrong there, serving goes
on, and what could not be logged is counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from recsys.serving.server.metrics import LogMetrics
from recsys.serving.server.served import Row, ServedModel
from recsys.serving.server.settings import ServerSettings
from recsys.serving.server.shares import in_share

COLUMNS = ("request_id", "model", "version", "role", "probability", "time")
"""Columns of the log that are no inputs, nor probabilities of further tasks."""
INPUT_PREFIX = "input_"
"""Stands before an input that has the name of one of these columns."""

_DTYPES = {"string": pl.String, "integer": pl.Int64, "number": pl.Float64, "boolean": pl.Boolean}

Write = Callable[[pl.DataFrame], object]
_Entry = tuple[ServedModel, str, float, Sequence[Row], Row, np.ndarray]

logger = logging.getLogger(__name__)


class PredictionLog:
    """Takes predictions and writes them away, in files of at most about `settings.log_rows` rows.

    Args:
        write: Writes rows, whole or not at all; called in a thread.
        settings: Sample, size and age of a file.
        metrics: Told what was logged and what was not.
    """

    def __init__(self, write: Write, settings: ServerSettings, metrics: LogMetrics) -> None:
        self._write, self._metrics = write, metrics
        self._rows, self._seconds = settings.log_rows, settings.log_seconds
        self._sample = settings.log_sample
        self._lock = threading.Condition()
        self._waiting: list[_Entry] = []
        self._waiting_rows = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)
        self._thread.start()

    def add(
        self,
        model: ServedModel,
        request_id: str,
        rows: Sequence[Row],
        shared: Row | None,
        scores: np.ndarray,
        at: float | None = None,
    ) -> None:
        """Takes the predictions of a request, if it is in the sample; row i is logged as `REQUEST_ID:i`.

        Which requests are in the sample hangs on their ids alone, so that servers of two models log the same ones.

        Args:
            model: What made them.
            request_id: Of the request.
            rows: [B] rows.
            shared: What they have in common.
            scores: [B, T] probabilities.
            at: When it was answered, in seconds since 1970; now when left out.
        """
        if not len(rows) or not in_share(request_id, self._sample):
            return
        with self._lock:
            if self._waiting_rows + len(rows) > 2 * self._rows:
                self._metrics.log_dropped.labels("behind").inc(len(rows))
                return
            self._waiting.append((model, request_id, at or time.time(), rows, shared or {}, scores))
            self._waiting_rows += len(rows)
            if self._waiting_rows >= self._rows:
                self._lock.notify()

    def close(self) -> None:
        """Writes what waits, and ends."""
        with self._lock:
            self._closed = True
            self._lock.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closed or self._waiting_rows >= self._rows, self._seconds)
                taken, self._waiting, rows = self._waiting, [], self._waiting_rows
                closed = self._closed
                # Until they are written the rows count as waiting: they are still in memory.
            if taken:
                self._flush(taken, rows)
                with self._lock:
                    self._waiting_rows -= rows
            if closed:
                return

    def _flush(self, entries: list[_Entry], rows: int) -> None:
        try:
            self._write(pl.concat([log_rows(*entry) for entry in entries], how="diagonal_relaxed"))
        except Exception as error:  # a full disk, a folder that is gone, inputs of another kind: serving goes on
            logger.error("prediction log: %d rows lost (%s)", rows, type(error).__name__)
            self._metrics.log_failures.inc()
            self._metrics.log_dropped.labels("not written").inc(rows)
        else:
            self._metrics.logged.inc(rows)


def log_rows(
    model: ServedModel,
    request_id: str,
    at: float,
    rows: Sequence[Row],
    shared: Row,
    scores: np.ndarray,
) -> pl.DataFrame:
    """A request's predictions as rows of the log.

    Args:
        model: What made them, in its role.
        request_id: Of the request.
        at: Seconds since 1970.
        rows: [B] rows.
        shared: What they have in common.
        scores: [B, T] probabilities.

    Returns:
        `COLUMNS`; `probability` is of the first task, those of others are `p_LABEL`. Then the inputs that are numbers,
        booleans or text; a value of another kind than its column's is null there, lists are left out.
    """
    count = len(rows)
    columns: dict[str, pl.Series] = {
        "request_id": pl.Series([f"{request_id}:{i}" for i in range(count)], dtype=pl.String),
        "model": pl.repeat(model.name, count, dtype=pl.String, eager=True),
        "version": pl.repeat(model.version, count, dtype=pl.String, eager=True),
        "role": pl.repeat(model.role, count, dtype=pl.String, eager=True),
        "probability": pl.Series(scores[:, 0], dtype=pl.Float64),
        "time": pl.repeat(round(at * 1e6), count, dtype=pl.Int64, eager=True).cast(pl.Datetime("us")),
    }
    for place, name in enumerate(model.outputs[1:], 1):
        columns[name] = pl.Series(scores[:, place], dtype=pl.Float64)
    for column, kind in model.types.items():
        name = f"{INPUT_PREFIX}{column}" if column in columns else column
        values = [row.get(column, shared.get(column)) for row in rows]
        if (series := _series(values, kind)) is not None:
            columns[name] = series
    return pl.DataFrame(columns)


def _series(values: list[Any], kind: str) -> pl.Series | None:
    if kind in _DTYPES:
        return pl.Series(values, dtype=_DTYPES[kind], strict=False)
    if kind.endswith("[]") or any(isinstance(value, list | dict | Mapping) for value in values):
        return None
    # A time or a column that features read in several ways: as text, which holds any of them.
    return pl.Series([None if value is None else str(value) for value in values], dtype=pl.String)
