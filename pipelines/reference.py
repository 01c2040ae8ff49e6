"""Writes the tables of docs/configuration.md from the config models, so that the page cannot fall behind the code.

`python -m pipelines.reference` brings the page up to date; a test fails while it is not.
"""

from __future__ import annotations

import re
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from features import spec as features
from features.reading.joins import JoinConfig
from features.storage import splits
from features.storage.drift import DriftConfig
from features.storage.incremental import IncrementalConfig
from features.storage.quality import QualityConfig
from pipelines.config import DataConfig, ExperimentConfig, Gate, PromoteConfig, SliceBound, TrackingConfig
from recsys.embeddings import EmbeddingConfig
from recsys.embeddings.config import ChunksConfig, ExactConfig, HotConfig
from recsys.models import ModelConfig
from recsys.search.config import SearchConfig, SupernetConfig, ThresholdConfig
from recsys.training import TrainConfig
from recsys.training.config import DistributedConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
TABLES: dict[str, type[BaseModel]] = {
    "experiment": ExperimentConfig,
    "data": DataConfig,
    "quality": QualityConfig,
    "drift": DriftConfig,
    "incremental": IncrementalConfig,
    "random": splits.RandomSplit,
    "time-split": splits.TimeSplit,
    "last_per_group": splits.LastPerGroupSplit,
    "column": splits.ColumnSplit,
    "spec": features.FeatureSpec,
    "id": features.IdFeature,
    "ids": features.IdsFeature,
    "join": JoinConfig,
    "number": features.NumberFeature,
    "bucket": features.BucketFeature,
    "cross": features.CrossFeature,
    "time": features.TimeFeature,
    "vector": features.VectorFeature,
    "embedding": EmbeddingConfig,
    "chunks": ChunksConfig,
    "exact": ExactConfig,
    "hot": HotConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "distributed": DistributedConfig,
    "search": SearchConfig,
    "supernet": SupernetConfig,
    "thresholds": ThresholdConfig,
    "tracking": TrackingConfig,
    "gate": Gate,
    "promote": PromoteConfig,
    "slice-bound": SliceBound,
}
"""Name of a table on the page -> the model it describes."""

_PLAIN = {int: "integer", float: "number", str: "text", bool: "true, false", Path: "path", Any: "any"}


def render(page: str) -> str:
    """The page with every table made anew: what stands between `<!-- table: NAME -->` and `<!-- end -->`."""

    def replace(match: re.Match[str]) -> str:
        return f"{match[1]}\n{table(TABLES[match[2]])}\n{match[3]}"

    return re.sub(r"(<!-- table: (\S+) -->)\n.*?\n?(<!-- end -->)", replace, page, flags=re.DOTALL)


def table(model: type[BaseModel]) -> str:
    """A Markdown table of a model's keys: type, default, meaning."""
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, info in model.model_fields.items():
        if name == "type" or (name == "kind" and get_args(info.annotation)[1:] == ()):
            continue  # the tag, which the heading names
        meaning = " ".join((info.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{name}` | {_type(info.annotation)} | {_default(info)} | {meaning} |")
    return "\n".join(lines)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        names = [_type(argument) for argument in arguments if argument is not type(None)]
        return " or ".join(dict.fromkeys([*names, "null"] if len(names) < len(arguments) else names))
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        return "[" + ", ".join(_type(argument) for argument in arguments) + "]"
    if origin is dict:
        return f"{_type(arguments[0])}: {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "see below"
    return _PLAIN.get(annotation, str(annotation))


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "**required**"
    if isinstance(value, BaseModel):
        return "all defaults"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(str(item) for item in value) + "]"
    if value in ({}, ""):
        return "none"
    return str(value)


def main() -> int:
    """Bring the page up to date."""
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
