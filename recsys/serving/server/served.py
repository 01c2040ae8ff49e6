"""A model as a server holds it: the scorer, what its rows are made of, and a first score before the first request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from features.batch import Batch
from features.errors import ArtifactError
from recsys.serving.scorer import Scorer
from recsys.serving.server.announcement import Announcement
from recsys.serving.server.unseen import UnseenIds
from recsys.serving.signature import column_types, output_names

WARM_UP_ROWS = (1, 1, 100, 1)
Row = Mapping[str, Any]


class ServedModel:
    """A model ready for requests.

    Args:
        announcement: Which one.
        scorer: Its scorer.
        role: What the prediction log says about it.

    Attributes:
        types: Type of every column it reads; see `recsys.serving.signature.column_types`.
        nulls: A row in which everything is missing.
        lists: Columns that hold lists.
        outputs: Names of its probabilities.
    """

    def __init__(self, announcement: Announcement, scorer: Scorer, role: str = "champion") -> None:
        self.announcement = announcement
        self.scorer = scorer
        self.role = role
        self.name, self.version = announcement.name, announcement.version
        self.types = column_types(scorer.spec)
        self.nulls: dict[str, None] = dict.fromkeys(self.types)
        self.lists = tuple(column for column, kind in self.types.items() if kind.endswith("[]"))
        self.outputs = output_names(scorer.spec)
        self.unseen = UnseenIds(scorer.bundle.model)

    @classmethod
    def load(cls, announcement: Announcement, role: str = "champion") -> ServedModel:
        """Loads a bundle and scores rows of nulls with it.

        Raises:
            ArtifactError: It is missing or damaged, or gives no probabilities.
        """
        torch.set_num_threads(1)
        model = cls(announcement, Scorer.load(Path(announcement.folder)), role)
        for rows in WARM_UP_ROWS:
            scores = model.scorer.score(model.encode([model.nulls] * rows))
            if not ((scores >= 0) & (scores <= 1)).all():
                raise ArtifactError(
                    "the model gives no probability for a row of nulls",
                    field=announcement.folder,
                    found=scores[0].tolist(),
                    mend="train it again, or convert it again",
                )
        return model

    def encode(self, rows: Sequence[Row] | pl.DataFrame, shared: Row | None = None) -> Batch:
        """Encodes rows.

        Raises:
            DataError: A value is wrong.
        """
        pipeline = self.scorer.bundle.pipeline
        if isinstance(rows, pl.DataFrame):
            return self.scorer.encode_frame(rows)
        return pipeline.encode(rows, shared=shared)

    def score(self, batch: Batch) -> np.ndarray:
        """[B, T] probabilities.

        Raises:
            DataError: A number is so large that there is none.
            ArtifactError: The model gives none, whatever the numbers.
        """
        return self.scorer.score(batch)

    def describe(self) -> dict[str, Any]:
        """What a client may know about it."""
        bundle, plan = self.scorer.bundle, self.scorer.bundle.model.plan
        return {
            "name": self.name,
            "version": self.version,
            "alias": self.announcement.alias,
            "run_id": self.announcement.run_id,
            "inputs": self.types,
            "outputs": self.outputs,
            "format": plan.format_name,
            "table_bytes": plan.table_bytes,
            "metrics": {k: v for k, v in bundle.description["metrics"].items() if isinstance(v, int | float)},
            "promotion": self.announcement.promotion,
        }


def check_bundle(announcement: Announcement) -> None:
    """Loads a model and lets it go: run in a process of its own before it is announced.

    Raises:
        ArtifactError: It cannot be served.
    """
    ServedModel.load(announcement)
