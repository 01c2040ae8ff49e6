"""Preparation and loading beside FuxiCTR and others: the same raw events, one machine, turn by turn.

Bars: 8 times FuxiCTR's rows/s, 0.4 times the rows/s of reading and writing alone; memory that does not grow with the
rows; batches at 3 million rows/s, 10 times the loaders of FuxiCTR and DeepCTR-Torch; requests encoded in microseconds.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Bar, Outcome, Settings, child, main
from benchmarks.peers import DEEPCTR_TORCH, FUXICTR, call, prepare

PARTS = ("preparation", "memory", "loader", "encode")
DEEPCTR_TORCH_LOADER = dataclasses.replace(DEEPCTR_TORCH, script="deepctr_torch_loader.py")
BATCH_SIZE = 8192
SEED = 0
THREADS = 2
GIB = 1024**3


@dataclass(frozen=True)
class Size:
    """How much is measured. Slow peers get fewer rows, which does not lower their rows/s."""

    rows: int
    more_rows: int
    """For the memory alone."""
    shard_rows: int
    """A quick run fills several shards too, as memory is that of a shard."""
    fuxictr_rows: int
    hasher_rows: int
    loader_rows: int
    """For DeepCTR-Torch's loader."""
    turns: int
    """Of every side; the median counts."""
    epochs: int
    """Of every loader; the first warms up."""
    calls: int


FULL = Size(5_000_000, 20_000_000, 1_000_000, 1_000_000, 200_000, 500_000, turns=3, epochs=5, calls=4000)
QUICK = Size(200_000, 800_000, 40_000, 100_000, 20_000, 50_000, turns=1, epochs=3, calls=1000)


def measure(settings: Settings) -> Outcome:
    """Rows a second from raw events to a store and from a store to batches, peak memory, and encoding of requests."""
    parts = settings.parts or PARTS
    with tempfile.TemporaryDirectory(prefix="recsys-benchmark-") as name:
        bench = Bench(QUICK if settings.quick else FULL, Path(name), settings.log)
        bars: list[Bar] = []
        figures: dict[str, Any] = {}
        for part, step in zip(PARTS, (_preparation, _memory, _loader, _encode), strict=True):
            if part in parts:
                settings.log(f"{part} ...")
                more, figures[part] = step(bench)
                bars += more
    return Outcome(bars, {"settings": _describe(bench.size), **figures}, threads=THREADS)


class Bench:
    """The raw events, made when they are first needed, and every side's answers."""

    def __init__(self, size: Size, folder: Path, log: Callable[[str], None]) -> None:
        self.size, self.folder, self.log = size, folder, log
        self.store = folder / "store"
        self.answers: dict[str, list[dict[str, Any]]] = {}

    def raw(self, rows: int) -> Path:
        """The folder with so many raw events, the first of them also in the form that FuxiCTR reads."""
        folder = self.folder / f"raw-{rows}"
        if not folder.exists():
            self.log(f"writing {rows:,} raw events")
            with_header = self.size.fuxictr_rows if rows == self.size.rows else 0
            _ours("criteo_tsv", {"folder": str(folder), "rows": rows, "seed": SEED, "with_header": with_header})
        return folder

    def task(self, name: str, rows: int) -> dict[str, Any]:
        """Run one of this environment's tasks over so many raw events and keep the answer."""
        request = {
            "task": name,
            "raw": str(self.raw(rows)),
            "out": str(self.store if name == "ours" else self.folder / name),
            "shard_rows": self.size.shard_rows,
            "rows": self.size.hasher_rows,
        }
        return self.note(f"{name} {rows}", _ours("prepare_criteo", request))

    def fuxictr(self) -> dict[str, Any]:
        """Run FuxiCTR's preparation, and the first time its loader too, and keep the answer."""
        prepare(FUXICTR, self.log)
        raw = self.raw(self.size.rows)
        epochs = 0 if "fuxictr" in self.answers else self.size.epochs
        with tempfile.TemporaryDirectory(dir=self.folder) as out:
            request = {"raw": str(raw), "out": out, "batch_size": BATCH_SIZE, "epochs": epochs}
            return self.note("fuxictr", call(FUXICTR, request, threads=THREADS))

    def note(self, name: str, answer: dict[str, Any]) -> dict[str, Any]:
        """Keep an answer, and say what it was."""
        self.answers.setdefault(name, []).append(answer)
        self.log(f"{name}: {answer['rows'] / answer['seconds']:,.0f} rows/s")
        return answer

    def rates(self, name: str) -> list[float]:
        """Rows a second of every turn."""
        return [round(answer["rows"] / answer["seconds"], 1) for answer in self.answers[name]]


def _preparation(bench: Bench) -> tuple[list[Bar], dict[str, Any]]:
    """Alternate the sides, so that a slow spell of the machine meets all."""
    size = bench.size
    for _ in range(size.turns):
        bench.task("floor", size.rows)
        bench.task("ours", size.rows)
        bench.task("hasher", size.rows)
        bench.fuxictr()
    names = {"ours": f"ours {size.rows}", "floor": f"floor {size.rows}", "hasher": f"hasher {size.rows}"}
    rates = {side: bench.rates(name) for side, name in names.items()} | {"fuxictr": bench.rates("fuxictr")}
    middle = {side: statistics.median(found) for side, found in rates.items()}
    bars = [
        Bar("rows/s of the preparation over FuxiCTR's", middle["ours"] / middle["fuxictr"], ">=", 8.0),
        Bar("rows/s of the preparation over scan and sink alone", middle["ours"] / middle["floor"], ">=", 0.4),
    ]
    figures = {
        "rows_per_second": rates,
        "ours over scikit-learn's FeatureHasher": middle["ours"] / middle["hasher"],
        "cpu_seconds": {side: bench.answers[name][-1]["cpu_seconds"] for side, name in names.items()},
        "rows": {side: bench.answers[name][-1]["rows"] for side, name in (*names.items(), ("fuxictr", "fuxictr"))},
        "peer_versions": bench.answers["fuxictr"][-1]["versions"],
    }
    return bars, figures


