"""synthetic: made-up advertising events whose click probability is known, so that the best model is too.

The logit of a row is a sum of hidden effects of its values and of one pair of values. A value's effect is a
hash of its id, shrunk towards zero for rare values, so that a model can learn it from the rows there are.
"""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field, model_validator

from features.errors import ConfigError
from features.validation import Strict, validate

_DAY = 86_400_000_000
_START = 1_704_067_200_000_000  # 2024-01-01, a Monday
_CALIBRATION_ROWS = 50_000
_FIELDS = {"country": 30, "device": 5, "publisher_id": 1_000, "ad_id": 20_000, "user_id": 100_000}

_SPEC_HINT: dict[str, Any] = {
    "features": [
        {"type": "id", "name": "country"},
        {"type": "id", "name": "device"},
        {"type": "id", "name": "publisher_id", "dtype": "integer"},
        {"type": "id", "name": "ad_id", "dtype": "integer"},
        {"type": "id", "name": "user_id", "dtype": "integer"},
        {"type": "ids", "name": "tags"},
        {"type": "number", "name": "price", "clip": [0, None], "log": 1, "standardise": True, "missing_flag": True},
        {"type": "number", "name": "age", "standardise": True},
        {"type": "time", "name": "hour", "column": "timestamp", "part": "hour"},
    ],
    "labels": ["click"],
    "group": "user_id",
    "time": "timestamp",
    "reference": "p_true",
}


