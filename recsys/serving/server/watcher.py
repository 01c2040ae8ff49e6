"""Inside a worker: watches for announcements, loads what is announced beside what is served, and swaps."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import time

from features.errors import RecsysError
from recsys.serving.server.announcement import Announcement, AnnouncementReader
from recsys.serving.server.served import ServedModel
from recsys.serving.server.settings import ServerSettings
from recsys.serving.server.version_metrics import VersionMetrics

LOOK_SECONDS = 0.2
"""Between two looks at the announcement."""
AGAIN_SECONDS = 5.0
"""After a load that failed."""

logger = logging.getLogger(__name__)


class ModelWatcher:
    """Holds the model that is served.

    Args:
        settings: Where announcements lie.
        metrics: Told of versions and loads.
        beside: The role of a model beside the served one, whose announcements lie in a folder of that name.

    Attributes:
        model: What is served; None before the first. A request keeps the one it began with.
        announcement: The newest announcement.
    """

    def __init__(self, settings: ServerSettings, metrics: VersionMetrics, *, beside: str | None = None) -> None:
        folder = settings.state if beside is None else settings.state / beside
        self._reader, self._parent, self._metrics = AnnouncementReader(folder), settings.parent, metrics
        self._role = beside or settings.role
        self._not_before = 0.0
        self.model: ServedModel | None = None
        self.announcement: Announcement | None = None

    def look(self) -> None:
        """Reads the announcement, and loads what it names if that is not served yet."""
        try:
            found = self._reader.read()
        except RecsysError as error:
            logger.error("%s", error)
            return
        if found is None:
            return
        self.announcement = found
        self._metrics.told(found)
        if found.withdrawn:
            self._metrics.swapped(None, self.model)
            self.model = None
            return
        served = None if self.model is None else self.model.announcement.model
        if found.model == served or time.monotonic() < self._not_before:
            return
        try:
            model = ServedModel.load(found, self._role)
        except Exception as error:  # the other processes could load it; this one keeps what it has and tries again
            logger.error("version %s of %s could not be loaded: %s", found.version, found.name, error)
            self._metrics.load_failed()
            self._not_before = time.monotonic() + AGAIN_SECONDS
            return
        if self.model is None:
            # Hundreds of thousands of objects of libraries, which stay: going through them takes 0.15 s of every
            # collection, in which no request is answered.
            gc.collect()
            gc.freeze()
        self._metrics.swapped(model, self.model)
        self.model = model
        logger.info("process %d has version %s of %s as %s", os.getpid(), model.version, model.name, self._role)

    async def watch(self) -> None:
        """Looks again and again; loading goes on in a thread, so that requests are answered meanwhile."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            before = self.model
            await asyncio.to_thread(self.look)
            if before is not None and self.model is not before:
                # The old model's memory is given back once its last request is answered.
                del before
                await asyncio.sleep(LOOK_SECONDS)
                await asyncio.to_thread(gc.collect)
            if os.getppid() != self._parent:
                logger.error("the process that started this worker is gone: ending")
                signal.raise_signal(signal.SIGTERM)
                return
