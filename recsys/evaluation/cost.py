"""What a model costs: bytes, lookups, parameters, and how long it takes to score in this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from features.batch import Batch
from recsys.models import CTRModel

REQUEST_ROWS = (1, 500)
"""One row, and the candidates of one request."""
_REPEATS = 30


@dataclass(frozen=True)
class Cost:
    """What a model costs."""

    table_bytes: int
    """Of everything indexed by ids."""
    table_rows: int
    bytes_a_lookup: int
    """Of a stored row, its scale included."""
    lookups: float
    """Rows read for an example; every value of a bag counts."""
    bytes_an_example: float
    """Read from the table."""
    network_parameters: int
    latency_ms: dict[int, float]
    """Rows in one call -> median milliseconds from encoded rows to probabilities."""
    threads: int
    """Of torch, while that was measured."""

    def to_json(self) -> dict[str, Any]:
        """All fields, with text for keys."""
        return asdict(self) | {"latency_ms": {str(rows): ms for rows, ms in self.latency_ms.items()}}


def cost_of(model: CTRModel, batch: Batch) -> Cost:
    """Measures a model.

    Args:
        model: in evaluation mode.
        batch: N rows like those it will score, one at least; repeated if they are too few.
    """
    plan = model.plan
    singles = sum(f.chunks for f in plan.features if not f.bag)
    values = batch.bag_lengths.double().mean(1).tolist() if len(batch) else []
    bags = [f for f in plan.features if f.bag]
    lookups = singles + sum(f.chunks * mean for f, mean in zip(bags, values, strict=True))
    return Cost(
        plan.table_bytes,
        plan.rows,
        plan.row_bytes,
        lookups,
        lookups * plan.row_bytes,
        sum(p.numel() for p in model.dense_parameters().values()),
        {rows: _latency(model, batch, rows) for rows in REQUEST_ROWS},
        torch.get_num_threads(),
    )


def median_ms(call: Callable[[], object], repeats: int = _REPEATS) -> float:
    """The median time of a call in milliseconds, after two that do not count."""
    for _ in range(2):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _latency(model: CTRModel, batch: Batch, rows: int) -> float:
    request = batch.rows(torch.arange(rows) % len(batch))
    with torch.inference_mode():
        return median_ms(lambda: torch.sigmoid(model.logits(request)))
