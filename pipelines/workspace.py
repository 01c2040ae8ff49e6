"""Where an experiment's runs lie, and how their files are written.

WORKSPACE/mlflow.db          tracking store and registry of all experiments
WORKSPACE/NAME/data/         the prepared data
WORKSPACE/NAME/runs/0001/    one training: config.yaml, run.json, warm_start.json (if it started from a
                             trained model), checkpoints/, bundle/, train.json, evaluation.json and report.html
                             (of the validation split: evaluation-valid.json, ...), bundle-FORMAT/ (converted),
                             bundle-pruned/ (pruned)
WORKSPACE/NAME/searches/0001/  one search for widths: config.yaml, search.json, checkpoints/, trained.json,
                             allocation.json, result.json; with a supernet also initial/ and supernet/ (bundles),
                             evaluations.jsonl, candidates.json, front.json, front.svg, front-dark.svg, front.png
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import ArtifactError
from features.files import cannot_write, read_json, write_json
from pipelines.config import ExperimentConfig

RUNS, SEARCHES = "runs", "searches"


@dataclass(frozen=True)
class Job:
    """The folder of one training or search."""

    folder: Path

    @property
    def name(self) -> str:
        """Its number, as text."""
        return self.folder.name

    @property
    def checkpoints(self) -> Path:
        """What the trainer resumes from."""
        return self.folder / "checkpoints"

    def read(self, name: str) -> dict[str, Any]:
        """One of its JSON files.

        Raises:
            ArtifactError: It is missing or damaged.
        """
        return dict(read_json(self.folder / name, mend="run the earlier steps again"))

    def has(self, name: str) -> bool:
        """Whether it has written one of its files."""
        return (self.folder / name).is_file()

    def write(self, name: str, data: Mapping[str, Any]) -> None:
        """Writes one of its JSON files, whole or not at all."""
        write_json(self.folder / name, data)

    def write_config(self, config: ExperimentConfig) -> None:
        """Writes the resolved config."""
        write_bytes(self.folder / "config.yaml", config.to_yaml().encode())


@dataclass(frozen=True)
class Run(Job):
    """The folder of one training."""

    @property
    def bundle(self) -> Path:
        """The trained model."""
        return self.folder / "bundle"

    def converted(self, format: str) -> Path:
        """The trained model in another row format: its bundle, where `recsys convert` puts it."""
        return self.folder / f"bundle-{format}"

    @property
    def trained(self) -> bool:
        """Whether the training came to its end: its summary is the last thing it writes."""
        return self.has("train.json")

    def result(self, stem: str, split: str, ending: str = "") -> Path:
        """What an evaluation writes: the plain name for the test split, with the split's name for another.

        >>> Run(Path("0001")).result("report", "test", ".html"), Run(Path("0001")).result("pictures", "valid")
        (PosixPath('0001/report.html'), PosixPath('0001/pictures-valid'))
        """
        return self.folder / f"{stem}{'' if split == 'test' else f'-{split}'}{ending}"


@dataclass(frozen=True)
class Search(Job):
    """The folder of one search for widths."""

    @property
    def allocation(self) -> Path:
        """What it came to."""
        return self.folder / "allocation.json"

    @property
    def finished(self) -> bool:
        """Whether it came to its end: its summary is the last thing it writes."""
        return self.has("result.json")


def new_run(config: ExperimentConfig) -> Run:
    """A run with the next free number; its folder holds the resolved config.

    Raises:
        ArtifactError: The folder cannot be made.
    """
    return Run(_new_folder(config, RUNS))


def runs_of(config: ExperimentConfig) -> list[Run]:
    """All runs of an experiment, oldest first."""
    return [Run(folder) for folder in _folders(config, RUNS)]


def new_search(config: ExperimentConfig) -> Search:
    """A search with the next free number; its folder holds the resolved config.

    Raises:
        ArtifactError: The folder cannot be made.
    """
    return Search(_new_folder(config, SEARCHES))


def searches_of(config: ExperimentConfig) -> list[Search]:
    """All searches of an experiment, oldest first."""
    return [Search(folder) for folder in _folders(config, SEARCHES)]


def _new_folder(config: ExperimentConfig, kind: str) -> Path:
    """Jobs that begin at the same time get a folder each: who makes it has it."""
    while True:
        number = max((int(folder.name) for folder in _folders(config, kind)), default=0) + 1
        path = config.folder / kind / f"{number:04d}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not path.is_dir():  # a file in the way would be met for ever
                raise ArtifactError("is no folder", field=str(path), mend="move the file away") from None
            continue
        except OSError as error:
            raise cannot_write(path, error) from error
        Job(path).write_config(config)
        return path


def _folders(config: ExperimentConfig, kind: str) -> list[Path]:
    folder = config.folder / kind
    names = (
        sorted(path.name for path in folder.iterdir() if re.fullmatch(r"\d{4,}", path.name)) if folder.is_dir() else []
    )
    return [folder / name for name in names]


def run_at(folder: str) -> Run | None:
    """The run whose folder it is; None if it is none.

    Raises:
        ArtifactError: The run did not come to its end.
    """
    run = Run(Path(folder))
    if not run.has("run.json"):
        return None
    if not run.trained:
        raise ArtifactError("the run is not finished", field=folder, mend="go on with it: `recsys train --resume`")
    return run


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


def check_started_with(
    job: Job, state: Mapping[str, Any], digests: Mapping[str, tuple[str, str]], kind: str, verb: str
) -> None:
    """Refuses to go on with a job that was started with something else.

    Args:
        job: The run or search.
        state: What it wrote when it began.
        digests: Key in the state -> its name, and what it would be now.
        kind: run or search.
        verb: The command that starts one.

    Raises:
        ArtifactError: Says what differs.
    """
    for key, (name, digest) in digests.items():
        if state[key] != digest:
            raise ArtifactError(
                f"the {name} is not the one the {kind} was started with",
                field=str(job.folder),
                mend=f"use {job.folder / 'config.yaml'}, or {verb} without --resume",
            )


def write_bytes(path: Path, data: bytes) -> Path:
    """Writes a file beside its place and renames it there, so that it is never half there.

    Raises:
        ArtifactError: It cannot be written; nothing is left of the attempt.
    """
    with written_aside(path) as aside:
        aside.write_bytes(data)
    return path


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A file beside the wanted one to write into; it is renamed into place at the end, and removed after any error.

    Raises:
        ArtifactError: It cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # a file in the folder's place
            aside.unlink(missing_ok=True)
