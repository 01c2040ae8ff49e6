"""Models beside the served one: the roles they have, and what every process counts of them."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from recsys.serving.server.announcement import CHALLENGER, SHADOW, Announcement, AnnouncementReader
from recsys.serving.server.served import ServedModel
from recsys.serving.server.settings import ServerSettings


class RoleMetrics:
    """What is counted of versions and loads of a model beside the served one.

    Args:
        role: Stands in the metrics' names.
        own: Holds the metrics of this process.
    """

    def __init__(self, role: str, own: CollectorRegistry) -> None:
        self._serving = Gauge(
            f"recsys_{role}_workers_serving",
            f"Processes that have the version as {role}.",
            ["model", "version"],
            multiprocess_mode="livesum",
            registry=own,
        )
        self._refused = Gauge(
            f"recsys_{role}_alias_refused",
            f"1 if the {role}'s alias points to a bundle that cannot be used.",
            multiprocess_mode="livemax",
            registry=own,
        )
        self._loads = Counter(f"recsys_{role}_model_loads", f"Loads of the {role}.", ["outcome"], registry=own)

    def told(self, found: Announcement) -> None:
        """An announcement was read."""
        self._refused.set(found.refused is not None)

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


class BesideReader:
    """Reads what is announced of the models beside the served one.

    Args:
        settings: Which there are.
    """

    def __init__(self, settings: ServerSettings) -> None:
        roles: dict[str, tuple[str | None, dict[str, Any]]] = {
            CHALLENGER: (settings.challenger, {"share": settings.challenger_share}),
            SHADOW: (settings.shadow, {"sample": settings.shadow_sample}),
        }
        self._roles = {
            role: (AnnouncementReader(settings.state / role), {"alias": alias} | more)
            for role, (alias, more) in roles.items()
            if alias is not None
        }

    def read(self) -> dict[str, dict[str, Any]]:
        """By role: `alias`, its `share` or `sample`, `version` (None while there is none) and `refused_version`."""
        found = {}
        for role, (reader, known) in self._roles.items():
            told = reader.read()
            there = told is not None and not told.withdrawn
            found[role] = known | {
                "version": told.version if told is not None and there else None,
                "refused_version": None if told is None else told.refused,
            }
        return found
