"""Which kernel a table runs on.

`auto` is the fastest that the machine has (`python -m benchmarks.table_kernels`): numba for every format on a CPU,
plain torch where numba is not installed.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Literal

import torch

from features.errors import ConfigError
from recsys.embeddings.formats import RowFormat
from recsys.embeddings.table import Table, TableOptimizer
from recsys.embeddings.torch_table import TorchTable
from recsys.memory import MemoryPart, require_memory

KernelName = Literal["auto", "torch", "numba", "fbgemm"]


def make_table(rows: int, format: RowFormat, optimizer: TableOptimizer, kernel: KernelName = "auto") -> Table:
    """The table on the kernel asked for.

    Raises:
        ConfigError: the kernel is not installed, or lacks the optimizer or the format; or there is no memory for the
            table.
    """
    require_memory(table_memory(rows, format, optimizer))
    if kernel == "auto":
        kernel = "numba" if is_installed("numba") else "torch"
    package = {"numba": "numba", "fbgemm": "fbgemm_gpu"}.get(kernel)
    if package and not is_installed(package):
        raise ConfigError(
            f"{kernel} is not installed",
            field="embedding.kernel",
            found=kernel,
            mend="pip install 'recsys-embeddings[torchrec]' on Linux, or set it to auto"
            if kernel == "fbgemm"
            else "pip install numba, or set it to auto",
        )
    try:
        if kernel == "fbgemm":
            from recsys.embeddings.fbgemm_table import FbgemmTable

            return FbgemmTable(rows, format, optimizer)
        if kernel == "numba":
            from recsys.embeddings.numba_table import NumbaTable

            return NumbaTable(rows, format, optimizer)
        return TorchTable(rows, format, optimizer)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        table = f"{rows:,} rows x {format.width} values in {format.name}: {rows * format.row_bytes:,} bytes"
        raise ConfigError(
            "the table and its optimizer's state do not fit into memory",
            field="embedding.rows",
            found=f"{table}, before the optimizer's state",
            mend="lower embedding.rows or embedding.width",
        ) from error


def table_memory(rows: int, format: RowFormat, optimizer: TableOptimizer) -> list[MemoryPart]:
    """What a table and its optimizer's state take.

    >>> [(part.name, part.bytes) for part in table_memory(1000, RowFormat("fp32", 8), TableOptimizer("adam"))]
    [('table', 32000), ('optimizer of the table', 64008)]
    """
    with torch.device("meta"):  # shapes alone
        outline = TorchTable(rows, format, optimizer)
    smaller = "lower embedding.rows or embedding.width"
    return [
        MemoryPart("table", outline.weight.nbytes, "embedding.rows", smaller),
        MemoryPart(
            "optimizer of the table",
            sum(t.nbytes for t in outline.state.values()),
            "train.table_optimizer",
            f"rowwise_adagrad holds one state a row; or {smaller}",
        ),
    ]


@functools.cache
def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported to find out."""
    return importlib.util.find_spec(package) is not None
