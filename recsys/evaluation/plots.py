"""The pictures of an evaluation: ROC, precision-recall, reliability, scores, learning; and how any picture is made.

Figures are made without pyplot, so nothing is global and no display is needed. Each comes in a light and a dark theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from recsys.evaluation.curves import Curve, curves_of

LONGEST_NAME = 24
"""Letters of a name on an axis."""

Place = Literal["lower right", "upper right", "upper left", "best", "above"]
Grid = Literal["both", "x", "y", "none"]


@dataclass(frozen=True)
class Theme:
    """Colours of a picture."""

    name: str
    text: str
    faint: str
    series: tuple[str, ...]


LIGHT = Theme("light", text="#1d2433", faint="#c9d0dc", series=("#2463eb", "#d9730d", "#0f8a5f", "#a23bb5"))
DARK = Theme("dark", text="#e4e8f0", faint="#414b5e", series=("#7aa7ff", "#f5a04c", "#4fd1a1", "#d98ae8"))


@dataclass(frozen=True)
class Picture:
    """One picture, ready for a report and for files.

    Attributes:
        name: File name without an ending.
        caption: What it shows, in a sentence.
        light: SVG for a light page.
        dark: SVG for a dark page.
        png: For viewers without SVG, on a white ground; empty if not asked for.
    """

    name: str
    caption: str
    light: bytes
    dark: bytes
    png: bytes

    def write(self, folder: Path) -> list[Path]:
        """Writes NAME.svg, NAME-dark.svg and NAME.png into a folder, which is made if need be; returns them."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{self.name}{end}" for end in (".svg", "-dark.svg", ".png")]
        for file, content in zip(files, (self.light, self.dark, self.png), strict=True):
            file.write_bytes(content)
        return files


def pictures_of(
    labels: np.ndarray,
    scores: Mapping[str, np.ndarray],
    *,
    weight: np.ndarray | None = None,
    history: Sequence[Mapping[str, float]] = (),
    best_epoch: int = 0,
) -> list[Picture]:
    """All pictures that exist on these rows: a one-class split has no ROC, for instance.

    Args:
        labels: [N] in {0, 1}.
        scores: [N] probabilities for each name in the key; of one model alone their histogram is drawn too.
        weight: [N].
        history: of a training, see `learning_picture`.
        best_epoch: that was kept.
    """
    curves = {name: curves_of(labels, values, weight) for name, values in scores.items()}
    if len(curves) > 1:  # two histograms for each of several models could not be read
        curves = {name: {k: v for k, v in own.items() if k != "scores"} for name, own in curves.items()}
    pictures = curve_pictures(curves)
    return [*pictures, learning_picture(history, best_epoch)] if history else pictures


def curve_pictures(curves: Mapping[str, Mapping[str, Curve]]) -> list[Picture]:
    """The same from the points of the curves, see `curves_of`, by name of the scores."""
    makers = {
        "roc": roc_picture,
        "precision_recall": precision_recall_picture,
        "reliability": reliability_picture,
        "scores": score_picture,
    }
    found = []
    for curve, make in makers.items():
        own = {name: points[curve] for name, points in curves.items() if curve in points}
        if own:
            found.append(make(own))
    return found


def roc_picture(curves: Mapping[str, Curve]) -> Picture:
    """Receiver operating characteristic, a line a set of scores."""

    def draw(axes: Axes, theme: Theme) -> None:
        axes.plot([0, 1], [0, 1], color=theme.faint, linewidth=1)
        for (name, points), colour in zip(curves.items(), theme.series, strict=False):
            x, y = points["false_positive_rate"], points["true_positive_rate"]
            axes.plot(x, y, color=colour, label=name, linewidth=1.8)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.005))
        legend(axes, theme, "lower right")

    return picture("roc", "ROC: the share of positives found at each share of negatives let through.", draw)


