"""What a monitor found, as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recsys.evaluation.online.plots import stream_name, window_pictures
from recsys.evaluation.report import Figure, Section, cell_text, render_report

LAST_WINDOWS = 100
"""Windows in the table, the newest first; the pictures and the JSON have them all."""


def monitor_page(result: Mapping[str, Any]) -> str:
    """The page: figures in total, alarms, pictures over time, and what became of every row of the logs.

    Args:
        result: Of `Monitor.result`.

    Returns:
        A whole HTML document; nothing is loaded from elsewhere.
    """
    windows, alarms, newest = result["windows"], result["alarms"], result["newest"]
    config = result["config"]
    lead = (
        f"Predictions up to {newest['predictions'] or 'nothing'}, labels up to {newest['labels'] or 'nothing'} (UTC). "
        f"Windows of {config['window']}; a label counts within {config['max_delay']}; without one a prediction is "
        f"{'a negative' if config['unlabelled'] == 'negative' else 'left out'}."
    )
    return render_report(
        title="Monitor", lead=lead, headline=_headline(result), sections=_sections(result, windows, alarms)
    )


def count_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What became of the rows of both logs, a row a reason."""
    rows = []
    for log in ("predictions", "labels"):
        for what, count in result[log].items():
            rows.append({"log": log, "what": what, "rows": count, "share": count / max(result[log]["read"], 1)})
        rows.append({"log": log, "what": "waiting", "rows": result["waiting"][log], "share": None})
    return rows


def _headline(result: Mapping[str, Any]) -> list[Figure]:
    cards = [
        Figure("windows", f"{len({row['window'] for row in result['windows']}):,}", "final"),
        Figure("alarms", f"{len(result['alarms']):,}", result["alarms"][-1]["window"] if result["alarms"] else "none"),
    ]
    for row in result["totals"][:4]:
        note = f"calibration {cell_text(row['calibration_ratio'])}, {row['rows']:,} rows"
        cards.append(Figure(f"AUC, {stream_name(row)}", cell_text(row["auc"]), note))
    return cards


def _sections(result: Mapping[str, Any], windows: Any, alarms: Any) -> list[Section]:
    level = result["config"]["alarms"]["level"]
    sections = [
        Section(
            "Alarms",
            f"A window where nothing changed raises one with a chance of at most {level:g}, over all detectors. "
            "mean: before and now are means of the signal. distribution: now is the population stability index against "
            "the reference, above chance." + ("" if alarms else " There was none."),
            alarms[::-1],
        ),
        Section("In total", "Over all final windows. The AUC is within auc error of the exact one.", result["totals"]),
        Section("Over time", "", (), window_pictures(windows, alarms)),
    ]
    if result["differences"]:
        text = "A model less the champion on requests that both scored; 95 % intervals for one look at one window."
        sections.append(Section("Less the champion", text, result["differences"][::-1][:LAST_WINDOWS]))
    shown = windows[::-1][:LAST_WINDOWS]
    more = f"The last {len(shown)} of {len(windows)} rows. " if len(shown) < len(windows) else ""
    sections += [
        Section("Windows", more + "psi: of the predictions against the reference, above chance.", shown),
        Section(
            "Rows of the logs",
            "late: behind the watermark. jumped: a clock far ahead of all others. duplicate: the request had a "
            "prediction of this model, or a label; contradicting: another one. overdue: after the delay. early: before "
            "its prediction. orphan: of no known request. waiting: not final yet.",
            count_rows(result),
        ),
    ]
    return sections
