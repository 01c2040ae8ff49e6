"""Opens a trained model by any of its names, and rows with labels to look at it with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from features.batch import Batch
from features.errors import ConfigError
from features.loading.loader import Loader
from features.storage.store import Store
from pipelines.config import DataConfig, load_config
from pipelines.evaluate import check_same_data
from pipelines.raw_rows import RawRows, pieces
from pipelines.workspace import Run, run_at
from recsys.serving.bundle import Bundle, load_bundle
from recsys.serving.registry import Registry, is_model_uri

BATCH = 16_384


@dataclass(frozen=True)
class Rows:
    """Rows with labels that can be read several times."""

    read: Callable[[], Iterable[Batch]]
    text: str
    """What they are, for people."""


@dataclass(frozen=True)
class OpenedModel:
    """A trained model that was found and loaded."""

    name: str
    """As it was given."""
    folder: Path
    """Of its bundle."""
    bundle: Bundle
    run: Run | None
    """Whose model it is, if it was given as a run."""

    @property
    def data(self) -> DataConfig | None:
        """Where the rows of its run came from; None if it is no run's."""
        return None if self.run is None else load_config(self.run.folder / "config.yaml").data

    def rows(self, data: str | None, split: str) -> Rows | None:
        """Rows to look at it with: those named, of prepared data a split; else those of its run; None without either.

        Raw rows get the columns of the side tables that a run was trained with.

        Raises:
            ArtifactError: the run's data is not what it was trained on.
            DataError: the data is absent or damaged, or lacks a column.
        """
        pipeline = self.bundle.pipeline
        if data is not None and not Path(data).is_dir():
            frame = RawRows(data, pipeline.spec, self.data).joined()

            def raw() -> Iterator[Batch]:
                for piece in pieces(frame, BATCH, data):
                    yield pipeline.encode_frame(piece, labels=True)

            return Rows(raw, data)
        store = self.store(data)
        if store is None:
            return None
        return Rows(lambda: Loader(store, split, BATCH), f"{split} split of {store.folder}")

    def store(self, folder: str | None = None) -> Store | None:
        """The prepared data in a folder; else that of its run, if it is a run's.

        Raises:
            ArtifactError: it was prepared with another spec; the run's is not what it was trained on.
        """
        spec = self.bundle.pipeline.spec
        if folder is not None:
            return Store.open(Path(folder), spec=spec)
        if self.run is None:
            return None
        config = load_config(self.run.folder / "config.yaml")
        store = Store.open(config.store_folder, spec=spec)
        check_same_data(config, config, self.run, store)
        return store


def open_model(model: str, tracking_uri: str) -> OpenedModel:
    """Finds and loads a trained model.

    Args:
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or the folder of a run or of a bundle.
        tracking_uri: Store of the registry.

    Raises:
        ArtifactError: There is no such model.
    """
    run = None if is_model_uri(model) else run_at(model)
    folder = run.bundle if run else Path(model)
    if is_model_uri(model):
        folder = Registry(tracking_uri, create=False).bundle_of(model)
    return OpenedModel(model, folder, load_bundle(folder), run)


def check_one_source(target: str, data: Sequence[str]) -> None:
    """Refuses several words after a model, which takes one source of data and no `key=value`.

    Raises:
        ConfigError: There are several.
    """
    if len(data) > 1:
        raise ConfigError(
            "one source of data is enough",
            field=target,
            found=" ".join(data),
            mend="give one folder, file or glob; key=value goes with a config only",
        )