def precision_recall_picture(curves: Mapping[str, Curve]) -> Picture:
    """Precision against recall, a line a set of scores; the faint line is the base rate."""
    rate = next(iter(curves.values()))["precision"][-1]

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axhline(rate, color=theme.faint, linewidth=1)
        for (name, points), colour in zip(curves.items(), theme.series, strict=False):
            axes.plot(points["recall"], points["precision"], color=colour, label=name, linewidth=1.8)
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.005))
        legend(axes, theme, "upper right")

    caption = "Precision and recall: the share of positives among the rows above a score, and of positives found."
    return picture("precision-recall", caption, draw)


def reliability_picture(curves: Mapping[str, Curve]) -> Picture:
    """Predicted against observed rates, with the interval of the first set of scores."""
    top = 1.08 * max(max(*c["predicted"], *c["observed"]) for c in curves.values())

    def draw(axes: Axes, theme: Theme) -> None:
        axes.plot([0, 1], [0, 1], color=theme.faint, linewidth=1)
        first = next(iter(curves.values()))
        axes.vlines(first["predicted"], first["low"], first["high"], color=theme.series[0], alpha=0.45, linewidth=1.5)
        for (name, curve), colour in zip(curves.items(), theme.series, strict=False):
            x, y = curve["predicted"], curve["observed"]
            axes.plot(x, y, "o-", color=colour, label=name, markersize=3.5, linewidth=1.2)
        axes.set(xlabel="predicted rate", ylabel="observed rate", xlim=(0, top), ylim=(0, top))
        legend(axes, theme, "upper left")

    caption = "Reliability: on the diagonal the predicted rate is the observed one. Lines are 95 % intervals."
    return picture("reliability", caption, draw)


def score_picture(curves: Mapping[str, Curve]) -> Picture:
    """How the scores of each class are distributed, of the first set of scores."""
    points = next(iter(curves.values()))

    def draw(axes: Axes, theme: Theme) -> None:
        for name, colour in (("negative", theme.series[0]), ("positive", theme.series[1])):
            axes.stairs(points[name], points["edges"], color=colour, fill=True, alpha=0.3)
            axes.stairs(points[name], points["edges"], color=colour, linewidth=1.4, label=name)
        axes.set(xlabel="predicted probability", ylabel="share of the class", ylim=(0, None), xlim=(0, None))
        legend(axes, theme, "upper right")

    caption = "Scores by class: the less they overlap, the better the classes are told apart."
    return picture("scores", caption, draw, grid="y")


