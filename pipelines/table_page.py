"""The diagnostics of a table as people read them: console tables, and one HTML page that needs nothing else."""

from __future__ import annotations

from typing import Any

from pipelines.console import Console, bytes_text
from recsys.embeddings.diagnostics import Diagnostics, Overlap
from recsys.embeddings.occupancy import FeatureUse, Load
from recsys.evaluation.report import Figure, Section, render_report


def show(found: Diagnostics, sample: str, console: Console) -> None:
    """Prints the main tables."""
    console.table(f"regions, {sample}", _region_rows(found))
    if found.load is not None:
        console.table("rows that ids hash into", _load_rows(found.load))
    console.table("lookups answered by each region, percent", _hit_rows(found.features))
    console.table("collisions in percent of lookups (of a perfect hash)", _feature_rows(found.features))
    if found.overlaps:
        console.table("overlap of features' first-layer blocks", _overlap_rows(found.overlaps))


def summary(found: Diagnostics) -> str:
    """The main figures in a line."""
    parts = [] if found.load is None else [f"{found.load.measured.mean:.2f} ids a row"]
    parts += [f"{name} {_percent(found.rate(name))}" for name in ("intra", "inter", "confused")]
    parts += [f"{o.layer} overlap {o.mean:.3f} (by chance {o.random:.3f})" for o in found.overlaps]
    return ", ".join(parts)


def table_page(name: str, found: Diagnostics, sample: str, plan: list[dict[str, Any]]) -> str:
    """The page.

    Args:
        name: Of the model.
        found: What was measured.
        sample: The rows it was measured on.
        plan: A line a feature, of `EmbeddingPlan.summary`.

    Returns:
        A whole HTML document; nothing is loaded from elsewhere.
    """
    rows = sum(region.rows for region in found.regions)
    lead = f"A table of {rows:,} rows x {found.width}, seen through {sample}."
    return render_report(
        title=f"{name}: inside the table", lead=lead, headline=_headline(found, rows), sections=_sections(found, plan)
    )


def _headline(found: Diagnostics, rows: int) -> list[Figure]:
    figures = [Figure("table", bytes_text(found.table_bytes), f"{rows:,} rows")]
    if found.load is not None:
        trained = found.load.trained.mean
        figures.append(Figure("ids a row", f"{found.load.measured.mean:.2f}", f"{trained:.2f} over all of training"))
    for rate, name in (("intra", "intra collisions"), ("inter", "inter collisions"), ("confused", "confused ids")):
        figures.append(
            Figure(name, _percent(found.rate(rate)), f"perfect hash {_percent(found.rate(rate, 'expected'))}")
        )
    figures += [Figure(f"{o.layer} overlap", f"{o.mean:.3f}", f"by chance {o.random:.3f}") for o in found.overlaps]
    if found.updates is not None:
        hashed = [found.updates.never[name] for name in ("shared", "own") if name in found.updates.never]
        figures += [Figure("rows never updated", _percent(share), "of those hashed into") for share in hashed]
    return figures


def _sections(found: Diagnostics, plan: list[dict[str, Any]]) -> list[Section]:
    # matplotlib takes a second to load, and only the page needs it
    from recsys.evaluation.table_plots import table_pictures

    pictures = table_pictures(found)
    sections = [
        Section(
            "Regions",
            "What each part of the table costs and answers. Untouched rows hold no id of the sample: many of them in a "
            "region mean that it is too large, or that its ids are gone.",
            _region_rows(found),
        )
    ]
    if found.load is not None:
        sections.append(
            Section(
                "Load of the rows that ids hash into",
                "A sound hash follows the curve. Traffic is uneven because ids are; rows that are far busier than the "
                "most frequent ids say that frequent ids meet. More rows, or rows of their own for frequent ids, help.",
                _load_rows(found.load),
                pictures["load"],
            )
        )
    if hits := _hit_rows(found.features):
        sections.append(
            Section(
                "Hit rates by region",
                "In percent of a feature's lookups. Exact and hot rows belong to one id; the rest hashes. A hot region "
                "that answers little holds ids that are no longer frequent, or is too small for this feature's head.",
                hits,
                pictures["hits"],
            )
        )
    sections.append(
        Section(
            "Collisions by feature",
            "Intra: another id of the feature reads the same row, which this row cannot tell apart. Inter: an id of "
            "another feature does, which the network can learn to ignore. Confused ids have all their rows in common "
            "with another id of the feature. Against intra collisions: another chunk, exact rows for a small field, "
            "rows of their own for frequent ids, more rows.",
            pictures=pictures["features"],
        )
    )
    sections.append(
        Section(
            "Feature by feature",
            "In percent of lookups, and in brackets for a perfect hash. Traffic: how much of what its rows are looked "
            "up for comes from other ids of the feature (intra) and from other features (inter).",
            _feature_rows(found.features),
        )
    )
    if found.overlaps:
        sections.append(
            Section(
                "Overlap of first-layer blocks",
                "How alike the directions are in which the first layer reads two features that share rows. Below the "
                "random value the network has learned to keep them apart; well above it they disturb one another. "
                "Least is what so many features can reach in rows of this width: wider rows lower it. A feature that "
                "is read in few directions of the row leaves the others to the rest.",
                _overlap_rows(found.overlaps),
                pictures["overlap"],
            )
        )
    if found.norms is not None:
        norms = found.norms
        measured = {name: getattr(norms, name) for name in ("initial", "mean", "low", "median", "high", "maximum")}
        sections.append(
            Section(
                "Row norms",
                f"Of {norms.rows:,} rows; low and high are the tenth and ninetieth percentile. Norms that grow with "
                "load are the mark of a crowded table: what its readers ignore is never corrected. A pull towards 0 "
                "(train.table_l2) or more rows help.",
                [{name: round(value, 4) for name, value in measured.items()}],
                pictures["norms"],
            )
        )
    if found.updates is not None:
        never = [{"region": name, "never_updated": round(s, 4)} for name, s in found.updates.never.items()]
        text = "Rows that no step touched are dead weight; rows not touched for long hold ids that are gone."
        sections.append(Section("Stale rows", text, never, pictures["updates"]))
    sections.append(Section("Plan", "Where each feature's rows lie.", plan))
    return sections


