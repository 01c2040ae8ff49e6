"""An experiment as one YAML file: data, features, table, model, training, tracking.

`load_config` reads the file, applies `key=value` overrides and checks every key; nothing else reads YAML.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from features.errors import ConfigError, unknown_name
from features.reading.joins import JoinConfig
from features.recipes import RECIPES
from features.spec import FeatureSpec
from features.storage.incremental import IncrementalConfig
from features.storage.quality import QualityConfig
from features.storage.splits import SplitConfig
from features.validation import Strict, validate
from pipelines.allocation import Allocation, read_allocation
from recsys.embeddings import EmbeddingConfig
from recsys.embeddings.config import ChunksConfig
from recsys.evaluation.compare import METRICS
from recsys.models import ModelConfig
from recsys.search.config import SearchConfig, ThresholdConfig
from recsys.serving.calibration import Method
from recsys.training import TrainConfig

GATE_METRICS = (
    "auc",
    "logloss",
    "normalised_entropy",
    "calibration_ratio",
    "ece",
    "gauc",
    "reference_auc_gap",
    "reference_logloss_gap",
)
"""Metrics a gate can bound; the last two say how much worse the model is than the reference column."""

BOUND_METRICS = GATE_METRICS[:-2]
"""Metrics that a condition of `promote` can bound."""

_SECRET = re.compile(r"(?i)key|secret|token|password|credential|sas")


class DataConfig(Strict):
    """Where the events come from and how they are split; give `recipe` or `source`."""

    recipe: str | None = None
    """A data set the package knows: `recsys data` lists them."""
    folder: Path | None = None
    """The recipe's files; found by RECSYS_DATA when left out."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the recipe."""
    source: str | None = None
    """A file, glob, folder, Delta table or URL: Parquet, CSV, TSV, NDJSON or Arrow, see docs/sources.md."""
    storage_options: dict[str, str | int | bool] = Field(default_factory=dict)
    """Settings of the object store of a URL; `env:NAME` stands for an environment variable, as secrets must."""
    join: list[JoinConfig] = Field(default_factory=list)
    """Side tables whose columns are added to the events, one after the other."""
    split: SplitConfig
    """How events become train, valid and test."""
    shard_rows: int = Field(1_000_000, ge=1)
    """Rows of a stored shard, which is the unit of shuffling."""
    quality: QualityConfig = QualityConfig()
    """What becomes of rows that cannot be used."""
    incremental: IncrementalConfig | None = None
    """If given (`{}` is enough), new files of `source` are added to what is prepared; see docs/preparing.md."""

    @model_validator(mode="after")
    def _one_origin(self) -> DataConfig:
        if (self.recipe is None) == (self.source is None):
            raise ValueError("give either 'recipe' or 'source'")
        if self.source is not None and (self.folder is not None or self.params):
            raise ValueError("'folder' and 'params' belong to a recipe, not to 'source'")
        return self

    @model_validator(mode="after")
    def _no_secrets(self) -> DataConfig:
        # The config is written beside every run and into MLflow.
        for key, value in self.storage_options.items():
            if _SECRET.search(key) and not str(value).startswith("env:"):
                raise ConfigError(
                    "a secret in a config",
                    field=f"data.storage_options.{key}",
                    expected="env:NAME, the name of an environment variable",
                    mend=f"export {key.upper()}=... and write env:{key.upper()}",
                )
        return self

    @property
    def resolved_options(self) -> dict[str, str | int | bool]:
        """The storage options with the values of environment variables in place of their names: not to be written.

        Raises:
            ConfigError: A variable is not set.
        """
        resolved = dict(self.storage_options)
        for key, value in self.storage_options.items():
            if isinstance(value, str) and value.startswith("env:"):
                name = value.removeprefix("env:")
                if name not in os.environ:
                    raise ConfigError(
                        "the environment variable is not set",
                        field=f"data.storage_options.{key}",
                        found=value,
                        mend=f"export {name}=...",
                    )
                resolved[key] = os.environ[name]
        return resolved


class TrackingConfig(Strict):
    """What is told to MLflow, and where."""

    enabled: bool = True
    """False trains without MLflow; such a run cannot be registered."""
    uri: str | None = None
    """Tracking and registry store; sqlite:///WORKSPACE/mlflow.db when left out."""
    experiment: str | None = None
    """Experiment of the runs; the config's name when left out."""
    registered_model: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_. -]*$")
    """Name in the registry; the config's name when left out."""
    alias: str = Field("challenger", pattern=r"^[A-Za-z0-9_-]+$", max_length=255)
    """Alias given to a newly registered version: letters, digits, `_` and `-`; not `latest`, nor `v1` and the like."""
    system_metrics: bool = True
    """Log memory, processor and disk use during training."""
    diagnostics_rows: int = Field(200_000, ge=0)
    """Training rows through which the table is looked into after training; 0 leaves its diagnostics out."""

    @model_validator(mode="after")
    def _alias_is_free(self) -> TrackingConfig:
        if re.fullmatch(r"latest|v\d+", self.alias, re.IGNORECASE):
            raise ConfigError(
                "MLflow keeps this alias for itself",
                field="tracking.alias",
                found=self.alias,
                mend="choose a word, such as challenger",
            )
        return self


