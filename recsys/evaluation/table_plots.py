"""The pictures of a table's diagnostics: load, traffic, collisions, overlap of readers, norms and ages of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from recsys.embeddings.diagnostics import Diagnostics, Norms, Overlap, Updates
from recsys.embeddings.occupancy import FeatureUse, Load
from recsys.evaluation.plots import Picture, Theme, legend, picture, tall

MOST_FEATURES = 40
"""Features an overlap is drawn of: those that overlap most. More could not be read."""
VALUES_BELOW = 11
"""With fewer features the overlaps are written into the picture."""
_REGIONS = {"exact": 2, "hot": 1, "shared": 0, "own": 0}


def table_pictures(found: Diagnostics) -> dict[str, list[Picture]]:
    """All pictures that there is something for, by the section they belong to."""
    pictures: dict[str, list[Picture]] = {
        name: [] for name in ("load", "hits", "features", "overlap", "norms", "updates")
    }
    if found.load is not None:
        pictures["load"] = [load_picture(found.load), traffic_picture(found.load)]
    present = [f for f in found.features if f.measured is not None]
    if present:
        pictures["features"] = [collision_picture(present), row_traffic_picture(present)]
    if any(len(f.traffic) > 1 for f in present):
        pictures["hits"] = [region_picture(present)]
    # of two features there is one figure, which the table has
    pictures["overlap"] = [overlap_picture(overlap) for overlap in found.overlaps if len(overlap.features) > 2]
    if found.norms is not None:
        pictures["norms"] = [norm_picture(found.norms), *([load_norm_picture(found.norms)] if found.load else [])]
    if found.updates is not None and found.updates.ages and found.load is not None:
        pictures["updates"] = [age_picture(found.updates, found.load.rows)]
    return pictures


def load_picture(load: Load) -> Picture:
    """Rows by the number of distinct ids they hold, beside a perfect hash."""
    start = np.array([bin_["from"] for bin_ in load.histogram])
    width = load.histogram[0]["to"] + 1
    centre = start + (width - 1) / 2

    def draw(axes: Axes, theme: Theme) -> None:
        rows = [bin_["rows"] for bin_ in load.histogram]
        axes.bar(centre, rows, 0.85 * width, color=theme.series[0], alpha=0.75, label="measured")
        expected = [bin_["expected"] for bin_ in load.histogram]
        axes.plot(centre, expected, "o-", color=theme.series[1], markersize=3, linewidth=1.2, label="perfect hash")
        axes.set(xlabel="distinct ids in a row", ylabel="rows")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes, theme, "upper right")

    return picture("load", "Load: rows by the distinct ids of the sample they hold.", draw, grid="y", png=False)


def traffic_picture(load: Load) -> Picture:
    """How much of the traffic the busiest rows take, beside the most frequent ids."""
    number = [point["number"] for point in load.curve]

    def draw(axes: Axes, theme: Theme) -> None:
        axes.plot(number, [p["rows"] for p in load.curve], color=theme.series[0], linewidth=1.8, label="busiest rows")
        axes.plot(
            number,
            [p["ids"] for p in load.curve],
            color=theme.series[1],
            linewidth=1.4,
            linestyle="--",
            label="most frequent ids",
        )
        axes.set(xscale="log", xlabel="how many", ylabel="share of lookups", ylim=(0, 1.02), xlim=(1, None))
        # powers as plain numbers: mathematical text takes a quarter of a second
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        legend(axes, theme, "upper left")

    caption = "Traffic of the busiest rows, beside that of as many ids: the gap is what sharing adds."
    return picture("traffic", caption, draw, png=False)


def collision_picture(features: Sequence[FeatureUse]) -> Picture:
    """Collision rates by feature, measured and expected."""
    place = np.arange(len(features))
    kinds = ("intra", 1, -0.22), ("inter", 0, 0.0), ("confused", 3, 0.22)

    def draw(axes: Axes, theme: Theme) -> None:
        for name, colour, shift in kinds:
            measured = [getattr(f.measured, name) for f in features]
            expected = [getattr(f.expected, name) for f in features]
            axes.scatter(expected, place + shift, marker="|", s=70, color=theme.text, linewidth=1, zorder=2)
            axes.scatter(measured, place + shift, s=22, color=theme.series[colour], label=name, zorder=3)
        axes.set(xlabel="share of lookups", xlim=(-0.02, 1.02), ylim=(len(features) - 0.4, -0.6))
        axes.set_yticks(place, [f.feature for f in features])
        legend(axes, theme, "above")

    caption = (
        "Collisions: lookups whose row another id of the feature (intra) or of another feature (inter) reads too, and "
        "ids that are confused. A bar marks what a perfect hash gives."
    )
    return picture("collisions", caption, draw, size=tall(len(features)), png=False)


def row_traffic_picture(features: Sequence[FeatureUse]) -> Picture:
    """Whose traffic the rows of each feature carry."""
    intra = np.array([f.intra_traffic or 0.0 for f in features])
    inter = np.array([f.inter_traffic or 0.0 for f in features])
    parts = {"the id": (1 - intra - inter, 2), "own feature": (intra, 1), "other features": (inter, 0)}
    caption = "Whose lookups the rows carry that an id reads: its own, other ids' of the feature, other features'."
    return _bars("row-traffic", caption, features, parts, "share of a row's lookups")


def region_picture(features: Sequence[FeatureUse]) -> Picture:
    """Which region answers each feature's lookups."""
    parts = {
        name: (np.array([f.traffic.get(name, 0.0) for f in features]), colour)
        for name, colour in _REGIONS.items()
        if any(f.traffic.get(name) for f in features)
    }
    caption = "Which region answers: exact and hot rows belong to one id, shared rows to all that hash there."
    return _bars("regions", caption, features, parts, "share of lookups")


