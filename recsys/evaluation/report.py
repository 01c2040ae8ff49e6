"""The report of a run: one HTML file that needs nothing else, in light and dark, readable on a phone."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.evaluation.plots import Picture


@dataclass(frozen=True)
class Figure:
    """One figure of the headline: its name, its value as text, and a word beneath."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the report: some text, points, a table, then pictures; each may be left out."""

    title: str
    text: str = ""
    rows: Sequence[Mapping[str, Any]] = ()
    pictures: Sequence[Picture] = field(default_factory=tuple)
    points: Sequence[str] = ()


def render_report(*, title: str, lead: str, headline: Sequence[Figure], sections: Sequence[Section]) -> str:
    """The report as HTML.

    Args:
        title: The page's title.
        lead: One sentence below it.
        headline: The few figures a reader looks for first.
        sections: In reading order.

    Returns:
        A whole document: style and pictures are inside, nothing is loaded, no script runs.
    """
    cards = "".join(
        f'<div class="card"><div class="name">{_text(f.name)}</div><div class="value">{_text(f.value)}</div>'
        f'<div class="note">{_text(f.note)}</div></div>'
        for f in headline
    )
    body = "".join(_section(section) for section in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<header><h1>{_text(title)}</h1><p class="lead">{_text(lead)}</p></header>'
        f'<div class="cards">{cards}</div>{body}</main></body></html>\n'
    )


def cell_text(value: Any) -> str:
    """A value as a table cell shows it: thousands separated, five significant digits, a dash for none.

    >>> [cell_text(v) for v in (39017, 0.7512345, None, True, "exact")]
    ['39,017', '0.75123', '-', 'yes', 'exact']
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"
    return str(value)


def interval_text(interval: Mapping[str, Any]) -> str:
    """A value with its interval.

    >>> interval_text({"value": 0.7512345, "low": 0.74, "high": 0.76, "level": 0.95})
    '0.75123 (0.74 to 0.76)'
    """
    value, low, high = (cell_text(interval[end]) for end in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _section(section: Section) -> str:
    parts = [f"<section><h2>{_text(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{_text(section.text)}</p>")
    if section.points:
        parts.append("<ul>" + "".join(f"<li>{_text(point)}</li>" for point in section.points) + "</ul>")
    if section.rows:
        parts.append(_table(section.rows))
    if section.pictures:
        name = "pictures two" if len(section.pictures) == 4 else "pictures"
        parts.append(f'<div class="{name}">' + "".join(_figure(picture) for picture in section.pictures) + "</div>")
    return "".join(parts) + "</section>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0])
    numeric = {
        name
        for name in names
        if any(isinstance(row.get(name), int | float) for row in rows)
        and all(row.get(name) is None or isinstance(row.get(name), int | float) for row in rows)
    }

    decimals = {name: _decimals([row.get(name) for row in rows]) for name in numeric}
    kinds = {name: " class=num" if name in numeric else " class=when" if _times(name, rows) else "" for name in names}

    def cells(tag: str, values: Mapping[str, Any]) -> str:
        return "".join(f"<{tag}{kinds[name]}>{_text(text(name, values.get(name)))}</{tag}>" for name in names)

    def text(name: str, value: Any) -> str:
        places = decimals.get(name)
        return cell_text(value) if places is None or not isinstance(value, float) else f"{value:.{places}f}"

    head = cells("th", {name: name.replace("_", " ") for name in names})
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _times(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a column holds days or times, which would break at their hyphens."""
    given = [row[name] for row in rows if row.get(name) is not None]
    return bool(given) and all(isinstance(value, str) and _DAY.match(value) for value in given)


def _decimals(values: Sequence[Any]) -> int | None:
    """Decimals that let the points of a column stand below one another; None where that would take too many.

    >>> _decimals([0.5, 0.1234, None]), _decimals([0.5, 3]), _decimals([123.25, 0.000001])
    (4, None, None)
    """
    given = [value for value in values if value is not None]
    if any(not isinstance(value, float) or abs(value) >= 1000 for value in given):
        return None
    shown = [cell_text(value) for value in given]
    places = max((len(text.partition(".")[2]) for text in shown if "e" not in text), default=0)
    tiny = any("e" in text and abs(value) < 10.0**-places for text, value in zip(shown, given, strict=True))
    return None if places > _MOST_DECIMALS or tiny else places


def _figure(picture: Picture) -> str:
    caption = _text(picture.caption)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data(picture.dark)}">'
        f'<img src="{_data(picture.light)}" alt="{caption}"></picture><figcaption>{caption}</figcaption></figure>'
    )


def _data(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _text(text: str) -> str:
    return html.escape(text, quote=True)


_MOST_DECIMALS = 5
_DAY = re.compile(r"\d{4}-\d\d-\d\d\b")

_STYLE = """
:root{--bg:#f6f7fa;--card:#fff;--text:#1d2433;--soft:#5b6577;--line:#e1e5ec;--accent:#2463eb;--shade:#1d243326}
@media (prefers-color-scheme:dark){:root{--bg:#12161f;--card:#1a202c;--text:#e4e8f0;--soft:#9aa5b8;--line:#2d3646;
--accent:#7aa7ff;--shade:#000a}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--text);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:68rem;margin:0 auto;padding:clamp(1rem,4vw,2.5rem)}
h1{font-size:clamp(1.4rem,4vw,2rem);line-height:1.2;margin:0}
h1,h2,section p,li{overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .6rem}
.lead{color:var(--soft);margin:.4rem 0 1.4rem;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.8rem;margin-bottom:1rem}
.card,section{background:var(--card);border:1px solid var(--line);border-radius:.7rem;padding:.9rem 1rem}
.card .name{color:var(--soft);font-size:.82rem}
.card .value{font-size:1.45rem;font-weight:650;font-variant-numeric:tabular-nums}
.card .note{color:var(--soft);font-size:.8rem;min-height:1.2em}
section{margin-top:1rem;padding:1.1rem}
section p{margin:.2rem 0 .8rem;color:var(--soft)}
section ul{margin:.2rem 0;padding-left:1.2rem}
.scroll{overflow-x:auto;background:linear-gradient(to left,var(--card) 40%,transparent) right/3rem 100% no-repeat local,
linear-gradient(to left,var(--shade),transparent) right/.7rem 100% no-repeat}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.38rem .7rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
td:last-child:not(.when){overflow-wrap:anywhere}
th{color:var(--soft);font-weight:600;white-space:nowrap}
tbody tr:last-child td{border-bottom:0}
.num{text-align:right}
.num,.when{white-space:nowrap}
.pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:1rem;margin-top:1rem}
.two{grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr))}
figure{margin:0;max-width:36rem}
img{width:100%;height:auto;display:block}
figcaption{color:var(--soft);font-size:.85rem;margin-top:.3rem}
@media (max-width:30rem){main{padding:.7rem}section{padding:.8rem}table{font-size:.84rem}th,td{padding:.34rem .45rem}
.num+.num,th.num{padding-left:.6rem}}
"""
