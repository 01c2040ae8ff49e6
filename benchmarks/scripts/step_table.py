"""Steps of one embedding table alone: forward, backward and update, for `benchmarks.table_kernels`.

Reads a request as JSON on standard input: kernel (recsys's torch, numba or fbgemm; `sparse` or `dense` for
nn.EmbeddingBag with torch's Adagrad), format, rows, width, features, values, batch_size, batches, rounds, threads.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.embeddings.addressing import mix64, range_reduce, salt
from recsys.embeddings.fbgemm_table import FbgemmTable
from recsys.embeddings.formats import RowFormat
from recsys.embeddings.kernel import make_table
from recsys.embeddings.table import TableOptimizer
from recsys.training.memory import keep_freed_memory

RATE = 0.05
ZIPF = 1.1


def lookups(request: dict[str, Any]) -> list[Tensor]:
    """Rows [features * batch] int32 of some batches: Zipf-distributed ids of each feature, hashed into one table."""
    rng, features = np.random.default_rng(0), request["features"]
    salts = torch.tensor([salt(f"feature_{i}", 0) for i in range(features)])
    batches = []
    for _ in range(request["batches"]):
        share, most, power = rng.random((request["batch_size"], features)), request["values"], 1 - ZIPF
        # the inverse of the distribution function of a Zipf law, taken as continuous
        ids = np.minimum(((most**power - 1) * share + 1) ** (1 / power), most).astype(np.int64)
        batches.append(range_reduce(mix64(torch.from_numpy(ids) ^ salts), request["rows"]).to(torch.int32).flatten())
    return batches


def ours(request: dict[str, Any]) -> Callable[[Tensor, Tensor], None]:
    """One step of our table on a kernel."""
    table = make_table(
        request["rows"],
        RowFormat(request["format"], request["width"]),
        TableOptimizer("rowwise_adagrad"),
        request["kernel"],
    ).train()
    table.initialise(0.05, torch.Generator().manual_seed(0))

    def step(rows: Tensor, grad: Tensor) -> None:
        if isinstance(table, FbgemmTable):
            table.set_learning_rate(RATE)
        table(rows).backward(grad)
        table.step(RATE)

    return step


def fbgemm(request: dict[str, Any]) -> Callable[[Tensor, Tensor], None]:
    """One step of FBGEMM's own module, without our table around it."""
    table = FbgemmTable(request["rows"], RowFormat("fp32", request["width"]), TableOptimizer("rowwise_adagrad"))
    table.initialise(0.05, torch.Generator().manual_seed(0))
    module = table._tbe
    module.set_learning_rate(RATE)
    offsets = torch.arange(request["features"] * request["batch_size"] + 1)

    def step(rows: Tensor, grad: Tensor) -> None:
        module(rows.to(torch.int64), offsets).backward(grad)

    return step


def embedding_bag(request: dict[str, Any]) -> Callable[[Tensor, Tensor], None]:
    """One step of nn.EmbeddingBag with torch's Adagrad, with sparse or dense gradients."""
    module = torch.nn.EmbeddingBag(request["rows"], request["width"], mode="sum", sparse=request["kernel"] == "sparse")
    optimizer = torch.optim.Adagrad(module.parameters(), lr=RATE)
    offsets = torch.arange(request["features"] * request["batch_size"])

    def step(rows: Tensor, grad: Tensor) -> None:
        module(rows.to(torch.int64), offsets).backward(grad)
        optimizer.step()
        optimizer.zero_grad()

    return step


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds a step: the median over all batches of all rounds but the first, which warms up."""
    torch.set_num_threads(request["threads"])
    keep_freed_memory()
    batches = lookups(request)
    kernel = request["kernel"]
    step = {"fbgemm": fbgemm, "sparse": embedding_bag, "dense": embedding_bag}.get(kernel, ours)(request)
    grad = torch.randn(len(batches[0]), request["width"], generator=torch.Generator().manual_seed(1)) * 1e-3
    seconds = []
    for turn in range(request["rounds"] + 1):
        for rows in batches:
            started = time.perf_counter()
            step(rows, grad)
            if turn:
                seconds.append(time.perf_counter() - started)
    return {
        "milliseconds": statistics.median(seconds) * 1e3,
        "lookups": len(batches[0]),
        "distinct_share": statistics.mean(len(torch.unique(rows)) / len(rows) for rows in batches),
    }


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.stdin.read()))))
