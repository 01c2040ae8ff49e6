"""A trained model scores raw rows of any number: Parquet with a probability a task, in the order of the rows.

Rows stream from the source to parts on disk, several batches at a time in threads: memory follows the batch, not the
source.  A run that was killed goes on behind the last whole part (`pipelines.score_parts`).
"""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from features.batch import Batch
from features.errors import ConfigError, DataError, list_names
from features.folders import remove_leftovers, spool_beside, workshop
from features.frames import FILE_COLUMN, OUR_COLUMNS, PLACE_COLUMN, require_column, schema_of
from features.reading.input_files import ADDED_COLUMNS, gather, input_files
from features.reading.records import require_records
from features.reading.unreadable import READ, Unreadable
from features.storage.quality import REASON_COLUMN, QualityConfig, check_share, first_reason, problems_of
from pipelines.config import DataConfig, load_config
from pipelines.console import Console
from pipelines.models import OpenedModel, open_model
from pipelines.raw_rows import RawRows, pieces
from pipelines.score_parts import Parts, Scored, is_file, quarantine_of, result_of
from recsys.serving.scorer import TOO_LARGE, Scorer
from recsys.serving.signature import output_names

PART_BATCHES = 16
"""Batches of a part, which is what a killed run does again at most."""
_NETWORK_ROWS = 8192
"""Rows that go through the network at once: what lies between its layers then stays in the caches."""


