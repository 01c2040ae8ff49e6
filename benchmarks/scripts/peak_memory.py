"""The peak memory of a process with all its children, by asking again and again."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

import psutil

_INTERVAL = 0.05


class PeakMemory:
    """Measures from `with` to its end.

    Attributes:
        rss: Highest sum of the resident sizes in bytes. It counts pages of mapped files, which the system may take
            back at any time, and pages that processes share once for each.
        anonymous: Highest sum without files, in bytes; 0 where the system does not tell.
    """

    def __init__(self) -> None:
        self.rss = 0
        self.anonymous = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self.rss = max(self.rss, _own_peak())

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        process = psutil.Process()
        rss = anonymous = 0
        for one in (process, *process.children(recursive=True)):
            try:
                memory = one.memory_info()
            except psutil.Error:
                continue  # it ended meanwhile
            rss += memory.rss
            anonymous += memory.rss - getattr(memory, "shared", memory.rss)
        self.rss, self.anonymous = max(self.rss, rss), max(self.anonymous, anonymous)


def _own_peak() -> int:
    """The highest resident size of this process so far, as the Linux kernel knows it; 0 elsewhere."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
