"""What of the input could not be read: records and whole files, for the quarantine and its counts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from features.files import cannot_write
from features.frames import FILE_COLUMN, PLACE_COLUMN
from features.reading.records import BadRecord
from features.storage.quality import REASON_COLUMN, QualityConfig, check_share


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """Records and files without rows.

    Attributes:
        records: File and record.
        files: `file`, `bytes` and `reason` of each file that cannot be read at all.
        bytes_read: Size of all files, these too.
        notes: What is odd about files that could be read.
    """

    records: tuple[tuple[str, BadRecord], ...] = ()
    files: tuple[dict[str, Any], ...] = ()
    bytes_read: int = 0
    notes: tuple[str, ...] = ()

    def reasons(self) -> Counter[str]:
        """Returns the number of records by reason."""
        return Counter(record.reason for _, record in self.records)

    def check_share(self, quality: QualityConfig) -> None:
        """Refuses a run with too many bytes in files that cannot be read.

        Raises:
            DataError: More than the limit.
        """
        sizes: Counter[str] = Counter()
        for file in self.files:
            sizes[f"in {file['file']}: {file['reason']}"] += file["bytes"]
        if sizes:
            check_share(self.bytes_read, sizes, quality, what="bytes")

    def write(self, folder: Path) -> None:
        """Writes the records as `records.parquet`: `__file__`, `__place__`, `__reason__` and the text `record`.

        Raises:
            ArtifactError: It cannot be written.
        """
        if not self.records:
            return
        rows = [(file, record.place, record.reason, record.text) for file, record in self.records]
        schema = {FILE_COLUMN: pl.String, PLACE_COLUMN: pl.UInt32, REASON_COLUMN: pl.String, "record": pl.String}
        path = folder / "records.parquet"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            pl.DataFrame(rows, schema=schema, orient="row").write_parquet(path)
        except OSError as error:
            raise cannot_write(path, error) from error


READ = Unreadable()
"""Everything could be read."""
