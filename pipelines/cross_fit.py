"""A model's training repeated without the rows it is to judge, fold by fold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from features.errors import ConfigError
from features.storage.splits import RandomSplit
from pipelines.config import DataConfig, load_config
from pipelines.console import Console
from pipelines.prepare import prepare
from pipelines.train import train
from pipelines.workspace import Run
from recsys.serving.scorer import Scorer

SPLIT = RandomSplit(fractions=(0.89, 0.1, 0.01))
"""Of the rows a fold's model is fitted on: the validation picks its epoch, its test is not looked at."""


def cross_fit(model: str, run: Run | None, frame: pl.DataFrame, fold: np.ndarray) -> list[Scorer]:
    """For each fold a model trained as the run's was, on the rows of all other folds.

    A warm start and a teacher are left out: they may know the fold's rows. Nothing stays on disk, nor in MLflow.

    Args:
        model: As it was given, for errors.
        run: Its run, whose config is used; None if it is none.
        frame: [N] raw rows with all columns of the run's spec.
        fold: [N] from 0.

    Raises:
        ConfigError: There is no run, or its data is joined from several files.
        RecsysError: A fold cannot be trained on.
    """
    if run is None:
        raise ConfigError(
            "cross-fitting trains the reward model anew, which needs the config of its run",
            field="--folds",
            found=model,
            mend="name the folder of a run",
        )
    config = load_config(run.folder / "config.yaml")
    if config.data.join:
        raise ConfigError(
            "cross-fitting knows no side tables", field="--folds", found="data.join in the config of the run"
        )
    alone = config.train.model_copy(update={"warm_start": None, "teacher": None})
    quiet = Console(quiet=True)
    scorers = []
    with tempfile.TemporaryDirectory(prefix="recsys-folds-") as folder:
        for number in range(int(fold.max()) + 1):
            here = Path(folder) / str(number)
            here.mkdir()
            frame.filter(fold != number).write_parquet(here / "rows.parquet")
            update = {
                "data": DataConfig(source=str(here / "rows.parquet"), split=SPLIT, quality=config.data.quality),
                "workspace": here,
                "train": alone,
                "tracking": config.tracking.model_copy(update={"enabled": False}),
            }
            settings = config.model_copy(update=update)
            prepare(settings, quiet)
            scorers.append(Scorer.load(Path(train(settings, quiet)["bundle"])))
    return scorers