def score(
    model: str,
    source: str,
    out: Path,
    console: Console,
    *,
    tracking_uri: str,
    batch_size: int = 65_536,
    keep: Sequence[str] = (),
    config: Path | None = None,
    quarantine: bool = False,
    max_bad_share: float | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Score every row of a source, in order.

    Args:
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or the folder of a run or of a bundle.
        source: Raw rows as `recsys prepare` reads them; labels need not be there.
        out: What to write: a Parquet file, or without that ending a folder of them. The columns kept, then `p_LABEL`
            for each task.
        console: Told about progress.
        tracking_uri: Store of the registry.
        batch_size: Rows read, and encoded, at a time.
        keep: Columns of the source or of a side table carried along.
        config: An experiment whose side tables, storage options and quality rules hold; those of a run when left out.
        quarantine: Set rows aside that cannot be used; they get no score.
        max_bad_share: A larger share of them is an error.
        workers: Batches scored at the same time; a processor each when left out.

    Returns:
        rows, out, columns, model, bundle (its digest), mean (of each task), quarantined (rows by reason),
        quarantined_files, unmatched (rows without a row in a side table), reused (all was there), resumed (rows that
        were there), seconds, rows_per_second.

    Raises:
        ConfigError: A column is to be kept twice, or has the name of an output; or the place for the scores is taken.
        ArtifactError: No such store or model, another process writes the same, or the scores cannot be written.
        DataError: The source is damaged, empty, or lacks a column; a value cannot be used, or too many of them.
    """
    started = time.perf_counter()
    opened = open_model(model, tracking_uri)
    data = load_config(config).data if config is not None else opened.data
    quality = _quality(data, quarantine, max_bad_share)
    raw = RawRows(source, opened.bundle.pipeline.spec, data)
    _check_place(out, raw)
    names = output_names(raw.spec)
    states = raw.states()
    identity = {
        "bundle": opened.bundle.digest,
        "inputs": states,
        "joins": [join.model_dump(mode="json") for join in raw.joins],
        "quality": {"mode": quality.mode, "max_bad_share": quality.max_bad_share},
        "keep": list(keep),
        "batch_size": batch_size,
    }
    # a source that cannot be told from what it will be tomorrow is read again
    known = all(states.values())
    remove_leftovers(out)
    with workshop(out, doing="writing these scores") as work:
        result = result_of(out, identity) if known else None
        parts = Parts(work, identity if known else {**identity, "run": uuid.uuid4().hex})
        resumed, reused = parts.read, result is not None
        if result is None:
            job = _Job(opened, raw, quality, parts, keep, batch_size, workers or os.cpu_count() or 1)
            try:
                result = job.run(out, console)
                if raw.states() != states:
                    raise DataError("the source changed while it was read", field=source, mend="score it again")
            except DataError:
                parts.clear()
                raise
            parts.publish(out, result, job.unreadable)
    seconds = time.perf_counter() - started
    _tell(console, result, out, reused, resumed, seconds)
    return {
        **result,
        "out": str(out),
        "columns": [*keep, *names],
        "model": model,
        "bundle": opened.bundle.digest,
        "reused": reused,
        "resumed": resumed,
        "seconds": round(seconds, 3),
        "rows_per_second": None if reused else round((parts.read - resumed) / seconds),
    }


class _Job:
    """One run over the source."""

    def __init__(
        self,
        opened: OpenedModel,
        raw: RawRows,
        quality: QualityConfig,
        parts: Parts,
        keep: Sequence[str],
        batch_size: int,
        workers: int,
    ) -> None:
        self.scorer = Scorer(opened.bundle)
        self.pipeline, self.spec = opened.bundle.pipeline, raw.spec
        self.raw, self.quality, self.parts = raw, quality, parts
        self.keep, self.batch_size, self.workers = list(keep), batch_size, workers
        self.names = output_names(self.spec)
        self.unreadable: Unreadable = READ
        self.reason: pl.Expr | None = None

    def run(self, out: Path, console: Console) -> dict[str, Any]:
        """Scores what is not scored yet, and returns what is told of the scores."""
        parts = self.parts
        with spool_beside(out) as spool, one_thread(), console.progress("scoring", None) as task:
            frame = self._open(spool)
            unmatched = self.raw.sides.count_unmatched(self.raw.joined()) if self.raw.joins else {}
            batches = self._scored(frame)
            while (first := next(batches, None)) is not None:
                parts.write(self._told(chain([first], islice(batches, PART_BATCHES - 1)), task))
        reasons = parts.reasons + self.unreadable.reasons()
        read = parts.read + len(self.unreadable.records)
        if not read:
            raise DataError("no rows to score", field=self.raw.source)
        self._check_share(out, read, dict(reasons))
        return {
            "rows": parts.rows,
            "mean": {name: total / parts.rows for name, total in zip(self.names, parts.sums, strict=True)},
            "quarantined": dict(sorted(reasons.items())),
            "quarantined_files": list(self.unreadable.files),
            "unmatched": unmatched,
        }

    def _open(self, spool: Path) -> pl.LazyFrame:
        """The rows that are not scored yet, in order, with what is looked at of them."""
        raw, strict = self.raw, self.quality.mode == "strict"
        files = input_files([Path(name) for name in raw.inputs.local_files or ()])
        if strict:
            for file in () if self.parts.done else files:
                require_records(file.path)
            frame = raw.plain()
        elif files:
            _, found, self.unreadable = gather(files, raw.joined, self.pipeline, self.quality, spool, labels=False)
            frame = pl.concat([rows.open(raw.plain) for rows in found], how="diagonal")
        else:
            frame = raw.plain().with_row_index(PLACE_COLUMN)
        # behind the rows that are done, and before a join, which would look each of them up
        joined = raw.sides.join_to(frame.slice(self.parts.read))
        schema = schema_of(joined)
        for column in self.spec.feature_columns:
            require_column(column, schema)
        _check_kept([name for name in schema if name not in OUR_COLUMNS], self.keep, self.names)
        if strict:
            return joined.select(list(dict.fromkeys([*self.spec.feature_columns, *self.keep])))
        self.reason = first_reason(problems_of(self.pipeline, schema, labels=False))
        return joined

    def _scored(self, frame: pl.LazyFrame) -> Iterator[Scored]:
        """Scores batches in threads, and gives them in their order; a few wait for their turn."""
        waiting: deque[Future[Scored]] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            for batch in pieces(frame, self.batch_size, self.raw.source):
                waiting.append(pool.submit(self._score, batch))
                if len(waiting) > self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _score(self, batch: pl.DataFrame) -> Scored:
        read, bad, reasons = batch.height, None, {}
        if self.reason is None:
            probabilities = self._probabilities(self.pipeline.encode_frame(batch))
        else:
            flagged = batch.with_columns(self.reason.alias(REASON_COLUMN))
            flagged, batch, probabilities = self._usable(flagged)
            if batch.height < read:
                aside = flagged.filter(pl.col(REASON_COLUMN).is_not_null())
                first = [name for name in (FILE_COLUMN, PLACE_COLUMN, REASON_COLUMN) if name in aside.columns]
                rest = [name for name in aside.columns if name not in (*OUR_COLUMNS, *ADDED_COLUMNS, REASON_COLUMN)]
                bad = aside.select(*first, *rest).to_arrow()
                reasons = dict(aside.group_by(REASON_COLUMN).len().iter_rows())
        scores = [pl.Series(name, probabilities[:, task]) for task, name in enumerate(self.names)]
        table = batch.select(self.keep).with_columns(scores) if self.keep else pl.DataFrame(scores)
        return Scored(read, table.to_arrow(), probabilities.sum(0).tolist(), bad, reasons)

    def _usable(self, flagged: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, np.ndarray]:
        """Rows with what is wrong with them, those of them with nothing wrong, and the probabilities of these.

        That a number is too large only the network tells.
        """
        usable = flagged.filter(pl.col(REASON_COLUMN).is_null())
        encoded = self.pipeline.encode_frame(usable)
        try:
            return flagged, usable, self._probabilities(encoded)
        except DataError:
            parts = enumerate(_network_parts(encoded))
            found = [
                (number * _NETWORK_ROWS + row, column)
                for number, part in parts
                for row, column in self.scorer.without_probability(part).items()
            ]
            if not found:
                raise
        reasons, places = flagged[REASON_COLUMN].to_list(), flagged[REASON_COLUMN].is_null().arg_true()
        for row, column in found:
            reasons[places[row]] = f"{column}: {TOO_LARGE}"
        return self._usable(flagged.with_columns(pl.Series(REASON_COLUMN, reasons, pl.String)))

    def _probabilities(self, encoded: Batch) -> np.ndarray:
        """[B, T] of encoded rows."""
        return np.concatenate([self.scorer.score(part) for part in _network_parts(encoded)])

    def _told(self, scored: Iterator[Scored], task: Any) -> Iterator[Scored]:
        read = self.parts.read
        for one in scored:
            read += one.read
            yield one
            task.update(read)

    def _check_share(self, out: Path, read: int, reasons: dict[str, int]) -> None:
        try:
            check_share(read, reasons, self.quality)
            self.unreadable.check_share(self.quality)
            if not self.parts.rows:
                raise DataError("no row can be scored", field=self.raw.source, found=list_names(reasons))
        except DataError:
            self.parts.write_quarantine(out, self.unreadable)
            raise


def _network_parts(encoded: Batch) -> Iterator[Batch]:
    """The rows that go through the network at once."""
    for start in range(0, max(len(encoded), 1), _NETWORK_ROWS):
        yield encoded.rows(slice(start, start + _NETWORK_ROWS))


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute with one thread for a while: batches are what runs side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _quality(data: DataConfig | None, quarantine: bool, max_bad_share: float | None) -> QualityConfig:
    """The rules of the config that matter to rows without labels, and what is asked for."""
    rules = QualityConfig() if data is None else data.quality
    mode = "quarantine" if quarantine else rules.mode
    share = rules.max_bad_share if max_bad_share is None else max_bad_share
    return QualityConfig(mode=mode, max_bad_share=share)


def _check_place(out: Path, raw: RawRows) -> None:
    """Refuses to write over what is read, or among it, where the next run would read it."""
    is_file(out)
    own = out.resolve()
    source = Path(raw.inputs.path).resolve()
    local = [] if raw.inputs.remote else [Path(file).resolve() for file in raw.inputs.files]
    if own in local or own in (file.parent for file in local) or (source.is_dir() and own.is_relative_to(source)):
        raise ConfigError(
            "the scores would be written over what is read, or among it",
            field=str(out),
            found=f"rows of {raw.source}",
            mend="choose another place",
        )


def _check_kept(have: Sequence[str], keep: Sequence[str], outputs: Sequence[str]) -> None:
    for i, column in enumerate(keep):
        if column not in have:
            raise DataError("no such column to keep", field=column, expected=f"one of {list_names(have)}")
        if column in keep[:i]:
            raise ConfigError("column is to be kept twice", field=column, mend="name it once in --keep")
        if column in outputs:
            raise ConfigError(
                "column to keep has the name of an output",
                field=column,
                mend="leave it out of --keep, or rename it in the source",
            )


def _tell(console: Console, result: dict[str, Any], out: Path, reused: bool, resumed: int, seconds: float) -> None:
    """What the scores are, for people."""
    rows = f"{result['rows']:,} rows"
    if reused:
        console.note(f"{out} has the scores of {rows} by this model and is left as it is")
    else:
        went_on = f", {resumed:,} rows of which were done before" if resumed else ""
        console.note(f"scored {rows} in {seconds:.1f} s{went_on}: {out}")
    for side, count in result["unmatched"].items():
        console.note(f"{count:,} rows have no row in the side table {side}")
    console.table("quarantine", [{"reason": why, "rows": count} for why, count in result["quarantined"].items()])
    console.table("files in quarantine", result["quarantined_files"])
    if result["quarantined"]:
        console.note(f"rows without a score are in {quarantine_of(out)}")
