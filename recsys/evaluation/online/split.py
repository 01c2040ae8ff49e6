"""A champion and a challenger that each answered a part of the requests: what each arm earned, and what may be said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from features.times import length_of
from recsys.evaluation.online.config import OnlineConfig
from recsys.evaluation.sequential import TwoArms
from recsys.evaluation.streaming import StreamingMetrics

METRICS = ("logloss", "normalised_entropy", "calibration_ratio", "auc")
"""Of an arm, over its rows."""
NOT_SPLIT = "not split as declared"
NONE_YET = "none yet"
_SHARE_OF_RATE = 0.1
"""A difference of so much of the label rate is worth seeing where none is declared."""
_EXPECTED = 20
"""Requests an arm must be expected to have in a window: with fewer it may be empty by chance, once in e^20 windows."""
_REQUEST = ["request", "requested"]


@dataclass(frozen=True)
class _Counts:
    """Requests of a window."""

    start: int
    follows: bool
    """Whether both arms answered in the window before, too."""
    requests: np.ndarray
    """[2, 2] int64 by arm (champion, challenger) and label."""


class SplitTraffic:
    """One champion and one challenger on split traffic, window by window.

    The label rate of an arm is the share of its requests to which at least one label of 1 came. Their difference is
    tested by `TwoArms`, so that it may be looked at after every window. A window is tested if both arms answered in it,
    in the one before and in the one after, once that is final: in the windows in which a challenger comes or goes, the
    champion answers a part of its share. The first window of all is not tested but gives the rate that the test is
    planned with.

    Args:
        config: The declared share, the effect, and the length of a window.

    Attributes:
        windows: In which both answered.
    """

    def __init__(self, config: OnlineConfig) -> None:
        self._config = config.challenger
        self._length = length_of(config.window)
        self._metrics = (StreamingMetrics(), StreamingMetrics())
        self._requests = np.zeros((2, 2), np.int64)
        self.windows = 0
        self._held: _Counts | None = None
        self._test: TwoArms | None = None
        self._verdict: str | None = None
        self._since: int | None = None

    def update(self, start: int, champion: pl.DataFrame, challenger: pl.DataFrame) -> int | None:
        """Takes in a window.

        Args:
            start: Of the window, in microseconds since 1970.
            champion: `request`, `requested`, `label`, `probability` of the rows that the champion answered.
            challenger: Those of the challenger. Requests that both scored are left out: they were not split.

        Returns:
            The start of the window that was tested because of it, if one was.
        """
        arms = [
            own.join(other.select(_REQUEST), on=_REQUEST, how="anti", maintain_order="left")
            for own, other in ((champion, challenger), (challenger, champion))
        ]
        if not all(arm.height for arm in arms):
            return None
        requests = np.stack([_by_label(arm) for arm in arms])
        for metrics, arm in zip(self._metrics, arms, strict=True):
            metrics.update(arm["label"].to_numpy(), arm["probability"].to_numpy())
        self._requests += requests
        self.windows += 1
        share, before = self._config.share, self._held
        if share is None:
            return None
        if requests.sum() * min(share, 1 - share) < _EXPECTED:
            self._held = None
            return None
        adjacent = before is not None and before.start + self._length == start
        self._held = _Counts(start, adjacent, requests)
        if before is None or not adjacent:
            return None
        if self._test is None:
            self._test = self._planned(before.requests, share)
        if not before.follows:
            return None
        self._take(before)
        return before.start

    def arms(self) -> list[dict[str, Any]]:
        """The champion's row and the challenger's, over the windows in which both answered: `windows`, `requests`,
        `label_rate`, `rows`, `METRICS`."""
        found = []
        for metrics, requests in zip(self._metrics, self._requests, strict=True):
            (values,) = metrics.compute().values()
            found.append(
                {
                    "windows": self.windows,
                    "requests": int(requests.sum()),
                    "label_rate": float(requests[1] / requests.sum()) if requests.sum() else None,
                    "rows": values["rows"],
                    **{name: values.get(name) for name in METRICS},
                }
            )
        return found

    def row(self) -> dict[str, Any]:
        """`requests` that were tested, `label_rate` (the challenger's less the champion's), `low` and `high` of its
        interval at all looks together, `e_value`, `share` (of the requests that the challenger answered), `verdict`
        (higher, lower, none yet, not split as declared), `since` (the start of the window in which a difference could
        first be claimed) and `said` (a sentence). None where there is nothing yet."""
        test = self._test if self._test is not None and self._test.difference.rows else None
        values: dict[str, Any] = {"requests": 0, **dict.fromkeys(("label_rate", "low", "high", "e_value", "share"))}
        if test is not None:
            low, high = test.difference.interval
            values = {
                "requests": test.difference.rows,
                "label_rate": test.difference.mean,
                "low": low,
                "high": high,
                "e_value": test.difference.e_value,
                "share": test.share + test.split.mean,
            }
        verdict = self._verdict or NONE_YET
        return {**values, "verdict": verdict, "since": self._since, "said": self._sentence(verdict, values["share"])}

    def to_json(self) -> dict[str, Any]:
        """All of its state."""
        held = self._held
        return {
            "metrics": [metrics.to_json() for metrics in self._metrics],
            "requests": self._requests.tolist(),
            "windows": self.windows,
            "held": None if held is None else [held.start, held.follows, held.requests.tolist()],
            "test": None if self._test is None else self._test.to_json(),
            "verdict": self._verdict,
            "since": self._since,
        }

    @classmethod
    def from_json(cls, config: OnlineConfig, state: Mapping[str, Any]) -> SplitTraffic:
        """The one that `to_json` wrote, under the same config."""
        found = cls(config)
        champion, challenger = (StreamingMetrics.from_json(metrics) for metrics in state["metrics"])
        found._metrics = (champion, challenger)
        found._requests, found.windows = np.array(state["requests"], dtype=np.int64), state["windows"]
        if state["held"] is not None:
            start, follows, requests = state["held"]
            found._held = _Counts(start, follows, np.array(requests, dtype=np.int64))
        found._test = None if state["test"] is None else TwoArms.from_json(state["test"])
        found._verdict, found._since = state["verdict"], state["since"]
        return found

    def _planned(self, requests: np.ndarray, share: float) -> TwoArms:
        rate = float((requests[:, 1].sum() + 1) / (requests.sum() + 2))
        effect = _SHARE_OF_RATE * rate if self._config.effect is None else self._config.effect
        return TwoArms(rate=rate, effect=effect, share=share)

    def _take(self, window: _Counts) -> None:
        assert self._test is not None
        requests = window.requests.reshape(-1)
        self._test.update(np.repeat([0, 0, 1, 1], requests), np.repeat([0, 1, 0, 1], requests))
        if self._test.split.decided:
            self._verdict, self._since = NOT_SPLIT, None
        elif self._verdict is None and self._test.difference.decided:
            self._verdict = "higher" if self._test.difference.mean > 0 else "lower"
            self._since = window.start

    def _sentence(self, verdict: str, share: float | None) -> str:
        if self._config.share is None:
            return "no difference can be claimed without the declared share of the challenger: give challenger.share"
        if share is None:
            return "no window is tested yet: it takes three in a row in which both answered enough requests"
        if verdict == NOT_SPLIT:
            return (
                f"the challenger answered {share:.2%} of the requests and not {self._config.share:.2%} as declared: "
                "requests were lost or sent elsewhere, and the difference says nothing"
            )
        if verdict == NONE_YET:
            return "no difference can be claimed yet"
        return f"the challenger's label rate is {verdict} than the champion's: this may be acted on"


def _by_label(rows: pl.DataFrame) -> np.ndarray:
    """[2] requests without a label of 1, and with one."""
    labels = rows.group_by(_REQUEST).agg(pl.col("label").max())["label"]
    ones = int(labels.sum())
    return np.array([len(labels) - ones, ones], dtype=np.int64)
