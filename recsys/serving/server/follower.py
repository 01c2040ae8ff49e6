"""Follows an alias of the registry: what it points to is tested in a process of its own and then announced."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import multiprocessing
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from features.errors import ArtifactError, RecsysError
from features.frames import first_line
from recsys.serving.bundle_files import read_description
from recsys.serving.promotions import newest_promotion
from recsys.serving.registry import MODEL_PREFIX, ModelVersion, Registry, is_model_uri
from recsys.serving.server.announcement import Announcement

AGAIN_SECONDS = 60.0
"""A version that was refused is tried again after so long, if the alias still points to it."""

logger = logging.getLogger(__name__)


class AliasFollower:
    """Announces the version an alias points to.

    Args:
        uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a bundle's folder; only an alias can move.
        tracking_uri: Store of the registry.
        state: Folder of announcements.
    """

    def __init__(self, uri: str, tracking_uri: str, state: Path) -> None:
        self._uri, self._tracking_uri, self._state = uri, tracking_uri, state
        self._announced: Announcement | None = None
        self._refused: str | None = None
        self._again = 0.0

    @property
    def moves(self) -> bool:
        """Whether there is something to follow."""
        return is_model_uri(self._uri) and "@" in self._uri

    def first(self) -> Announcement:
        """Announces the first version.

        Raises:
            RecsysError: There is no such model, or it cannot be served.
        """
        if is_model_uri(self._uri):
            registry = Registry(self._tracking_uri, create=False)
            found = self._fetch(registry, registry.resolve(self._uri))
        else:
            found = _of_folder(Path(self._uri))
        try_out(found)
        found.write(self._state)
        self._announced = found
        return found

    def follow(self, seconds: float, stop: threading.Event) -> None:
        """Looks every so many seconds until told to stop; the first version was announced before."""
        while self.moves and not stop.wait(seconds):
            self.look()

    def look(self) -> None:
        """Looks once. A registry that does not answer, and a bundle that cannot be used, leave all as it is."""
        announced = self._announced
        served = None if announced is None or announced.withdrawn else announced
        now = time.time()
        try:
            registry = Registry(self._tracking_uri, create=False)
            version = self._find(registry)
        except Exception as error:  # whatever the registry's driver raises
            if served is not None:
                if served.reachable:
                    logger.error(
                        "the registry does not answer, version %s stays: %s", served.version, first_line(error)
                    )
                self._announce(dataclasses.replace(served, checked=now, reachable=False))
            return
        if served is not None and not served.reachable:
            logger.info("the registry answers again")
        if version is None:
            if served is not None:
                logger.info("%s is gone: version %s is served no longer", self._uri, served.version)
                self._announce(dataclasses.replace(served, checked=now, reached=now, withdrawn=True))
            return
        number = str(version.version)
        if served is not None and number == served.version:
            self._refused = None
        elif number != self._refused or now >= self._again:
            try:
                found = self._fetch(registry, version)
                try_out(found)
            except Exception as error:  # what cannot be fetched is no better than what cannot be loaded
                stays = "" if served is None else f", version {served.version} stays"
                logger.error("version %s refused%s: %s", number, stays, first_line(error))
                self._refused, self._again = number, now + AGAIN_SECONDS
            else:
                served, self._refused = found, None
        if served is not None:
            changed = dataclasses.replace(served, checked=now, reached=now, reachable=True, refused=self._refused)
            self._announce(changed)

    def _find(self, registry: Registry) -> ModelVersion | None:
        """The version to be served; None if there is to be none."""
        return registry.resolve(self._uri)

    def _announce(self, announcement: Announcement) -> None:
        try:
            announcement.write(self._state)
        except ArtifactError as error:
            logger.error("%s", error)
            return
        self._announced = announcement

    def _fetch(self, registry: Registry, version: ModelVersion) -> Announcement:
        alias = self._uri.removeprefix(MODEL_PREFIX).partition("@")[2] or None
        folder, now = registry.bundle_of(version.uri), time.time()
        return Announcement(
            version.name,
            str(version.version),
            alias,
            version.run_id,
            str(folder),
            now,
            reached=now,
            promotion=_promotion(registry, version),
        )


def _promotion(registry: Registry, version: ModelVersion) -> dict[str, Any] | None:
    try:
        return newest_promotion(registry, version)
    except RecsysError as error:  # it is only shown
        logger.warning("the promotion of version %s cannot be read: %s", version.version, first_line(error))
        return None


class OptionalFollower(AliasFollower):
    """Follows an alias that need not be there: without it there is no such model, and once it is gone, none any more.

    Args:
        name: The registered model.
        alias: Its alias.
        tracking_uri: Store of the registry.
        state: Folder of announcements.
    """

    def __init__(self, name: str, alias: str, tracking_uri: str, state: Path) -> None:
        super().__init__(f"{MODEL_PREFIX}{name}@{alias}", tracking_uri, state)
        self._name, self._alias = name, alias

    def follow(self, seconds: float, stop: threading.Event) -> None:
        """Looks at once and then every so many seconds until told to stop."""
        while not stop.is_set():
            self.look()
            stop.wait(seconds)

    def _find(self, registry: Registry) -> ModelVersion | None:
        return registry.alias_of(self._name, self._alias)


def try_out(announcement: Announcement) -> None:
    """Loads a model in another process, which may fail or even die without harm to this one.

    Raises:
        ArtifactError: It cannot be served.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            problem = pool.submit(_problem, announcement).result()
        except BrokenProcessPool as error:
            problem = f"the process that loaded it died ({first_line(error)})"
    if problem is not None:
        raise ArtifactError("the model cannot be served", field=announcement.folder, found=problem)


def _problem(announcement: Announcement) -> str | None:
    from recsys.serving.server.served import check_bundle

    try:
        check_bundle(announcement)
    except Exception as error:  # as text: not every exception survives the way to the other process
        return str(error) if isinstance(error, RecsysError) else f"{type(error).__name__}: {first_line(error)}"
    return None


def _of_folder(folder: Path) -> Announcement:
    """A bundle that is in no registry; its version is a digest of what it says it holds."""
    version = hashlib.sha256(read_description(folder)).hexdigest()[:12]
    folder = folder.resolve()
    return Announcement(folder.name, version, None, None, str(folder), time.time(), reached=time.time())
