"""Several trained models meet the same rows: which is better in what, where, and what cannot be claimed."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from features.batch import Batch
from features.errors import ArtifactError, ConfigError, DataError, list_names
from features.files import write_json
from pipelines.console import Console, bytes_text
from pipelines.evaluate_model import value_names_of
from pipelines.models import OpenedModel, open_model
from pipelines.workspace import write_bytes
from recsys.embeddings.plan import IdCounts
from recsys.evaluation.compare import RESAMPLES, Comparison
from recsys.evaluation.compare import compare as compare_scores
from recsys.evaluation.divisions import Division, divisions_of
from recsys.evaluation.paired_slices import MIN_ROWS, SliceComparison, SliceDifference, compare_slices
from recsys.evaluation.plots import Picture, pictures_of
from recsys.evaluation.report import Figure, Section, cell_text, render_report
from recsys.evaluation.slice_plots import slices_picture
from recsys.serving.registry import Registry, is_model_uri
from recsys.training import Predictions, predict

EXPERIMENT = "comparisons"
"""Of the MLflow runs."""
_SHOWN = ("auc", "logloss", "normalised_entropy", "calibration_ratio", "gauc")
_DRAWN = 4
_SLICES = 12


@dataclass(frozen=True)
class Scored:
    """Several models' scores of the same rows, and what is known of the rows."""

    label: str
    scores: dict[str, np.ndarray]
    """[N] probabilities of the first task by model."""
    labels: np.ndarray
    """[N]."""
    weight: np.ndarray | None
    group: np.ndarray | None
    """[N]; None too if rows count one by one."""
    batch: Batch
    """The rows as the first model reads them."""
    text: str
    """What the rows are, for people."""

    def compare(self, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
        """All pairs in all metrics."""
        return compare_scores(
            self.labels, self.scores, weight=self.weight, group=self.group, resamples=resamples, seed=seed
        )

    def by_slices(self, divisions: Sequence[Division], min_rows: int) -> SliceComparison:
        """All pairs in all slices."""
        return compare_slices(
            self.labels, self.scores, divisions, weight=self.weight, group=self.group, min_rows=min_rows
        )


def compare(
    arguments: Sequence[str],
    console: Console,
    *,
    tracking_uri: str,
    html: Path | None = None,
    split: str = "test",
    by: str | None = None,
    effect: float | None = None,
    min_rows: int = MIN_ROWS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two or more models on the same rows.

    Args:
        arguments: The models (`models:/NAME@ALIAS`, `models:/NAME/VERSION`, the folder of a run or of a bundle), then
            the data: a folder of prepared data, or a file or glob of raw rows with labels.
        console: Shows the tables.
        tracking_uri: Store of the registry; the comparison is logged there if the store exists.
        html: Where to write the page.
        split: Of prepared data.
        by: row or group: what counts as drawn. By group if the data has groups.
        effect: Say how many rows it takes to see such a difference.
        min_rows: Of a slice.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        models (model as given, table_bytes, metrics), data, label, rows, what `Comparison` holds, rows_needed (by
        metric and pair, for `effect`), slices, slices_left_out, html, mlflow_run_id, seconds.

    Raises:
        ConfigError: Fewer than two models, or no data, or a model is named twice.
        ArtifactError: There is no such model, or the data was prepared with another spec.
        DataError: The models do not see the same rows and labels; the data is absent or damaged, or lacks a column.
    """
    started = time.perf_counter()
    *names, data = arguments or ("",)
    models = _open(names, data, tracking_uri)
    scored = score_all(models, data, split, console, by=by)
    comparison = scored.compare(resamples=resamples, seed=seed)
    slices = slices_of(scored, next(iter(models.values())), data, console, min_rows)
    result = comparison_result(models, scored, comparison, slices)
    result["rows_needed"] = None if effect is None else _rows_needed(comparison, effect)
    result["html"] = None if html is None else str(html)
    page = comparison_page(result, scored, slices)
    if html is not None:
        write_bytes(html, page.encode())
    result["mlflow_run_id"] = _track(tracking_uri, result, page)
    result["seconds"] = round(time.perf_counter() - started, 2)
    _show(console, result, slices)
    return result


def score_all(
    models: Mapping[str, OpenedModel], data: str, split: str, console: Console, *, by: str | None = None
) -> Scored:
    """Scores the same rows with all models.

    Args:
        models: By the name they are shown under.
        data: A folder of prepared data, or a file or glob of raw rows with labels.
        split: Of prepared data.
        console: Told about progress.
        by: row or group; by group if all models know groups.

    Raises:
        ArtifactError: The data was prepared with another spec than a model's.
        DataError: The models do not see the same rows, labels, weights or groups.
    """
    first: tuple[str, Predictions] | None = None
    kept: list[Batch] = []

    def keep(batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            kept.append(batch)
            yield batch

    scores: dict[str, np.ndarray] = {}
    for name, model in models.items():
        rows = model.rows(data, split)
        assert rows is not None  # data is given
        with console.progress(f"scoring with {name}", None) as task:
            found = predict(
                model.bundle.model, keep(rows.read()) if first is None else rows.read(), model.bundle.calibration
            )
            task.update(len(found.probabilities))
        if found.labels is None or not len(found.labels):
            raise DataError("there are no labelled rows to compare on", field=data)
        if first is None:
            first, text, layout = (name, found), rows.text, model.bundle.pipeline.layout
        _check_same(first, (name, found), layout.label_names[0], model.bundle.pipeline.layout.label_names[0], by)
        scores[name] = found.probabilities[:, 0]
    assert first is not None
    truth = first[1]
    if by == "group" and truth.group is None:
        raise ConfigError("the models know no groups", field="--by", found=by, mend="compare by row")
    return Scored(
        layout.label_names[0],
        scores,
        np.asarray(truth.labels)[:, 0].astype(np.float64),
        None if truth.weight is None else truth.weight.astype(np.float64),
        None if by == "row" else truth.group,
        Batch.cat(kept),
        text,
    )


def slices_of(scored: Scored, model: OpenedModel, data: str, console: Console, min_rows: int) -> SliceComparison:
    """All pairs in the slices that a report has: by value, training frequency, range and day.

    Args:
        scored: The rows.
        model: The first one, as which they were read.
        data: Where they came from.
        console: Told what slices cannot be made or named, and why.
        min_rows: Of a slice.
    """
    names, note = value_names_of(model.bundle.pipeline, data, model.run)
    if note is not None:
        console.note(f"in slices, {note}")
    counts = _training_counts(model, data, console)
    divisions = divisions_of(model.bundle.pipeline.layout, scored.batch, counts=counts, names=names)
    return scored.by_slices(divisions, min_rows)


def _training_counts(model: OpenedModel, data: str, console: Console) -> IdCounts | None:
    """How often training saw each id; None, with a word about it, if that cannot be known."""
    try:
        store = model.store(data if Path(data).is_dir() else None)
    except ArtifactError as error:
        console.note(f"no slices by frequency: {error}")
        return None
    if store is None:
        console.note("no slices by frequency: give prepared data, or a run first, to tell what training saw how often")
        return None
    return store.id_counts("train")


def comparison_result(
    models: Mapping[str, OpenedModel], scored: Scored, comparison: Comparison, slices: SliceComparison
) -> dict[str, Any]:
    """What was found, as plain values: models, data, label, what the comparison holds, slices, slices_left_out."""
    return {
        "models": {
            name: {
                "model": model.name,
                "table_bytes": model.bundle.model.plan.table_bytes,
                **{key: value for key, value in comparison.models[name].items() if key != "undefined"},
            }
            for name, model in models.items()
        },
        "data": scored.text,
        "label": scored.label,
        **{key: value for key, value in comparison.to_json().items() if key != "models"},
        "slices": slices.to_json()["slices"],
        "slices_left_out": slices.left_out,
    }


def comparison_page(result: Mapping[str, Any], scored: Scored, slices: SliceComparison) -> str:
    """The comparison as a page that stands alone."""
    names = list(result["models"])
    claimed = [entry for entry in slices.slices if entry.better is not None]
    headline = [
        Figure("rows", f"{result['rows']:,}", f"{result['units']:,} {result['by']}s"),
        *(Figure(name, cell_text(result["models"][name]["auc"]), "AUC") for name in names[:_DRAWN]),
    ]
    undefined = [f"{metric} is undefined: {reason}." for metric, reason in result["undefined"].items()]
    left_out = ", ".join(f"{count:,} of {reason}" for reason, count in slices.left_out.items())
    pictures = [
        slices_picture(f"slices-{number}", pair)
        for number, (a, b) in enumerate(combinations(names, 2))
        if (pair := [entry for entry in slices.slices if (entry.a, entry.b) == (a, b)])
    ]
    drawn: list[Picture] = pictures_of(
        scored.labels, {name: scored.scores[name] for name in names[:_DRAWN]}, weight=scored.weight
    )
    sections = [
        Section("What may be claimed", " ".join(f"{text}." for text in result["verdicts"])),
        Section("Models", " ".join(undefined), _model_rows(result), drawn),
        Section("Differences", _METHOD.format(**result), _difference_rows(result)),
        Section(
            "Slices",
            f"Logloss by slice, {len(slices.slices):,} slices and pairs; in {len(claimed):,} a winner may be claimed "
            f"after correction over all of them. Left out: {left_out or 'none'}.",
            [_slice_row(entry) for entry in _ends(claimed)],
            pictures,
        ),
    ]
    return render_report(
        title="Comparison of " + " and ".join(names),
        lead=f"On {result['data']}: probability of {result['label']}.",
        headline=headline,
        sections=sections,
    )


_METHOD = (
    "The metric of a minus that of b on the same rows; low and high hold it alone, p is corrected over all pairs and "
    "metrics (Holm), and better names a model only where p is below {level:g}. detectable is the smallest difference "
    "that these rows show with a chance of 80 %. What counts as drawn: a {by}."
)


def _open(names: Sequence[str], data: str, tracking_uri: str) -> dict[str, OpenedModel]:
    if len(names) < 2:
        raise ConfigError(
            "a comparison needs two models and rows",
            field="compare",
            found=list_names([*names, data]) or "nothing",
            expected="MODEL MODEL [MODEL ...] DATA",
        )
    short = [name.removeprefix("models:/") if is_model_uri(name) else Path(name).resolve().name for name in names]
    shown = short if len(set(short)) == len(short) else list(names)
    if len(set(shown)) < len(shown):
        raise ConfigError("a model is named twice", field="compare", found=list_names(names), mend="name it once")
    return {label: open_model(name, tracking_uri) for label, name in zip(shown, names, strict=True)}


def _check_same(
    first: tuple[str, Predictions], other: tuple[str, Predictions], label: str, other_label: str, by: str | None
) -> None:
    def refuse(what: str, found: object, expected: object, mend: str) -> None:
        raise DataError(what, field=other[0], found=found, expected=f"{expected}, as {first[0]} has", mend=mend)

    a, b = first[1], other[1]
    assert a.labels is not None
    assert b.labels is not None
    if label != other_label:
        refuse("the models predict other labels", other_label, label, "compare models of the same first label")
    if len(a.labels) != len(b.labels):
        refuse("the models see other rows", f"{len(b.labels):,} rows", f"{len(a.labels):,}", "give one set of rows")
    differ = int((a.labels[:, 0] != b.labels[:, 0]).sum())
    if differ:
        refuse("the models see other labels", f"{differ:,} that differ", "the same labels", "give one set of rows")
    if not _equal(a.weight, b.weight):
        refuse("the models weigh the rows otherwise", "other weights", "the same", "train with the same weight column")
    if by != "row" and not _equal(a.group, b.group):
        refuse("the models group the rows otherwise", "other groups", "the same", "compare with --by row")


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))


def _rows_needed(comparison: Comparison, effect: float) -> list[dict[str, Any]]:
    return [
        {"metric": d.metric, "a": d.a, "b": d.b, "effect": effect, "rows": d.rows_needed(effect, comparison.rows)}
        for d in comparison.differences
    ]


def _model_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    shown = [metric for metric in _SHOWN if any(metric in values for values in result["models"].values())]
    return [
        {"model": name, "table": bytes_text(values["table_bytes"]), **{metric: values[metric] for metric in shown}}
        for name, values in result["models"].items()
    ]


def _difference_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for place, found in enumerate(result["differences"]):
        row = {name: found[name] for name in ("a", "b", "metric", "difference", "low", "high")}
        row |= {"p": found["p_adjusted"], "better": found["better"], "detectable": found["detectable"]}
        if result.get("rows_needed") is not None:
            needed = result["rows_needed"][place]
            row[f"rows_for_{needed['effect']:g}"] = needed["rows"]
        rows.append(row)
    return rows


def _slice_row(entry: SliceDifference) -> dict[str, Any]:
    return {
        "slice": entry.name,
        "rows": entry.rows,
        "base_rate": entry.base_rate,
        "a": entry.a,
        "b": entry.b,
        "difference": entry.difference,
        "low": entry.low,
        "high": entry.high,
        "better": entry.better,
    }


def _ends(entries: Sequence[SliceDifference]) -> list[SliceDifference]:
    """The largest and the smallest differences of each pair, in the order given."""
    shown: list[SliceDifference] = []
    for pair in dict.fromkeys((entry.a, entry.b) for entry in entries):
        of_pair = [entry for entry in entries if (entry.a, entry.b) == pair]
        shown += of_pair if len(of_pair) <= 2 * _SLICES else [*of_pair[:_SLICES], *of_pair[-_SLICES:]]
    return shown


def _show(console: Console, result: Mapping[str, Any], slices: SliceComparison) -> None:
    console.note(f"{result['data']}, {result['rows']:,} rows, {result['units']:,} {result['by']}s: {result['label']}")
    console.table("models", _model_rows(result))
    console.table("differences, a minus b; p after correction over all of them", _difference_rows(result))
    for metric, reason in result["undefined"].items():
        console.note(f"{metric} is undefined: {reason}")
    claimed = [entry for entry in slices.slices if entry.better is not None]
    console.table(
        "slices in which a winner may be claimed: logloss, a minus b", [_slice_row(e) for e in _ends(claimed)]
    )
    left_out = ", ".join(f"{count:,} of {reason}" for reason, count in slices.left_out.items())
    console.note(
        f"{len(slices.slices):,} slices and pairs, a winner in {len(claimed):,}; left out: {left_out or 'none'}"
    )
    for text in result["verdicts"]:
        console.note(text)
    if result["html"] is not None:
        console.note(f"page: {result['html']}")


def _track(tracking_uri: str, result: Mapping[str, Any], page: str) -> str | None:
    """Logs the comparison where there is an MLflow store; returns the run's id."""
    try:
        registry = Registry(tracking_uri, create=False)
    except ArtifactError:
        return None
    run_id = registry.start_run(EXPERIMENT, " and ".join(result["models"]))
    with registry.running(run_id):
        registry.log_params(
            run_id,
            {name: result[name] for name in ("data", "label", "by", "level")} | {"models": list(result["models"])},
        )
        rows = [
            (f"{d['metric']}/{_metric_name(d['a'])} minus {_metric_name(d['b'])}/{part}", d[part], 0)
            for d in result["differences"]
            for part in ("difference", "low", "high", "p_adjusted")
        ]
        registry.log_metrics(run_id, rows)
        with tempfile.TemporaryDirectory() as folder:
            write_json(Path(folder) / "comparison.json", result)
            write_bytes(Path(folder) / "comparison.html", page.encode())
            registry.log_files(run_id, Path(folder))
    return run_id


def _metric_name(model: str) -> str:
    """A model's name with nothing that MLflow refuses in the name of a metric."""
    return re.sub(r"[^A-Za-z0-9_. -]", "_", model)
