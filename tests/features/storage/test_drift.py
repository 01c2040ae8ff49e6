"""Drift: known changes are found at their known size, and rows of the same distribution show none."""

import numpy as np
import polars as pl
import pytest

from features.errors import ArtifactError
from features.reading.input_files import input_files
from features.reading.sources import scan
from features.spec import FeatureSpec
from features.storage.drift import DriftConfig, Profile, compare, profile_of
from features.storage.incremental import IncrementalConfig, update_store
from features.storage.quality import QualityConfig
from features.storage.splits import RandomSplit
from features.storage.store import Store
from features.validation import validate

SPEC = validate(
    FeatureSpec,
    {
        "features": [
            {"type": "id", "name": "user"},
            {"type": "id", "name": "device"},
            {"type": "ids", "name": "tags", "separator": " "},
            {"type": "number", "name": "price", "standardise": True, "missing_flag": True},
        ],
        "labels": ["click"],
    },
)
ROWS = 20_000


def events(seed, users=(0, 300), shift=0.0, missing=0.02, tablets=0.1, rate=0.3, rows=ROWS):
    rng = np.random.default_rng(seed)
    price = rng.normal(size=rows) + shift
    return pl.DataFrame(
        {
            "user": [f"u{k}" for k in rng.integers(*users, rows)],
            "device": np.where(rng.random(rows) < tablets, "tablet", "phone"),
            "tags": [" ".join("abc"[:k]) for k in rng.integers(0, 4, rows)],
            "price": [None if draw < missing else value for draw, value in zip(rng.random(rows), price, strict=True)],
            "click": (rng.random(rows) < rate).astype(int),
        }
    )


def grow(folder, *frames, **options):
    """Adds one file after the other; returns the drift of the last by feature."""
    logs = folder / "logs"
    logs.mkdir()
    for number, frame in enumerate(frames):
        frame.write_parquet(logs / f"{number}.parquet")
        store = update_store(
            input_files(sorted(logs.iterdir())),
            scan,
            SPEC,
            RandomSplit(),
            folder / "s",
            quality=QualityConfig(**options),
            incremental=IncrementalConfig(),
        )
    return store, {entry["feature"]: entry for entry in store.manifest["batches"][-1]["drift"]}


def test_rows_of_the_same_distribution_show_none(tmp_path):
    store, drift = grow(tmp_path, events(0), events(1, rows=500))
    assert set(drift) == {"user", "device", "tags", "price", "label click"}
    assert [entry for entry in drift.values() if entry["passed"]] == []
    assert drift["user"]["unseen"] == 0
    assert store.manifest["batches"][-1]["columns"] == []


def test_known_changes_have_their_known_size(tmp_path):
    changed = events(2, users=(150, 450), shift=1.0, missing=0.4, tablets=0.9, rate=0.6)
    _, drift = grow(tmp_path, events(0), changed)
    assert drift["user"]["unseen"] == pytest.approx(0.5, abs=0.02)
    # Two buckets of .1 and .9 that change places: 2 * .8 * log(9).
    assert drift["device"]["psi"] == pytest.approx(1.6 * np.log(9), rel=0.05)
    assert drift["label click"]["psi"] == pytest.approx(0.3 * np.log(0.6 / 0.3 * 0.7 / 0.4), rel=0.1)
    assert (drift["price"]["missing_before"], drift["price"]["missing"]) == pytest.approx((0.02, 0.4), abs=0.01)
    assert drift["price"]["passed"] == "psi, missing"
    assert drift["tags"]["passed"] == ""


def test_limits_say_when_it_is_said(tmp_path):
    _, drift = grow(tmp_path, events(0), events(2, shift=1.0), drift={"psi": 50.0})
    assert drift["price"]["psi"] > 0.25
    assert drift["price"]["passed"] == ""


def test_ids_are_new_once(tmp_path):
    _, drift = grow(tmp_path, events(0, rows=2000), events(1, users=(300, 600), rows=2000), events(2, users=(300, 600)))
    assert drift["user"]["unseen"] < 0.01
    assert "psi" in drift["user"]["passed"]


def test_columns_that_come_go_and_change(tmp_path):
    first = events(0, rows=200).with_columns(x=1, extra=pl.lit("a"))
    second = events(1, rows=200).with_columns(x=pl.lit("1"), more=1)
    store, _ = grow(tmp_path, first, second)
    assert store.manifest["batches"][-1]["columns"] == [
        "1.parquet: column extra is gone",
        "1.parquet: column more is new",
        "1.parquet: column x is String, was Int32",
    ]


def test_a_profile_comes_back_and_a_damaged_one_is_refused(tmp_path):
    store, _ = grow(tmp_path, events(0, rows=500))
    path = store.folder / "profile.safetensors"
    profile = Profile.load(path)
    profile.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=r"profile\.safetensors: file is missing or damaged.*--rebuild"):
        Profile.load(path)


def test_no_rows_at_all(tmp_path):
    store, _ = grow(tmp_path, events(0, rows=500))
    before = Profile.load(store.folder / "profile.safetensors")
    assert compare(before, profile_of([], Store.open(store.folder).layout, before), DriftConfig()) == []
