"""A trained model as a program of torch.export: one graph of torch operations, from encoded rows to probabilities.

It runs without this package, wherever torch's programs run.  What it reads, and in which order, `describe_program`
tells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from features.batch import Batch
from features.errors import ArtifactError
from features.files import cannot_write
from features.fingerprint import FINGERPRINT_VERSION
from features.frames import first_line
from features.layout import Layout
from recsys.embeddings.multiplexed import pool
from recsys.models.ctr import CTRModel
from recsys.serving.bundle import Bundle
from recsys.serving.calibration import Calibration, Line, Steps
from recsys.serving.network_inputs import check_addresses
from recsys.serving.signature import output_names

PROGRAM_VERSION = 1
"""Changes whenever a caller would have to give something else."""

_EXAMPLE_ROWS = 100
"""Of an example of one row torch would make a program for one row."""


class ProgramModule(nn.Module):
    """What is exported: addressing, lookup and decoding of rows, network and calibration.

    Args:
        model: whose table and addressing are plain torch, as those of a loaded bundle.
        calibration: of its logits, if it was calibrated.
    """

    def __init__(self, model: CTRModel, calibration: Calibration | None) -> None:
        super().__init__()
        self._embedding, self._network = model.embedding, model.network
        tasks = len(model.layout.label_names)
        curves = (Line(1.0, 0.0),) * tasks if calibration is None else calibration.curves
        self._curves = nn.ModuleList(_Line(curve) if isinstance(curve, Line) else _Steps(curve) for curve in curves)

    def forward(
        self,
        ids: Tensor | None = None,
        bag_values: list[Tensor] | None = None,
        bag_lengths: Tensor | None = None,
        dense: Tensor | None = None,
        vectors: Tensor | None = None,
    ) -> Tensor:
        """The probabilities [B, T] float64 of what `program_inputs` gives."""
        parts = []
        if ids is not None and self._embedding.single_lookups:
            parts.append(self._singles(ids))
        if bag_values is not None and bag_lengths is not None:
            parts += self._bags(bag_values, bag_lengths)
        parts += [part for part in (dense, vectors) if part is not None]
        logits = self._network(torch.cat(parts, 1)).double()
        return torch.stack([curve(logits[:, task]) for task, curve in enumerate(self._curves)], 1)

    def _singles(self, ids: Tensor) -> Tensor:
        """[B, F] fingerprints -> [B, lookups * width]."""
        e = self._embedding
        rows = e.address(ids, e.exact_keys, e.hot_keys, e.kept)
        out: Tensor = e.table(rows.flatten()).view(-1, e.single_lookups * e.plan.width)
        return out

    def _bags(self, values: list[Tensor], lengths: Tensor) -> list[Tensor]:
        """[N_g] fingerprints of each bag and [G, B] -> [B, chunks * width] of each bag that has chunks."""
        e, parts = self._embedding, []
        for bag, feature in enumerate(e.bags):
            if feature.chunks:
                rows = e.address_bags[bag](values[bag].unsqueeze(1), e.exact_keys, e.hot_keys, e.kept)
                found = e.table(rows.flatten()).view(-1, feature.chunks * e.plan.width)
                parts.append(pool(found, lengths[bag], e.poolings[bag]))
        return parts


def export_program(bundle: Bundle) -> ExportedProgram:
    """The program of a bundle, for any number of rows.

    It shares its tensors with the bundle's model.

    Raises:
        ArtifactError: the plan leads outside of the table, or torch cannot export the model.
    """
    model = bundle.model
    check_addresses(model.plan, model.embedding.kept)
    example = program_inputs(random_batch(model.layout, _EXAMPLE_ROWS, seed=0), model.layout)
    rows = Dim("rows", min=0)
    shapes: dict[str, Any] = {
        "ids": {0: rows},
        "bag_values": [{0: Dim(f"values_{bag}", min=0)} for bag in range(len(model.layout.bag_names))],
        "bag_lengths": {1: rows},
        "dense": {0: rows},
        "vectors": {0: rows},
    }
    module = ProgramModule(model, bundle.calibration).eval()
    try:
        with torch.no_grad():
            program = torch.export.export(
                module, (), kwargs=example, dynamic_shapes={name: shapes[name] for name in example}
            )
    except RuntimeError as error:  # torch has a dozen types of its own for this
        raise ArtifactError(
            "torch cannot export this model",
            field="model",
            found=first_line(error),
            mend="serve it with `recsys serve` or score with it in process, which need no program",
        ) from error
    for name, parameter in program.named_parameters():
        program.state_dict[name] = nn.Parameter(parameter.detach(), requires_grad=False)
    for name, buffer in program.named_buffers():
        if not buffer.numel():  # torch saves no empty tensor that has memory
            place = program.state_dict if name in program.state_dict else program.constants
            place[name] = torch.empty_like(buffer)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def save_program(program: ExportedProgram, path: Path) -> None:
    """Writes a program, as `torch.export.load` reads it.

    Its tensors are stored as raw bytes and its graph as JSON.  torch would add the example it was exported with, as a
    pickle; that is left out.

    Args:
        program: of `export_program`.
        path: ends in .pt2.

    Raises:
        ArtifactError: it cannot be written.
    """
    example, program.example_inputs = program.example_inputs, None
    try:
        torch.export.save(program, path)
    except (OSError, RuntimeError) as error:  # torch's writer of archives has no OSError
        raise cannot_write(path, error if isinstance(error, OSError) else OSError(first_line(error))) from error
    finally:
        program.example_inputs = example


def program_inputs(batch: Batch, layout: Layout) -> dict[str, Any]:
    """What the program is called with for a batch: tensors by name, only those that the layout has.

    They are those of `Batch`, but that every bag has its values by itself.
    """
    sizes = batch.bag_lengths.sum(1).tolist()
    every: dict[str, tuple[Any, tuple[str, ...]]] = {
        "ids": (batch.ids, layout.id_names),
        "bag_values": (list(batch.bag_values.split(sizes)) if sizes else [], layout.bag_names),
        "bag_lengths": (batch.bag_lengths, layout.bag_names),
        "dense": (batch.dense, layout.dense_names),
        "vectors": (batch.vectors, layout.vector_names),
    }
    return {name: tensors for name, (tensors, names) in every.items() if names}


def random_batch(layout: Layout, rows: int, *, seed: int) -> Batch:
    """Rows of ids that no training saw, up to three of them in a bag, and of normally distributed numbers."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, (len(layout.bag_names), rows), generator=generator)

    def fingerprints(*shape: int) -> Tensor:
        return torch.randint(-(2**62), 2**62, shape, generator=generator)

    return Batch(
        ids=fingerprints(rows, len(layout.id_names)),
        bag_values=fingerprints(int(lengths.sum())),
        bag_lengths=lengths,
        dense=torch.randn(rows, len(layout.dense_names), generator=generator),
        vectors=torch.randn(rows, layout.vector_width, generator=generator),
    )


