"""The metrics of a server for Prometheus, summed over its worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from features.files import size_of
from recsys.serving.server.liveness import lives
from recsys.serving.server.version_metrics import VersionMetrics

if TYPE_CHECKING:
    from recsys.serving.server.announcement import Announcement

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder of the workers' values; prometheus_client reads it when it is imported."""

SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class LogMetrics:
    """What is counted of the prediction log.

    Args:
        own: Holds the metrics of this process.
    """

    def __init__(self, own: CollectorRegistry) -> None:
        self.logged = Counter("recsys_prediction_log_rows", "Rows written to the prediction log.", registry=own)
        self.log_dropped = Counter(
            "recsys_prediction_log_dropped", "Rows that could not be logged.", ["reason"], registry=own
        )
        self.log_failures = Counter(
            "recsys_prediction_log_failures", "Files of the prediction log not written.", registry=own
        )


class Metrics(LogMetrics, VersionMetrics):
    """What one worker counts; `text` gives the sums over all of them."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        LogMetrics.__init__(self, own)
        VersionMetrics.__init__(self, own)
        self.requests = Counter("recsys_requests", "Requests answered.", ["route", "status"], registry=own)
        self.seconds = Histogram(
            "recsys_request_seconds",
            "From the head of a request to its answer.",
            ["route"],
            buckets=SECONDS,
            registry=own,
        )
        self.scoring_seconds = Histogram(
            "recsys_scoring_seconds", "Encoding and scoring of one batch.", buckets=SECONDS, registry=own
        )
        self.batch_rows = Histogram("recsys_batch_rows", "Rows scored in one go.", buckets=_ROWS, registry=own)
        self.rows = Counter("recsys_rows", "Rows scored.", ["model", "version"], registry=own)
        self.probability = Counter(
            "recsys_probability_sum",
            "Sum of the probabilities of the rows scored, of the first task.",
            ["model", "version"],
            registry=own,
        )
        self.in_hand = Gauge(
            "recsys_requests_in_hand", "Requests taken and not answered.", multiprocess_mode="livesum", registry=own
        )
        self.in_hand_limit = Gauge(
            "recsys_requests_in_hand_limit",
            "Requests that can be in hand.",
            multiprocess_mode="livesum",
            registry=own,
        )
        self.refused = Counter("recsys_requests_refused", "Requests that got no scores.", ["type"], registry=own)
        self.missing = Counter("recsys_missing_fields", "Rows without the field.", ["field"], registry=own)
        self.unknown = Counter("recsys_unknown_fields", "Fields of rows that no model reads.", registry=own)
        self.ids = Counter("recsys_ids_sampled", "Ids looked at, of fields that are exact.", ["field"], registry=own)
        self.unseen = Counter("recsys_ids_unseen", "Of these, not seen in training.", ["field"], registry=own)
        self.registry_up = Gauge(
            "recsys_registry_reachable", "1 if the registry answered.", multiprocess_mode="livemin", registry=own
        )

    def told(self, found: Announcement) -> None:
        """An announcement was read."""
        self.registry_up.set(found.reachable)
        super().told(found)

    @staticmethod
    def collect() -> list[Metric]:
        """The sums over all workers."""
        folder = Path(os.environ[FOLDER_VARIABLE])
        for path in folder.glob("gauge_live*_*.db"):
            process = int(path.stem.rpartition("_")[2])
            if not lives(process):
                mark_process_dead(process, str(folder))
        # A process that begins has files of no length for a moment, which prometheus_client stumbles over.
        files = [str(path) for path in folder.glob("*.db") if size_of(path)]
        return list(MultiProcessCollector.merge(files, accumulate=True))

    @staticmethod
    def text() -> bytes:
        """The sums over all workers, as Prometheus reads them."""
        return generate_latest(_Collected(Metrics.collect()))


class _Collected(CollectorRegistry):
    """Metrics that are there already."""

    def __init__(self, metrics: list[Metric]) -> None:
        super().__init__()
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)
