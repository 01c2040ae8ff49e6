"""What the trainer tells whoever watches: a progress display, a tracking server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from recsys.training.trainer import TrainResult


class TrainingListener(Protocol):
    """Called by the trainer, in order."""

    def on_start(self, total_steps: int, total_epochs: int, step: int) -> None:
        """Training begins at `step` (above 0 when it resumes)."""

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """Every `log_steps` steps: `train/loss` (mean since the last report; NaN if all were skipped),
        `train/learning_rate` and `train/skipped_steps` (so far)."""

    def on_epoch(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """After an epoch (from 1): `train/epoch_loss` and the validation metrics as `valid/NAME`."""

    def on_end(self, result: TrainResult) -> None:
        """Training is over."""