def overlap_picture(overlap: Overlap) -> Picture:
    """Pairwise overlap of features as a first layer reads them."""
    matrix = np.array(overlap.matrix)
    np.fill_diagonal(matrix, 0)
    chosen = np.sort(np.argsort(-matrix.sum(1), kind="stable")[:MOST_FEATURES])
    names = [overlap.features[i] for i in chosen]
    matrix, count = matrix[np.ix_(chosen, chosen)], len(chosen)
    beside = matrix / overlap.random - 1
    np.fill_diagonal(beside, 0)
    strongest = max(float(np.abs(beside).max()), 0.05)

    def draw(axes: Axes, theme: Theme) -> None:
        i, j = np.nonzero(~np.eye(count, dtype=bool))
        # Transparency instead of a colour map: it suits either ground.
        shades = 0.05 + 0.85 * np.abs(beside[i, j]) / strongest
        tones = [to_rgba(theme.series[1 if x > 0 else 0], s) for x, s in zip(beside[i, j], shades, strict=True)]
        _boxes(axes, j - 0.48, i, np.full(len(i), 0.96), 0.96, facecolors=tones)
        if count < VALUES_BELOW:
            for y, x in zip(i.tolist(), j.tolist(), strict=True):
                text = f"{matrix[y, x]:.2f}".removeprefix("0")
                axes.text(x, y, text, ha="center", va="center", fontsize=8, color=theme.text)
        axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal")
        axes.set_xticks(range(count), names, rotation=90 if count > 4 else 0)
        axes.set_yticks(range(count), names)
        if count >= 20:
            axes.tick_params(labelsize=6)

    caption = (
        f"First layer of the {overlap.layer} network: overlap of pairs beside the {overlap.random:.3f} of chance, "
        f"orange above and blue below it, by {100 * strongest:.0f} % at most."
    )
    side = min(3.2 + 0.14 * count, 6.4)
    return picture(f"overlap-{overlap.layer}", caption, draw, size=(side + 0.6, side), grid="none", png=False)


