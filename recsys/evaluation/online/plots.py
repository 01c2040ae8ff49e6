"""Pictures of online evaluation: a metric window by window, a line a model, alarms marked."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

from recsys.evaluation.online.logs import STREAM
from recsys.evaluation.plots import Picture, Theme, legend, picture

NAMES = {
    "auc": "AUC",
    "logloss": "logloss (nats)",
    "normalised_entropy": "normalised entropy",
    "calibration_ratio": "expected over observed",
    "rows": "rows",
}
LOOKS = {"logloss": "logloss less the champion's (nats)", "label_rate": "label rate less the champion's"}
"""Differences that may be looked at at any time."""
_MARKERS = "os^Dv"


def window_pictures(
    windows: Sequence[Mapping[str, Any]], alarms: Sequence[Mapping[str, Any]], metrics: Sequence[str] = tuple(NAMES)
) -> list[Picture]:
    """A picture a metric.

    Args:
        windows: Rows of `Monitor.windows`, or others with a `window` (a time as text, or a number) and metrics.
        alarms: Rows of `Monitor.alarms`; their windows are marked.
        metrics: Which; one that no window has is left out.
    """
    there = [name for name in metrics if any(row.get(name) is not None for row in windows)]
    return [_metric_picture(name, windows, {alarm["window"] for alarm in alarms}) for name in there]


def look_pictures(looks: Sequence[Mapping[str, Any]], of: str) -> list[Picture]:
    """How a difference to the champion and its always-valid interval closed in, a line a model; none without looks.

    Args:
        looks: Rows of `Monitor.looks`.
        of: Which difference, of `LOOKS`.
    """
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for look in looks:
        if look["of"] == of:
            lines.setdefault(stream_name(look), []).append(look)
    if not lines:
        return []

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axhline(0.0, color=theme.text, linewidth=0.9)
        for place, (name, points) in enumerate(lines.items()):
            x = [_place(point["window"]) for point in points]
            mean, low, high = ([point[end] for point in points] for end in ("mean", "low", "high"))
            colour = theme.series[place % len(theme.series)]
            axes.plot(x, mean, marker="o", color=colour, label=name, markersize=3, linewidth=1.2)
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        _time_axis(axes)
        axes.set(ylabel=LOOKS[of])
        legend(axes, theme, "above")

    caption = f"{LOOKS[of]}, over all windows so far; the band holds it at all looks together (95 %)."
    return [picture(f"{of}_difference", caption, draw, size=(5.2, 3.2), png=False)]


def stream_name(row: Mapping[str, Any]) -> str:
    """What a model is called in a picture, by what tells it from others.

    >>> stream_name({"role": "shadow", "model": "clicks", "version": "7"})
    'shadow clicks 7'
    """
    return " ".join(str(row[name]) for name in STREAM if name in row)


def _metric_picture(metric: str, windows: Sequence[Mapping[str, Any]], alarms: set[Any]) -> Picture:
    lines: dict[str, list[tuple[Any, float]]] = {}
    for row in windows:
        value = row.get(metric)
        point = (_place(row["window"]), float("nan") if value is None else value)
        lines.setdefault(stream_name(row), []).append(point)
    timed = isinstance(windows[0]["window"], str)

    def draw(axes: Axes, theme: Theme) -> None:
        for window in sorted(alarms):
            axes.axvline(_place(window), color=theme.text, linewidth=0.9, linestyle="--")
        for place, (name, points) in enumerate(lines.items()):
            x, values = zip(*points, strict=True)
            colour, marker = theme.series[place % len(theme.series)], _MARKERS[place // len(theme.series) % 5]
            axes.plot(x, values, marker=marker, color=colour, label=name, markersize=3, linewidth=1.2)
        if timed:
            _time_axis(axes)
        axes.set(xlabel="" if timed else "row", ylabel=NAMES[metric])
        legend(axes, theme, "above")

    marked = "; dashed lines mark windows with an alarm" if alarms else ""
    return picture(metric, f"{NAMES[metric]} by window{marked}.", draw, size=(5.2, 3.2), png=False)


def _time_axis(axes: Axes) -> None:
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _place(window: str | int) -> Any:
    return datetime.datetime.fromisoformat(window) if isinstance(window, str) else window
