"""Pictures and the report: what exists is drawn, the page needs nothing from outside, text is escaped."""

import re
from pathlib import Path

import numpy as np
import pytest

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
    assert [picture.name for picture in pictures] == ["roc", "reliability", "learning"]
    for picture in pictures:
        assert picture.light.startswith(b"<?xml")
        assert picture.light != picture.dark
        assert picture.png.startswith(PNG)


def test_same_figures_give_the_same_file(scores: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = scores
    assert roc_picture(labels, {"model": probabilities}) == roc_picture(labels, {"model": probabilities})


def test_one_class_has_no_roc_but_the_rest() -> None:
    labels, probabilities = np.zeros(50), np.linspace(0.1, 0.4, 50)
    pictures = pictures_of(labels, {"model": probabilities}, history=HISTORY, best_epoch=1)
    assert [picture.name for picture in pictures] == ["reliability", "learning"]


def test_weights_reach_the_reliability_curve(scores: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = scores
    plain = reliability_picture(labels, {"model": probabilities})
    weighted = reliability_picture(labels, {"model": probabilities}, np.where(labels > 0, 3.0, 1.0))
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
            Section("Metrics", "", [{"task": "click", "auc": 0.751234, "gauc": None}]),
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


def test_a_frontier_names_every_method_and_is_written_in_three_forms(tmp_path: Path) -> None:
    series = {f"method {i}": [(2000.0, 0.7 + i / 100), (1000.0, 0.6)] for i in range(9)}
    picture = frontier_picture("frontier", series, "AUC against bytes.")
    assert all(f"method {i}".encode() in picture.light for i in range(9))
    files = picture.write(tmp_path / "new")
    assert [file.name for file in files] == ["frontier.svg", "frontier-dark.svg", "frontier.png"]
    assert [file.read_bytes() for file in files] == [picture.light, picture.dark, picture.png]
