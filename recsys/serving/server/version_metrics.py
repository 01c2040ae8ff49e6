"""What every process counts of the versions of a model that it holds, of the served one and of those beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

if TYPE_CHECKING:
    from recsys.serving.server.announcement import Announcement
    from recsys.serving.server.served import ServedModel


class VersionMetrics:
    """Counts versions and loads of a model.

    Args:
        own: Holds the metrics of this process.
        role: Of a model beside the served one; stands in the metrics' names.
    """

    def __init__(self, own: CollectorRegistry, role: str | None = None) -> None:
        prefix, model = ("recsys", "served model") if role is None else (f"recsys_{role}", role)
        self._serving = Gauge(
            f"{prefix}_workers_serving",
            f"Processes that have the version as {model}.",
            ["model", "version"],
            multiprocess_mode="livesum",
            registry=own,
        )
        self._refused_version = Gauge(
            f"{prefix}_alias_refused",
            f"1 if the alias of the {model} points to a bundle that cannot be used.",
            multiprocess_mode="livemax",
            registry=own,
        )
        self._loads = Counter(f"{prefix}_model_loads", f"Loads of the {model}.", ["outcome"], registry=own)

    def told(self, found: Announcement) -> None:
        """An announcement was read."""
        self._refused_version.set(found.refused is not None)

    def swapped(self, new: ServedModel | None, old: ServedModel | None) -> None:
        """Another model is held, or none any more."""
        if old is not None:
            self._serving.labels(old.name, old.version).set(0)
        if new is not None:
            self._serving.labels(new.name, new.version).set(1)
            self._loads.labels("loaded").inc()

    def load_failed(self) -> None:
        """A model could not be loaded."""
        self._loads.labels("failed").inc()
