"""The tracking store and model registry (MLflow): runs, metrics in batches, registered versions, aliases.

The only place that talks to MLflow. Its telemetry is switched off before it is imported.
"""

from __future__ import annotations

import fcntl
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from features.errors import ArtifactError, ConfigError, did_you_mean, list_names
from features.frames import first_line
from features.spec import FeatureSpec
from recsys.serving.signature import signature_of

BUNDLE_ARTIFACT = "bundle"
MODEL_PREFIX = "models:/"
MLFLOW_BATCH = 1000
"""Metrics and, by its tenth, parameters that MLflow takes in one call."""
PARAM_LENGTH = 6000
"""Characters of a parameter's value that MLflow keeps."""
PACKAGES = (
    "mlflow",
    "numba",
    "numpy",
    "pandas",
    "polars",
    "polars-hash",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "scipy",
    "torch",
    "xxhash",
)
"""What a loaded model needs; the code itself travels with it."""
_CODE = ("features", "recsys")


def import_mlflow() -> Any:
    """The mlflow module, with its telemetry off."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Without git on the machine MLflow would print advice about it.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import logging

    import mlflow

    # sqlite migrations and model loading are told about at length otherwise
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


@dataclass(frozen=True)
class ModelVersion:
    """A registered version of a model."""

    name: str
    version: int
    run_id: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created: datetime

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return f"{MODEL_PREFIX}{self.name}/{self.version}"


class Registry:
    """Runs and registered models of one MLflow store.

    Args:
        uri: Tracking and registry store, such as `sqlite:////path/mlflow.db`. Artefacts of a new experiment in a
            sqlite store go into `artifacts` beside the file.
        create: Make the sqlite file if there is none; a reader does not.

    Raises:
        ArtifactError: The store cannot be opened.
    """

    def __init__(self, uri: str, *, create: bool = True) -> None:
        self.uri = uri
        path = _sqlite_path(uri)
        if path is not None and not create and not path.is_file():
            raise ArtifactError(
                "there is no MLflow store", field=str(path), mend="give its --workspace or --tracking-uri"
            )
        self._mlflow = import_mlflow()
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._mlflow.set_tracking_uri(uri)
            self._mlflow.set_registry_uri(uri)
            self._client = self._mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
            self._client.search_experiments(max_results=1)
        except Exception as error:  # whatever the store's driver raises
            raise ArtifactError(
                "cannot open the MLflow store", field=uri, found=first_line(error), mend="check tracking.uri"
            ) from error

    def start_run(self, experiment: str, name: str, tags: Mapping[str, str] | None = None) -> str:
        """Begin a run, making the experiment if it is new.

        Returns:
            The run's id.
        """
        with self._told("start a run"):
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                path = _sqlite_path(self.uri)
                location = (path.parent / "artifacts" / experiment).resolve().as_uri() if path is not None else None
                experiment_id = self._client.create_experiment(experiment, artifact_location=location)
            else:
                experiment_id = found.experiment_id
            run = self._client.create_run(experiment_id, run_name=name, tags=dict(tags or {}))
        return str(run.info.run_id)

    @contextmanager
    def running(self, run_id: str, *, system_metrics: bool = False) -> Iterator[None]:
        """While inside, the run is shown as running; after, as finished or, after an error, as failed.

        Args:
            run_id: A run that was begun.
            system_metrics: Log memory, processor and disk use meanwhile.
        """
        with self._told("go on with the run"):
            self._client.update_run(run_id, status="RUNNING")
        monitor = None
        if system_metrics:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            monitor = SystemMetricsMonitor(run_id, sampling_interval=2, resume_logging=True, tracking_uri=self.uri)
            monitor.start()
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        finally:
            if monitor is not None:
                monitor.finish()
            with self._told("end the run"):
                self._client.set_terminated(run_id, status=status)

    def has_run(self, run_id: str) -> bool:
        """Whether the store knows the run."""
        try:
            self._client.get_run(run_id)
        except self._mlflow.MlflowException:
            return False
        return True

    def log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Log a nested config, keys joined with dots."""
        from mlflow.entities import Param

        params = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in flatten(values).items()]
        with self._told("log parameters"):
            for start in range(0, len(params), MLFLOW_BATCH // 10):
                self._client.log_batch(run_id, params=params[start : start + MLFLOW_BATCH // 10])

    def log_metrics(self, run_id: str, rows: Sequence[tuple[str, float, int]]) -> None:
        """Log many metrics at once, since one by one costs milliseconds each.

        Args:
            run_id: The run.
            rows: (name, value, step).
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value, step in rows]
        with self._told("log metrics"):
            for start in range(0, len(metrics), MLFLOW_BATCH):
                self._client.log_batch(run_id, metrics=metrics[start : start + MLFLOW_BATCH])

    def log_files(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Keep a file, or everything in a folder, with the run."""
        with self._told("log a file"):
            if path.is_dir():
                self._client.log_artifacts(run_id, str(path), folder)
            else:
                self._client.log_artifact(run_id, str(path), folder)

    def log_table(self, run_id: str, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Keep rows with the same keys as a table that MLflow shows."""
        with self._told("log a table"):
            self._client.log_table(run_id, {key: [row[key] for row in rows] for key in rows[0]}, name)

    def log_model(self, run_id: str, bundle: Path, spec: FeatureSpec) -> str:
        """Keep a bundle with a run as a pyfunc model made from code.

        Args:
            run_id: The run that trained it.
            bundle: The bundle's folder.
            spec: Gives the signature.

        Returns:
            The URI of the logged model.
        """
        root = Path(__file__).resolve().parent.parent.parent
        with self._told("log the model"), self._mlflow.start_run(run_id=run_id), warnings.catch_warnings():
            # MLflow advises an input example; the signature is made from the spec and needs none.
            warnings.simplefilter("ignore", UserWarning)
            info = self._mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={BUNDLE_ARTIFACT: str(bundle)},
                code_paths=[str(root / package) for package in _CODE],
                signature=signature_of(spec),
                pip_requirements=_requirements(),
            )
        return str(info.model_uri)

    def register(self, model_uri: str, run_id: str, name: str, alias: str, tags: Mapping[str, str]) -> ModelVersion:
        """Register a logged model under a name and point an alias at it."""
        with self._told("register the model"):
            if not self._has_model(name):
                self._client.create_registered_model(name)
            version = self._client.create_model_version(name, model_uri, run_id, tags=dict(tags))
            self._client.set_registered_model_alias(name, alias, version.version)
        return self._version(version, {alias: version.version})

    def resolve(self, uri: str) -> ModelVersion:
        """The version behind `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

        Raises:
            ConfigError: The text is neither.
            ArtifactError: There is no such model, alias or version.
        """
        name, alias, version = _parse_uri(uri)
        self._check_model(name, uri)
        try:
            if alias is not None:
                found = self._client.get_model_version_by_alias(name, alias)
            else:
                found = self._client.get_model_version(name, str(version))
        except self._mlflow.MlflowException as error:
            aliases = self._client.get_registered_model(name).aliases
            raise ArtifactError(
                "the registered model has no such version or alias",
                field=uri,
                found=", ".join(f"{key} -> {value}" for key, value in sorted(aliases.items())) or "no alias",
                mend="use one of these aliases or a version number",
            ) from error
        return self._version(found, self._client.get_registered_model(name).aliases)

    def alias_of(self, name: str, alias: str) -> ModelVersion | None:
        """The version that an alias points at, if it points at one.

        Raises:
            ArtifactError: There is no such model.
        """
        found = [version for version in self.versions(name) if alias in version.aliases]
        return found[0] if found else None

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of a model, oldest first.

        Raises:
            ArtifactError: There is no such model.
        """
        self._check_model(name, f"{MODEL_PREFIX}{name}")
        with self._told("list the versions"):
            aliases = self._client.get_registered_model(name).aliases
            found: list[ModelVersion] = []
            token: str | None = None
            while token is None or token:
                page = self._client.search_model_versions(f"name='{name}'", page_token=token)
                found += [self._version(version, aliases) for version in page]
                token = page.token or ""
        return sorted(found, key=lambda version: version.version)

    def tag_version(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Put tags on a version; a tag that is there is replaced."""
        with self._told("tag the version"):
            for key, value in tags.items():
                self._client.set_model_version_tag(version.name, str(version.version), key, value)

    def set_alias(self, version: ModelVersion, alias: str) -> None:
        """Point an alias at a version, in one step: readers see the old version or this one."""
        with self._told("move the alias"):
            self._client.set_registered_model_alias(version.name, alias, str(version.version))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While inside, no other process of this machine is inside for the same sqlite store; elsewhere no such promise
        can be made."""
        path = _sqlite_path(self.uri)
        if path is None:
            yield
            return
        # the folder is locked: whoever closes the file itself would take sqlite's own locks away
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def files_of(self, run_id: str, folder: str) -> list[str]:
        """Paths of the files kept with a run in a folder, in order; none if there is no such folder."""
        with self._told("list the files of the run"):
            return sorted(file.path for file in self._client.list_artifacts(run_id, folder) if not file.is_dir)

    def file_of(self, run_id: str, path: str) -> Path:
        """One of a run's files, fetched if it is far away.

        Raises:
            ArtifactError: There is none.
        """
        with self._told("fetch a file of the run"):
            return Path(
                self._mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, tracking_uri=self.uri)
            )

    def bundle_of(self, uri: str) -> Path:
        """The folder of the bundle of a registered model, fetched if it is far away.

        Raises:
            ConfigError: See `resolve`.
            ArtifactError: See `resolve`; or the model is no bundle of this package.
        """
        version = self.resolve(uri)
        with self._told("fetch the model"):
            # By the version's own URI MLflow would write a file beside the model, which a reader may not be able to.
            place = self._client.get_model_version_download_uri(version.name, str(version.version))
            folder = Path(self._mlflow.artifacts.download_artifacts(artifact_uri=place, tracking_uri=self.uri))
        path = _bundle_within(folder)
        if path is None:
            raise ArtifactError(
                "the registered model holds no bundle", field=uri, mend="register it with `recsys register`"
            )
        return path

    def load_pyfunc(self, uri: str) -> Any:
        """The model as any MLflow client loads it."""
        version = self.resolve(uri)
        with self._told("load the model"):
            return self._mlflow.pyfunc.load_model(version.uri)

    def _version(self, found: Any, aliases: Mapping[str, str]) -> ModelVersion:
        own = tuple(sorted(alias for alias, version in aliases.items() if str(version) == str(found.version)))
        created = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC)
        return ModelVersion(found.name, int(found.version), found.run_id, own, dict(found.tags), created)

    def _check_model(self, name: str, field: str) -> None:
        with self._told("look into the registry"):
            known = self._has_model(name)
            models = [] if known else [model.name for model in self._client.search_registered_models()]
        if not known:
            raise ArtifactError(
                "no such registered model",
                field=field,
                found=list_names(models) or "an empty registry",
                mend=did_you_mean(name, models, f"register it first, or look elsewhere than {self.uri}"),
            )

    def _has_model(self, name: str) -> bool:
        try:
            self._client.get_registered_model(name)
        except self._mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except (self._mlflow.MlflowException, OSError) as error:
            raise ArtifactError(
                f"MLflow could not {what}",
                field=self.uri,
                found=first_line(error),
                mend="check the store and its disk",
            ) from error


def is_model_uri(text: str) -> bool:
    """Whether a text names a registered model rather than a folder.

    >>> is_model_uri("models:/synthetic@challenger"), is_model_uri("work/bundle")
    (True, False)
    """
    return text.startswith(MODEL_PREFIX)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined with dots; lists stay values, but lists of mappings are numbered.

    >>> flatten({"model": {"hidden": [8, 4]}, "spec": {"features": [{"name": "user"}]}})
    {'model.hidden': [8, 4], 'spec.features.0.name': 'user'}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{path}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            flat |= flatten({str(i): item for i, item in enumerate(value)}, f"{path}.")
        else:
            flat[path] = value
    return flat


def _parse_uri(uri: str) -> tuple[str, str | None, int | None]:
    name, at, alias = uri.removeprefix(MODEL_PREFIX).partition("@")
    if is_model_uri(uri) and at and name and alias and "/" not in name:
        return name, alias, None
    name, slash, version = uri.removeprefix(MODEL_PREFIX).partition("/")
    if is_model_uri(uri) and slash and name and version.isdigit():
        return name, None, int(version)
    raise ConfigError(
        "not the name of a registered model", field=uri, expected="models:/NAME@ALIAS or models:/NAME/VERSION"
    )


def _bundle_within(folder: Path) -> Path | None:
    """Where the description of a logged model says that its bundle lies, if that is in its folder."""
    try:
        description = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        path = Path(description["flavors"]["python_function"]["artifacts"][BUNDLE_ARTIFACT]["path"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return None
    return None if path.is_absolute() or ".." in path.parts else folder / path


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _requirements() -> list[str]:
    from importlib import metadata

    # a local version label such as +cpu names a build, which no index serves under that name
    return [f"{package}=={metadata.version(package).partition('+')[0]}" for package in PACKAGES]
