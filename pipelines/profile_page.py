"""The profile of a source as one HTML page that needs nothing else."""

from __future__ import annotations

from typing import Any

from features.profiling.bins import bins_of
from features.profiling.profile import ColumnProfile
from pipelines.console import bytes_text
from pipelines.profile import DRIFT, Study, column_rows, findings
from recsys.evaluation.plots import Picture
from recsys.evaluation.profile_plots import (
    distinct_picture,
    drift_picture,
    missing_picture,
    range_picture,
    value_picture,
)
from recsys.evaluation.report import Figure, Section, render_report

MOST_PICTURES = 40
"""Columns that are drawn one by one, the first of the source; tables hold them all."""
_DRAWN_DRIFTS = 4


def profile_page(found: Study) -> str:
    """The page: a table of the columns first, then pictures.

    Returns:
        A whole HTML document; nothing is loaded from elsewhere.
    """
    profile = found.profile
    whole = profile.stride == 1
    sample = "all rows" if whole else f"{profile.sample.height:,} rows, one in {profile.stride}"
    lead = (
        f"{found.source}: {profile.rows:,} rows, {len(profile.columns)} columns. "
        f"Label rates, AUC and drift are of {sample}."
    )
    return render_report(title="Profile", lead=lead, headline=_headline(found), sections=_sections(found))


def _headline(found: Study) -> list[Figure]:
    roles, table = found.roles, found.table
    used = sum(bool(item.features) for item in found.suggestions)
    label = Figure("label", roles.label or "none", "" if roles.label else "say --label NAME")
    if found.positives is not None:
        label = Figure("label", roles.label or "", f"1 in {100 * found.positives:.3g} % of the rows")
    return [
        Figure("rows", f"{found.profile.rows:,}"),
        Figure("columns", str(len(found.profile.columns)), f"{used} suggested as inputs"),
        label,
        Figure("time", roles.time or "none"),
        Figure("group", roles.group or "none"),
        Figure("table", bytes_text(table.bytes), f"{table.rows:,} shared rows x {table.width}"),
    ]


def _sections(found: Study) -> list[Section]:
    columns = found.profile.columns
    reasons = [{"column": item.column, "operator": item.operator, "why": item.reason} for item in found.suggestions]
    sections = [
        Section(
            "Columns",
            "Head is the share of the ten most frequent values. AUC is what the column alone predicts, on rows that "
            "its rates were not taken from. Drift is the largest divergence of a slice of time from the first, beyond "
            f"chance, in bits; above {DRIFT} it is worth a look. Region and chunks say where its rows would lie.",
            column_rows(found),
        ),
        Section("Operators", "What to do with each column, and why.", reasons),
        Section("What stands out", rows=[{"finding": line} for line in findings(found)]),
    ]
    suspects = [
        {"column": name, "auc": power.auc, "why": "the label by another name" if power.copies else "predicts too well"}
        for name, power in found.powers.items()
        if power.suspicious
    ]
    if suspects:
        text = (
            "Such a column is often written after the event, or made from the label. A model that reads it is good on "
            "paper only. If it is known before the event, add it to the config."
        )
        sections.append(Section("Leakage", text, suspects))
    counted = [column for column in columns if column.values]
    if counted:
        sections.append(Section("Distinct and missing values", pictures=_overview(counted)))
    if found.drift is not None:
        sections.append(_drift(found))
    numbers = [_quantiles(column) for column in columns if column.numeric and column.quantiles]
    if numbers:
        sections.append(Section("Numbers", "Quantiles of all rows, to within .2 % of them.", numbers))
    drawn = [column for column in counted if column.kind != "other" and column.name != found.roles.label]
    text = "Bars: rows. Points: label rate." if found.powers else "Bars: rows."
    if len(drawn) > MOST_PICTURES:
        text += f" The first {MOST_PICTURES} of {len(drawn)} columns."
    pictures = [picture for column in drawn[:MOST_PICTURES] if (picture := _column(found, column)) is not None]
    if pictures:
        sections.append(Section("Column by column", text, pictures=pictures))
    rates = _rates(found)
    if rates:
        text = "Of the most frequent values and of the ranges of numbers, with 95 % intervals."
        sections.append(Section("Label rate by value", text, rates))
    return sections


def _overview(columns: list[ColumnProfile]) -> list[Picture]:
    shown = columns[:MOST_PICTURES]
    gaps = [column for column in shown if column.missing]
    return [distinct_picture(shown), *([missing_picture(gaps)] if gaps else [])]


def _drift(found: Study) -> Section:
    drift = found.drift
    assert drift is not None
    order = sorted(drift.divergence, key=lambda name: -(drift.of(name) or 0))
    drawn = {name: drift.divergence[name] for name in order[:_DRAWN_DRIFTS]}
    rows: list[dict[str, Any]] = [
        {
            "column": name,
            "beyond_chance": round(drift.of(name) or 0, 4),
            "last_slice": round(drift.divergence[name][-1], 4),
            "by_chance": round(drift.chance[name], 4),
        }
        for name in order
    ]
    text = (
        f"{len(drift.rows)} slices of time by {found.roles.time}, each against the first. Values come and go in ids; a "
        "number that moves was perhaps measured otherwise."
    )
    return Section("Drift over time", text, rows, [drift_picture(drift.starts, drawn)])


def _quantiles(column: ColumnProfile) -> dict[str, Any]:
    titles = {0.0: "least", 0.01: "1_%", 0.25: "25_%", 0.5: "median", 0.75: "75_%", 0.99: "99_%", 1.0: "most"}
    quantiles = column.quantiles or {}
    return {"column": column.name, **{title: quantiles[share] for share, title in titles.items()}}


def _column(found: Study, column: ColumnProfile) -> Picture | None:
    """The picture of a column; None if all its rows are in one bin."""
    values = found.profile.sample.get_column(column.name)
    power = found.powers.get(column.name)
    bins = bins_of(column, values)
    if (bins.counts() > 0).sum() < 2:
        return None
    if bins.ordered and column.numeric:
        numbers = column.numbers(values).drop_nulls().to_numpy()
        numbers = numbers[(numbers > -1e300) & (numbers < 1e300)]
        if len(numbers):
            places = {name: place for place, name in enumerate(bins.names[:-1])}
            rates = {places[rate.value]: rate for rate in power.rates if rate.value in places} if power else {}
            return range_picture(column.name, numbers, bins.edges, rates)
    there = bins.counts()
    kept = [place for place, rows in enumerate(there) if rows]
    names, rows = [bins.names[place] for place in kept], [int(there[place]) for place in kept]
    return value_picture(column.name, names, rows, power.rates if power else ())


def _rates(found: Study) -> list[dict[str, Any]]:
    return [
        {
            "column": name,
            "value": rate.value,
            "rows": rate.rows,
            "rate": round(rate.rate, 4),
            "low": round(rate.low, 4),
            "high": round(rate.high, 4),
        }
        for name, power in found.powers.items()
        for rate in power.rates
    ]
