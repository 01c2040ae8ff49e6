"""What a monitor found, as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recsys.evaluation.online.logs import STREAM
from recsys.evaluation.online.plots import look_pictures, stream_name, window_pictures
from recsys.evaluation.report import Figure, Section, cell_text, interval_text, render_report

LAST_WINDOWS = 100
"""Windows in the table, the newest first; the pictures and the JSON have them all."""
ANYTIME = (
    "The logloss of a model less the champion's on all requests that both scored: below 0 the model is better. The "
    "interval holds at all looks together (95 %), so you may stop as soon as there is a verdict. since: the window in "
    "which it could first be given."
)

SPLIT = (
    "Requests were dealt to the two arms at random. label rate: the share of an arm's requests to which a label of 1 "
    "came; the other metrics are of its rows. The interval of the difference holds at all looks together (95 %), so "
    "you may stop as soon as a difference is claimed. A window is tested once the next one is final and both answered "
    "in it, too."
)


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


def split_line(row: Mapping[str, Any]) -> str:
    """What may be said of split traffic, in one sentence with its figures.

    Args:
        row: Of `Monitor.split`.
    """
    if row["label_rate"] is None:
        return f"{row['said']}."
    difference = interval_text({"value": row["label_rate"], "low": row["low"], "high": row["high"]})
    since = "" if row["since"] is None else f", since {_minute(row['since'])}"
    return f"{row['said']}{since}. Label rate less the champion's: {difference}, {row['requests']:,} requests."


def _headline(result: Mapping[str, Any]) -> list[Figure]:
    cards = [
        Figure("windows", f"{len({row['window'] for row in result['windows']}):,}", "final"),
        Figure(
            "alarms",
            f"{len(result['alarms']):,}",
            _minute(result["alarms"][-1]["window"]) if result["alarms"] else "none",
        ),
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
            _lines(alarms[::-1]),
        ),
        Section(
            "In total",
            "Over all final windows. The AUC is within auc error of the exact one.",
            _lines(result["totals"]),
        ),
        Section("Over time", "", (), window_pictures(windows, alarms)),
    ]
    if result["differences"]:
        sections += [
            Section(
                "Less the champion, at any time",
                ANYTIME,
                [_verdict(row) for row in result["anytime"]],
                look_pictures(result["looks"], "logloss"),
            ),
            Section(
                "Less the champion, window by window",
                "95 % intervals for one look at one window: to decide by them again and again is to find differences "
                "that are not there.",
                _lines(result["differences"][::-1][:LAST_WINDOWS]),
            ),
        ]
    if result["split"]:
        sections.append(
            Section(
                "Split traffic, at any time",
                SPLIT,
                [line for row in result["split"] for line in _lines(row["arms"])],
                look_pictures(result["looks"], "label_rate"),
                [f"{stream_name(row)} against {row['champion']}: {split_line(row)}" for row in result["split"]],
            )
        )
    shown = windows[::-1][:LAST_WINDOWS]
    more = f"The last {len(shown)} of {len(windows)} rows. " if len(shown) < len(windows) else ""
    sections += [
        Section("Windows", more + "psi: of the predictions against the reference, above chance.", _lines(shown)),
        Section(
            "Rows of the logs",
            "late: behind the watermark. jumped: a clock far ahead of all others. duplicate: the request had a "
            "prediction of this model, or a label; contradicting: another one. overdue: after the delay. early: before "
            "its prediction. orphan: of no known request. waiting: not final yet.",
            count_rows(result),
        ),
    ]
    return sections


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as a table shows them: role, model and version in one column, an interval beside its value."""
    lines = []
    for row in rows:
        line: dict[str, Any] = {"window": _minute(row["window"])} if "window" in row else {}
        line["model"] = stream_name(row)
        for name, value in row.items():
            if name in ("window", *STREAM) or name.endswith(("_low", "_high")):
                continue
            if f"{name}_low" in row and value is not None:
                value = _interval(value, row[f"{name}_low"], row[f"{name}_high"])
            line[name] = value
        lines.append(line)
    return lines


def _verdict(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": stream_name(row),
        "verdict": row["verdict"],
        "logloss difference": _interval(row["logloss"], row["low"], row["high"]),
        "since": None if row["since"] is None else _minute(row["since"]),
        "rows": row["rows"],
        "e value": row["e_value"],
        "champion": row["champion"],
    }


def _interval(value: float, low: float, high: float) -> str:
    """On one line, however narrow the screen."""
    return interval_text({"value": value, "low": low, "high": high}).replace(" ", "\u00a0")


def _minute(moment: str) -> str:
    """A time without its seconds where there are none."""
    return moment.removesuffix(":00")
