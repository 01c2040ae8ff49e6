"""The pictures of an evaluation: ROC, reliability curve, learning curves; and how any picture is made.

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

from features.errors import UndefinedMetricError
from recsys.evaluation.metrics import reliability_curve, roc_curve

ROC_POINTS = 400
"""Points a drawn ROC keeps: more cannot be seen."""

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


def roc_picture(labels: np.ndarray, scores: Mapping[str, np.ndarray]) -> Picture:
    """Receiver operating characteristic.

    Args:
        labels: [N] in {0, 1}.
        scores: [N] for each name in the key.

    Raises:
        UndefinedMetricError: One of the classes is absent.
    """
    curves = {name: _thin(*roc_curve(labels, values)) for name, values in scores.items()}

    def draw(axes: Axes, theme: Theme) -> None:
        axes.plot([0, 1], [0, 1], color=theme.faint, linewidth=1)
        for (name, (false, true)), colour in zip(curves.items(), theme.series, strict=False):
            axes.plot(false, true, color=colour, label=name, linewidth=1.8)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.005))
        legend(axes, theme, "lower right")

    return picture("roc", "ROC: the share of positives found at each share of negatives let through.", draw)


def reliability_picture(
    labels: np.ndarray, probabilities: Mapping[str, np.ndarray], weight: np.ndarray | None = None
) -> Picture:
    """Predicted against observed rates, in bins of equally many rows.

    Args:
        labels: [N] in {0, 1}.
        probabilities: [N] for each name in the key.
        weight: [N].
    """
    curves = {name: reliability_curve(labels, values, weight) for name, values in probabilities.items()}
    top = 1.08 * max(float(max(c["predicted"].max(), c["observed"].max())) for c in curves.values())

    def draw(axes: Axes, theme: Theme) -> None:
        axes.plot([0, 1], [0, 1], color=theme.faint, linewidth=1)
        for (name, curve), colour in zip(curves.items(), theme.series, strict=False):
            axes.plot(
                curve["predicted"],
                curve["observed"],
                "o-",
                color=colour,
                label=name,
                markersize=3.5,
                linewidth=1.2,
            )
        axes.set(xlabel="predicted rate", ylabel="observed rate", xlim=(0, top), ylim=(0, top))
        legend(axes, theme, "upper left")

    caption = "Reliability: on the diagonal the predicted rate is the observed one."
    return picture("reliability", caption, draw)


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
            _style(right, theme, "none")
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


def pictures_of(
    labels: np.ndarray,
    scores: Mapping[str, np.ndarray],
    *,
    weight: np.ndarray | None = None,
    history: Sequence[Mapping[str, float]] = (),
    best_epoch: int = 0,
) -> list[Picture]:
    """All pictures that exist on these rows: a one-class split has no ROC, for instance."""
    makers: list[Callable[[], Picture]] = [
        lambda: roc_picture(labels, scores),
        lambda: reliability_picture(labels, scores, weight),
    ]
    if history:
        makers.append(lambda: learning_picture(history, best_epoch))
    pictures = []
    for make in makers:
        try:
            pictures.append(make())
        except UndefinedMetricError:
            continue
    return pictures


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
        _style(axes, LIGHT, grid)
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


def _style(axes: Axes, theme: Theme, grid: Grid = "both") -> None:
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


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= ROC_POINTS:
        return x, y
    # Points evenly along the curve's length, ends included.
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    keep = np.unique(np.searchsorted(along, np.linspace(0, along[-1], ROC_POINTS)).clip(0, len(x) - 1))
    keep = np.union1d(keep, [0, len(x) - 1])
    return x[keep], y[keep]
