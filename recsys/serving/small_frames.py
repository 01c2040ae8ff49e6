"""Small frames, encoded row by row: planning a query over all features takes 20 ms whatever the length of the frame,
one row in plain Python a fifteenth of a millisecond."""

from __future__ import annotations

import polars as pl

from features.batch import Batch
from features.errors import DataError
from features.pipeline import FeaturePipeline

MOST_ROWS = 500
"""Of a frame that is read row by row; at a thousand both ways take about as long."""

_MOST_SCHEMAS = 64
_PLAIN = (pl.Null, pl.String, pl.Boolean, pl.Float32, pl.Float64, pl.Int8, pl.Int16, pl.Int32, pl.Int64)
"""Types whose values are to Python what they are to Polars."""


class FrameEncoder:
    """Encodes frames of any length with one pipeline.

    Args:
        pipeline: Fitted.
    """

    def __init__(self, pipeline: FeaturePipeline) -> None:
        self._pipeline = pipeline
        self._columns = dict.fromkeys(pipeline.spec.feature_columns)
        self._known: dict[tuple[tuple[str, pl.DataType], ...], bool] = {}

    def __call__(self, frame: pl.DataFrame) -> Batch:
        """What `FeaturePipeline.encode_frame` gives.

        Raises:
            DataError: A column is missing or of a wrong dtype, or a value is wrong.
        """
        if 0 < frame.height <= MOST_ROWS and self._reads(frame):
            try:
                return self._pipeline.encode(frame[list(self._columns)].rows(named=True))
            except DataError:  # to be told as that of a frame: with the number of bad rows
                pass
        return self._pipeline.encode_frame(frame)

    def _reads(self, frame: pl.DataFrame) -> bool:
        """Whether its rows can be read one by one; a frame of other columns than the pipeline reads is refused."""
        schema = tuple((name, dtype) for name, dtype in frame.schema.items() if name in self._columns)
        found = self._known.get(schema)
        if found is None:
            self._pipeline.transform(frame, labels=False)
            if len(self._known) >= _MOST_SCHEMAS:
                self._known.clear()
            found = self._known[schema] = all(_plain(dtype) for _, dtype in schema)
        return found


def _plain(dtype: pl.DataType) -> bool:
    return _plain(dtype.inner) if isinstance(dtype, pl.List) else isinstance(dtype, _PLAIN)  # type: ignore[arg-type]
