"""The shadow: scores, in a process of its own and when the processor has nothing better to do, what was answered.

It has its own process so that whatever it does (load a version, fall behind, run out of memory, die) no answer waits
for it or fails. It reads the body of a request as if it had been asked, so that a field only it reads is there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from typing import Any

import polars as pl
from prometheus_client import CollectorRegistry, Histogram

from features.errors import DataError
from recsys.serving.server.announcement import SHADOW
from recsys.serving.server.bodies import BodyReader, Fields
from recsys.serving.server.metrics import SECONDS, LogMetrics
from recsys.serving.server.prediction_log import PredictionLog, Write
from recsys.serving.server.refusal import Refusal
from recsys.serving.server.served import ServedModel
from recsys.serving.server.settings import ServerSettings
from recsys.serving.server.shadow_feed import RANK, RANK_ARROW, SCORE, Answered, outcomes, read_answered, socket_of
from recsys.serving.server.version_metrics import VersionMetrics
from recsys.serving.server.watcher import ModelWatcher

NICENESS = 19
"""The lowest priority: the workers go first."""
DRAIN_SECONDS = 5.0
"""After SIGTERM, time to score what the workers have sent."""

logger = logging.getLogger(__name__)


def run_shadow(settings: ServerSettings, write: Write) -> None:
    """Runs the shadow until SIGTERM.

    Args:
        settings: Of the server.
        write: Writes rows of the prediction log.
    """
    os.nice(NICENESS)
    # A terminal sends it to all processes; the first one waits for the workers before it ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_Shadow(settings, write).run())


class _Shadow:
    def __init__(self, settings: ServerSettings, write: Write) -> None:
        own = CollectorRegistry()
        self._path = socket_of(settings)
        self._outcomes = outcomes(own)
        self._seconds = Histogram(
            "recsys_shadow_scoring_seconds",
            "Reading, encoding and scoring of one request by the shadow.",
            buckets=SECONDS,
            registry=own,
        )
        self._watcher = ModelWatcher(settings, VersionMetrics(own, SHADOW), beside=SHADOW)
        # What the champion answered was not refused; a field that only the champion reads is no reason to.
        self._bodies = BodyReader(settings.model_copy(update={"unknown_fields": "ignore"}))
        self._log = PredictionLog(write, settings, LogMetrics(own))
        self._workers: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        watching = asyncio.create_task(self._watcher.watch())
        self._path.unlink(missing_ok=True)  # of a shadow that was killed
        server = await asyncio.start_unix_server(self._listen, str(self._path))
        await stop.wait()
        server.close()
        if self._workers and (await asyncio.wait(self._workers, timeout=DRAIN_SECONDS))[1]:
            logger.warning("the shadow ended before it had scored all that was answered")
        watching.cancel()
        await asyncio.to_thread(self._log.close)

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._workers.add(task)
        try:
            async for answered, body in read_answered(reader):
                self._outcomes.labels(self._take(answered, body)).inc()
                await asyncio.sleep(0)
        finally:
            self._workers.discard(task)
            writer.close()

    def _take(self, answered: Answered, body: bytes) -> str:
        """Scores a request; returns what came of it."""
        model = self._watcher.model
        if model is None:
            return "no model"
        if (model.name, model.version) == (answered.name, answered.version):
            return "same version"
        started = time.perf_counter()
        try:
            self._score(model, answered, body)
        except (Refusal, DataError):
            return "refused"
        except (Exception, pl.exceptions.PanicException) as error:
            # The message may hold values of a row.
            logger.error("the shadow failed on a request: %s", type(error).__name__)
            return "failed"
        self._seconds.observe(time.perf_counter() - started)
        return "scored"

    def _score(self, model: ServedModel, answered: Answered, body: bytes) -> None:
        rows: list[dict[str, Any]] | pl.DataFrame
        shared = None
        if answered.kind in (RANK, RANK_ARROW):
            read = self._bodies.rank_rows if answered.kind == RANK else self._bodies.rank_frame
            asked = read(body, model, Fields())
            rows, shared = asked.candidates, asked.user
        elif answered.kind == SCORE:
            rows = self._bodies.score_rows(body, model, Fields())
        else:
            rows = self._bodies.score_frame(body, model, Fields())
        scores = model.score(model.encode(rows, shared))
        logged = rows if isinstance(rows, list) else rows.to_dicts()
        self._log.add(model, answered.request_id, logged, shared, scores, answered.at)
