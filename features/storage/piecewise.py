"""A store built from pieces that an engine works off: the same bytes as `build_store` gives in one process.

Rows are checked, read for the fit and encoded in pieces. What hangs on all rows stays here and is done in their order:
a split that moves rows, keys that must differ, and the fit.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.errors import DataError
from features.files import write_table
from features.folders import finished
from features.frames import SPLIT_COLUMN, first_line, schema_of
from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.storage.engines.base import Engine
from features.storage.pieces import Piece, Rows, count_rows, cut, fit_on_files, write_fit_columns
from features.storage.quality import QualityConfig, check, kept_rows, write_quarantine
from features.storage.shards import Progress, Shards, plan_cuts, write_cut, write_shards
from features.storage.splits import SPLITS, Split

_NUMBER = "__number__"
_SPLIT_TYPE = pl.Enum(SPLITS)


class InPieces:
    """Events that are checked when they are taken, then fitted on, then written.

    Args:
        events: All rows.
        parts: Open the rows of `events`, one part after the other, with the same columns.
        split: How to divide the events.
        spec: The description of the columns.
        quality: The rules.
        engine: Where pieces are worked off.
        folder: For work in progress, where all processes of the engine find it; it goes when the rows are written.
        piece_rows: Rows a piece at most.

    Attributes:
        counts: Rows of each split (None: of no split) that are kept.
        reasons: Rows of each reason that are not.

    Raises:
        DataError: As `check` raises it; where pieces are checked apart, for the first piece that is wrong.
    """

    def __init__(
        self,
        events: pl.LazyFrame,
        parts: Sequence[Rows],
        split: Split,
        spec: FeatureSpec,
        quality: QualityConfig,
        engine: Engine,
        folder: Path,
        piece_rows: int,
    ) -> None:
        self.events, self.engine, self.folder = events, engine, folder
        self.pieces = cut(parts, list(engine.map(count_rows, parts)), piece_rows)
        # Of a key the rows before count too, and in other splits the rows of the whole.
        self.apart = split.by_row and quality.key is None
        self._worker = _Worker(spec, split, quality, folder, decided=not self.apart)
        self._bad: pl.LazyFrame | None = None
        counts: Counter[str | None] = Counter()
        reasons: Counter[str] = Counter()
        if not self.apart:
            self._decide(counts, reasons)
        for found in engine.map(self._worker.look, self.pieces):
            counts.update(found.counts)
            reasons.update(found.reasons)
        self.counts, self.reasons = dict(counts), dict(reasons)

    @property
    def rows_read(self) -> int:
        """Kept, dropped and quarantined."""
        return sum(self.counts.values()) + sum(self.reasons.values())

    def write_quarantine(self, path: Path) -> None:
        """Writes the rows that are not kept."""
        bad = self._bad
        if bad is None:
            written = [file for piece in self.pieces if (file := self._worker.quarantine(piece)).is_file()]
            # A file may lack columns that others have.
            every = pl.LazyFrame(schema=schema_of(self.events))
            bad = pl.concat([every, *map(pl.scan_parquet, written)], how="diagonal")
        write_quarantine(bad, path)

    def fit_and_write(
        self, folder: Path, pipeline: FeaturePipeline, shard_rows: int, progress: Progress | None = None
    ) -> Shards:
        """Fits on the train rows and writes the shards, as `features.storage.shards.write_shards` does."""
        fit_on_files(pipeline, self.events, [self._worker.fit_columns(piece) for piece in self.pieces])
        worker = dataclasses.replace(self._worker, pipeline=pipeline)
        encoded: list[tuple[Path, Shards]] = []
        for piece, shards in zip(self.pieces, self.engine.map(worker.encode, self.pieces), strict=True):
            encoded.append((worker.shards(piece), shards))
            if progress is not None:
                progress(piece.first + piece.rows)
        cuts = plan_cuts(encoded, shard_rows)
        for split in cuts:
            (folder / split).mkdir(parents=True)
        entries = self.engine.map(functools.partial(write_cut, folder=folder), [c for of in cuts.values() for c in of])
        written: Shards = {split: [next(entries) for _ in of_split] for split, of_split in cuts.items()}
        shutil.rmtree(self.folder, ignore_errors=True)
        return written

    def _decide(self, counts: Counter[str | None], reasons: Counter[str]) -> None:
        """Checks and divides all rows here, and writes the split of each beside its piece."""
        if _NUMBER in schema_of(self.events):
            raise DataError("this name is taken: we give it to a column of our own", field=_NUMBER, mend="rename it")
        worker = self._worker
        numbered = self.events.with_row_index(_NUMBER)
        checked = check(numbered, worker.split, FeaturePipeline(worker.spec), worker.quality)
        counts.update(checked.counts)
        reasons.update(checked.reasons)
        self._bad = checked.bad.drop(_NUMBER)
        try:
            kept = checked.kept.select(_NUMBER, pl.col(SPLIT_COLUMN).cast(_SPLIT_TYPE).to_physical()).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError("data cannot be read", found=first_line(error), mend="check the input files") from error
        codes = np.full(sum(piece.rows for piece in self.pieces), len(SPLITS), dtype=np.uint8)
        codes[kept[_NUMBER].to_numpy()] = kept[SPLIT_COLUMN].to_numpy()
        names = {**dict(enumerate(SPLITS)), len(SPLITS): None}
        for piece in self.pieces:
            here = pl.Series(SPLIT_COLUMN, codes[piece.first : piece.first + piece.rows])
            write_table(worker.splits(piece), here.replace_strict(names, return_dtype=pl.String).to_frame())


@dataclasses.dataclass(frozen=True)
class _Found:
    """What a look at a piece found; nothing where all rows were looked at before."""

    counts: dict[str | None, int] = dataclasses.field(default_factory=dict)
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Worker:
    """What is done with a single piece; it can be sent to another process.

    Attributes:
        decided: Whether the split of every row stands in a file beside the piece.
        pipeline: Fitted, for `encode`.
    """

    spec: FeatureSpec
    split: Split
    quality: QualityConfig
    folder: Path
    decided: bool
    pipeline: FeaturePipeline | None = None

    def look(self, piece: Piece) -> _Found:
        """Checks the rows, and writes those that are bad and what the pipeline is fitted on."""
        pipeline = FeaturePipeline(self.spec)
        if self.decided:
            write_fit_columns(pipeline, self._kept(piece), self.fit_columns(piece))
            return _Found()
        checked = check(piece.frame(), self.split, pipeline, self.quality, first=piece.first)
        if checked.reasons:
            write_quarantine(checked.bad, self.quarantine(piece))
        write_fit_columns(pipeline, checked.kept, self.fit_columns(piece))
        return _Found(checked.counts, checked.reasons)

    def encode(self, piece: Piece) -> dict[str, list[dict[str, Any]]]:
        """Writes the encoded rows, a shard a split."""
        assert self.pipeline is not None
        with finished(self.shards(piece)) as partial:
            return write_shards(partial, self._kept(piece), self.pipeline, piece.rows)

    def quarantine(self, piece: Piece) -> Path:
        return self._beside(piece) / "quarantine.parquet"

    def fit_columns(self, piece: Piece) -> Path:
        return self._beside(piece) / "fit.arrow"

    def splits(self, piece: Piece) -> Path:
        return self._beside(piece) / "splits.arrow"

    def shards(self, piece: Piece) -> Path:
        return self._beside(piece) / "shards"

    def _beside(self, piece: Piece) -> Path:
        return self.folder / f"{piece.first:012d}"

    def _kept(self, piece: Piece) -> pl.LazyFrame:
        frame = piece.frame()
        if not self.decided:
            return kept_rows(frame, self.split, FeaturePipeline(self.spec), self.quality, first=piece.first)
        divided = pl.concat([frame, pl.scan_ipc(self.splits(piece))], how="horizontal")
        return divided.filter(pl.col(SPLIT_COLUMN).is_not_null())
