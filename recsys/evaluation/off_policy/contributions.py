"""What every row brings to an estimate: the form that all estimators share, so that all have the same intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Contributions:
    """An estimate as `sum(numerator) / sum(denominator)` over N rows."""

    estimator: str
    numerator: np.ndarray
    """[N]."""
    denominator: np.ndarray | None = None
    """[N]; 1 a row when left out: the estimate is a mean."""
    span: tuple[float, float] | None = None
    """What a row's numerator lies between, whatever the row; None of a ratio, which has no such bounds."""

    @property
    def value(self) -> float | None:
        """The estimate; None if the denominator is 0."""
        total = float(len(self.numerator) if self.denominator is None else self.denominator.sum())
        return float(self.numerator.sum()) / total if total > 0 else None