def load_norm_picture(norms: Norms) -> Picture:
    """Row norms against the number of ids in a row."""
    place = np.arange(len(norms.by_load))
    labels = [f"{b['from']}" if b["from"] == b["to"] else f"{b['from']}-{b['to']}" for b in norms.by_load]

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axhline(norms.initial, color=theme.faint, linewidth=1, linestyle="--")
        low, mean, high = ([b[name] for b in norms.by_load] for name in ("low", "mean", "high"))
        axes.vlines(place, low, high, color=theme.series[0], alpha=0.4, linewidth=6, label="10 to 90 %")
        axes.plot(place, mean, "o-", color=theme.series[0], markersize=4, linewidth=1.2, label="mean")
        axes.set(xlabel="distinct ids in a row", ylabel="norm", ylim=(0, None))
        axes.set_xticks(place, labels)
        legend(axes, theme, "above")

    caption = "Norms of hashed rows by their load; the dashed line is a row as it was initialised."
    return picture("norms-by-load", caption, draw, grid="y", png=False)


def norm_picture(norms: Norms) -> Picture:
    """The distribution of row norms, region by region."""
    names = [name for name in _REGIONS if name in norms.histogram[0]]
    edges = [norms.histogram[0]["from"], *(bin_["to"] for bin_ in norms.histogram)]

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axvline(norms.initial, color=theme.faint, linewidth=1, linestyle="--")
        for name in names:
            rows = np.array([bin_[name] for bin_ in norms.histogram], np.float64)
            share = rows / max(rows.sum(), 1)
            axes.stairs(share, edges, color=theme.series[_REGIONS[name]], linewidth=1.6, label=name)
        axes.set(xlabel="norm", ylabel="share of the region's rows", ylim=(0, None), xlim=(0, None))
        legend(axes, theme, "best")

    caption = "Distribution of row norms; the dashed line is a row as it was initialised."
    return picture("norms", caption, draw, png=False)


def age_picture(updates: Updates, rows: int) -> Picture:
    """Hashed rows by the steps since their last update."""
    labels = [f"{b['from']:,}-{b['to']:,}" for b in updates.ages] + ["never"]
    shares = [b["rows"] / rows for b in updates.ages]
    shares.append(1 - sum(shares))

    def draw(axes: Axes, theme: Theme) -> None:
        colours = [theme.series[0]] * len(updates.ages) + [theme.series[1]]
        axes.barh(range(len(labels)), shares, 0.7, color=colours, alpha=0.75)
        axes.set(xlabel="share of hashed rows", ylim=(len(labels) - 0.4, -0.6), xlim=(0, None))
        axes.set_yticks(range(len(labels)), labels)

    caption = f"Steps since a row was last updated, at the end of {updates.steps:,} steps."
    return picture("ages", caption, draw, size=tall(len(labels)), grid="x", png=False)


def _bars(
    name: str, caption: str, features: Sequence[FeatureUse], parts: dict[str, tuple[np.ndarray, int]], label: str
) -> Picture:
    """A bar a feature, divided into named parts: their lengths and the number of their colour."""
    place = np.arange(len(features))

    def draw(axes: Axes, theme: Theme) -> None:
        left = np.zeros(len(features))
        for part, (length, colour) in parts.items():
            _boxes(axes, left, place, length, 0.7, facecolors=theme.series[colour], alpha=0.75, label=part)
            left += length
        axes.set(xlabel=label, xlim=(0, 1), ylim=(len(features) - 0.4, -0.6))
        axes.set_yticks(place, [f.feature for f in features])
        legend(axes, theme, "above")

    return picture(name, caption, draw, size=tall(len(features)), grid="x", png=False)


def _boxes(axes: Axes, left: np.ndarray, middle: np.ndarray, width: np.ndarray, height: float, **style: Any) -> None:
    """Boxes as one artist: drawn one by one, hundreds of them take a second."""
    low, high = middle - height / 2, middle + height / 2
    corners = [(left, low), (left + width, low), (left + width, high), (left, high)]
    vertices = np.stack([np.stack(corner, 1) for corner in corners], 1)
    axes.add_collection(PolyCollection(list(vertices), linewidths=0, **style), autolim=False)
