"""The picture of a comparison by slices: where one model wins and where it loses."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from recsys.evaluation.paired_slices import SliceDifference
from recsys.evaluation.plots import Picture, Theme, picture

_EACH_END = 12


def slices_picture(name: str, slices: Sequence[SliceDifference]) -> Picture:
    """Difference of logloss and its interval, a line a slice: those at both ends.

    Args:
        name: File name without an ending.
        slices: Of one pair of models, sorted, the largest difference first; one at least.
    """
    shown = list(slices) if len(slices) <= 2 * _EACH_END else [*slices[:_EACH_END], *slices[-_EACH_END:]]
    a, b = shown[0].a, shown[0].b

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axvline(0, color=theme.text, linewidth=0.8)
        for place, entry in enumerate(reversed(shown)):
            colour = theme.faint if entry.better is None else theme.series[entry.better == b]
            axes.plot([entry.low, entry.high], [place, place], color=colour, linewidth=2)
            axes.plot([entry.difference], [place], "o", color=colour, markersize=4)
        labels = [entry.name[:36] for entry in reversed(shown)]
        axes.set_yticks(range(len(shown)), labels)
        axes.set(xlabel=f"logloss of {a} minus that of {b} (nats)", ylim=(-0.7, len(shown) - 0.3))

    caption = f"Logloss of {a} minus that of {b} by slice: below 0 {a} is better; in colour where that may be claimed."
    return picture(name, caption, draw, size=(7.2, 1.2 + 0.24 * len(shown)), grid="x", png=False)
