"""What every benchmark shares: the command line, the bars, the environment and the last line of JSON.

A benchmark is a function from `Settings` to an `Outcome`; `main` runs it, prints a table for people and, with
`--json`, one JSON object as the last line of standard output. The exit code is 1 if a bar is not met.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
PACKAGES = (
    "numpy",
    "polars",
    "polars-hash",
    "pyarrow",
    "torch",
    "fbgemm-gpu-cpu",
    "torchrec",
    "mlflow",
    "xxhash",
)
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Bar:
    """A claim with its target.

    Args:
        name: What is claimed, unit included.
        value: What was measured; None if it could not be, which meets nothing.
        op: One of `>=`, `<=`, `>`, `<`.
        target: The target of the issue. It is never adjusted to a result.

    >>> Bar("times the peer's examples/s", 2.4, ">=", 2.0).met
    True
    >>> Bar("auc", None, ">=", 0.8).met
    False
    """

    name: str
    value: float | None
    op: str
    target: float

    def __post_init__(self) -> None:
        if self.op not in OPERATORS:
            raise ValueError(f"bar {self.name!r}: unknown operator {self.op!r}, expected one of {', '.join(OPERATORS)}")

    @property
    def met(self) -> bool:
        """Whether the measured value reaches the target (a value that is not a number does not)."""
        return self.value is not None and OPERATORS[self.op](self.value, self.target)

    def to_json(self) -> dict[str, Any]:
        """The bar as the last line of a benchmark carries it."""
        return {"name": self.name, "value": self.value, "op": self.op, "target": self.target, "met": self.met}


@dataclass(frozen=True)
class Settings:
    """How a benchmark is run.

    `quick` asks for a smaller form of the same measure, `parts` for some parts of it (none named: all), `log` prints
    progress.
    """

    quick: bool = False
    parts: Sequence[str] = ()
    log: Callable[[str], None] = field(default=lambda text: print(text, file=sys.stderr, flush=True))


@dataclass(frozen=True)
class Outcome:
    """What a benchmark measured: the bars, and every figure a reader needs to judge them."""

    bars: Sequence[Bar]
    figures: Mapping[str, Any]
    threads: int | None = None


def main(
    name: str,
    measure: Callable[[Settings], Outcome],
    argv: Sequence[str] | None = None,
    *,
    parts: Sequence[str] = (),
) -> int:
    """Run a benchmark from its command line.

    Args:
        name: The name of the benchmark: `python -m benchmarks.NAME`.
        measure: Does the work.
        argv: Arguments, those of the process by default.
        parts: What can be measured alone, by `--only PART`.

    Returns:
        The exit code: 0 if every bar is met, else 1.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=measure.__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object on the last line of stdout")
    parser.add_argument("--quick", action="store_true", help="a smaller form of the same measure, marked as such")
    if parts:
        parser.add_argument("--only", choices=parts, action="append", default=[], help="leave the other parts out")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    outcome = measure(Settings(quick=arguments.quick, parts=arguments.only if parts else ()))
    result = {
        "benchmark": name,
        "quick": arguments.quick,
        "bars": [bar.to_json() for bar in outcome.bars],
        "figures": dict(outcome.figures),
        "environment": environment(outcome.threads),
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(_table(result), file=sys.stderr if arguments.json else sys.stdout, flush=True)
    if arguments.json:
        print(json.dumps(result, allow_nan=False), flush=True)
    return 0 if all(bar.met for bar in outcome.bars) else 1


def environment(threads: int | None = None) -> dict[str, Any]:
    """The machine and the versions a figure belongs to."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "git_commit": _git_commit(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def child(command: Sequence[str], request: Mapping[str, Any], *, threads: int, cwd: Path = ROOT) -> dict[str, Any]:
    """Run one measured process: a JSON request on its standard input, a JSON object as its last line.

    Each side of a comparison runs in a process of its own, so that neither inherits the other's memory,
    threads or warm caches.

    Args:
        command: The program and its arguments.
        request: What to measure.
        threads: Threads of the numerical libraries.
        cwd: Working folder.

    Raises:
        RuntimeError: The process failed or its last line is not JSON; the text says which command it was.
    """
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    env |= {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
    }
    process = subprocess.run(
        list(command),
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        cwd=cwd,
        check=False,
    )
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with code {process.returncode}; its messages are above")
    lines = process.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise RuntimeError(f"{' '.join(command)} did not end with a line of JSON: {lines[-1:]}") from error
    return dict(answer)


def _table(result: Mapping[str, Any]) -> str:
    lines = [f"{result['benchmark']}{' (quick: a smaller form, not the claim)' if result['quick'] else ''}"]
    for bar in result["bars"]:
        value = "not measured" if bar["value"] is None else f"{bar['value']:.4g}"
        state = "met" if bar["met"] else "NOT MET"
        lines.append(f"  {state:8}{bar['name']}: {value} (target {bar['op']} {bar['target']:g})")
    lines.append(f"  {result['seconds']} s on {result['environment']['cpu']}, {result['environment']['cores']} cores")
    return "\n".join(lines)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
