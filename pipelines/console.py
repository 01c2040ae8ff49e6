"""What the jobs say: notes, tables, progress. A live bar on a terminal, plain lines elsewhere.

With `--json` everything for people goes to standard error, so that standard output ends with one JSON object.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from recsys.evaluation.report import cell_text

PLAIN_WIDTH = 120
"""Columns of tables where there is no terminal to ask."""
PLAIN_SECONDS = 10.0
"""Least time between two plain progress lines."""


class Console:
    """Where a job writes for people.

    Args:
        to_stderr: Keep standard output free.
        quiet: Say nothing (tests and library use).
    """

    def __init__(self, *, to_stderr: bool = False, quiet: bool = False) -> None:
        stream = sys.stderr if to_stderr else sys.stdout
        width = None if stream.isatty() else PLAIN_WIDTH
        self.rich = RichConsole(file=stream, highlight=False, quiet=quiet, width=width, soft_wrap=False)

    def note(self, text: str) -> None:
        """One line."""
        self.rich.print(text, markup=False, soft_wrap=True)

    def title(self, text: str) -> None:
        """One line that begins a step of a longer job."""
        self.rich.print(text, markup=False, soft_wrap=True, style="bold")

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows with the same keys; numbers stand to the right."""
        if not rows:
            return
        table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
        for key, value in rows[0].items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            table.add_column(key.replace("_", " "), justify="right" if number else "left", overflow="fold")
        for row in rows:
            table.add_row(*(cell_text(value) for value in row.values()))
        self.rich.print(table)

    @contextmanager
    def progress(self, description: str, total: int | None) -> Iterator[Task]:
        """Shows how far a step is; the yielded task is told about it."""
        if not self.rich.is_terminal:
            yield _PlainTask(self, description, total)
            return
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        ]
        with Progress(*columns, console=self.rich, transient=True) as progress:
            yield _BarTask(progress, progress.add_task(description, total=total, text=""))


class Task:
    """A step in progress."""

    def update(self, completed: int, text: str = "", total: int | None = None) -> None:
        """Tell how much is done, with a short text beside it."""
        raise NotImplementedError


class _BarTask(Task):
    def __init__(self, progress: Progress, task_id: Any) -> None:
        self._progress, self._id = progress, task_id

    def update(self, completed: int, text: str = "", total: int | None = None) -> None:
        extra = {} if total is None else {"total": total}
        self._progress.update(self._id, completed=completed, text=text, **extra)  # type: ignore[arg-type]


class _PlainTask(Task):
    def __init__(self, console: Console, description: str, total: int | None) -> None:
        self._console, self._description, self._total = console, description, total
        self._said = time.monotonic()

    def update(self, completed: int, text: str = "", total: int | None = None) -> None:
        self._total = total or self._total
        if time.monotonic() - self._said < PLAIN_SECONDS:
            return
        self._said = time.monotonic()
        of = f" of {self._total:,}" if self._total else ""
        self._console.note(f"{self._description}: {completed:,}{of} {text}".rstrip())


def bytes_text(count: float) -> str:
    """A size as people read it.

    >>> [bytes_text(n) for n in (512, 158_000, 6_400_000)]
    ['512 B', '158.0 kB', '6.4 MB']
    """
    if count < 1000:
        return f"{count:.0f} B"
    power = min(int(math.log10(count)) // 3, 4)
    return f"{count / 1000**power:.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"
