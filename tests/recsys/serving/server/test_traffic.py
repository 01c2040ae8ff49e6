"""Which requests a challenger answers, and which challenger may answer any."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest

from features.errors import ArtifactError
from recsys.serving.server.announcement import CHALLENGER
from recsys.serving.server.app import create_app
from recsys.serving.server.served import ServedModel
from recsys.serving.server.settings import ServerSettings
from recsys.serving.server.shares import in_share
from recsys.serving.server.traffic import TrafficSplit, misfit
from tests.recsys.serving.server.conftest import SPEC, make

GOOD = {"user": 1, "item": "a", "tags": ["x"], "price": 1.0}
BAD = {**GOOD, "item": "b"}
IDS = [f"r{number}" for number in range(2000)]


def split(share: float, challenger: ServedModel | None, **changes: Any) -> TrafficSplit:
    made = TrafficSplit(ServerSettings(state=Path(), parent=1, challenger="c", challenger_share=share, **changes))
    made.watcher.model = challenger
    return made


def test_a_share_is_dealt_by_the_id_alone(models: tuple[ServedModel, ServedModel]) -> None:
    champion, challenger = models
    dealt = [split(0.2, challenger).deal(champion, id) for id in IDS]
    assert [split(0.2, challenger).deal(champion, id) for id in reversed(IDS)] == dealt[::-1]
    # 2,000 requests: five standard errors about .2
    assert 310 < dealt.count(challenger) < 490
    assert {split(0.0, challenger).deal(champion, id) for id in IDS} == {champion}
    assert {split(1.0, challenger).deal(champion, id) for id in IDS} == {challenger}


def test_a_larger_share_takes_nothing_back(models: tuple[ServedModel, ServedModel]) -> None:
    champion, challenger = models
    small, large = split(0.1, challenger), split(0.3, challenger)
    assert all(large.deal(champion, id) is challenger for id in IDS if small.deal(champion, id) is challenger)


def test_the_share_is_independent_of_the_sample_of_the_log(models: tuple[ServedModel, ServedModel]) -> None:
    champion, challenger = models
    logged = [split(0.5, challenger).deal(champion, id) for id in IDS if in_share(id, 0.5)]
    assert 0.4 < logged.count(challenger) / len(logged) < 0.6


def test_without_a_challenger_or_with_the_same_version_the_champion_answers(model: ServedModel) -> None:
    assert split(1.0, None).deal(model, "r") is model
    assert split(1.0, ServedModel(model.announcement, model.scorer, "challenger")).deal(model, "r") is model


def changed(name: str, feature: dict[str, Any] | None) -> dict[str, Any]:
    """The spec with another feature in the place of one, or without it."""
    changed = [feature if old["name"] == name else old for old in SPEC["features"]]
    return {**SPEC, "features": [feature for feature in changed if feature is not None]}


@pytest.mark.parametrize(
    ("spec", "refuse", "says"),
    [
        (SPEC, True, None),
        (changed("price", None), False, None),
        (changed("price", None), True, "does not read price, and unknown fields are refused"),
        (
            changed("user", {"name": "user", "type": "number"}),
            False,
            "reads user as number, and the champion as integer",
        ),
        ({**SPEC, "labels": ["sale"]}, False, "gives p_sale, and the champion p_click"),
    ],
)
def test_a_challenger_that_cannot_take_the_champions_place_answers_nothing(
    model: ServedModel, tmp_path: Path, spec: dict[str, Any], refuse: bool, says: str | None
) -> None:
    challenger = make(tmp_path / "other", 2, spec)
    problem = misfit(model, challenger, refuse_unknown=refuse)
    assert problem == says if says is None else says in (problem or "")
    unknown = "refuse" if refuse else "ignore"
    dealing = split(1.0, challenger, unknown_fields=unknown)
    assert dealing.deal(model, "r") is (challenger if says is None else model)
    assert dealing._misfit._value.get() == (says is not None)
    dealing.watcher.model = None
    assert dealing.deal(model, "r") is model
    assert dealing._misfit._value.get() == 0


def fails_on_bad(folder: Path) -> ServedModel:
    """A model that loads, scores nulls and `GOOD`, and has no probability for `BAD`."""
    for row in range(20, 24):  # the exact region
        with_row = folder / str(row)
        try:
            made = make(with_row, 2, broken_row=row)
            made.scorer.score([GOOD])
        except ArtifactError:
            continue
        try:
            made.scorer.score([BAD])
        except ArtifactError:
            return made
    raise AssertionError("no row is BAD's alone")


def test_where_the_challenger_fails_the_champion_answers(
    model: ServedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = fails_on_bad(tmp_path / "models")
    state, logged = tmp_path / "state", list[pl.DataFrame]()
    (state / CHALLENGER).mkdir(parents=True)
    model.announcement.write(state)
    dataclasses.replace(broken.announcement, alias="c").write(state / CHALLENGER)
    settings = ServerSettings(state=state, parent=os.getppid(), challenger="c", challenger_share=1.0, timeout_ms=60_000)
    app = create_app(settings, logged.append)

    async def ask() -> list[httpx.Response]:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
                return [
                    await http.post(path, json=body, headers={"X-Request-Id": f"r{number}"})
                    for number, (path, body) in enumerate(
                        [
                            ("/v1/score", {"rows": [GOOD]}),
                            ("/v1/score", {"rows": [GOOD, BAD]}),
                            ("/v1/rank", {"candidates": [GOOD, BAD]}),
                            ("/v1/score", {"rows": [{**BAD, "user": "u7"}]}),
                        ]
                    )
                ]

    good, bad, ranked, wrong = asyncio.run(ask())
    assert [answer.status_code for answer in (good, bad, ranked, wrong)] == [200, 200, 200, 422], bad.text
    assert [answer.json()["version"] for answer in (good, bad, ranked)] == ["2", "1", "1"]
    assert bad.headers["X-Model-Version"] == "1"
    np.testing.assert_allclose(bad.json()["scores"]["p_click"], model.scorer.score([GOOD, BAD])[:, 0], atol=1e-6)
    assert wrong.json()["error"]["field"] == "user"
    log = pl.concat(logged).unique(["request_id"], maintain_order=True).sort("request_id")
    assert log.select("request_id", "version", "role").rows() == [
        ("r0:0", "2", "challenger"),
        *[(f"r{number}:{row}", "1", "champion") for number in (1, 2) for row in (0, 1)],
    ]
    # Two requests, and the refused one is none of them.
    assert sum("the champion answers" in line.getMessage() for line in caplog.records) == 2
