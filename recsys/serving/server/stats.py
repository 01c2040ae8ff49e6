"""The live figures as JSON, summed over all workers: what the page on `/` is drawn from."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import Metric

SCORING_ROUTES = ("/v1/score", "/v1/rank")
_KEPT_SECONDS = 0.5
"""However many pages ask, the sums are made anew only after so long."""
_BY_LABEL = {
    "recsys_requests_refused_total": ("refused", "type"),
    "recsys_rows_total": ("rows", "version"),
    "recsys_probability_sum_total": ("probability", "version"),
    "recsys_missing_fields_total": ("missing", "field"),
    "recsys_ids_sampled_total": ("ids", "field"),
    "recsys_ids_unseen_total": ("unseen", "field"),
    "recsys_shadow_requests_total": ("shadow_requests", "outcome"),
}
_PLAIN = {
    "recsys_requests_in_hand": "in_hand",
    "recsys_requests_in_hand_limit": "in_hand_limit",
    "recsys_challenger_failures_total": "challenger_failures",
}


def live_stats(families: Iterable[Metric], at: float) -> dict[str, Any]:
    """Counters since the server started.

    Args:
        families: The metrics, summed over the workers.
        at: When they were read, in seconds since 1970.

    Returns:
        `at`; `requests` by scoring route and status; `latency` of the scoring routes, `bounds` in seconds and `counts`
        of the answers that took at most so long, the last of all; `refused` by type; `rows` and `probability` (the sum
        over these rows, of the first task) by version; `missing`, `ids` and `unseen` by field; `shadow_requests` by
        outcome; `in_hand` and `in_hand_limit`; `challenger_failures`, requests that the champion answered in its place.
    """
    by_label: dict[str, defaultdict[str, float]] = {name: defaultdict(float) for name, _ in _BY_LABEL.values()}
    plain = dict.fromkeys(_PLAIN.values(), 0)
    requests: defaultdict[str, Counter[str]] = defaultdict(Counter)
    buckets: Counter[float] = Counter()
    for family in families:
        for name, labels, value, *_ in family.samples:
            if name in _BY_LABEL:
                key, label = _BY_LABEL[name]
                by_label[key][labels[label]] += value
            elif name in _PLAIN:
                plain[_PLAIN[name]] = round(value)
            elif labels.get("route") in SCORING_ROUTES:
                if name == "recsys_requests_total":
                    requests[labels["route"]][labels["status"]] += round(value)
                elif name == "recsys_request_seconds_bucket":
                    buckets[float(labels["le"])] += round(value)
    bounds = sorted(buckets)
    latency = {"bounds": [bound for bound in bounds if math.isfinite(bound)], "counts": [buckets[b] for b in bounds]}
    return {"at": at, "requests": requests, "latency": latency, **by_label, **plain}


class LiveStats:
    """The figures of `live_stats`, made anew at most twice a second.

    Args:
        collect: Gives the metrics, summed over the workers.
    """

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect
        self._last: dict[str, Any] | None = None

    def read(self) -> dict[str, Any]:
        """The newest figures."""
        now = time.time()
        if self._last is None or not 0 <= now - self._last["at"] < _KEPT_SECONDS:
            self._last = live_stats(self._collect(), now)
        return self._last
