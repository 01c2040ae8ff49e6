"""Raw events become a store: fingerprints, fitted numbers, splits. Done again only if something changed."""

from __future__ import annotations

import functools
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl

from features.errors import ArtifactError, ConfigError, DataError, list_names, unknown_name
from features.folders import remove_leftovers, spool_beside
from features.frames import schema_of
from features.pipeline import FeaturePipeline
from features.reading.input_files import InputFile, gather, input_files
from features.reading.inputs import find_inputs, states
from features.reading.joins import SideTables
from features.reading.records import require_records
from features.reading.sources import scan
from features.reading.unreadable import READ, Unreadable
from features.recipes import RECIPES
from features.storage.engines.base import LOCAL, Engine
from features.storage.engines.ray import RayEngine
from features.storage.incremental import update_store
from features.storage.pieces import Rows
from features.storage.store import QUARANTINE, Store, build_store
from pipelines.config import DataConfig, ExperimentConfig, config_from
from pipelines.console import Console


def prepare(config: ExperimentConfig, console: Console, *, rebuild: bool = False) -> dict[str, Any]:
    """Make the experiment's store, add new files to it, or say that the one there fits.

    Args:
        config: The experiment.
        console: Told what is done.
        rebuild: Prepare everything anew.

    Returns:
        store (its folder), reused, rows a split, dropped, quarantined, digest, seconds.

    Raises:
        RecsysError: The data or the spec is wrong; what was prepared before stays as it was.
    """
    folder = config.store_folder
    started = time.perf_counter()
    remove_leftovers(folder)
    _say_left_out(config.data, console)
    reason = "asked for" if rebuild else _why_not(config)
    if _adds(config.data, console):
        store, reused = _update(config, console, reason)
    elif reason is None:
        store, reused = Store.open(folder, spec=config.spec), True
    else:
        store, reused = _build(config, console, reason), False
    if reused:
        console.note(f"data: {folder} fits the config and is used again")
    rows = {split: store.rows(split) for split in ("train", "valid", "test")}
    dropped = dropped_of(store)
    counts = [f"{split} {count:,} rows" for split, count in rows.items()]
    console.note("data: " + ", ".join([*counts, *(f"{count:,} dropped: {why}" for why, count in dropped.items())]))
    return {
        "store": str(folder),
        "reused": reused,
        "rows": rows,
        "dropped": dropped,
        "quarantined": _say_quarantine(store, console),
        "digest": store.digest,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _build(config: ExperimentConfig, console: Console, reason: str) -> Store:
    """Everything anew."""
    folder, data = config.store_folder, config.data
    console.note(f"data: preparing {folder} ({reason})")
    with _engine(config) as engine, console.progress("preparing", None) as task, spool_beside(folder) as spool:
        opener = _Opener(config)
        events, parts, unreadable = _events(config, opener, spool, engine)
        store = build_store(
            events,
            config.spec,
            data.split,
            folder,
            shard_rows=data.shard_rows,
            source={
                **_origin(data),
                "files": _files_of(data),
                "provenance": _provenance(data),
                "unmatched": opener.count_unmatched(events),
            },
            quality=data.quality,
            unreadable=unreadable,
            engine=engine,
            parts=parts,
            progress=task.update,
        )
    _say_unmatched(store.manifest["source"]["unmatched"], console)
    return store


def _update(config: ExperimentConfig, console: Console, reason: str | None) -> tuple[Store, bool]:
    """New files alone, if the store that is there allows it; says also whether there were none."""
    folder, data = config.store_folder, config.data
    before = None if reason is not None else len(Store.open(folder).manifest["batches"])
    files = _local_files(data)
    assert data.incremental is not None
    if not files and (reason is not None or data.incremental.gone == "error"):
        events_of(data)  # says why there are none
    if reason is not None:
        console.note(f"data: preparing {folder} ({reason})")
    opener = _Opener(config)
    with _engine(config) as engine, console.progress("preparing", None) as task:
        store = update_store(
            files,
            opener,
            config.spec,
            data.split,
            folder,
            shard_rows=data.shard_rows,
            source={**_origin(data), "provenance": _provenance(data)},
            sides=_side_contents(data),
            count_unmatched=opener.count_unmatched if data.join else None,
            quality=data.quality,
            incremental=data.incremental,
            anew=reason is not None,
            engine=engine,
            progress=task.update,
        )
    reused = len(store.manifest["batches"]) == before
    if not reused:
        _say_batch(store.manifest["batches"][-1], console)
    return store, reused


def _say_batch(batch: dict[str, Any], console: Console) -> None:
    """Tells what was added, and how it differs from what the pipeline was fitted on."""
    _say_unmatched(batch["unmatched"], console)
    extra = {"late rows": batch.get("late_rows"), "old rows dropped": batch.get("retired")}
    counts = [f"{batch['files']:,} files", f"{batch['rows_read']:,} rows"]
    console.note("data: read " + ", ".join([*counts, *(f"{count:,} {what}" for what, count in extra.items() if count)]))
    for change in batch["columns"]:
        console.note(f"data: {change}")
    keys = ("feature", "passed", "psi", "chance", "unseen", "missing_before", "missing")
    if drifted := [{key: entry[key] for key in keys} for entry in batch["drift"] if entry["passed"]]:
        console.table("drift beyond data.quality.drift", drifted)
        console.note("data: the pipeline stays as it was fitted; `recsys prepare --rebuild` fits it anew on all rows")


def _say_unmatched(unmatched: dict[str, int], console: Console) -> None:
    for side, count in unmatched.items():
        console.note(f"data: {count:,} events have no row in the side table {side}")


def open_store(config: ExperimentConfig) -> Store:
    """The prepared data of an experiment. The raw files need not be there any more; if they are, they count.

    Raises:
        ArtifactError: There is none, or it was prepared with another spec, source or split, or from other files.
    """
    store = Store.open(config.store_folder, spec=config.spec)
    prepared, wanted = store.manifest["source"], _origin(config.data)
    keys = [key for key in wanted if prepared.get(key) != wanted[key]]
    files = _files_of(config.data)
    # A store to which files are added is whole without those that came since.
    if files and "inputs" not in store.manifest and files != prepared.get("files"):
        keys.append("the raw files")
    if keys:
        raise ArtifactError(
            "the data was prepared from another source or with another split",
            field=str(config.store_folder),
            found=f"differs in {list_names(keys)}",
            expected="the config's data",
            mend="run `recsys prepare` again",
        )
    return store


def _origin(data: DataConfig) -> dict[str, Any]:
    """What decides the rows of a store, for its manifest."""
    adds = True if data.incremental is not None and data.split.by_row else None
    return {**source_of(data), "quality": data.quality.rules(), "incremental": adds}


def _adds(data: DataConfig, console: Console) -> bool:
    """Whether new files are added to what is prepared."""
    if data.incremental is None:
        return False
    if data.source is None:
        raise ConfigError("a recipe has no files to add", field="data.incremental", mend="leave it out")
    if _local_names(data) is None:
        raise ConfigError(
            "files of a Delta table or behind a URL are not added one by one",
            field="data.incremental",
            found=data.source,
            mend="leave it out: a change prepares everything anew",
        )
    if not data.split.by_row:
        console.note(
            f"data: a {data.split.kind} split moves rows when files are added: any change prepares everything anew "
            "(random, column, and time with valid_from and test_from do not)"
        )
    return data.split.by_row


def _events(
    config: ExperimentConfig, opener: _Opener, spool: Path, engine: Engine | None
) -> tuple[pl.LazyFrame, Sequence[Rows], Unreadable]:
    """The events, for an engine their parts, and what of the source's files cannot be read."""
    data = config.data
    files = _local_files(data)
    if files and (data.quality.mode == "quarantine" or data.quality.now == "file"):
        pipeline = FeaturePipeline(config.spec)
        events, rows, unreadable = gather(files, opener, pipeline, data.quality, spool, engine)
        return events, [functools.partial(part.open, opener) for part in rows], unreadable
    events = opener()
    for _ in (engine or LOCAL).map(require_records, [file.path for file in files]):
        pass
    return events, [] if engine is None else _parts(data, opener, events), READ


def _parts(data: DataConfig, opener: _Opener, events: pl.LazyFrame) -> Sequence[Rows]:
    """Opens the events file by file, where each file by itself has the columns that it has among the others."""
    names = _local_names(data) or ()
    parts: list[Rows] = [functools.partial(opener, Path(name)) for name in names]
    schema = schema_of(events)
    return parts if parts and all(schema_of(part()) == schema for part in parts) else [opener]


class _Opener:
    """Opens one file as the config opens its source, or all events; here, or in another process.

    A process that it is sent to reads the side tables once a run, when the first file is opened.
    """

    def __init__(self, config: ExperimentConfig, run: str | None = None) -> None:
        self.config, self.run = config, run or uuid.uuid4().hex

    def __call__(self, path: Path | None = None) -> pl.LazyFrame:
        data = self.config.data
        return events_of(data if path is None else data.model_copy(update={"source": str(path)}), self.sides)

    def count_unmatched(self, events: pl.LazyFrame) -> dict[str, int]:
        """How many of the events, which this opened, have no row in each side table."""
        if not self.config.data.join:
            return {}
        try:
            return self.sides.count_unmatched(events)
        except DataError:  # whoever encodes these events says which column it is
            return {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _sent_opener, (json.dumps(self.config.to_json()), self.run)

    @functools.cached_property
    def sides(self) -> SideTables:
        data, spec = self.config.data, self.config.spec
        return SideTables(data.join, time=spec.time, time_unit=spec.time_unit, storage_options=data.resolved_options)


@functools.lru_cache(maxsize=1)
def _sent_opener(config: str, run: str) -> _Opener:
    return _Opener(config_from(json.loads(config)), run)


@contextmanager
def _engine(config: ExperimentConfig) -> Iterator[Engine | None]:
    """What works off pieces; None for this process."""
    if config.engine == "local":
        yield None
        return
    with RayEngine() as engine:
        yield engine


def _local_names(data: DataConfig) -> tuple[str, ...] | None:
    """The source's files; None if they cannot be looked at one by one."""
    if data.source is None:
        return None
    try:
        return find_inputs(data.source).local_files
    except DataError:  # there are none; whoever opens the source says so
        return ()


def _local_files(data: DataConfig) -> list[InputFile]:
    return input_files([Path(name) for name in _local_names(data) or ()])


def _side_contents(data: DataConfig) -> dict[str, Any]:
    """What tells that the content of a side table changed, by file."""
    found: dict[str, Any] = {}
    for join in data.join:
        inputs = find_inputs(join.source)
        if inputs.local_files is None:
            found |= states(inputs, data.resolved_options)
        else:
            found |= {name: InputFile(name, Path(name)).digest() for name in inputs.local_files}
    return found


def _say_left_out(data: DataConfig, console: Console) -> None:
    """Tells which files of a folder are passed over."""
    with suppress(DataError):  # said when it is opened
        left_out = find_inputs(data.source).left_out if data.source is not None else ()
        if left_out:
            console.note(f"data: left out, as their names or folders begin with . or _: {list_names(left_out)}")


def _say_quarantine(store: Store, console: Console) -> dict[str, int]:
    """Tells what is in quarantine, and what was odd."""
    quarantined: dict[str, int] = store.manifest.get("quarantined", {})
    files = store.manifest.get("quarantined_files", [])
    console.table("quarantine", [{"reason": reason, "rows": count} for reason, count in quarantined.items()])
    console.table("files in quarantine", files)
    for note in store.manifest.get("notes", []):
        console.note(f"data: {note}")
    if quarantined:
        console.note(f"data: the rows are in {store.folder / QUARANTINE}")
    return quarantined


def dropped_of(store: Store) -> dict[str, int]:
    """Rows left out and why, by the recipe and by the split."""
    # a store that was made without `prepare` says nothing of where its rows come from
    by_recipe = store.manifest["source"].get("provenance", {}).get("dropped", {})
    return {**by_recipe, **store.manifest["dropped"]}


def events_of(data: DataConfig, sides: SideTables | None = None) -> pl.LazyFrame:
    """The raw events of a config.

    Args:
        data: Where they come from.
        sides: Tables whose columns are added.

    Raises:
        ConfigError: There is no such recipe, or it takes no such parameter.
        DataError: The files are absent or damaged, or cannot be joined.
    """
    if data.source is not None:
        events = scan(data.source, storage_options=data.resolved_options)
    else:
        events = recipe_named(data.recipe or "").load(data.folder, **data.params)
    return events if sides is None else sides.join_to(events)


def recipe_named(name: str) -> Any:
    """The recipe of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in RECIPES:
        otherwise = "use a recipe, or data.source for files of your own"
        raise unknown_name(
            "there is no such recipe", name, RECIPES, field="data.recipe", found=name, otherwise=otherwise
        )
    return RECIPES[name]


def source_of(data: DataConfig) -> dict[str, Any]:
    """What decides the rows of a store, for its manifest: where they come from, and how they are split."""
    return {
        "recipe": data.recipe,
        "params": data.params,
        "source": data.source,
        # None as in stores that were made before there were joins.
        "join": [join.model_dump(mode="json") for join in data.join] or None,
        "folder": str(data.folder) if data.folder else None,
        "split": data.split.model_dump(mode="json"),
        "shard_rows": data.shard_rows,
    }


def _files_of(data: DataConfig) -> dict[str, list[int | str]]:
    """What tells that a raw file or side table changed, such as size and time; empty if one is not there."""
    try:
        options = data.resolved_options
        sources = [join.source for join in data.join]
        if data.source is not None:
            sources.insert(0, data.source)
            files: list[Path] = []
        else:
            files = recipe_named(data.recipe or "").files(data.folder, **data.params)
        found: dict[str, list[int | str]] = {}
        for file in sorted(files):
            stat = file.stat()
            found[str(file)] = [stat.st_size, stat.st_mtime_ns]
        for source in sources:
            found |= states(find_inputs(source), options)
    except (DataError, ConfigError):
        return {}
    return found


def _provenance(data: DataConfig) -> dict[str, Any]:
    """What the recipe says about its rows, for the manifest."""
    return recipe_named(data.recipe).provenance(data.folder, **data.params) if data.recipe else {"dropped": {}}


def _why_not(config: ExperimentConfig) -> str | None:
    """Why the store that is there cannot be used; None if it can."""
    if not config.store_folder.exists():
        return "nothing is there yet"
    try:
        open_store(config)
    except (ArtifactError, ConfigError) as error:  # a spec that another release wrote may not read any more
        return error.what
    return None
