"""Whether a shadow is better than the champion, said so that it may be looked at after every window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from recsys.evaluation.sequential import SequentialMean, loss_differences

LEVEL = 0.05
"""Chance of ever claiming a difference between equals, for each model that is compared."""


class AnytimeDifference:
    """The logloss of a model less the champion's on the requests that both scored, over all windows so far.

    `SequentialMean` over the rows' differences, probabilities kept .001 away from 0 and 1: the interval holds the mean
    difference at all looks together, so whoever stops as soon as there is a verdict is wrong in 5 of 100 cases at most.

    >>> test = AnytimeDifference()
    >>> labels = np.tile([1, 0, 0, 0], 250)
    >>> for hour in ("1:00", "2:00"):
    ...     test.update(hour, labels, np.where(labels, 0.3, 0.2), np.full(1000, 0.25))
    >>> row = test.row()
    >>> row["rows"], round(row["logloss"], 3), row["verdict"], row["since"]
    (2000, -0.094, 'better', '1:00')
    """

    def __init__(self) -> None:
        _, bound = loss_differences(np.empty(0), np.empty(0), np.empty(0))
        self._test = SequentialMean(-bound, bound, level=LEVEL)
        self._verdict: str | None = None
        self._since: str | None = None

    def update(self, window: str, labels: np.ndarray, model: np.ndarray, champion: np.ndarray) -> None:
        """Takes in the requests of a window.

        Args:
            window: Its start.
            labels: [N] in {0, 1}.
            model: [N] probabilities.
            champion: [N] those of the champion.
        """
        self._test.update(loss_differences(labels, model, champion)[0])
        if self._verdict is None and self._test.decided:
            self._verdict, self._since = "better" if self._test.mean < 0 else "worse", window

    def row(self) -> dict[str, Any]:
        """`rows`, `logloss` (the mean difference: below 0 the model is better), `low` and `high` of its interval,
        `e_value`, `verdict` (better, worse, or none yet) and `since` (the window in which it could first be given)."""
        low, high = self._test.interval
        found = {"rows": self._test.rows, "logloss": self._test.mean, "low": low, "high": high}
        return found | {
            "e_value": self._test.e_value,
            "verdict": self._verdict or "none yet",
            "since": self._since,
        }

    def to_json(self) -> dict[str, Any]:
        """All of its state."""
        return {"test": self._test.to_json(), "verdict": self._verdict, "since": self._since}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> AnytimeDifference:
        """The one that `to_json` wrote."""
        found = cls()
        found._test = SequentialMean.from_json(state["test"])
        found._verdict, found._since = state["verdict"], state["since"]
        return found
