"""Challenger and shadow beside the model that is served: in the first process of the server their aliases are followed,
and the shadow's process is kept running."""

from __future__ import annotations

import logging
import logging.config
import multiprocessing
import threading
from multiprocessing.context import SpawnProcess
from typing import Any

from features.errors import ConfigError
from pipelines.serve_worker import BoundedLog
from recsys.serving.registry import MODEL_PREFIX, is_model_uri
from recsys.serving.server.announcement import CHALLENGER, SHADOW
from recsys.serving.server.follower import OptionalFollower
from recsys.serving.server.settings import ServerSettings

_AGAIN_SECONDS = 2.0
"""Between the death of a shadow and the next one."""
_END_SECONDS = 15.0
"""A shadow that takes longer to end is killed."""


logger = logging.getLogger("recsys.serving.beside")


class Beside:
    """The models beside the served one.

    Args:
        model: What is served.
        tracking_uri: Store of the registry.
        settings: Which models there are beside it.
        write: The prediction log.
        poll_seconds: The registry is asked this often.
        log_config: Logging of the shadow's process.

    Raises:
        ConfigError: They cannot be had: the served model has no aliases, or there is no prediction log.
    """

    def __init__(
        self,
        model: str,
        tracking_uri: str,
        settings: ServerSettings,
        write: BoundedLog | None,
        poll_seconds: float,
        log_config: dict[str, Any],
    ) -> None:
        aliases = {CHALLENGER: settings.challenger, SHADOW: settings.shadow}
        given = {role: alias for role, alias in aliases.items() if alias is not None}
        _check(given, model, settings, write)
        self._shadow = SHADOW in given
        self._settings, self._write, self._log_config = settings, write, log_config
        self._poll_seconds = poll_seconds
        self._followers = []
        for role, alias in given.items():
            (settings.state / role).mkdir()
            follower = OptionalFollower(_name_of(model), alias, tracking_uri, settings.state / role)
            self._followers.append(follower)
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, stop: threading.Event) -> None:
        """Begins to follow, and starts the shadow; called once the first version of the served model is there."""
        for follower in self._followers:
            arguments = (self._poll_seconds, stop)
            self._threads.append(threading.Thread(target=follower.follow, args=arguments, name="follow beside"))
        if self._shadow:
            self._threads.append(threading.Thread(target=self._keep_shadow, name="shadow"))
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Ends all; called once the workers have ended, so that the shadow has everything they sent."""
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _keep_shadow(self) -> None:
        while True:
            process = self._start_shadow()
            while process.is_alive() and not self._ending.wait(0.2):
                pass
            if self._ending.is_set():
                process.terminate()
                process.join(_END_SECONDS)
                if process.is_alive():
                    process.kill()
                    process.join()
                return
            logger.error("the shadow ended with %s and is started again", process.exitcode)
            if self._ending.wait(_AGAIN_SECONDS):
                return

    def _start_shadow(self) -> SpawnProcess:
        arguments = (self._settings, self._write, self._log_config)
        process = multiprocessing.get_context("spawn").Process(target=shadow_process, args=arguments, name="shadow")
        process.start()
        return process


def shadow_process(settings: ServerSettings, write: BoundedLog, log_config: dict[str, Any]) -> None:
    """What the shadow's process runs; what it needs is imported there and not in the parent."""
    from recsys.serving.server.shadow import run_shadow

    logging.config.dictConfig(log_config)
    run_shadow(settings, write)


def _check(aliases: dict[str, str], model: str, settings: ServerSettings, write: BoundedLog | None) -> None:
    for role, alias in aliases.items():
        if not alias or any(sign in alias for sign in "@/:"):
            raise ConfigError("is no alias", field=f"--{role}", found=alias, expected="a name such as challenger")
        if not is_model_uri(model):
            raise ConfigError(
                "a bundle's folder has no aliases", field=f"--{role}", found=model, mend="serve models:/NAME@ALIAS"
            )
    if SHADOW in aliases and write is None:
        raise ConfigError("the shadow's scores go into the prediction log", field="--shadow", mend="add --log FOLDER")
    if CHALLENGER in aliases and settings.role == CHALLENGER:
        raise ConfigError(
            "what is served is the challenger already",
            field="--challenger",
            found="--role challenger",
            mend="leave one of them out",
        )


def _name_of(model: str) -> str:
    return model.removeprefix(MODEL_PREFIX).partition("@")[0].partition("/")[0]
