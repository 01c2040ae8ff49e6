"""Writes a trained model as a program that runs without this package: torch.export, and compiled if that is asked for.

OUT/program.pt2   the program, with the tensors in it; no pickle
OUT/program.json  what it is called with, what it gives, and which model it is of
OUT/pipeline/     what makes its inputs of raw rows (`features.pipeline.FeaturePipeline`)
OUT/compiled.pt2  with `aot`: the same as machine code for this processor
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from features.batch import Batch
from features.errors import ArtifactError
from features.files import write_json
from features.folders import whole_or_nothing
from pipelines.console import Console, bytes_text
from pipelines.models import OpenedModel, open_model
from recsys.serving.compiled_program import check_compiler, compile_program, load_compiled
from recsys.serving.program import describe_program, export_program, program_inputs, random_batch, save_program
from recsys.serving.registry import Registry, is_model_uri
from recsys.serving.scorer import Scorer

PROGRAM, COMPILED, DESCRIPTION, PIPELINE = "program.pt2", "compiled.pt2", "program.json", "pipeline"
TOLERANCE = 1e-6
"""By which a probability may differ from the scorer's."""

_CHECKED_BATCHES = 4
"""Of the data."""
_RANDOM_ROWS = 1000
_TIMED = {1: 300, 500: 60}
"""Rows of a request -> how often it is timed."""

Run = Callable[[Batch], np.ndarray]


def program(
    model: str, out: Path, console: Console, *, tracking_uri: str, data: str | None = None, aot: bool = False
) -> dict[str, Any]:
    """Write a model as a program, after holding its probabilities against the scorer's.

    Args:
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or the folder of a run or of a bundle.
        out: The folder to write; nothing is there.
        console: Told what was written.
        tracking_uri: Store of the registry.
        data: A folder of prepared data, of which the test split is used, or a file or glob of raw rows with labels, to
            hold both against each other on; a run has its own. Rows of unseen ids and random numbers come on top.
        aot: Compile it too, and time all three.

    Returns:
        out, the description's model, bundle, format and calibration, bytes (by file), checked_rows, max_difference (of
        a probability, by file), compiled (whether a compiled one was equal and so kept; None if none was asked for),
        ms (medians by rows of a request, of scorer, program and compiled), seconds.

    Raises:
        ConfigError: Compiling is asked for, and there is no C++ compiler.
        ArtifactError: There is no such model; something is at `out`, or it cannot be written; torch cannot export or
            compile the model; the program's probabilities are other ones.
        DataError: The data is absent or damaged, or lacks a column.
    """
    started = time.perf_counter()
    if out.exists():
        raise ArtifactError(
            "is there already, and is not replaced", field=str(out), mend="move it away, or choose another OUT"
        )
    if aot:
        check_compiler()
    name, version = None, None
    if is_model_uri(model):  # an alias may be moved while the model is fetched
        found = Registry(tracking_uri, create=False).resolve(model)
        model, name, version = found.uri, found.name, found.version
    opened = open_model(model, tracking_uri)
    scorer, layout = Scorer(opened.bundle, threads=1), opened.bundle.pipeline.layout
    batches = [random_batch(layout, _RANDOM_ROWS, seed=1), *_batches(opened, data)]
    about = describe_program(opened.bundle, name=name, version=version)
    differences: dict[str, float] = {}
    ms: dict[str, dict[str, float]] | None = None

    def runs(call: Callable[..., torch.Tensor]) -> Run:
        return lambda batch: call(**program_inputs(batch, layout)).numpy()

    with whole_or_nothing(out) as folder:
        exported = export_program(opened.bundle)
        save_program(exported, folder / PROGRAM)
        opened.bundle.pipeline.save(folder / PIPELINE)
        plain = runs(torch.export.load(folder / PROGRAM).module())
        differences[PROGRAM] = _difference(scorer, plain, batches)
        if not differences[PROGRAM] <= TOLERANCE:
            raise ArtifactError(
                "the program's probabilities are not the model's",
                field=PROGRAM,
                found=f"a difference of {differences[PROGRAM]:.2g}",
                expected=f"at most {TOLERANCE:g}",
                mend="report it, with the model's config",
            )
        if aot:
            compile_program(exported, folder / COMPILED)
            compiled = runs(load_compiled(folder / COMPILED))
            differences[COMPILED] = _difference(scorer, compiled, batches)
            if differences[COMPILED] <= TOLERANCE:
                ms = _times({"scorer": scorer.score, "program": plain, "compiled": compiled}, scorer)
            else:
                (folder / COMPILED).unlink()
        write_json(folder / DESCRIPTION, about)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    result = {
        "out": str(out),
        **{key: about[key] for key in ("model", "bundle", "format", "calibration")},
        "bytes": dict(sorted(sizes.items())),
        "checked_rows": sum(map(len, batches)),
        "max_difference": differences,
        "compiled": COMPILED in sizes if aot else None,
        "ms": ms,
    }
    _show(console, result)
    return result | {"seconds": round(time.perf_counter() - started, 3)}


def _batches(opened: OpenedModel, data: str | None) -> Iterable[Batch]:
    rows = opened.rows(data, "test")
    return islice(rows.read(), _CHECKED_BATCHES) if rows is not None else ()


def _difference(scorer: Scorer, run: Run, batches: Iterable[Batch]) -> float:
    """The largest of a probability; NaN if one is not a number. The first row by itself is one of the requests."""
    pieces = [piece for batch in batches for piece in (batch, batch.rows(slice(1)))]
    return float(np.max([np.abs(run(piece) - scorer.score(piece)).max(initial=0) for piece in pieces]))


def _times(contestants: Mapping[str, Run | Callable[..., np.ndarray]], scorer: Scorer) -> dict[str, dict[str, float]]:
    """Median milliseconds from an encoded request to probabilities: rows -> contestant -> ms. They take turns."""
    out: dict[str, dict[str, float]] = {}
    for rows, times in _TIMED.items():
        batch = random_batch(scorer.bundle.pipeline.layout, rows, seed=2)
        taken: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(times):
            for name, run in contestants.items():
                began = time.perf_counter()
                run(batch)
                taken[name].append(1000 * (time.perf_counter() - began))
        out[str(rows)] = {name: round(statistics.median(own), 4) for name, own in taken.items()}
    return out


def _show(console: Console, result: Mapping[str, Any]) -> None:
    for name, size in result["bytes"].items():
        console.note(f"{Path(result['out']) / name}: {bytes_text(size)}")
    for name, difference in result["max_difference"].items():
        console.note(f"{name}: differs from the scorer by {difference:.1g} on {result['checked_rows']:,} rows")
    if result["compiled"] is False:
        console.note("the compiled program is not equal and was not kept")
    if result["ms"] is not None:
        console.table(
            "milliseconds from an encoded request to probabilities, one thread, medians",
            [{"rows": rows, **own, "fastest": min(own, key=own.__getitem__)} for rows, own in result["ms"].items()],
        )
