"""Where an experiment's runs lie, and how their files are written.

WORKSPACE/mlflow.db          tracking store and registry of all experiments
WORKSPACE/NAME/data/         the prepared data
WORKSPACE/NAME/runs/0001/    one training: config.yaml, run.json, checkpoints/, bundle/, evaluation.json, report.html
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import ArtifactError
from features.files import cannot_write, read_json, write_json
from pipelines.config import ExperimentConfig


@dataclass(frozen=True)
class Run:
    """The folder of one training."""

    folder: Path

    @property
    def name(self) -> str:
        """Its number, as text."""
        return self.folder.name

    @property
    def bundle(self) -> Path:
        """The trained model."""
        return self.folder / "bundle"

    @property
    def checkpoints(self) -> Path:
        """What the trainer resumes from."""
        return self.folder / "checkpoints"

    @property
    def report(self) -> Path:
        """The report of its evaluation."""
        return self.folder / "report.html"

    @property
    def trained(self) -> bool:
        """Whether the training came to its end."""
        return (self.bundle / "bundle.json").is_file()

    def read(self, name: str) -> dict[str, Any]:
        """One of the run's JSON files.

        Raises:
            ArtifactError: It is missing or damaged.
        """
        return dict(read_json(self.folder / name, mend="run the earlier steps again"))

    def write(self, name: str, data: Mapping[str, Any]) -> None:
        """Writes one of the run's JSON files, whole or not at all."""
        write_json(self.folder / name, data)


def new_run(config: ExperimentConfig) -> Run:
    """A run with the next free number; its folder holds the resolved config."""
    numbers = [int(run.name) for run in runs_of(config)]
    run = Run(config.folder / "runs" / f"{max(numbers, default=0) + 1:04d}")
    write_bytes(run.folder / "config.yaml", config.to_yaml().encode())
    return run


def runs_of(config: ExperimentConfig) -> list[Run]:
    """All runs of an experiment, oldest first."""
    folder = config.folder / "runs"
    names = (
        sorted(path.name for path in folder.iterdir() if re.fullmatch(r"\d{4,}", path.name)) if folder.is_dir() else []
    )
    return [Run(folder / name) for name in names]


def trained_run(config: ExperimentConfig, name: str | None = None) -> Run:
    """The newest run that was trained to its end, or the one of that name.

    Raises:
        ArtifactError: There is none.
    """
    every = runs_of(config)
    runs = [run for run in every if run.trained]
    if name is not None:
        runs = [run for run in runs if run.name == name]
    if not runs:
        raise ArtifactError(
            "there is no trained run" if name is None else f"there is no trained run {name!r}",
            field=str(config.folder / "runs"),
            found=", ".join(f"{run.name}{'' if run.trained else ' (not finished)'}" for run in every) or "nothing",
            mend="run `recsys train` first",
        )
    return runs[-1]


def write_bytes(path: Path, data: bytes) -> Path:
    """Writes a file beside its place and renames it there, so that it is never half there.

    Raises:
        ArtifactError: It cannot be written; nothing is left of the attempt.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(data)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
    return path