def _region_rows(found: Diagnostics) -> list[dict[str, Any]]:
    return [
        {
            "region": r.region,
            "rows": r.rows,
            "bytes": r.bytes,
            "share_of_bytes": _round(r.bytes / found.table_bytes),
            "traffic": _round(r.traffic),
            "untouched_rows": None if r.touched is None else _round(1 - r.touched),
        }
        for r in found.regions
    ]


def _load_rows(load: Load) -> list[dict[str, Any]]:
    fills = ("this sample", load.measured), ("perfect hash, this sample", load.expected)
    rows = [*fills, ("perfect hash, all of training", load.trained)]
    out: list[dict[str, Any]] = [
        {"ids": name, "ids_a_row": round(f.mean, 3), "fullest_row": f.maximum, "empty_rows": _round(f.empty)}
        for name, f in rows
    ]
    for row in out[1:]:
        row |= {"busiest_row": None, "busiest_hundredth": None, "dispersion": None}
    out[0] |= {
        "busiest_row": _round(load.top_row),
        "busiest_hundredth": _round(load.top_rows),
        "dispersion": None if load.dispersion is None else round(load.dispersion, 3),
    }
    out[1] |= {"dispersion": 1.0}
    return out


def _hit_rows(features: tuple[FeatureUse, ...]) -> list[dict[str, Any]]:
    """Lookups by region, if some feature is answered by more than one."""
    if not any(len(f.traffic) > 1 for f in features):
        return []
    regions = sorted({name for f in features for name in f.traffic})
    return [
        {"feature": f.feature, **{name: _hundredths(f.traffic.get(name, 0.0)) for name in regions}} for f in features
    ]


def _feature_rows(features: tuple[FeatureUse, ...]) -> list[dict[str, Any]]:
    names = ["intra", "inter", "confused"]
    if any(f.chunks > 1 for f in features):
        names.append("duplicate_chunks")
    out = []
    for f in features:
        row: dict[str, Any] = {"feature": f.feature, "region": f.region, "chunks": f.chunks, "ids": f.ids}
        for name in names:
            row[name] = None
            if f.measured is not None and f.expected is not None:
                # a no-break space: a cell is one figure
                row[name] = f"{_hundredths(getattr(f.measured, name))}\u00a0({_hundredths(getattr(f.expected, name))})"
        row["intra_traffic"] = None if f.intra_traffic is None else _hundredths(f.intra_traffic)
        row["inter_traffic"] = None if f.inter_traffic is None else _hundredths(f.inter_traffic)
        out.append(row)
    return out


def _overlap_rows(overlaps: tuple[Overlap, ...]) -> list[dict[str, Any]]:
    return [
        {
            "layer": o.layer,
            "features": len(o.features),
            **{name: _round(getattr(o, name)) for name in ("mean", "rms", "random", "least")},
            "directions_a_feature": round(sum(o.effective_rank) / len(o.effective_rank), 2),
        }
        for o in overlaps
    ]


def _round(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _percent(share: float) -> str:
    return f"{_hundredths(share)} %"


def _hundredths(share: float) -> str:
    """A share in percent, as people read it.

    >>> [_hundredths(x) for x in (1.0, 0.9712, 0.00123, 1e-9, 0.0)]
    ['100', '97.1', '0.12', '<.01', '0']
    """
    if 0 < share < 1e-4:
        return "<.01"
    return f"{100 * share:.{3 if share >= 0.01 else 2}g}"
