"""The pictures of a profile: distinct values, missing values, drift, and each column's values with their label rate."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from features.profiling.profile import ColumnProfile
from recsys.evaluation.plots import Picture, Theme, legend, picture, short_name
from recsys.evaluation.single_column import Rate

_WIDTH = 5.2
_BARS = 24
_MOST_VALUES = 12


def distinct_picture(columns: Sequence[ColumnProfile]) -> Picture:
    """Distinct values a column, on a logarithmic axis; the head share is written beside the bar."""

    def draw(axes: Axes, theme: Theme) -> None:
        distinct = [max(column.distinct, 1) for column in columns]
        places = _places(axes, [column.name for column in columns])
        axes.barh(places, distinct, 0.7, color=theme.series[0], alpha=0.75, left=0.8)
        for place, column in zip(places, columns, strict=True):
            text = f" {100 * column.head_share:.3g} %"
            axes.text(max(column.distinct, 1) + 0.8, place, text, color=theme.text, va="center", fontsize=8)
        axes.set(xscale="log", xlabel="distinct values", xlim=(0.8, 8 * max(distinct)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())

    caption = "Distinct values, and the share that the ten most frequent ones take."
    return picture("distinct", caption, draw, size=_size(len(columns)), grid="x", png=False)


def missing_picture(columns: Sequence[ColumnProfile]) -> Picture:
    """Share of the rows without a value."""

    def draw(axes: Axes, theme: Theme) -> None:
        places = _places(axes, [column.name for column in columns])
        axes.barh(places, [column.missing_share for column in columns], 0.7, color=theme.series[1], alpha=0.8)
        axes.set(xlabel="share of the rows", xlim=(0, 1))
        axes.xaxis.set_major_formatter(PercentFormatter(1))

    return picture("missing", "Rows without a value.", draw, size=_size(len(columns)), grid="x", png=False)


def drift_picture(starts: Sequence[int], divergence: Mapping[str, Sequence[float]]) -> Picture:
    """Divergence of each slice of time from the first.

    Args:
        starts: Start of each slice, microseconds since 1970.
        divergence: By column; as many are drawn as there are colours.
    """
    moments = [datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=start) for start in starts]
    far = (moments[-1] - moments[0]).days >= 2
    labels = [moment.strftime("%d %b" if far else "%H:%M") for moment in moments]

    def draw(axes: Axes, theme: Theme) -> None:
        for (name, values), colour in zip(divergence.items(), theme.series, strict=False):
            axes.plot(values, "o-", color=colour, label=short_name(name), markersize=3.5, linewidth=1.5)
        axes.set(xlabel="slice of time, by its start", ylabel="divergence (bits)", ylim=(0, None))
        axes.set_xticks(range(len(labels)), labels)
        legend(axes, theme, "above")

    caption = "Jensen-Shannon divergence from the first slice of time: 0 is no change, 1 nothing in common."
    return picture("drift", caption, draw, grid="y", png=False)


def range_picture(name: str, numbers: np.ndarray, edges: Sequence[float], rates: Mapping[int, Rate]) -> Picture:
    """Histogram of a column of numbers between their first and last hundredth, with the label rate by decile.

    Args:
        name: The column.
        numbers: [N] of the sample, without missing ones; not empty.
        edges: Where one range ends and the next begins.
        rates: By the number of the range; empty without a label.
    """
    low, high = np.quantile(numbers, [0.01, 0.99])
    high = high if high > low else low + 1
    bounds = np.clip([low, *edges, high], low, high)
    middle = (bounds[1:] + bounds[:-1]) / 2

    def draw(axes: Axes, theme: Theme) -> None:
        counts, sides = np.histogram(numbers, bins=_BARS, range=(low, high))
        axes.bar(sides[:-1], counts, np.diff(sides), align="edge", color=theme.series[0], alpha=0.55)
        axes.set(xlabel=short_name(name), ylabel="rows of the sample")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if rates:
            right = axes.twinx()
            _points(right, theme, middle[list(rates)].tolist(), list(rates.values()), upright=True)
            right.set_ylabel("label rate", color=theme.text)
            _plain(right, theme)

    return picture(f"column-{name}", f"{name}: rows{' and label rate' if rates else ''}.", draw, grid="y", png=False)


def value_picture(name: str, values: Sequence[str], rows: Sequence[int], rates: Sequence[Rate]) -> Picture:
    """Rows by value, with the label rate.

    Args:
        name: The column.
        values: In the order to draw them.
        rows: Of the sample, by value.
        rates: By value; empty without a label.
    """
    values, rows, rates = values[:_MOST_VALUES], rows[:_MOST_VALUES], rates[:_MOST_VALUES]

    def draw(axes: Axes, theme: Theme) -> None:
        places = _places(axes, values)
        axes.barh(places, rows, 0.7, color=theme.series[0], alpha=0.55)
        axes.set(xlabel="rows of the sample")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        if rates:
            top = axes.twiny()
            _points(top, theme, places, rates, upright=False)
            top.set_xlabel("label rate", color=theme.text)
            _plain(top, theme)

    caption = f"{name}: rows{' and label rate, with its 95 % interval' if rates else ''}."
    return picture(f"column-{name}", caption, draw, size=_size(len(values)), grid="x", png=False)


def _points(axes: Axes, theme: Theme, places: Sequence[float], rates: Sequence[Rate], *, upright: bool) -> None:
    rate = np.array([item.rate for item in rates])
    spread = np.abs(np.array([[item.low for item in rates], [item.high for item in rates]]) - rate)
    x, y = (places, rate) if upright else (rate, places)
    bars = {"yerr" if upright else "xerr": spread}
    axes.errorbar(x, y, fmt="o", color=theme.series[1], markersize=3.5, elinewidth=1, **bars)
    margin = 1.15 * max(item.high for item in rates)
    (axes.set_ylim if upright else axes.set_xlim)(0, margin or 1)


def _plain(axes: Axes, theme: Theme) -> None:
    axes.tick_params(colors=theme.text, labelsize=9)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _places(axes: Axes, names: Sequence[str]) -> list[float]:
    places = [float(place) for place in range(len(names))]
    axes.set_yticks(places, [short_name(name) for name in names], fontsize=8)
    axes.invert_yaxis()
    return places


def _size(bars: int) -> tuple[float, float]:
    return (_WIDTH, 1.1 + 0.26 * max(bars, 3))
