"""Watches a training for people: a bar with the loss, a line an epoch; and joins several watchers into one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pipelines.console import Console, Task

if TYPE_CHECKING:
    from recsys.training import TrainingListener, TrainResult


class ProgressListener:
    """Shows a training on the console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stack = ExitStack()
        self._task: Task | None = None
        self._loss = ""

    def on_start(self, total_steps: int, total_epochs: int, step: int) -> None:
        """Open the bar."""
        if step:
            self._console.note(f"resuming at step {step:,} of {total_steps:,}")
        self._task = self._stack.enter_context(self._console.progress("training", total_steps))
        self._task.update(step)

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """Move the bar."""
        self._loss = f"loss {values['train/loss']:.4f}"
        if skipped := values["train/skipped_steps"]:
            self._loss += f", {skipped:,.0f} steps skipped"
        if self._task:
            self._task.update(step, self._loss)

    def on_epoch(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """A line with the validation metrics."""
        if self._task:
            self._task.update(step, self._loss)
        self._console.note(f"epoch {epoch}: " + ", ".join(f"{name} {value:.5f}" for name, value in values.items()))

    def on_end(self, result: TrainResult) -> None:
        """Close the bar; say what was left out."""
        self.close()
        if result.skipped_steps:
            self._console.note(f"{result.skipped_steps:,} steps were skipped: their loss or gradient was not finite")

    def close(self) -> None:
        """Give the terminal back; also after an error."""
        self._stack.close()


class Listeners:
    """Several listeners as one."""

    def __init__(self, listeners: Sequence[TrainingListener]) -> None:
        self._all = tuple(listeners)

    def on_start(self, total_steps: int, total_epochs: int, step: int) -> None:
        """Pass on."""
        for listener in self._all:
            listener.on_start(total_steps, total_epochs, step)

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """Pass on."""
        for listener in self._all:
            listener.on_step(step, values)

    def on_epoch(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """Pass on."""
        for listener in self._all:
            listener.on_epoch(epoch, step, values)

    def on_end(self, result: TrainResult) -> None:
        """Pass on."""
        for listener in self._all:
            listener.on_end(result)
