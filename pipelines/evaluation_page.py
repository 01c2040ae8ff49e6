"""An evaluation as people read it: console tables, and one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.calibrate import show_effect
from pipelines.console import Console, bytes_text
from recsys.evaluation.plots import Picture
from recsys.evaluation.report import Figure, Section, cell_text, render_report

METRICS = ("auc", "pr_auc", "logloss", "normalised_entropy", "calibration_ratio", "ece", "brier", "gauc")
"""In the order they are shown; each may be undefined."""
SHOWN_SLICES = 30
_CALIBRATIONS = 10
_CONSOLE_LINES = 8


def show(found: Mapping[str, Any], text: str, console: Console) -> None:
    """Prints the main tables.

    Args:
        found: What `measure` found.
        text: What was measured, for people.
        console: Where.
    """
    for label, metrics in found["tasks"].items():
        main = label == next(iter(found["tasks"]))
        console.table(f"{text}, {metrics['rows']:,} rows: {label}", _metric_rows(found, metrics, main=main))
        for name, reason in metrics["undefined"].items():
            console.note(f"{name} of {label} is undefined: {reason}")
    show_effect(console, found["calibration"])
    slices = found["slices"]["found"]
    console.table(
        f"slices that add most to the loss, of {len(slices):,}", [_slice_row(one) for one in slices[:_CONSOLE_LINES]]
    )
    importance = found["importance"]
    console.table(
        f"importance, {importance['rows']:,} rows",
        [_importance_row(one) for one in importance["features"][:_CONSOLE_LINES]],
    )


def evaluation_page(
    found: Mapping[str, Any],
    *,
    title: str,
    lead: str,
    text: str,
    pictures: Mapping[str, Sequence[Picture]],
    more: Sequence[Section] = (),
) -> str:
    """The page.

    Args:
        found: What `measure` found, with `gates`, `card`, `notes` and `plan`.
        title: Of the page.
        lead: One sentence below it.
        text: What was measured, for people.
        pictures: By part: curves, slices and importance.
        more: Sections before the last.

    Returns:
        A whole HTML document; nothing is loaded from elsewhere.
    """
    sections = [
        _metrics_section(found, text, pictures["curves"]),
        *([Section("Gates", "Bounds this model must keep.", found["gates"])] if found["gates"] else []),
        *_slice_sections(found, pictures["slices"]),
        *_importance_section(found, pictures["importance"]),
        _cost_section(found),
        Section(
            "Embedding plan",
            "Where each feature's rows lie. Rows of the shared region serve all its features, so they count for none.",
            found["plan"],
        ),
        *more,
        Section("Limits", points=found["card"]["limits"]),
        Section("Model card", "Facts only: what its use would mean is for its owner to add.", found["card"]["facts"]),
    ]
    return render_report(title=title, lead=lead, headline=_headline(found), sections=sections)


def _headline(found: Mapping[str, Any]) -> list[Figure]:
    metrics, intervals, reference = found["metrics"], found["intervals"], found["reference"]

    def note(name: str) -> str:
        if metrics[name] is None:
            return str(metrics["undefined"].get(name, "undefined"))
        beside = "" if reference is None else f", reference {_short(reference[name])}"
        if name not in intervals:
            return beside.removeprefix(", ")
        low, high = (_short(intervals[name][end]) for end in ("low", "high"))
        return f"{low} to {high}{beside}"

    names = {"auc": "AUC", "logloss": "logloss", "normalised_entropy": "normalised entropy"}
    names["calibration_ratio"] = "calibration"
    cost = found["cost"]
    latency = cost["latency_ms"]
    return [
        *(Figure(title, cell_text(metrics[name]), note(name)) for name, title in names.items()),
        Figure("table", bytes_text(cost["table_bytes"]), f"{cost['table_rows']:,} rows"),
        Figure("one row", f"{latency['1']:.2g} ms", f"500 rows {latency['500']:.2g} ms"),
    ]


def _short(value: float | None) -> str:
    return cell_text(None if value is None else round(value, 4))


def _metrics_section(found: Mapping[str, Any], text: str, pictures: Sequence[Picture]) -> Section:
    undefined = [
        f"{name} of {label} is undefined: {reason}."
        for label, values in found["tasks"].items()
        for name, reason in values["undefined"].items()
    ]
    first, *others = found["tasks"].items()
    rows = _metric_rows(found, first[1], main=True)
    for label, metrics in others:
        for row in _metric_rows(found, metrics, main=False):
            rows.append({**dict.fromkeys(rows[0]), **row, "metric": f"{row['metric']} of {label}"})
    words = (
        f"{first[0]} on the {text}: {first[1]['rows']:,} rows, a share of {cell_text(first[1]['base_rate'])} positive. "
        f"Low and high are 95 % intervals{_drawn(found)}: DeLong's for the AUC, the delta method's for the others. The "
        "value of ECE has noise in it, which its interval has not."
    )
    return Section("Metrics", " ".join([words, *undefined]), rows, pictures)


def _drawn(found: Mapping[str, Any]) -> str:
    """What the intervals take for drawn."""
    grouped = any("by group" in interval["method"] for interval in found["intervals"].values())
    return " for whole groups drawn (that of ECE for rows)" if grouped else " for rows drawn one by one"


def _metric_rows(found: Mapping[str, Any], metrics: Mapping[str, Any], *, main: bool) -> list[dict[str, Any]]:
    rows = []
    for name in (name for name in METRICS if name in metrics):
        row: dict[str, Any] = {"metric": name.replace("_", " "), "value": metrics[name]}
        if main:
            interval = found["intervals"].get(name, {})
            row |= {"low": interval.get("low"), "high": interval.get("high")}
            if found["reference"] is not None:
                row["reference"] = found["reference"].get(name)
        rows.append(row)
    return rows


def _slice_sections(found: Mapping[str, Any], pictures: Sequence[Picture]) -> list[Section]:
    slices = found["slices"]
    every = slices["found"]
    if not every:
        text = f"None has {slices['min_rows']:,} rows; {slices['too_small']:,} smaller ones were left out."
        return [Section("Slices", text)]
    sampled = slices["rows"] < found["metrics"]["rows"]
    text = (
        f"{len(every):,} slices of at least {slices['min_rows']:,} rows"
        + (f" in a sample of {slices['rows']:,}" if sampled else "")
        + f", the {min(SHOWN_SLICES, len(every))} that harm most first; {slices['too_small']:,} smaller ones were left "
        "out, and the JSON holds all. Percent is of all rows. Excess is what a slice adds to the logloss of all beyond "
        "its share, in thousandths, and error its standard error: much in a slice that is large and hard. A rate near "
        "one half is hard by nature; a low AUC, or a calibration off 1, is the model's doing."
    )
    off = [every[place] for place in found["miscalibrated"]]
    words = (
        "Expected over observed clicks, the slices first whose distance from 1 is most standard errors. Of so many "
        "intervals one in twenty leaves out 1 by chance."
    )
    sections = [Section("Slices by harm", text, [_slice_row(one) for one in every[:SHOWN_SLICES]])]
    if off:
        rows = [_calibration_row(one) for one in off[:_CALIBRATIONS]]
        sections.append(Section("Calibration by slice", words, rows, pictures))
    return sections


def _slice_row(one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "slice": one["name"],
        "rows": one["rows"],
        "percent": round(100 * one["share"], 1),
        "rate": round(one["base_rate"], 4),
        "AUC": None if one["auc"] is None else round(one["auc"]["value"], 4),
        "logloss": round(one["logloss"], 4),
        "calibration": None if one["calibration"] is None else round(one["calibration"]["value"], 3),
        "excess": round(1000 * one["excess_loss"], 2),
        "error": round(1000 * one["excess_error"], 2),
    }


def _calibration_row(one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "slice": one["name"],
        "rows": one["rows"],
        "observed": round(one["base_rate"], 4),
        **{name: round(one["calibration"][end], 3) for name, end in _ENDS.items()},
    }


_ENDS = {"calibration": "value", "low": "low", "high": "high"}


def _importance_section(found: Mapping[str, Any], pictures: Sequence[Picture]) -> list[Section]:
    importance = found["importance"]
    if not importance["features"]:
        return []
    text = (
        f"On a sample of {importance['rows']:,} rows. Shuffled: a feature's values go to other rows, the mean of "
        f"{importance['draws']} draws, with a 95 % interval from rows and draws. At zero: its vectors from the table "
        "are zeros; one chunk: the chunk that matters least is. All figures are rises of the logloss, but the fall of "
        "the AUC. A feature that others stand in for has little importance, and so has one whose crosses tell of it."
    )
    return [
        Section("Feature importance", text, [_importance_row(one) for one in importance["features"]], pictures),
    ]


def _importance_row(one: Mapping[str, Any]) -> dict[str, Any]:
    ablation, loss = one["ablation"], one["logloss"]
    return {
        "feature": one["feature"],
        "kind": one["kind"],
        "shuffled": round(loss["value"], 5),
        "low": round(loss["low"], 5),
        "high": round(loss["high"], 5),
        "AUC": None if one["auc"] is None else round(one["auc"], 5),
        "at_zero": None if ablation is None else round(ablation["logloss"], 5),
        "one_chunk": None if ablation is None else round(min(ablation["by_chunk"]), 5),
        "chunks": None if ablation is None else len(ablation["by_chunk"]),
    }


def _cost_section(found: Mapping[str, Any]) -> Section:
    cost = found["cost"]
    rows = {
        "table": f"{bytes_text(cost['table_bytes'])} ({cost['table_bytes']:,} bytes), {cost['table_rows']:,} rows",
        "a lookup": f"{cost['bytes_a_lookup']:,} bytes",
        "lookups an example": f"{cost['lookups']:.4g}, {bytes_text(cost['bytes_an_example'])}",
        "network": f"{cost['network_parameters']:,} parameters",
        **{f"{rows} {'row' if rows == '1' else 'rows'}": f"{ms:.3g} ms" for rows, ms in cost["latency_ms"].items()},
    }
    text = (
        "Latency is the median from encoded rows to probabilities in this process, on "
        f"{cost['threads']} {'thread' if cost['threads'] == 1 else 'threads'}."
    )
    return Section("Cost", text, [{"what": what, "value": value} for what, value in rows.items()])
