"""A bundle: one folder that holds a trained model and the pipeline its inputs go through.  No pickle.

bundle.json          versions, model config, embedding plan, metrics, sha256 of every other file
weights.safetensors  network, table and exact index
pipeline/            the feature spec and its fitted statistics
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import ArtifactError
from features.pipeline import FeaturePipeline
from recsys.embeddings.plan import EmbeddingPlan
from recsys.models.config import ModelConfig
from recsys.models.ctr import CTRModel
from recsys.tensorfile import read_tensors, write_tensors

BUNDLE_VERSION = 2


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle."""

    model: CTRModel
    pipeline: FeaturePipeline
    description: dict[str, Any]
    """What bundle.json says."""


def save_bundle(
    folder: Path, *, model: CTRModel, pipeline: FeaturePipeline, metrics: Mapping[str, Any] | None = None
) -> Path:
    """Writes a bundle aside and renames it into place; an older one there is replaced.

    Args:
        folder: the bundle's folder.
        model: its present weights are stored.
        pipeline: fitted.
        metrics: kept for the record.

    Raises:
        ArtifactError: it cannot be written; nothing new is left behind.
    """
    aside, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        pipeline.save(aside / "pipeline")
        write_tensors(aside / "weights.safetensors", model.tensors(), {})
        description = {
            "bundle_version": BUNDLE_VERSION,
            "plan": model.plan.to_json(),
            "model": model.config.model_dump(mode="json"),
            "metrics": dict(metrics or {}),
            "files": {str(path.relative_to(aside)): _sha256(path) for path in _files(aside)},
        }
        (aside / "bundle.json").write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
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

    Raises:
        ArtifactError: a file is missing or differs, or another release wrote it.
    """
    try:
        description = json.loads((folder / "bundle.json").read_text())
        version = description["bundle_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            "is no model bundle",
            field=str(folder),
            found=str(error),
            mend="give the folder that holds bundle.json",
        ) from error
    if version != BUNDLE_VERSION:
        raise ArtifactError(
            "the bundle was written by another release",
            field=str(folder),
            found=f"bundle version {version}",
            expected=BUNDLE_VERSION,
            mend="register the model again with this release",
        )
    for name, expected in description["files"].items():
        path = folder / name
        found = _sha256(path) if path.is_file() else "no file"
        if found != expected:
            raise ArtifactError(
                "the bundle is damaged",
                field=str(path),
                found=found,
                expected=f"sha256 {expected}",
                mend="copy or download it again",
            )
    pipeline = FeaturePipeline.load(folder / "pipeline")
    plan = EmbeddingPlan.from_json(description["plan"])
    model = CTRModel(pipeline.spec.layout, plan, ModelConfig.model_validate(description["model"]), kernel="torch")
    model.load_tensors(read_tensors(folder / "weights.safetensors")[0])
    model.eval()
    return Bundle(model, pipeline, description)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
