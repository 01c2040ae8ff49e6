"""The live figures are the metrics, by what a reader looks for."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric

from recsys.serving.server.stats import LiveStats, live_stats


def counted() -> CollectorRegistry:
    own = CollectorRegistry()
    requests = Counter("recsys_requests", "-", ["route", "status"], registry=own)
    seconds = Histogram("recsys_request_seconds", "-", ["route"], buckets=(0.001, 0.01), registry=own)
    for route, status, took in (
        ("/v1/score", "200", 0.0005),
        ("/v1/score", "200", 0.5),
        ("/v1/rank", "422", 0.002),
        ("/v1/stats", "200", 0.0001),
    ):
        requests.labels(route, status).inc()
        seconds.labels(route).observe(took)
    rows = Counter("recsys_rows", "-", ["model", "version"], registry=own)
    sums = Counter("recsys_probability_sum", "-", ["model", "version"], registry=own)
    for version, count, probability in (("1", 10, 2.5), ("2", 4, 1.25)):
        rows.labels("clicks", version).inc(count)
        sums.labels("clicks", version).inc(probability)
    Counter("recsys_missing_fields", "-", ["field"], registry=own).labels("price").inc(3)
    Counter("recsys_requests_refused", "-", ["type"], registry=own).labels("busy").inc(2)
    Gauge("recsys_requests_in_hand_limit", "-", registry=own).set(128)
    return own


def test_the_figures_are_those_of_the_scoring_routes() -> None:
    assert live_stats(counted().collect(), 5.0) == {
        "at": 5.0,
        "requests": {"/v1/score": {"200": 2}, "/v1/rank": {"422": 1}},
        "latency": {"bounds": [0.001, 0.01], "counts": [1, 2, 3]},
        "refused": {"busy": 2},
        "rows": {"1": 10, "2": 4},
        "probability": {"1": 2.5, "2": 1.25},
        "missing": {"price": 3},
        "ids": {},
        "unseen": {},
        "shadow_requests": {},
        "in_hand": 0,
        "in_hand_limit": 128,
        "challenger_failures": 0,
    }


def test_many_readers_cost_what_one_does() -> None:
    calls = []

    def collect() -> Iterable[Metric]:
        calls.append(1)
        return counted().collect()

    stats = LiveStats(collect)
    first = stats.read()
    for _ in range(50):
        # Whoever is slow may see a second reading, but not fifty.
        assert stats.read()["rows"] == first["rows"]
    assert len(calls) < 25