def check_metric(field: str, name: str, known: Sequence[str], otherwise: str) -> None:
    """Refuses a metric that there is not.

    Args:
        field: The key that names it.
        name: The metric.
        known: All there are.
        otherwise: What to do where no other name comes near.

    Raises:
        ConfigError: Says which one was meant, perhaps.
    """
    if name not in known:
        raise unknown_name("no such metric", name, known, field=field, otherwise=otherwise)


class Gate(Strict):
    """A bound on a metric of the test split."""

    min: float | None = None
    """The metric may not be lower."""
    max: float | None = None
    """The metric may not be higher."""

    @model_validator(mode="after")
    def _some_bound(self) -> Gate:
        if self.min is None and self.max is None:
            raise ValueError("give 'min', 'max' or both")
        return self


class SliceBound(Strict):
    """What may happen to the slices of the rows."""

    max_worse: float = Field(gt=0)
    """No slice's logloss may rise by more than this, where its 95 % interval says that it rose at all."""
    min_rows: int = Field(1000, ge=2)
    """Smaller slices do not count."""


class PromoteConfig(Strict):
    """What must hold before `recsys promote` makes a version the champion; see docs/promoting.md."""

    better: list[str] = Field(default_factory=list)
    """Metrics in which it must be better than the champion, the 95 % interval of the difference without 0."""
    not_worse: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Metric -> how much worse than the champion the far end of that interval may be."""
    slices: SliceBound | None = None
    """Against the champion, slice by slice."""
    bounds: dict[str, Gate] = Field(default_factory=dict)
    """Metric -> its bounds, whatever the champion has."""
    max_table_bytes: int | None = Field(None, gt=0)
    """Bytes of the table, with its indices."""
    max_latency_ms: float | None = Field(None, gt=0)
    """Milliseconds for a request of 100 rows, which 95 in 100 requests must keep to on this machine."""

    @model_validator(mode="after")
    def _known(self) -> PromoteConfig:
        known = {"better": METRICS, "not_worse": METRICS, "bounds": BOUND_METRICS}
        for key, metrics in known.items():
            for name in getattr(self, key):
                check_metric(f"promote.{key}.{name}", name, metrics, "remove the condition")
        if not any(value for _, value in self):
            raise ValueError("name at least one condition")
        return self


class ExperimentConfig(Strict):
    """One experiment. Every key has a default but `name`, `data` and `spec`; a recipe brings a spec of its own."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names the folder under the workspace, the MLflow experiment and the registered model."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seeds weights and shuffling."""
    workspace: Path = Path("work")
    """Everything the jobs write goes under here."""
    engine: Literal["local", "ray"] = "local"
    """What prepares the data: this process, or Ray, on one machine or a cluster, with the same result."""
    data: DataConfig
    """Events and split."""
    spec: FeatureSpec
    """The columns; a recipe's own when left out."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    """The table."""
    model: ModelConfig = ModelConfig()
    """The network."""
    train: TrainConfig = TrainConfig()
    """The training."""
    search: SearchConfig | None = None
    """The search for widths; if it is there, `recsys run` searches before it trains."""
    thresholds: ThresholdConfig | None = None
    """Thresholds learned with the model, in a search with the supernet too; values that do not pass leave the table.
    See pruning.md."""
    calibration: Method | None = None
    """How probabilities are calibrated after training, on the validation split; null: not at all. See scoring.md."""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow."""
    gates: dict[str, Gate] = Field(default_factory=dict)
    """Bounds on test metrics: `evaluate` and `run` end with code 1 if one is missed."""
    promote: PromoteConfig | None = None
    """What must hold before a registered version becomes the champion."""

    @model_validator(mode="before")
    @classmethod
    def _spec_of_recipe(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "spec" in data or not isinstance(data.get("data"), dict):
            return data
        name = data["data"].get("recipe")
        return {**data, "spec": RECIPES[name].spec_hint} if isinstance(name, str) and name in RECIPES else data

    @model_validator(mode="after")
    def _times_of_joins(self) -> ExperimentConfig:
        for join in self.data.join:
            if join.time is not None:
                join.time_of_event(self.spec.time)
        return self

    @model_validator(mode="after")
    def _known_gates(self) -> ExperimentConfig:
        for name in self.gates:
            check_metric(f"gates.{name}", name, GATE_METRICS, "remove the gate")
        return self

    @property
    def folder(self) -> Path:
        """Where this experiment's data and runs lie."""
        return self.workspace / self.name

    @property
    def store_folder(self) -> Path:
        """The prepared data."""
        return self.folder / "data"

    @property
    def tracking_uri(self) -> str:
        """The MLflow store, with its default filled in."""
        return self.tracking.uri or f"sqlite:///{(self.workspace / 'mlflow.db').resolve()}"

    @property
    def registered_model(self) -> str:
        """The name in the registry, with its default filled in."""
        return self.tracking.registered_model or self.name

    def to_yaml(self) -> str:
        """The resolved config: every default written out, readable by `load_config`."""
        return yaml.safe_dump(self.to_json(), sort_keys=False, allow_unicode=True)

    def to_json(self) -> dict[str, Any]:
        """The resolved config as plain values."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Hash of what decides the result of a training: not where things lie, are tracked, or how work is divided."""
        aside: dict[str, Any] = {
            "workspace": True,
            "engine": True,
            "search": True,
            "tracking": True,
            "gates": True,
            "promote": True,
            "train": {"distributed"},
            "data": {"storage_options"},
        }
        parts = self.model_dump(mode="json", exclude=aside)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_config(path: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read an experiment.

    Args:
        path: The YAML file.
        overrides: `key=value` with dotted keys and YAML values, such as `train.epochs=3` or
            `model.hidden=[256,128]`; a number picks from a list, such as `spec.features.0.name=user`.

    Raises:
        ConfigError: The file is absent or no YAML, an override has no `=`, or a key or value is wrong.
    """
    return config_from(read_yaml(path), overrides)


def config_from(data: dict[str, Any], overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Check plain values, with overrides applied.

    `allocation` names the file of an allocation, whose chunks take the place of `embedding.chunks`.

    Raises:
        ConfigError: A key or value is wrong.
        ArtifactError: The allocation cannot be read.
    """
    for override in overrides:
        data = _override(data, override)
    rest = {key: value for key, value in data.items() if key != "allocation"}
    config = validate(ExperimentConfig, rest)
    if data.get("allocation") is None:
        return config
    path = data["allocation"]
    if not isinstance(path, str):
        raise ConfigError("not a file", field="allocation", found=path, expected="the allocation.json of a search")
    return with_allocation(config, read_allocation(Path(path), config.spec.layout))


def with_allocation(config: ExperimentConfig, allocation: Allocation) -> ExperimentConfig:
    """The experiment with an allocation's chunks, and its format if it has one, in place of its own."""
    chunks = ChunksConfig(default=0, features=dict(allocation.chunks))
    update = {"chunks": chunks, **({"format": allocation.format} if allocation.format else {})}
    embedding = config.embedding.model_copy(update=update)
    return config.model_copy(update={"embedding": embedding})


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: It is absent, no YAML, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError("cannot read the config", field=str(path), found=error.strerror) from error
    except UnicodeDecodeError as error:
        raise ConfigError("the config is not UTF-8 text", field=str(path)) from error
    data = _parse(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(
            "the config is no mapping", field=str(path), found=type(data).__name__, expected="key: value lines"
        )
    return data


def parse_override(text: str) -> tuple[str, Any]:
    """The dotted key and the value of a `key=value`; the value is YAML.

    >>> parse_override("model.hidden=[8, 4]")
    ('model.hidden', [8, 4])

    Raises:
        ConfigError: There is no `=`, or the value is no YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError("not an override", found=text, expected="key=value, such as train.epochs=3")
    return key, _parse(value, key)


def _override(data: dict[str, Any], text: str) -> dict[str, Any]:
    """The values with one override applied; the given ones are left as they are.

    >>> _override({"train": {"epochs": 1}}, "train.epochs=3")
    {'train': {'epochs': 3}}
    """
    key, value = parse_override(text)
    return dict(_put(data, key.split("."), value, key))


def _put(node: Any, keys: list[str], value: Any, full: str) -> Any:
    if not keys:
        return value
    head, *rest = keys
    if isinstance(node, list):
        if not head.isdigit() or int(head) >= len(node):
            raise ConfigError(
                "no such item of a list", field=full, found=head, expected=f"a number from 0 to {len(node) - 1}"
            )
        return [_put(item, rest, value, full) if i == int(head) else item for i, item in enumerate(node)]
    if node is not None and not isinstance(node, dict):
        raise ConfigError("cannot go below a plain value", field=full, found=node)
    node = node or {}
    return {**node, head: _put(node.get(head), rest, value, full)}


class _Loader(yaml.SafeLoader):
    """YAML with numbers as people write them (1e-3 is a number) and without silent duplicate keys."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)  # merge keys: <<
    pairs: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in pairs:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        pairs[key] = loader.construct_object(value_node, deep=True)
    return pairs


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse(text: str, field: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: plain values only
    except yaml.YAMLError as error:
        raise ConfigError("not YAML", field=field, found=" ".join(str(error).split())) from error