class SyntheticParams(Strict):
    """Parameters of the generator."""

    rows: Annotated[int, Field(ge=1, le=50_000_000)] = 1_000_000
    """Events; all are held in memory, about 150 bytes each."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the hidden effects and the draws."""
    days: Annotated[int, Field(ge=1, le=365)] = 10
    """Days over which the events are spread evenly."""
    fields: dict[str, Annotated[int, Field(ge=2, le=10_000_000)]] = Field(default_factory=lambda: dict(_FIELDS))
    """Id fields and the number of values alive at a time. `country`, `device` and `user_id` must be among them."""
    effects: dict[str, Annotated[float, Field(ge=0, le=10)]] = Field(default_factory=dict)
    """Standard deviation of the hidden effects of a field's values, relative to the others'; 0: it tells nothing. A
    field not named has .5 (`country`), .4 (`device`), 1 (`user_id`) or .8."""
    drifting: list[str] = Field(default_factory=lambda: ["publisher_id", "ad_id"])
    """Fields whose values are replaced by new ones over time."""
    drift: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of a drifting field's values that is replaced a day."""
    zipf: Annotated[float, Field(ge=0.5, le=3)] = 1.2
    """Exponent of the frequencies: the value of rank r comes about r ** -zipf as often."""
    base_rate: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Mean click probability."""
    rare: Annotated[float, Field(ge=0, le=1)] = 5e-4
    """A value that takes this share of the rows keeps half of its effect, a rarer one less: what is hidden in
    values seen a few times cannot be learnt by any model."""
    spread: Annotated[float, Field(gt=0, le=10)] = 1.4
    """Standard deviation of the logits: 1.4 puts the best reachable AUC near 0.80."""

    @model_validator(mode="after")
    def _check(self) -> SyntheticParams:
        for name in ("country", "device", "user_id"):
            if name not in self.fields:
                raise ConfigError(
                    "a field that is always needed is missing", field="params.fields", mend=f"add {name!r}"
                )
        taken = {"tags", "price", "age", "timestamp", "click", "p_true"}
        for name in self.fields:
            if name in taken:
                raise ConfigError("name is taken by another column", field=f"params.fields.{name}", mend="rename it")
        for key in ("drifting", "effects"):
            for name in getattr(self, key):
                if name not in self.fields:
                    raise ConfigError(
                        "no such field", field=f"params.{key}", found=name, expected=f"of {list(self.fields)}"
                    )
        return self


class Synthetic:
    """Generates the events; needs no files."""

    name = "synthetic"
    description = "Made-up advertising events with Zipf frequencies, drifting ids and a known click probability"
    how_to_get = "Nothing to download: the events are generated."
    spec_hint = _SPEC_HINT

    def load(self, folder: Path | None = None, **params: Any) -> pl.LazyFrame:
        """Returns the events in the order of time.

        country and device (text; one country in a hundred is missing), the other id fields (integers), tags (list of
        text), price (sometimes missing), age, timestamp, click and p_true, the probability click was drawn with.
        """
        chosen = validate(SyntheticParams, params, where="params")
        bias, scale = _calibrate(chosen)
        rng = np.random.default_rng([chosen.seed, 2])
        events = _draw(chosen, rng, chosen.rows)
        p_true = _sigmoid(bias + scale * _raw_logit(chosen, events))
        click = (rng.random(chosen.rows) < p_true).astype(np.int8)
        return _frame(chosen, events).with_columns(pl.Series("click", click), pl.Series("p_true", p_true)).lazy()

    def files(self, folder: Path | None = None, **params: Any) -> list[Path]:
        """Returns no file: the events are generated."""
        return []

    def provenance(self, folder: Path | None = None, **params: Any) -> dict[str, Any]:
        """Says with which parameters the events were generated; no row is left out."""
        chosen = validate(SyntheticParams, params, where="params")
        return {"recipe": self.name, "params": chosen.model_dump(mode="json"), "dropped": {}}


@dataclasses.dataclass
class _Events:
    """R drawn rows as arrays: ranks and ids by field, and the rest."""

    ranks: dict[str, np.ndarray]
    ids: dict[str, np.ndarray]
    country_missing: np.ndarray
    tag_counts: np.ndarray
    tags: np.ndarray
    price: np.ndarray
    price_missing: np.ndarray
    age: np.ndarray
    time: np.ndarray


_TAGS = 200
_FIELD_SCALE = {"country": 0.5, "device": 0.4, "user_id": 1.0}
_OTHER_SCALE = 0.8
_PAIR_SCALE = 0.5
_TAG_SCALE = 0.3
_PRICE_SCALE = -0.3
_AGE_SCALE = 0.3
_HOUR_SCALE = 0.25


def _draw(params: SyntheticParams, rng: np.random.Generator, rows: int) -> _Events:
    time = np.sort((rng.random(rows) * params.days * _DAY).astype(np.int64))
    day = time / _DAY
    ranks, ids = {}, {}
    for name, size in params.fields.items():
        rank = np.searchsorted(_zipf_cdf(size, params.zipf), rng.random(rows), side="right")
        ranks[name] = rank
        ids[name] = rank
        if name in params.drifting:
            # Every rank is renewed at its own moment, once in 1 / drift days.
            phase = _uniform(_hashes(params.seed, f"{name}:phase", rank))
            generation = np.floor(day * params.drift + phase).astype(np.int64)
            ids[name] = generation * size + rank
    counts = np.minimum(rng.geometric(0.4, size=rows) - 1, 5)
    tags = np.searchsorted(_zipf_cdf(_TAGS, params.zipf), rng.random(int(counts.sum())), side="right")
    return _Events(
        ranks=ranks,
        ids=ids,
        country_missing=rng.random(rows) < 0.01,
        tag_counts=counts,
        tags=tags,
        price=np.round(np.exp(2.0 + rng.standard_normal(rows)), 2),
        price_missing=rng.random(rows) < 0.05,
        age=np.clip(np.round(38 + 12 * rng.standard_normal(rows)), 13, 99).astype(np.int64),
        time=time + _START,
    )


def _raw_logit(params: SyntheticParams, events: _Events) -> np.ndarray:
    """Returns the sum of all effects, before it is brought to the wanted spread and base rate."""
    total = np.zeros(len(events.time))
    for name, size in params.fields.items():
        scale = params.effects.get(name, _FIELD_SCALE.get(name, _OTHER_SCALE))
        effect = scale * _effects(params.seed, name, events.ids[name])
        cdf = _zipf_cdf(size, params.zipf)
        share = np.diff(cdf, prepend=0.0)[events.ranks[name]]
        effect *= share / (share + params.rare)
        total += np.where(events.country_missing, 0.3, effect) if name == "country" else effect
    pair = events.ids["country"] * params.fields["device"] + events.ids["device"]
    total += np.where(events.country_missing, 0.0, _PAIR_SCALE * _effects(params.seed, "country*device", pair))
    owner = np.repeat(np.arange(len(total)), events.tag_counts)
    total += np.bincount(owner, _TAG_SCALE * _effects(params.seed, "tags", events.tags), minlength=len(total))
    price = _PRICE_SCALE * (np.log1p(events.price) - 2.2)
    total += np.where(events.price_missing, 0.2, price)
    total += _AGE_SCALE * (events.age - 38) / 12
    hour = events.time // 3_600_000_000 % 24
    total += _HOUR_SCALE * _effects(params.seed, "hour", hour)
    return total


def _calibrate(params: SyntheticParams) -> tuple[float, float]:
    """Returns bias and scale of the logit, from draws of their own so that the number of rows changes nothing."""
    rng = np.random.default_rng([params.seed, 1])
    logit = _raw_logit(params, _draw(params, rng, _CALIBRATION_ROWS))
    scale = params.spread / float(logit.std())
    low, high = -50.0, 50.0
    for _ in range(60):
        bias = (low + high) / 2
        if _sigmoid(bias + scale * logit).mean() < params.base_rate:
            low = bias
        else:
            high = bias
    return bias, scale


def _frame(params: SyntheticParams, events: _Events) -> pl.DataFrame:
    columns: dict[str, Any] = {}
    for name, ids in events.ids.items():
        columns[name] = pl.Series(ids)
    offsets = np.concatenate([[0], np.cumsum(events.tag_counts)])
    frame = pl.DataFrame(columns).with_columns(
        country=pl.when(pl.Series(~events.country_missing)).then(pl.format("c{}", "country")),
        device=pl.format("d{}", "device"),
        price=pl.when(pl.Series(~events.price_missing)).then(pl.Series(events.price)),
        age=pl.Series(events.age),
        timestamp=pl.Series(events.time).cast(pl.Datetime("us")),
    )
    return frame.insert_column(len(params.fields), _tag_lists(events.tags, offsets))


def _tag_lists(tags: np.ndarray, offsets: np.ndarray) -> pl.Series:

    names = pl.DataFrame({"tag": tags}).select(pl.format("t{}", "tag")).to_series().to_arrow()
    return pl.Series("tags", pa.LargeListArray.from_arrays(pa.array(offsets.astype(np.int64)), names))


def _zipf_cdf(size: int, exponent: float) -> np.ndarray:
    """Returns P(rank <= r) for r = 0 .. size-1."""
    weights = np.arange(1, size + 1, dtype=np.float64) ** -exponent
    cdf = np.cumsum(weights / weights.sum())
    cdf[-1] = 1.0
    return cdf


def _effects(seed: int, name: str, ids: np.ndarray) -> np.ndarray:
    """Returns a hidden effect a value: about normal, mean 0, variance 1, the same for ever for one (seed, name, id)."""
    state = _hashes(seed, name, ids)
    # The sum of four uniform numbers is near enough to a normal one.
    parts = [(state >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)]
    return (sum(part.astype(np.float64) for part in parts) / 65536 - 2.0) * np.sqrt(3.0)


def _uniform(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(11)).astype(np.float64) / 2.0**53


def _hashes(seed: int, name: str, ids: np.ndarray) -> np.ndarray:
    salt = np.uint64((zlib.crc32(name.encode()) << 32) ^ seed)
    with np.errstate(over="ignore"):
        state = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ _mix(np.array([salt]))[0]
        return _mix(state)


def _mix(state: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logit))
