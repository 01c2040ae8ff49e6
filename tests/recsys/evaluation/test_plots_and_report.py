"""Pictures and the report: what exists is drawn, the page needs nothing from outside, text is escaped."""

import re
from pathlib import Path

import numpy as np
import pytest

from recsys.evaluation.curves import reliability_points, roc_points
from recsys.evaluation.evaluation_plots import BARS, calibration_picture, importance_picture
from recsys.evaluation.plots import frontier_picture, learning_picture, pictures_of, reliability_picture, roc_picture
from recsys.evaluation.report import Figure, Section, render_report

PNG = b"\x89PNG"
HISTORY = [
    {"epoch": 1, "step": 10, "train/epoch_loss": 0.6, "valid/auc": 0.7, "valid/logloss": 0.6},
    {"epoch": 2, "step": 20, "train/epoch_loss": 0.5, "valid/auc": 0.72, "valid/logloss": 0.58},
]


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    probabilities = rng.beta(2, 5, 5000)
    return (rng.random(5000) < probabilities).astype(np.float64), probabilities


def test_every_picture_comes_in_both_themes_and_as_png(scores: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = scores
    pictures = pictures_of(labels, {"model": probabilities}, history=HISTORY, best_epoch=2)
    assert [picture.name for picture in pictures] == ["roc", "precision-recall", "reliability", "scores", "learning"]
    for picture in pictures:
        assert picture.light.startswith(b"<?xml")
        assert picture.light != picture.dark
        assert picture.png.startswith(PNG)


def test_several_models_share_their_pictures_but_for_the_histogram(scores: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = scores
    pictures = pictures_of(labels, {"old": probabilities, "new": probabilities**2})
    assert [picture.name for picture in pictures] == ["roc", "precision-recall", "reliability"]
    assert all(name in picture.light for picture in pictures for name in (b"old", b"new"))


def test_same_figures_give_the_same_file(scores: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = scores
    points = {"model": roc_points(labels, probabilities)}
    assert roc_picture(points) == roc_picture(points)


def test_one_class_has_no_roc_but_the_rest() -> None:
    labels, probabilities = np.zeros(50), np.linspace(0.1, 0.4, 50)
    pictures = pictures_of(labels, {"model": probabilities}, history=HISTORY, best_epoch=1)
    assert [picture.name for picture in pictures] == ["reliability", "scores", "learning"]


def test_weights_reach_the_reliability_curve(scores: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = scores
    plain = reliability_picture({"model": reliability_points(labels, probabilities)})
    weight = np.where(labels > 0, 3.0, 1.0)
    weighted = reliability_picture({"model": reliability_points(labels, probabilities, weight)})
    assert plain.light != weighted.light


def test_learning_curves_without_auc() -> None:
    history = [{key: value for key, value in entry.items() if key != "valid/auc"} for entry in HISTORY]
    assert learning_picture(history, 1).png.startswith(PNG)


def test_report_stands_alone(scores: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = scores
    page = render_report(
        title="a & b",
        lead="<script>alert(1)</script>",
        headline=[Figure("AUC", "0.75", "reference 0.76")],
        sections=[
            Section("Metrics", "", [{"task": "click", "auc": 0.751234, "gauc": None}], points=["one < two", "three"]),
            Section("Pictures", pictures=pictures_of(labels, {"model": probabilities})),
        ],
    )
    assert "<script" not in page
    assert "a &amp; b" in page
    assert "0.75123" in page
    assert "nan" not in re.sub(r"base64,[^\"]+", "", page).lower()
    assert not re.search(r"(src|href|srcset)=\"(?!data:)", page)
    assert "prefers-color-scheme:dark" in page.replace(" ", "")
    assert 'name="viewport"' in page
    assert "<ul><li>one &lt; two</li><li>three</li></ul>" in page


def test_a_frontier_names_every_method_and_is_written_in_three_forms(tmp_path: Path) -> None:
    series = {f"method {i}": [(2000.0, 0.7 + i / 100), (1000.0, 0.6)] for i in range(9)}
    picture = frontier_picture("frontier", series, "AUC against bytes.")
    assert all(f"method {i}".encode() in picture.light for i in range(9))
    files = picture.write(tmp_path / "new")
    assert [file.name for file in files] == ["frontier.svg", "frontier-dark.svg", "frontier.png"]
    assert [file.read_bytes() for file in files] == [picture.light, picture.dark, picture.png]


def test_the_points_of_a_column_stand_below_one_another() -> None:
    rows = [{"a": 0.5, "b": 3, "c": 123.4}, {"a": 0.1234, "b": None, "c": 1e-9}]
    page = render_report(title="", lead="", headline=[], sections=[Section("", "", rows)])
    assert re.findall(r"<td class=num>([^<]*)<", page) == [
        "0.5000",
        "3",
        "123.4",
        "0.1234",
        "-",
        "1e-09",
    ]


def test_slices_and_features_are_drawn_by_name_the_first_only() -> None:
    interval = {"value": 1.2, "low": 1.1, "high": 1.3}
    slices = [{"name": f"ad = {i:02d}", "calibration": interval} for i in range(BARS + 5)]
    light = calibration_picture([{"name": "none", "calibration": None}, *slices]).light
    assert b"ad = 00" in light
    assert f"ad = {BARS - 1}".encode() in light
    assert f"ad = {BARS}".encode() not in light
    assert b"none<" not in light
    features = [
        {"feature": "ad", "logloss": interval, "ablation": {"logloss": 0.3}},
        {"feature": "price $", "logloss": interval, "ablation": None},
    ]
    light = importance_picture(features).light
    assert b"price $" in light
    assert b"chunks at zero" in light
    assert b"chunks at zero" not in importance_picture(features[1:]).light
