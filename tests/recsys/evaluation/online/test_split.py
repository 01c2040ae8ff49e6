"""Split traffic: figures of the arms by hand, which windows are tested, and what is said."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from recsys.evaluation.metrics import evaluate
from recsys.evaluation.online import OnlineConfig
from recsys.evaluation.online.split import NONE_YET, NOT_SPLIT, SplitTraffic

HOUR = 3_600_000_000
SHARE = 0.3
CONFIG = OnlineConfig.model_validate({"window": "1h", "challenger": {"share": SHARE}})


def window(
    number: int, *, requests: int = 2_000, share: float = SHARE, lift: float = 0.0, rows: int = 1, since: float = 0.0
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What champion and challenger answered in an hour; before the share `since` of it the champion answered all."""
    rng = np.random.default_rng(number)
    to_challenger = (rng.random(requests) < share) & (np.arange(requests) >= since * requests)
    probability = rng.beta(2, 8, (requests, rows))
    clicked = rng.random((requests, rows)) < probability + lift * to_challenger[:, None]
    frame = pl.DataFrame(
        {
            "request": np.repeat(np.arange(requests) + number * requests, rows),
            "requested": np.repeat(number * HOUR + np.arange(requests) * (HOUR // requests), rows),
            "label": clicked.reshape(-1).astype(np.int8),
            "probability": probability.reshape(-1),
        }
    )
    mask = pl.Series(np.repeat(to_challenger, rows))
    return frame.filter(~mask), frame.filter(mask)


def fed(windows: dict[int, tuple[pl.DataFrame, pl.DataFrame]], config: OnlineConfig = CONFIG) -> SplitTraffic:
    traffic = SplitTraffic(config)
    for number, both in windows.items():
        traffic.update(number * HOUR, *both)
    return traffic


def test_figures_of_the_arms_are_those_of_their_rows():
    windows = {number: window(number, rows=3) for number in range(3)}
    for place, found in enumerate(fed(windows).arms()):
        rows = pl.concat([both[place] for both in windows.values()])
        expected = evaluate(rows["label"].to_numpy(), rows["probability"].to_numpy())
        for name in ("rows", "logloss", "normalised_entropy", "calibration_ratio"):
            assert found[name] == pytest.approx(expected[name], rel=1e-9)
        by_request = rows.group_by("request").agg(pl.col("label").max())["label"]
        assert (found["windows"], found["requests"]) == (3, len(by_request))
        assert found["label_rate"] == pytest.approx(by_request.mean())


def test_the_difference_is_that_of_the_windows_with_both_arms_before_and_after():
    windows = {number: window(number) for number in (0, 1, 2, 3, 6, 7, 8)}
    found = fed(windows).row()
    champion, challenger = (pl.concat([windows[number][place] for number in (1, 2, 7)]) for place in (0, 1))
    requests = champion.height + challenger.height
    assert found["requests"] == requests
    assert found["share"] == pytest.approx(challenger.height / requests)
    # Each arm's labels, weighted by the share that was declared, about the rate of the first window.
    first = pl.concat(windows[0])["label"]
    rate = (first.sum() + 1) / (len(first) + 2)
    sums = [(arm["label"].cast(pl.Float64) - rate).sum() for arm in (champion, challenger)]
    assert found["label_rate"] == pytest.approx((sums[1] / SHARE - sums[0] / (1 - SHARE)) / requests)
    assert found["low"] < found["label_rate"] < found["high"]


def test_a_window_is_tested_when_the_next_one_is_there():
    traffic = SplitTraffic(CONFIG)
    tested = [traffic.update(number * HOUR, *window(number)) for number in (0, 1, 2, 3)]
    assert tested == [None, None, HOUR, 2 * HOUR]


@pytest.mark.parametrize(("lift", "verdict"), [(0.08, "higher"), (-0.08, "lower")])
def test_a_difference_is_claimed_with_the_window_that_showed_it_and_stays(lift, verdict):
    traffic, since = SplitTraffic(CONFIG), []
    for number in range(12):
        traffic.update(number * HOUR, *window(number, lift=lift))
        since.append(traffic.row()["since"])
    found = traffic.row()
    assert found["verdict"] == verdict
    assert verdict in found["said"]
    assert (found["low"] > 0) == (lift > 0)
    assert (found["high"] < 0) == (lift < 0)
    first = next(place for place, value in enumerate(since) if value is not None)
    assert since == [None] * first + [(first - 1) * HOUR] * (12 - first)


def test_between_equals_nothing_is_claimed():
    found = fed({number: window(number) for number in range(12)}).row()
    assert (found["verdict"], found["since"]) == (NONE_YET, None)
    assert found["said"] == "no difference can be claimed yet"
    assert found["low"] < 0 < found["high"]


def test_traffic_that_is_not_split_as_declared_is_told_and_no_difference_is_claimed():
    found = fed({number: window(number, share=0.2, lift=0.08) for number in range(12)}).row()
    assert (found["verdict"], found["since"]) == (NOT_SPLIT, None)
    assert "and not 30.00% as declared" in found["said"]
    assert found["share"] == pytest.approx(0.2, abs=0.01)


def test_a_challenger_that_comes_and_goes_within_a_window_is_no_wrong_split():
    windows = {number: window(number) for number in range(1, 6)}
    assert fed({0: window(0, since=0.9), **windows, 6: window(6, since=0.9)}).row()["verdict"] == NONE_YET
    # In a window that is tested so few would be.
    assert fed({0: window(0), 1: window(1, since=0.9), 2: window(2)}).row()["verdict"] == NOT_SPLIT


def test_windows_with_few_requests_are_shown_and_not_tested():
    traffic = fed({number: window(number, requests=60) for number in range(5)})
    assert [arm["windows"] for arm in traffic.arms()] == [5, 5]
    assert traffic.row()["requests"] == 0
    assert traffic.row()["said"].startswith("no window is tested yet")


def test_requests_that_both_scored_are_not_split_traffic():
    champion, challenger = window(0)
    both = pl.concat([champion, challenger])
    traffic = SplitTraffic(CONFIG)
    traffic.update(0, both, challenger)
    assert traffic.windows == 0
    traffic.update(0, champion, pl.concat([challenger, champion[:5]]))
    assert [arm["requests"] for arm in traffic.arms()] == [champion.height - 5, challenger.height]


def test_without_a_declared_share_the_arms_are_shown_and_nothing_is_claimed():
    traffic = fed({number: window(number, lift=0.2) for number in range(4)}, OnlineConfig(window="1h"))
    assert traffic.arms()[1]["label_rate"] > traffic.arms()[0]["label_rate"]
    assert traffic.row()["verdict"] == NONE_YET
    assert "give challenger.share" in traffic.row()["said"]


def test_goes_on_from_its_state_with_the_same_bits():
    windows = {number: window(number, lift=0.05) for number in range(8)}
    whole, traffic = fed(windows), SplitTraffic(CONFIG)
    for number, both in windows.items():
        traffic = SplitTraffic.from_json(CONFIG, json.loads(json.dumps(traffic.to_json())))
        traffic.update(number * HOUR, *both)
    assert (traffic.arms(), traffic.row()) == (whole.arms(), whole.row())
