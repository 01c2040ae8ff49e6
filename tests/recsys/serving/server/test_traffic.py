"""Which requests a challenger answers, and which challenger may answer any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recsys.serving.server.served import ServedModel
from recsys.serving.server.settings import ServerSettings
from recsys.serving.server.shares import in_share
from recsys.serving.server.traffic import TrafficSplit, misfit
from tests.recsys.serving.server.conftest import SPEC, make

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
