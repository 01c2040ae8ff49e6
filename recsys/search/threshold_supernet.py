"""The supernet under thresholds: which values count for anything, and how well the others do at any width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recsys.search.supernet import SupernetTrainer
from recsys.search.thresholds import ThresholdTrainer

if TYPE_CHECKING:
    from features.loading.loader import Loader


class ThresholdSupernetTrainer(ThresholdTrainer, SupernetTrainer):
    """Trains thresholds and a supernet together, as OptEmbed does first (Lyu et al., CIKM 2022).

    A value passes its feature's threshold or not by the vector of all its chunks: with any allocation the same values
    pass.  It takes what both trainers take.
    """

    def _metrics(self, valid: Loader) -> dict[str, float]:
        self.model.eval()  # what validation reads is not of what is typical
        try:
            return super()._metrics(valid)
        finally:
            self.model.train()
