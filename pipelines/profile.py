"""`recsys profile`: what a source holds, what its columns tell of the label, and what to do with each of them."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from features.files import write_json
from features.profiling.profile import Profile, profile_of
from features.profiling.roles import Roles, find_roles
from features.profiling.time_drift import Drift, drift_of
from features.reading.sources import scan
from pipelines.console import Console, bytes_text
from pipelines.suggest import Suggestion, Table, suggest
from pipelines.workspace import write_bytes
from recsys.evaluation.single_column import Power, label_of, power_of

DRIFT = 0.05
"""A divergence beyond chance above this, in bits, is worth a look."""


@dataclass(frozen=True)
class Study:
    """All that is known of a source.

    Attributes:
        source: File or glob.
        profile: What its columns hold.
        roles: Label, time and group.
        powers: Column -> what it tells of the label, where that could be measured.
        drift: Change over time; None without a time, or with too few rows.
        suggestions: What to do with each column, in their order.
        table: The suggested table.
    """

    source: str
    profile: Profile
    roles: Roles
    powers: dict[str, Power]
    drift: Drift | None
    suggestions: tuple[Suggestion, ...]
    table: Table

    @property
    def positives(self) -> float | None:
        """Share of label 1 over all rows; None without a label."""
        if self.roles.label is None:
            return None
        top = self.profile.column(self.roles.label).top
        classes = label_of(pl.Series([item.value for item in top]))
        return float(sum(item.count * one for item, one in zip(top, classes, strict=True)) / self.profile.rows)

    def to_json(self) -> dict[str, Any]:
        """The study as plain values."""
        roles = {"label": self.roles.label, "label_candidates": list(self.roles.candidates), "group": self.roles.group}
        columns = []
        for column, suggestion in zip(self.profile.columns, self.suggestions, strict=True):
            power = self.powers.get(column.name)
            columns.append(
                {
                    **column.to_json(),
                    "suggestion": asdict(suggestion),
                    "auc": None if power is None else power.auc,
                    "suspicious": None if power is None else power.suspicious,
                    "rates": None if power is None else [asdict(rate) for rate in power.rates],
                    "drift": None if self.drift is None else self.drift.of(column.name),
                }
            )
        drift = None if self.drift is None else asdict(self.drift)
        return {
            "source": self.source,
            "rows": self.profile.rows,
            "sample_rows": self.profile.sample.height,
            "sample_stride": self.profile.stride,
            **roles,
            "time": self.roles.time,
            "time_unit": self.roles.time_unit,
            "positives": self.positives,
            "columns": columns,
            "drift": drift,
            "table": asdict(self.table),
        }


def study(source: str, console: Console, *, label: str | None = None, time: str | None = None) -> Study:
    """Read a source once and find out what to do with it.

    Args:
        source: File or glob.
        console: Shown the progress.
        label: Column of the label; looked for when left out.
        time: Column of the time; looked for when left out.

    Raises:
        DataError: The source is absent, damaged or empty, or a named column is not what it should be.
    """
    frame = scan(source)
    with console.progress("profiling", None) as task:
        profile = profile_of(frame, task.update)
    roles = find_roles(profile, label=label, time=time)
    powers: dict[str, Power] = {}
    if roles.label is not None:
        labels = label_of(profile.sample.get_column(roles.label))
        for column in profile.columns:
            if column.name == roles.label or column.missing == column.rows or column.name not in profile.sample.columns:
                continue
            power = power_of(column, profile.sample.get_column(column.name), labels)
            if power is not None:
                powers[column.name] = power
    drift = None if roles.time is None else drift_of(profile, roles.time, roles.time_unit)
    suggestions, table = suggest(profile, roles, powers)
    return Study(source, profile, roles, powers, drift, suggestions, table)


def profile(
    source: str, console: Console, *, label: str | None = None, time: str | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Write `profile.json` and `profile.html` about a source.

    Args:
        source: File or glob.
        console: Shows the columns.
        label: Column of the label; looked for when left out.
        time: Column of the time; looked for when left out.
        out: Folder to write into; `work/NAME/profile` when left out.

    Returns:
        What `profile.json` holds, and `out`, `json` and `html`.

    Raises:
        DataError: The source is absent, damaged or empty, or a named column is not what it should be.
        ArtifactError: The folder cannot be written.
    """
    from pipelines.profile_page import profile_page

    found = study(source, console, label=label, time=time)
    folder = out or Path("work") / name_of(source) / "profile"
    show(found, console)
    data = found.to_json()
    write_json(folder / "profile.json", data)
    page = write_bytes(folder / "profile.html", profile_page(found).encode())
    console.note(f"page: {page}")
    console.note(f"next: recsys init {source}" + (f" --label {label}" if label else ""))
    return {**data, "out": str(folder), "json": str(folder / "profile.json"), "html": str(page)}


