"""Requests wait here to be scored: those that arrived while others were scored are scored together.

Everything runs in the worker's event loop, so that no thread hands rows to another. A turn of the loop reads what has
arrived; then what waits is scored, at most `max_rows` at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from features.batch import Batch
from recsys.serving.server.metrics import Metrics
from recsys.serving.server.refusal import Refusal
from recsys.serving.server.served import Row, ServedModel

_MEMORY = 0.9
"""Share of the old estimate of a row's time in the new one."""
_UNSEEN_EVERY = 32
"""Unseen ids are counted in one of so many batches."""

Scores = np.ndarray


@dataclass(eq=False)
class Job:
    """The rows of a request.

    Attributes:
        model: What they were made for, and are scored with.
        rows: [B] rows.
        shared: What all rows have in common.
        deadline: When the scores must be there, by the clock of `time.monotonic`.
        scores: Will hold [B, T] probabilities.
    """

    model: ServedModel
    rows: Sequence[Row] | pl.DataFrame
    shared: Row | None
    deadline: float
    scores: asyncio.Future[Scores]

    @property
    def plain(self) -> Sequence[Row] | None:
        """Its rows, if they can be scored together with others'."""
        return None if self.shared is not None or isinstance(self.rows, pl.DataFrame) else self.rows


class Dispatcher:
    """Scores what waits, in order of arrival.

    Args:
        metrics: Told of batches and rows.
        max_rows: Rows scored in one go.
    """

    def __init__(self, metrics: Metrics, max_rows: int) -> None:
        self._metrics, self._max_rows = metrics, max_rows
        self._waiting: deque[Job] = deque()
        self._waiting_rows = 0
        self._row_seconds = 0.0
        self._batches = 0

    @property
    def wait_seconds(self) -> float:
        """How long it takes to score what waits, by the batches before."""
        return self._waiting_rows * self._row_seconds

    async def score(
        self, model: ServedModel, rows: Sequence[Row] | pl.DataFrame, shared: Row | None, deadline: float
    ) -> Scores:
        """The probabilities of rows, [B, T].

        Raises:
            Refusal: There is too much to do before, or the deadline has passed.
            DataError: A value is wrong.
        """
        loop = asyncio.get_running_loop()
        wait = self.wait_seconds
        if time.monotonic() + wait > deadline:
            raise Refusal(429, "busy", f"scores would come too late: about {wait:.2f} s wait", retry_seconds=wait)
        job = Job(model, rows, shared, deadline, loop.create_future())
        if not self._waiting:
            loop.call_soon(self._turn, loop)
        self._waiting.append(job)
        self._waiting_rows += len(rows)
        return await job.scores

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        jobs: list[Job] = []
        rows = 0
        while self._waiting and (not jobs or rows + len(self._waiting[0].rows) <= self._max_rows):
            jobs.append(self._waiting.popleft())
            rows += len(jobs[-1].rows)
        self._waiting_rows -= rows
        if self._waiting:
            loop.call_soon(self._turn, loop)
        now = time.monotonic()
        due = []
        for job in jobs:
            if job.deadline < now:
                _fail(job, _late())
            else:
                due.append(job)
        together: dict[ServedModel, list[Job]] = {}
        for job in due:
            if job.plain is None:
                self._score([job])
            else:
                together.setdefault(job.model, []).append(job)
        for group in together.values():
            self._score(group)

    def _score(self, jobs: list[Job]) -> None:
        """Scores jobs of one model in one go; if that fails, one by one, so that only the bad one fails."""
        model = jobs[0].model
        started = time.perf_counter()
        try:
            if len(jobs) == 1:
                batch = model.encode(jobs[0].rows, jobs[0].shared)
            else:
                batch = model.encode([row for job in jobs for row in job.plain or ()])
            scores = model.score(batch)
            seconds = time.perf_counter() - started
        # Whatever it is, it is the request's end and not the server's. A panic of Polars is no Exception.
        except (Exception, pl.exceptions.PanicException) as error:
            if len(jobs) == 1:
                _fail(jobs[0], error)
                return
            for job in jobs:
                self._score([job])
            return
        start, now = 0, time.monotonic()
        for job in jobs:
            stop = start + len(job.rows)
            if job.deadline < now:
                _fail(job, _late())
            elif not job.scores.done():
                job.scores.set_result(scores[start:stop])
            start = stop
        self._observe(model, batch, scores, seconds)

    def _observe(self, model: ServedModel, batch: Batch, scores: Scores, seconds: float) -> None:
        rows = len(batch)
        self._metrics.scoring_seconds.observe(seconds)
        self._metrics.batch_rows.observe(rows)
        self._metrics.rows.labels(model.name, model.version).inc(rows)
        self._metrics.probability.labels(model.name, model.version).inc(float(scores[:, 0].sum()))
        if rows:
            self._row_seconds = _MEMORY * self._row_seconds + (1 - _MEMORY) * seconds / rows
        if self._batches % _UNSEEN_EVERY == 0:
            # It takes longer than to score a row. The next turn of the loop writes the answers, so the one after it.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._count_unseen, model, batch)
        self._batches += 1

    def _count_unseen(self, model: ServedModel, batch: Batch) -> None:
        for field, (ids, unseen) in model.unseen.count(batch).items():
            self._metrics.ids.labels(field).inc(ids)
            self._metrics.unseen.labels(field).inc(unseen)


def _late() -> Refusal:
    return Refusal(503, "deadline", "the deadline passed before the rows were scored", retry_seconds=1)


def _fail(job: Job, error: BaseException) -> None:
    if not job.scores.done():
        job.scores.set_exception(error)
