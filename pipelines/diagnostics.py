"""A sample of rows to look into a table through, and the look taken at the end of a training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from features.batch import Batch
from features.errors import DataError
from features.files import write_json
from features.frames import first_line, iterate
from features.pipeline import FeaturePipeline
from features.storage.store import Store
from pipelines.config import DataConfig, ExperimentConfig
from pipelines.console import Console
from pipelines.raw_rows import RawRows
from pipelines.table_page import summary, table_page
from pipelines.workspace import Run, write_bytes
from recsys.embeddings.diagnostics import diagnose, update_state
from recsys.embeddings.occupancy import count_ids
from recsys.embeddings.plan import IdCounts
from recsys.models import CTRModel
from recsys.training.checkpoints import Checkpoints

ROWS = 200_000
"""Rows of a sample, where nothing else is said."""
_PIECE = 65_536


@dataclass(frozen=True)
class Sample:
    """Rows to look at a table through."""

    counts: IdCounts
    text: str
    """What they are, for people."""

    @classmethod
    def whole(cls, counts: IdCounts, rows: int, split: str) -> Sample:
        """A split without leaving out a row."""
        return cls(counts, f"all {rows:,} rows of the {split} split")


def split_sample(store: Store, split: str, rows: int) -> Sample:
    """A random sample of a split, the same one every time; the whole split if it has no more rows."""
    total = store.rows(split)
    if total <= rows:
        return Sample.whole(store.id_counts(split), total, split)
    return Sample(
        count_ids(store.layout, _batches(store, split, rows)), f"{rows:,} of {total:,} rows of the {split} split"
    )


def data_sample(
    pipeline: FeaturePipeline, source: str, split: str, rows: int, data: DataConfig | None = None
) -> Sample:
    """A sample of prepared data (a folder) or the first rows of raw files.

    Args:
        pipeline: That of the model: raw rows go through it, and prepared data must have its spec.
        source: The folder, file or glob.
        split: Of prepared data.
        rows: At most so many.
        data: Of the config that the model was trained with: raw rows get the columns of its side tables.

    Raises:
        ArtifactError: The folder holds no prepared data, or data of another spec.
        DataError: The file is absent, empty or damaged, or lacks a column.
    """
    if Path(source).is_dir():
        return split_sample(Store.open(Path(source), spec=pipeline.spec), split, rows)
    raw = RawRows(source, pipeline.spec, data)
    frame = raw.sides.join_to(raw.plain().head(rows))
    seen = 0

    def batches() -> Iterator[Batch]:
        nonlocal seen
        for piece in iterate(frame, _PIECE):
            seen += len(piece)
            yield pipeline.encode_frame(piece)

    try:
        counts = count_ids(pipeline.layout, batches())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            "the file cannot be read", field=source, found=first_line(error), mend="copy or write the file anew"
        ) from error
    return Sample(counts, f"the first {seen:,} rows of {source}")


def run_state(run: Run) -> dict[str, Tensor]:
    """What a run's newest checkpoint remembers of the updates of rows; nothing if there is none."""
    checkpoints = Checkpoints(run.checkpoints)
    newest = checkpoints.newest()
    if newest is None:
        return {}
    prefixes = ("average.table.", "table_optimizer.")
    return {name.removeprefix(p): t for p in prefixes for name, t in checkpoints.read(newest, p).items()}


def diagnose_run(
    config: ExperimentConfig, run: Run, model: CTRModel, store: Store, console: Console
) -> tuple[list[Path], dict[str, float]]:
    """Look into the table of a model that was just trained.

    Args:
        config: Says on how many rows.
        run: Gets diagnostics.json and diagnostics.html.
        model: As it was kept; its table remembers the training.
        store: Its training split is sampled.
        console: Told the main figures.

    Returns:
        The files, and the main figures by name.
    """
    sample = split_sample(store, "train", config.tracking.diagnostics_rows)
    found = diagnose(model, sample.counts, state=update_state(model.embedding.table))
    page = table_page(f"{config.name}, run {run.name}", found, sample.text, model.plan.summary())
    files = [run.folder / "diagnostics.json", run.folder / "diagnostics.html"]
    write_json(files[0], {"sample": sample.text, **found.to_json()})
    write_bytes(files[1], page.encode())
    console.note(f"table: {summary(found)}: {files[1]}")
    return files, found.scalars()


def _batches(store: Store, split: str, rows: int) -> Iterator[Batch]:
    """So many random rows, the same share of every shard: a sample of one shard would be of one time."""
    total, before = store.rows(split), 0
    generator = torch.Generator().manual_seed(0)
    for number, count in enumerate(store.shard_rows(split)):
        chosen = rows * (before + count) // total - rows * before // total
        before += count
        index = torch.randperm(count, generator=generator)[:chosen].sort().values
        for part in index.split(_PIECE):
            yield store.shard(split, number).take(part)
