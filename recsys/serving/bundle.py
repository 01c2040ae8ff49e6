"""A bundle: one folder that holds a trained model and the pipeline its inputs go through.  No pickle.

bundle.json          version, model config, embedding plan, calibration, metrics, sha256 of every other file
weights.safetensors  network, table in its format, and the indices of its rows
pipeline/            the feature spec and its fitted statistics
model_card.md        the facts of the above, for people

The table is mapped into memory, not read: processes that load one bundle share its pages.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from features.errors import ArtifactError, ConfigError, DataError
from features.frames import first_line
from features.pipeline import FeaturePipeline
from recsys.embeddings.config import MOST_CHUNKS
from recsys.embeddings.kept import words_of
from recsys.embeddings.mapped_table import MappedTable
from recsys.embeddings.multiplexed import MultiplexedEmbedding
from recsys.embeddings.plan import EmbeddingPlan, FeaturePlan
from recsys.models.config import ModelConfig
from recsys.models.ctr import CTRModel
from recsys.models.network import Network
from recsys.serving.bundle_files import DESCRIPTION, check_files, files_of, read_description, sha256_of
from recsys.serving.calibration import Calibration
from recsys.serving.model_card import model_card
from recsys.tensorfile import read_tensors, write_tensors

BUNDLE_VERSION = 3

_SENSELESS = (
    ArithmeticError,
    AttributeError,
    ConfigError,
    DataError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    # No Exception: Polars' own way to say that a table is damaged.
    pl.exceptions.PanicException,
)
"""What files raise that are whole by their checksums and make no sense."""
_WHOLE_NUMBERS = ("width", "rows", "hash_seed", "key_bits")
"""Of a plan, beside those of its features."""


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle."""

    model: CTRModel
    pipeline: FeaturePipeline
    calibration: Calibration | None
    """From logits to probabilities; None for a model that was not calibrated."""
    description: dict[str, Any]
    """What bundle.json says."""
    digest: str
    """SHA-256 of bundle.json, which names the digests of all other files: two bundles with one digest are equal."""


def save_bundle(
    folder: Path,
    *,
    model: CTRModel,
    pipeline: FeaturePipeline,
    metrics: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
) -> Path:
    """Writes a bundle aside and renames it into place; an older one there is replaced.

    Equal models give equal bytes.

    Args:
        folder: the bundle's folder.
        model: its present weights are stored.
        pipeline: fitted.
        metrics: kept for the record.
        calibration: fitted to the model's logits, if it is to be calibrated.

    Raises:
        ArtifactError: it cannot be written; nothing new is left behind.
    """
    aside, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        pipeline.save(aside / "pipeline")
        write_tensors(aside / "weights.safetensors", model.tensors(), {})
        card = model_card(model, pipeline, calibration, metrics or {})
        (aside / "model_card.md").write_text(card, encoding="utf-8")
        description = {
            "bundle_version": BUNDLE_VERSION,
            "plan": model.plan.to_json(),
            "model": model.config.model_dump(mode="json"),
            "calibration": calibration.to_json() if calibration else None,
            "metrics": dict(metrics or {}),
            "files": {name: sha256_of(aside / name) for name in files_of(aside)},
        }
        (aside / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
        if folder.exists():
            os.replace(folder, old)
        os.replace(aside, folder)
    except OSError as error:
        raise ArtifactError(
            f"the bundle could not be written ({error})",
            field=str(folder),
            mend="free some disk, or choose another folder",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_bundle(folder: Path) -> Bundle:
    """Loads a bundle, after checking every file against its checksum.

    The bundle must not be changed in place afterwards: the table is read from its file.  Replacing the folder, as
    `save_bundle` does, or removing it is safe.

    Raises:
        ArtifactError: a file is missing, differs or is not listed, or another release wrote it.
    """
    text = read_description(folder)
    try:
        description = json.loads(text)
        version = description["bundle_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(
            "is no model bundle",
            field=str(folder),
            found=str(error),
            mend=f"give the folder that holds {DESCRIPTION}",
        ) from error
    if version != BUNDLE_VERSION:
        raise ArtifactError(
            "the bundle was written by another release",
            field=str(folder),
            found=f"bundle version {version}",
            expected=BUNDLE_VERSION,
            mend="register the model again with this release",
        )
    with making_sense(folder):
        check_files(folder, description["files"])
        pipeline = FeaturePipeline.load(folder / "pipeline")
        model = _model(folder, pipeline, description)
        calibration = Calibration.from_json(description["calibration"]) if description["calibration"] else None
        if calibration is not None and len(calibration.curves) != len(pipeline.layout.label_names):
            raise ValueError(f"{len(calibration.curves)} calibration curves")
        if not isinstance(description["metrics"], dict):
            raise ValueError("the metrics are no object")
    return Bundle(model, pipeline, calibration, description, hashlib.sha256(text).hexdigest())


@contextmanager
def making_sense(folder: Path) -> Iterator[None]:
    """What is done inside with a bundle fails with one error if the bundle makes no sense.

    Raises:
        ArtifactError: It makes none.
    """
    try:
        yield
    except _SENSELESS as error:
        raise ArtifactError(
            "the bundle is damaged",
            field=str(folder / DESCRIPTION),
            found=first_line(error),
            mend="copy or download it again",
        ) from error


def _model(folder: Path, pipeline: FeaturePipeline, description: Mapping[str, Any]) -> CTRModel:
    tensors, _ = read_tensors(folder / "weights.safetensors")
    _check_sizes(description["plan"], tensors)
    plan, layout = EmbeddingPlan.from_json(description["plan"]), pipeline.layout
    config = ModelConfig.model_validate(description["model"])
    with torch.device("meta"):
        outline = {f"network.{name}": p.shape for name, p in Network(layout, plan, config).named_parameters()}
    if outline != {name: t.shape for name, t in tensors.items() if name.startswith("network.")}:
        raise ValueError("the network is not that of the weights")
    table = MappedTable(plan.rows, plan.row_format)
    embedding = MultiplexedEmbedding(plan, layout.bag_poolings, table=table)
    model = CTRModel(layout, plan, config, embedding=embedding)
    model.load_tensors(tensors)
    return model.eval()


def _check_sizes(plan: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuses a plan of other sizes than the weights have, before memory is asked for by its word."""
    features = plan["features"]
    wrong = [name for name in _WHOLE_NUMBERS if type(plan[name]) is not int]
    for f in features:
        wrong += [
            f"{f['name']}.{told.name}" for told in fields(FeaturePlan) if type(f[told.name]).__name__ != told.type
        ]
    if wrong:
        raise ValueError(f"{wrong[0]} of the plan is of another type")
    sizes = {
        "table": plan["rows"],
        "exact_keys": sum(f["values"] for f in features if f["region"] == "exact"),
        "hot_keys": sum(f["hot_slots"] for f in features),
    }
    if "pruned" in plan and "kept_words" in tensors:
        sizes["kept_words"] = words_of(plan["pruned"]["hashed"] + 1)
    for name, size in sizes.items():
        if len(tensors[name]) != size:
            raise ValueError(f"{name} has {len(tensors[name]):,} rows, and the plan {size:,}")
    for f in features:
        if not 0 <= f["chunks"] <= MOST_CHUNKS:
            raise ValueError(f"{f['name']} has {f['chunks']} chunks")