def learning_picture(history: Sequence[Mapping[str, float]], best_epoch: int) -> Picture:
    """Training and validation loss, and validation AUC, epoch by epoch.

    Args:
        history: One entry an epoch: `epoch`, `train/epoch_loss`, `valid/logloss`, `valid/auc`.
        best_epoch: The epoch that was kept.
    """
    epochs = [int(entry["epoch"]) for entry in history]
    losses = [key for key in ("train/epoch_loss", "valid/logloss") if any(key in entry for entry in history)]
    has_auc = any("valid/auc" in entry for entry in history)

    def line(axes: Axes, key: str, name: str, colour: str) -> None:
        axes.plot(
            epochs,
            [entry.get(key, float("nan")) for entry in history],
            "o-",
            color=colour,
            label=name,
            markersize=3.5,
        )

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axvline(best_epoch, color=theme.faint, linewidth=1, linestyle="--")
        for key, name, colour in zip(losses, ("training loss", "validation loss"), theme.series, strict=False):
            line(axes, key, name, colour)
        axes.set(xlabel="epoch", ylabel="loss (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if has_auc:
            right = axes.twinx()
            line(right, "valid/auc", "validation AUC", theme.series[2])
            style(right, theme, "none")
            right.set_ylabel("AUC")
            # Three lines that cross leave no empty corner.
            legend(axes, theme, "above", [*axes.get_lines()[1:], *right.get_lines()])
        else:
            legend(axes, theme, "best")

    return picture("learning", "Learning curves; the dashed line marks the epoch that was kept.", draw)


def frontier_picture(name: str, series: Mapping[str, Sequence[tuple[float, float]]], caption: str) -> Picture:
    """Quality against size: AUC over bytes on a logarithmic axis, a line a method.

    Args:
        name: File name without an ending.
        series: (bytes, AUC) by method; the first method is drawn thicker.
        caption: What it shows.
    """
    markers = "os^Dv"

    def draw(axes: Axes, theme: Theme) -> None:
        for i, (method, points) in enumerate(series.items()):
            x, y = zip(*sorted(points), strict=True)
            # colours come round again with another marker
            colour, marker = theme.series[i % len(theme.series)], markers[i // len(theme.series) % len(markers)]
            axes.plot(x, y, color=colour, marker=marker, label=method, markersize=5, linewidth=2 if i == 0 else 1.2)
        axes.set(xlabel="bytes of the table", ylabel="test AUC", xscale="log")
        axes.xaxis.set_major_formatter(EngFormatter(unit="B", sep=" "))
        axes.legend(frameon=False, labelcolor=theme.text, loc="best", fontsize=8)

    return picture(name, caption, draw)


def picture(
    name: str,
    caption: str,
    draw: Callable[[Axes, Theme], None],
    *,
    size: tuple[float, float] = (5.2, 3.9),
    grid: Grid = "both",
    png: bool = True,
) -> Picture:
    """Makes a picture.

    Args:
        name: File name without an ending.
        caption: What it shows, in a sentence.
        draw: Draws into the axes with no colours but the theme's.
        size: Inches.
        grid: Lines across which axis.
        png: Whether to make one too.
    """
    light = _render(draw, "svg", size, grid)
    return Picture(name, caption, light, _darkened(light), _render(draw, "png", size, grid) if png else b"")


def legend(axes: Axes, theme: Theme, place: Place, handles: Sequence[Artist] | None = None) -> None:
    """A legend inside the axes or above them.

    Args:
        axes: Where.
        theme: Colours the text.
        place: Where.
        handles: What it names; all that has a label when left out.
    """
    layout: dict[str, Any] = {"loc": place}
    if place == "above":
        layout = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 3, "fontsize": 9}
        layout |= {"columnspacing": 1, "handlelength": 1.4}
    named = axes.get_legend_handles_labels()[0] if handles is None else handles
    axes.legend(handles=named, frameon=False, labelcolor=theme.text, **layout)


def style(axes: Axes, theme: Theme, grid: Grid = "both") -> None:
    """Colours of the theme, few lines, a grid."""
    axes.tick_params(colors=theme.text, labelsize=9)
    axes.xaxis.label.set_color(theme.text)
    axes.yaxis.label.set_color(theme.text)
    axes.set_axisbelow(True)
    axes.grid(False)
    if grid != "none":
        axes.grid(axis=grid, color=theme.faint, linewidth=0.5, alpha=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.faint)


def tall(lines: int) -> tuple[float, float]:
    """The size, in inches, of a picture that gives every line its room."""
    return 5.2, max(1.3 + 0.28 * lines, 2.4)


def short_name(name: str) -> str:
    r"""A name as an axis has room for it.

    >>> print(short_name("a_very_long_name_of_a_feature"), short_name("price in $"))
    a_very_long_name_of_a_.. price in \$
    """
    text = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 2] + ".."
    # XML has no control characters, and a dollar would begin a formula
    return "".join(letter if letter.isprintable() else " " for letter in text).replace("$", r"\$")


def _render(
    draw: Callable[[Axes, Theme], None],
    kind: Literal["svg", "png"],
    size: tuple[float, float],
    grid: Grid,
) -> bytes:
    # A fixed salt and no date: the same figures give the same file.
    with mpl.rc_context(
        {"svg.hashsalt": "recsys", "font.size": 10, "svg.fonttype": "none", "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes, LIGHT)
        style(axes, LIGHT, grid)
        out = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}
        figure.savefig(out, format=kind, transparent=kind == "svg", dpi=130, metadata=metadata)
    return out.getvalue()


def _darkened(svg: bytes) -> bytes:
    """The picture in the dark theme's colours; drawing it again would cost as much as the first time."""
    dark = dict(zip(_colours(LIGHT), _colours(DARK), strict=True))
    return re.sub(rb"#[0-9a-f]{6}", lambda match: dark.get(match[0], match[0]), svg)


def _colours(theme: Theme) -> list[bytes]:
    return [colour.encode() for colour in (theme.text, theme.faint, *theme.series)]
