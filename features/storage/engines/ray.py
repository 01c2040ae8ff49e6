"""Pieces worked off by Ray Data, on one machine or a cluster; all of its machines see the same files."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from features.errors import ConfigError, RecsysError
from features.storage.engines.base import Item, Result

_OBJECT_STORE = 200_000_000
"""Bytes of shared memory of a Ray of our own: rows travel by files, only their descriptions by Ray."""
_QUIET = {"logging_level": "error", "log_to_driver": False}


class RayEngine:
    """Every item is a task of Ray Data for one processor, which is done again if its process dies.

    The first call of `map` uses the Ray that this process is connected to, or connects to that of RAY_ADDRESS, or
    starts one on the processors of this machine. As a context manager it ends what it started.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(self) -> None:
        self._started = False
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(
                "Ray is not installed",
                field="engine",
                found="ray",
                expected="local, or the packages of the extra ray",
                mend="pip install 'recsys-embeddings[ray]'",
            )

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            importlib.import_module("ray").shutdown()
            self._started = False

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """See `Engine`.

        Raises:
            ConfigError: Ray does not answer.
        """
        if not items:
            return
        data, pickle = self._connected(), importlib.import_module("ray.cloudpickle")
        rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
        # A task whose process dies is done again as often as it takes: that is what Ray Data does.
        tasks = data.from_items(rows, override_num_blocks=len(rows)).map(_Task(function), num_cpus=1)
        # Results come in the order in which they are finished; here they wait for their turn.
        waiting: dict[int, Any] = {}
        turn = 0
        for table in tasks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for number, result in zip(table["number"].to_pylist(), table["result"].to_pylist(), strict=True):
                waiting[number] = pickle.loads(result)
            while turn in waiting:
                result = waiting.pop(turn)
                if isinstance(result, RecsysError):
                    raise result
                turn += 1
                yield result

    def _connected(self) -> Any:
        """Ray Data, with a Ray to run on."""
        ray = importlib.import_module("ray")
        if not ray.is_initialized():
            _start(ray)
            self._started = True
        data = importlib.import_module("ray.data")
        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        return data


class _Task:
    """The function as Ray Data calls it. An error for the user is a result: Ray would wrap it, or try again."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function, self.folder = function, os.getcwd()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        pickle = importlib.import_module("ray.cloudpickle")
        os.chdir(self.folder)  # a path in the config means the same everywhere
        try:
            result = self.function(pickle.loads(row["item"]))
        except RecsysError as error:
            result = error
        return {"number": row["number"], "result": pickle.dumps(result)}


def _start(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, **_QUIET)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                "Ray does not answer", field="RAY_ADDRESS", found=address, mend="start the cluster or unset it"
            ) from error
        return
    # A task is one processor's; threads that Polars starts for all of them would be in each other's way.
    threads = os.environ.get("POLARS_MAX_THREADS")
    os.environ["POLARS_MAX_THREADS"] = "1"
    try:
        ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE, **_QUIET)
    finally:
        if threads is None:
            del os.environ["POLARS_MAX_THREADS"]
        else:
            os.environ["POLARS_MAX_THREADS"] = threads
