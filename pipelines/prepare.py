"""Raw events become a store: fingerprints, fitted numbers, splits. Done again only if something changed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import polars as pl

from features.errors import ArtifactError, ConfigError, DataError, list_names, nearest
from features.inputs import find_inputs, states
from features.joins import join_sources
from features.recipes import RECIPES
from features.sources import scan
from features.spec import FeatureSpec
from features.store import Store, build_store
from pipelines.config import DataConfig, ExperimentConfig
from pipelines.console import Console


def prepare(config: ExperimentConfig, console: Console) -> dict[str, Any]:
    """Make the experiment's store, or say that the one there fits.

    Returns:
        store (its folder), reused, rows a split, dropped, digest, seconds.

    Raises:
        RecsysError: The data or the spec is wrong; what was prepared before stays as it was.
    """
    folder = config.store_folder
    reason = _why_not(config)
    started = time.perf_counter()
    if reason is None:
        store = Store.open(folder, spec=config.spec)
        console.note(f"data: {folder} fits the config and is used again")
    else:
        console.note(f"data: preparing {folder} ({reason})")
        with console.progress("preparing", None) as task:
            store = build_store(
                events_of(config.data, config.spec),
                config.spec,
                config.data.split,
                folder,
                shard_rows=config.data.shard_rows,
                source={
                    **source_of(config.data),
                    "files": _files_of(config.data),
                    "provenance": _provenance(config.data),
                },
                progress=task.update,
            )
    rows = {split: store.rows(split) for split in ("train", "valid", "test")}
    dropped = dropped_of(store)
    counts = [f"{split} {count:,} rows" for split, count in rows.items()]
    console.note("data: " + ", ".join([*counts, *(f"{count:,} dropped: {why}" for why, count in dropped.items())]))
    return {
        "store": str(folder),
        "reused": reason is None,
        "rows": rows,
        "dropped": dropped,
        "digest": store.digest,
        "seconds": round(time.perf_counter() - started, 2),
    }


def open_store(config: ExperimentConfig) -> Store:
    """The prepared data of an experiment. The raw files need not be there any more; if they are, they count.

    Raises:
        ArtifactError: There is none, or it was prepared with another spec, source or split, or from other files.
    """
    store = Store.open(config.store_folder, spec=config.spec)
    prepared, wanted = store.manifest["source"], source_of(config.data)
    keys = [key for key in wanted if prepared.get(key) != wanted[key]]
    files = _files_of(config.data)
    if files and files != prepared.get("files"):
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


def dropped_of(store: Store) -> dict[str, int]:
    """Rows left out and why, by the recipe and by the split."""
    # a store that was made without `prepare` says nothing of where its rows come from
    by_recipe = store.manifest["source"].get("provenance", {}).get("dropped", {})
    return {**by_recipe, **store.manifest["dropped"]}


def events_of(data: DataConfig, spec: FeatureSpec | None = None) -> pl.LazyFrame:
    """The raw events of a config with the columns of its side tables.

    Args:
        data: Where they come from.
        spec: Names the events' time, for as-of joins that do not.

    Raises:
        ConfigError: There is no such recipe, or it takes no such parameter; an as-of join has no time of the event.
        DataError: The files are absent or damaged, or cannot be joined.
    """
    options = data.resolved_options
    if data.source is not None:
        events = scan(data.source, storage_options=options)
    else:
        events = recipe_named(data.recipe or "").load(data.folder, **data.params)
    time, unit = (spec.time, spec.time_unit) if spec else (None, None)
    return join_sources(events, data.join, time=time, time_unit=unit or "us", storage_options=options)


def recipe_named(name: str) -> Any:
    """The recipe of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in RECIPES:
        close = nearest(name, RECIPES)
        raise ConfigError(
            "there is no such recipe",
            field="data.recipe",
            found=name,
            expected=f"one of {list_names(RECIPES)}",
            mend=f"did you mean {close!r}?" if close else "use a recipe, or data.source for files of your own",
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
