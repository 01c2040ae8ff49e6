"""A table for reading: the rows of a file, mapped into memory and not copied."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.embeddings.formats import RowFormat
from recsys.embeddings.table import TableOptimizer
from recsys.embeddings.torch_table import TorchTable


class MappedTable(TorchTable):
    """Takes the tensor it is given for its own, and so the memory behind it.

    Rows of a mapped file come into memory when they are first read, once for all processes that map the file.  A row
    that is written to becomes this process's own: the file never changes.

    Args:
        rows: number of rows, R.
        format: how a row of D values is stored.
    """

    def __init__(self, rows: int, format: RowFormat) -> None:
        super().__init__(0, format, TableOptimizer("sgd"))
        self.rows = rows
        with torch.device("meta"):  # its shape and type alone, until rows are given
            self.weight = format.empty(rows)

    def initialise(self, scale: float, generator: torch.Generator) -> None:
        """Does nothing: it begins with the rows it is given."""

    def load_stored(self, stored: Tensor) -> None:
        self.weight = stored
