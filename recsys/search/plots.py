"""The picture of a search: quality against lookups, every candidate and the front."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from recsys.evaluation.plots import Picture, Theme, legend, picture

NAMES = {"auc": "AUC", "logloss": "logloss"}


def front_picture(
    candidates: Sequence[tuple[float, float]], front: Sequence[tuple[float, float]], metric: str
) -> Picture:
    """Candidates as dots, the front as a line.

    Args:
        candidates: (lookups, metric on the sample).
        front: (lookups, metric on all validation rows), cheapest first.
        metric: auc or logloss.
    """

    def draw(axes: Axes, theme: Theme) -> None:
        x, y = zip(*candidates, strict=True)
        axes.plot(x, y, ".", color=theme.faint, markersize=4, label="candidates, on the sample")
        x, y = zip(*front, strict=True)
        axes.plot(x, y, "o-", color=theme.series[0], markersize=4, label="front, on all validation rows")
        axes.set(xlabel="lookups an example", ylabel=f"validation {NAMES[metric]} of the supernet")
        legend(axes, theme, "best")

    return picture("front", "Quality against lookups: every candidate, and those that no other one beats.", draw)