def describe_program(bundle: Bundle, *, name: str | None = None, version: int | None = None) -> dict[str, Any]:
    """What a caller of the program must know: a JSON object.

    Args:
        bundle: that it is of.
        name: of the registered model.
        version: of it.

    Returns:
        inputs: one entry a tensor, in the order of the compiled program: the argument it is given as (with its place
            there, if that is a list), dtype, shape (text is a size that changes from call to call) and the names of
            its columns. outputs: the same. And what it must be encoded with.
    """
    plan, layout = bundle.model.plan, bundle.model.layout
    vectors = [
        f"{feature}:{i}"
        for feature, size in zip(layout.vector_names, layout.vector_sizes, strict=True)
        for i in range(size)
    ]
    inputs = [_tensor("ids", "int64", ["rows", len(layout.id_names)], layout.id_names)]
    for place, bag in enumerate(layout.bag_names):
        inputs.append(_tensor("bag_values", "int64", [f"values of {bag}"], (bag,)) | {"place": place})
    inputs.append(_tensor("bag_lengths", "int64", [len(layout.bag_names), "rows"], layout.bag_names))
    inputs.append(_tensor("dense", "float32", ["rows", len(layout.dense_names)], layout.dense_names))
    inputs.append(_tensor("vectors", "float32", ["rows", len(vectors)], vectors))
    labels = output_names(bundle.pipeline.spec)
    return {
        "program_version": PROGRAM_VERSION,
        "torch": torch.__version__,
        "model": {"name": name, "version": version},
        "bundle": bundle.digest,
        "pipeline": bundle.pipeline.digest(),
        "fingerprint_version": FINGERPRINT_VERSION,
        "hash_version": plan.hash_version,
        "hash_seed": plan.hash_seed,
        "format": plan.format_name,
        "calibration": bundle.calibration.method if bundle.calibration is not None else None,
        "inputs": [told for told in inputs if told["columns"]],
        "outputs": [{"dtype": "float64", "shape": ["rows", len(labels)], "columns": labels}],
    }


def _tensor(argument: str, dtype: str, shape: list[int | str], columns: Any) -> dict[str, Any]:
    return {"argument": argument, "dtype": dtype, "shape": shape, "columns": list(columns)}


class _Line(nn.Module):
    """`calibration.Line` in torch."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._slope, self._intercept = line.slope, line.intercept

    def forward(self, logits: Tensor) -> Tensor:
        """[B] float64 -> [B]."""
        return torch.sigmoid(self._slope * logits + self._intercept)


class _Steps(nn.Module):
    """`calibration.Steps` in torch."""

    _logits: Tensor
    _probabilities: Tensor

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.register_buffer("_logits", torch.tensor(steps.logits, dtype=torch.float64))
        self.register_buffer("_probabilities", torch.tensor(steps.probabilities, dtype=torch.float64))

    def forward(self, logits: Tensor) -> Tensor:
        """[B] float64 -> [B]."""
        x, p = self._logits, self._probabilities
        if len(x) == 1:
            return p.expand(logits.shape[0]).clone()
        inside = logits.clamp(x[0], x[-1])
        right = torch.searchsorted(x, inside).clamp(1, len(x) - 1)
        x0, p0 = x[right - 1], p[right - 1]
        return p0 + (p[right] - p0) / (x[right] - x0) * (inside - x0)
