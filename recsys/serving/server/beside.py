"""Models beside the served one, as they are announced."""

from __future__ import annotations

from typing import Any

from recsys.serving.server.announcement import CHALLENGER, SHADOW, AnnouncementReader
from recsys.serving.server.settings import ServerSettings


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
