"""What waits is scored together, and each request gets the scores it would get alone."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import polars as pl

from features.errors import DataError
from recsys.serving.server.dispatcher import Dispatcher
from recsys.serving.server.metrics import Metrics
from recsys.serving.server.refusal import Refusal
from recsys.serving.server.served import ServedModel

ROWS = [
    {"user": user, "item": item, "tags": ["x"] * user, "price": 1.0 * user}
    for user, item in enumerate(["a", "b", None, "new"])
]


def batches(metrics: Metrics) -> float:
    """How many batches were scored."""
    (family,) = metrics.batch_rows.collect()
    return next(sample.value for sample in family.samples if sample.name.endswith("_count"))


def ask(dispatcher: Dispatcher, *requests: tuple[Any, ...], seconds: float = 60.0) -> list[Any]:
    async def all_at_once() -> list[Any]:
        deadline = time.monotonic() + seconds
        asked = [dispatcher.score(*request, deadline) for request in requests]
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(all_at_once())


def test_requests_that_wait_are_scored_in_one_go(model: ServedModel) -> None:
    metrics = Metrics()
    found = ask(Dispatcher(metrics, 100), *[(model, [row], None) for row in ROWS])
    assert batches(metrics) == 1
    expected = model.scorer.score(ROWS)
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-6)
    assert len(np.unique(expected)) > 2


def test_never_more_rows_than_the_limit_unless_one_request_has_more(model: ServedModel) -> None:
    metrics = Metrics()
    found = ask(Dispatcher(metrics, 3), (model, ROWS[:2], None), (model, ROWS[2:], None), (model, ROWS, None))
    assert batches(metrics) == 3
    np.testing.assert_allclose(np.concatenate(found), model.scorer.score(ROWS + ROWS), atol=1e-6)


def test_a_wrong_row_fails_its_own_request_only(model: ServedModel) -> None:
    good, bad, other = ask(
        Dispatcher(Metrics(), 100),
        (model, ROWS[:2], None),
        (model, [{**ROWS[0], "user": "u7"}], None),
        (model, ROWS[2:], None),
    )
    assert isinstance(bad, DataError)
    assert bad.field == "user"
    np.testing.assert_allclose(np.concatenate([good, other]), model.scorer.score(ROWS), atol=1e-6)


def test_requests_of_two_versions_are_not_mixed(models: tuple[ServedModel, ServedModel]) -> None:
    found = ask(Dispatcher(Metrics(), 100), *[(model, [row], None) for row in ROWS for model in models])
    for place, model in enumerate(models):
        np.testing.assert_allclose(np.concatenate(found[place::2]), model.scorer.score(ROWS), atol=1e-6)


def test_shared_fields_and_frames_go_with_the_others(model: ServedModel) -> None:
    shared = {"user": 1, "price": 2.0}
    candidates = [{"item": row["item"], "tags": row["tags"]} for row in ROWS]
    ranked, framed, plain = ask(
        Dispatcher(Metrics(), 100),
        (model, candidates, shared),
        (model, pl.DataFrame(ROWS), None),
        (model, ROWS, None),
    )
    np.testing.assert_allclose(ranked, model.scorer.score([{**shared, **row} for row in candidates]), atol=1e-6)
    np.testing.assert_allclose(framed, plain, atol=1e-6)


def test_a_request_that_comes_too_late_is_refused_and_costs_nothing(model: ServedModel) -> None:
    metrics = Metrics()
    (found,) = ask(Dispatcher(metrics, 100), (model, ROWS, None), seconds=-1)
    assert isinstance(found, Refusal)
    assert (found.status, found.kind) == (429, "busy")
    assert found.headers() == {"Retry-After": "1"}
    assert batches(metrics) == 0


def test_no_rows_have_no_scores(model: ServedModel) -> None:
    (found,) = ask(Dispatcher(Metrics(), 100), (model, [], None))
    assert found.shape == (0, 1)
