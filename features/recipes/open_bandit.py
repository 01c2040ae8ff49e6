"""open_bandit: what two policies of a fashion shop showed, at which position, with which chance, and the clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import polars as pl

from features.errors import DataError
from features.frames import first_line, require_column
from features.recipes.base import find_data, integers, require_file
from features.validation import Strict, validate

_HOW_TO_GET = "Download the Open Bandit Dataset from https://research.zozo.com/data.html and unpack it."
_MEND = "unpack the archive again"
_LOG = ("timestamp", "item_id", "position", "click", "propensity_score")
_USER = [f"user_feature_{number}" for number in range(4)]
_ITEM = [f"item_feature_{number}" for number in range(4)]
_AFFINITY = "user-item_affinity_"

_SPEC_HINT: dict[str, Any] = {
    "features": [
        {"type": "id", "name": "item_id", "dtype": "integer"},
        {"type": "id", "name": "position", "dtype": "integer"},
        *({"type": "id", "name": name} for name in _USER),
        {"type": "number", "name": "item_feature_0", "standardise": True},
        *({"type": "id", "name": name, "dtype": "integer"} for name in _ITEM[1:]),
    ],
    "labels": ["click"],
    "time": "timestamp",
}


class OpenBanditParams(Strict):
    """Parameters of the recipe."""

    behaviour: Literal["random", "bts"] = "random"
    """The policy that was logged: `random` shows all items alike, `bts` is Bernoulli Thompson sampling."""
    campaign: Literal["all", "men", "women"] = "all"
    """Which items could be shown."""


class OpenBandit:
    """Reads `BEHAVIOUR/CAMPAIGN.csv` and `BEHAVIOUR/item_context.csv`; the full form has CAMPAIGN/ folders between."""

    name = "open_bandit"
    description = "Open Bandit: fashion items shown by a random policy and by Thompson sampling, with propensities"
    how_to_get = _HOW_TO_GET
    spec_hint = _SPEC_HINT

    def load(self, folder: Path | None = None, **params: Any) -> pl.LazyFrame:
        """Returns one row an item shown, in the order of time.

        timestamp, item_id, position (1 to 3), click, propensity_score (the chance of this item at this position),
        user_feature_0 to 3, item_feature_0 to 3 of the item shown, and `affinities`, a list with the user's affinity to
        every item in the order of item_id, where the file has them.

        The categories of items are hashed differently in the folder of each policy, so that a model of one would know
        none of the other's: each category is given as the smallest item_id that has it.
        """
        validate(OpenBanditParams, params, where="params")
        log_file, items_file = self.files(folder, **params)
        log, items = _read_log(log_file), _read_items(items_file)
        unknown = log.join(items, on="item_id", how="anti")
        if unknown.height:
            raise DataError(
                "item has no line", field=str(items_file), found=f"item_id {unknown['item_id'][0]}", mend=_MEND
            )
        return (
            log.lazy()
            .join(items.lazy(), on="item_id", how="left", maintain_order="left")
            .select(*_LOG, *_USER, *_ITEM, *(name for name in log.columns if name == "affinities"))
        )

    def files(self, folder: Path | None = None, **params: Any) -> list[Path]:
        """Returns the log and the file of items."""
        chosen = validate(OpenBanditParams, params, where="params")
        folder = find_data("open-bandit", _HOW_TO_GET, also=["open_bandit_dataset"]) if folder is None else Path(folder)
        names = (f"{chosen.campaign}.csv", "item_context.csv")
        inner = f"{chosen.behaviour}/{chosen.campaign}"
        return [require_file(folder, [f"{inner}/{name}", f"{chosen.behaviour}/{name}"], _HOW_TO_GET) for name in names]

    def provenance(self, folder: Path | None = None, **params: Any) -> dict[str, Any]:
        """Says which log was read; no row is left out."""
        chosen = validate(OpenBanditParams, params, where="params")
        return {"recipe": self.name, "params": chosen.model_dump(), "dropped": {}}


def _read_log(path: Path) -> pl.DataFrame:
    raw = _read(path, (*_LOG, *_USER))
    affinities = sorted(
        (name for name in raw.columns if name.startswith(_AFFINITY)), key=lambda name: int(name.removeprefix(_AFFINITY))
    )
    time = pl.col("timestamp").str.to_datetime("%Y-%m-%d %H:%M:%S%.f%z", time_unit="us", strict=False)
    vector = pl.concat_list(pl.col(affinities).cast(pl.Float32, strict=False))
    log = raw.select(
        time,
        *(integers(raw, name, path, _MEND) for name in ("item_id", "position", "click")),
        pl.col("propensity_score").cast(pl.Float64, strict=False),
        *_USER,
        *([vector.alias("affinities")] if affinities else []),
    )
    for name in ("timestamp", "propensity_score"):
        if log[name].null_count():
            line = log[name].is_null().arg_true()[0]
            raise DataError(f"line {line + 2} has no {name}", field=str(path), found=raw[name][line], mend=_MEND)
    return log.with_columns(pl.col("timestamp").dt.convert_time_zone("UTC").dt.replace_time_zone(None)).sort(
        "timestamp", maintain_order=True
    )


def _read_items(path: Path) -> pl.DataFrame:
    raw = _read(path, ("item_id", *_ITEM))
    items = raw.select(
        integers(raw, "item_id", path, _MEND), pl.col("item_feature_0").cast(pl.Float64, strict=False), *_ITEM[1:]
    )
    return items.with_columns(pl.col("item_id").min().over(name).alias(name) for name in _ITEM[1:])


def _read(path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    if path.stat().st_size == 0:
        raise DataError("file is empty", field=str(path), mend=_MEND)
    try:
        raw = pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError("file is damaged", field=str(path), found=first_line(error), mend=_MEND) from error
    for column in columns:
        require_column(column, raw.schema)
    if not raw.height:
        raise DataError("file is empty", field=str(path), found="a header alone", mend=_MEND)
    return raw
