"""Pictures of an evaluation beside its curves: calibration by slice and importance, drawn from what its JSON holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from recsys.evaluation.plots import Picture, Theme, legend, picture, short_name, tall

BARS = 20
"""Features or slices of a picture: more cannot be read."""
_TICKS = (0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 2, 3, 5, 10)


def calibration_picture(slices: Sequence[Mapping[str, Any]]) -> Picture:
    """Expected over observed clicks of slices, with intervals, on a logarithmic axis.

    Args:
        slices: of `Slice.to_json`, in the order to draw them; those without a calibration are left out.
    """
    shown = [one for one in slices if one["calibration"]][:BARS]

    def draw(axes: Axes, theme: Theme) -> None:
        places = np.arange(len(shown))
        axes.axvline(1, color=theme.faint, linewidth=1.2)
        low, value, high = ([one["calibration"][end] for one in shown] for end in ("low", "value", "high"))
        axes.hlines(places, low, high, color=theme.series[0], alpha=0.5, linewidth=2)
        axes.plot(value, places, "o", color=theme.series[0], markersize=4)
        axes.set(xscale="log", xlabel="expected over observed clicks", ylim=(len(shown) - 0.4, -0.6))
        ticks = [t for t in _TICKS if min(low) <= t <= max(high)]
        axes.set_xticks(ticks if len(ticks) > 2 else [0.9, 1, 1.1], minor=False)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set_xticks([], minor=True)
        axes.set_yticks(places, [short_name(one["name"]) for one in shown])

    caption = (
        "Calibration of the slices that are most surely off, with 95 % intervals; right of 1 clicks are overestimated."
    )
    return picture("calibration-by-slice", caption, draw, size=tall(len(shown)), grid="x")


def importance_picture(importance: Sequence[Mapping[str, Any]]) -> Picture:
    """Rise of the logloss without each feature.

    Args:
        importance: of `Importance.to_json`, in the order to draw them.
    """
    shown = importance[:BARS]

    def draw(axes: Axes, theme: Theme) -> None:
        places = np.arange(len(shown))
        shuffled = [one["logloss"] for one in shown]
        axes.axvline(0, color=theme.faint, linewidth=1.2)
        axes.barh(places, [one["value"] for one in shuffled], 0.6, color=theme.series[0], alpha=0.75, label="shuffled")
        low, high = ([one[end] for one in shuffled] for end in ("low", "high"))
        axes.hlines(places, low, high, color=theme.text, linewidth=1)
        zeros = [(place, one["ablation"]["logloss"]) for place, one in enumerate(shown) if one["ablation"]]
        if zeros:
            at, rise = zip(*zeros, strict=True)
            axes.plot(rise, at, "D", color=theme.series[1], markersize=4.5, label="chunks at zero")
        axes.set(xlabel="rise of the logloss", ylim=(len(shown) - 0.4, -0.6))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_yticks(places, [short_name(one["feature"]) for one in shown])
        legend(axes, theme, "above")

    caption = "Importance: how much the logloss rises when a feature's values are shuffled, or its chunks are zero."
    return picture("importance", caption, draw, size=tall(len(shown)), grid="x")