def _memory(bench: Bench) -> tuple[list[Bar], dict[str, Any]]:
    """The peak of our preparation with some rows and with several times as many."""
    sizes = (bench.size.rows, bench.size.more_rows)
    more, less = (bench.task("ours", rows) for rows in reversed(sizes))
    peaks = {f"{rows} rows": answer["rss"] / GIB for rows, answer in zip(sizes, (less, more), strict=True)}
    bars = [Bar(f"peak memory at {name}, GiB", peak, "<", 2.0) for name, peak in peaks.items()]
    growth = abs(more["rss"] / less["rss"] - 1)
    bars.append(Bar(f"difference of peak memory between {sizes[0]:,} and {sizes[1]:,} rows", growth, "<=", 0.15))
    anonymous = {
        f"{rows} rows": round(answer["anonymous"] / GIB, 3) for rows, answer in zip(sizes, (less, more), strict=True)
    }
    return bars, {"peak_gib": peaks, "of which no pages of files": anonymous, "shard_rows": bench.size.shard_rows}


def _loader(bench: Bench) -> tuple[list[Bar], dict[str, Any]]:
    """Epochs of every library's own loader, ours and DeepCTR-Torch's in one thread."""
    size = bench.size
    if not bench.store.exists():
        bench.task("ours", size.rows)
    request = {
        "store": str(bench.store),
        "batch_size": BATCH_SIZE,
        "epochs": size.epochs,
        "threads": 1,
        "arrays": size.loader_rows,
        "out": str(bench.folder),
    }
    ours = _ours("load_batches", request, threads=1)
    prepare(DEEPCTR_TORCH_LOADER, bench.log)
    deepctr = call(DEEPCTR_TORCH_LOADER, {**request, **ours["arrays"]}, threads=1)
    fuxictr = bench.answers["fuxictr"][0] if "fuxictr" in bench.answers else bench.fuxictr()
    sides = {"ours": ours, "deepctr-torch": deepctr, "fuxictr": fuxictr}
    rates = {
        side: {order: rate(epochs) for order, epochs in answer["epochs"].items()} for side, answer in sides.items()
    }
    bench.log("rows/s of loaders: " + ", ".join(f"{side} {found}" for side, found in rates.items()))
    bars = [
        Bar(f"million rows/s of the loader, {order}", value / 1e6, ">=", 3.0) for order, value in rates["ours"].items()
    ]
    for peer in ("fuxictr", "deepctr-torch"):
        for order, rate_of_peer in rates[peer].items():
            title = f"rows/s of the loader over {peer}'s, {order}"
            bars.append(Bar(title, rates["ours"][order] / rate_of_peer, ">=", 10.0))
    figures = {
        "rows_per_second": rates,
        "rows_per_cpu_second_of_ours": {order: rate(epochs, "cpu_seconds") for order, epochs in ours["epochs"].items()},
        "rows": {side: answer["epochs"]["shuffled"][0]["rows"] for side, answer in sides.items()},
        "peer_versions": {**fuxictr["versions"], **deepctr["versions"]},
    }
    return bars, figures


def _encode(bench: Bench) -> tuple[list[Bar], dict[str, Any]]:
    """Requests of 39 fields, one by one and with many candidates, in one thread."""
    answer = _ours("encode_requests", {"raw": None, "calls": bench.size.calls}, threads=1)
    bars = [
        Bar("p50 of encoding one request of 39 fields, microseconds", answer["one"]["seconds"] * 1e6, "<", 150.0),
        Bar("p50 of encoding 500 candidates, milliseconds", answer["candidates"]["seconds"] * 1e3, "<", 4.0),
    ]
    return bars, answer


def rate(epochs: Sequence[Mapping[str, float]], clock: str = "seconds") -> float:
    """Median rows a second of the epochs after the first, which warms up.

    >>> rate([{"rows": 10, "seconds": 9}, {"rows": 10, "seconds": 1}, {"rows": 10, "seconds": 2}])
    7.5
    """
    return round(statistics.median(epoch["rows"] / epoch[clock] for epoch in epochs[1:]), 1)


def _ours(script: str, request: Mapping[str, Any], threads: int = THREADS) -> dict[str, Any]:
    return child([sys.executable, "-m", f"benchmarks.scripts.{script}"], request, threads=threads)


def _describe(size: Size) -> dict[str, Any]:
    return {
        **dataclasses.asdict(size),
        "data": "Criteo sample repeated; three in ten distinct ids of a column changed in each repetition",
        "features": "13 numbers (clip, log, standardise), 26 ids, a label",
        "batch_size": BATCH_SIZE,
        "ours": "build_store through the recipe: divided 80/10/10, fitted, encoded, checked, written",
        "floor": "the recipe's scan_csv with types and sink_ipc, uncompressed",
        "hasher": "FeatureHasher of name=value, 2^20 columns, nothing written",
        "fuxictr": "FeatureProcessor and build_dataset; files with header, divided beforehand; Ray started beforehand",
    }


if __name__ == "__main__":
    sys.exit(main("preparation", measure, parts=PARTS))