def name_of(source: str) -> str:
    """A name for an experiment on a source.

    >>> [name_of(s) for s in ("logs/day-*.csv.gz", "my events.parquet", "logs/*.parquet", "*.csv")]
    ['day', 'my_events', 'logs', 'events']
    """
    path = Path(source)
    for text in (path.name.split(".")[0], path.parent.name):
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-")
        if name:
            return name
    return "events"


def show(found: Study, console: Console) -> None:
    """Prints the columns and what was found."""
    console.table(f"{found.source}: {found.profile.rows:,} rows", column_rows(found))
    for line in findings(found):
        console.note(line)


def column_rows(found: Study) -> list[dict[str, Any]]:
    """A line a column, as tables show it."""
    rows = []
    for column, suggestion in zip(found.profile.columns, found.suggestions, strict=True):
        power = found.powers.get(column.name)
        drift = None if found.drift is None else found.drift.of(column.name)
        rows.append(
            {
                "column": column.name,
                "type": f"text of {column.reading}s" if column.reading else _short_type(column.dtype),
                "missing": _percent(column.missing_share),
                "distinct": column.distinct,
                "head": _percent(column.head_share),
                "auc": None if power is None else round(power.auc, 3),
                "drift": None if drift is None else round(drift, 3),
                "operator": suggestion.operator,
                "region": suggestion.region,
                "chunks": suggestion.chunks or None,
            }
        )
    return rows


def findings(found: Study) -> list[str]:
    """What a reader should know, a sentence each."""
    roles, table = found.roles, found.table
    lines = []
    if roles.label is None and roles.candidates:
        lines.append(f"label: not clear which of {', '.join(roles.candidates)}; say --label NAME")
    elif roles.label is None:
        lines.append("label: none found, as no column holds 0 and 1 and nothing else; say --label NAME")
    else:
        lines.append(f"label: {roles.label}, 1 in {100 * (found.positives or 0):.3g} % of the rows")
    lines.append(f"time: {roles.time or 'none found'}; group: {roles.group or 'none found'}")
    dropped = [f"{item.column} ({item.reason})" for item in found.suggestions if item.operator == "drop"]
    if dropped:
        lines.append(f"left out: {'; '.join(dropped)}")
    suspects = [name for name, power in found.powers.items() if power.suspicious]
    if suspects:
        lines.append(f"leakage: {', '.join(suspects)}: known before the event? If so, add it to the config")
    if found.drift is not None:
        moved = [name for name in found.drift.divergence if (found.drift.of(name) or 0) > DRIFT]
        if moved:
            lines.append(f"drift: {', '.join(moved)}")
    lines.append(f"table: {table.rows:,} shared rows x {table.width}, {table_text(table)}")
    return lines


def table_text(table: Table) -> str:
    """The bytes of a table, beside those of a row for every value if that takes more."""
    text = f"{bytes_text(table.bytes)} with exact rows and index"
    more = f"; a row for every value would take {bytes_text(table.collisionless_bytes)}"
    return text + more if table.collisionless_bytes > table.bytes else text


def _percent(share: float) -> str:
    # a no-break space: a cell is one figure
    return f"{100 * share:.3g}\u00a0%"


def _short_type(dtype: str) -> str:
    """A type without what is in brackets, but for lists.

    >>> _short_type("Datetime(time_unit='us', time_zone=None)"), _short_type("List(String)")
    ('Datetime', 'List(String)')
    """
    return dtype if dtype.startswith("List") else dtype.split("(")[0]
