"""The preparation benchmark: its raw events, its measures of memory and rows, and its sides on a few real rows."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks import preparation
from benchmarks.scripts import criteo_tsv, encode_requests, load_batches, prepare_criteo
from benchmarks.scripts.peak_memory import PeakMemory
from features.recipes.criteo import CATEGORIES, INTEGERS, Criteo

MIB = 1024**2


@pytest.fixture(scope="module")
def sample() -> pl.DataFrame:
    """Rows in the form of the sample, with gaps and rare ids."""
    rng = np.random.default_rng(0)
    columns: dict[str, list[int | str | None]] = {"label": rng.integers(0, 2, 400).tolist()}
    columns |= {name: [None if k < 10 else k for k in rng.integers(0, 99, 400).tolist()] for name in INTEGERS}
    columns |= {
        name: [None if k < 9 else f"{k * 40_503_211 % 2**32:08x}" for k in rng.integers(0, 300, 400).tolist()]
        for name in CATEGORIES
    }
    return pl.DataFrame(columns)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, sample: pl.DataFrame) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    criteo_tsv.write(folder / "train.txt", sample, 1300, seed=0)
    return folder


def test_raw_events_are_the_sample_again_with_some_ids_changed(raw: Path, sample: pl.DataFrame) -> None:
    events = Criteo().load(raw).collect()
    assert events.height == 1300
    assert events.head(400).drop("row").equals(sample)
    again = events.slice(800, 400)
    assert again.select("label", *INTEGERS).equals(sample.select("label", *INTEGERS))
    ids, first = (frame.select(CATEGORIES) for frame in (again, sample))
    assert ids.null_count().equals(first.null_count())
    kept = sum((ids[name] == first[name]).sum() for name in CATEGORIES) / first.count().sum_horizontal()[0]
    # A change to the same character is none: one in sixteen.
    assert kept == pytest.approx(1 - criteo_tsv.CHANGED * 15 / 16, abs=0.02)
    for name in CATEGORIES:
        pairs = pl.DataFrame({"old": first[name], "new": ids[name]}).drop_nulls().unique()
        assert pairs.height == pairs["old"].n_unique(), "an id changes alike in all rows of a repetition"
        assert all(sum(a != b for a, b in zip(old, new, strict=True)) <= 1 for old, new in pairs.iter_rows())
    assert events["C1"].n_unique() > 1.5 * sample["C1"].n_unique()


def test_the_same_seed_gives_the_same_bytes(raw: Path, sample: pl.DataFrame, tmp_path: Path) -> None:
    for seed, same in ((0, True), (1, False)):
        criteo_tsv.write(tmp_path / "again.txt", sample, 1300, seed=seed)
        assert ((tmp_path / "again.txt").read_bytes() == (raw / "train.txt").read_bytes()) == same


def test_the_peer_gets_the_same_rows_with_a_header(raw: Path, tmp_path: Path) -> None:
    criteo_tsv.divide(raw / "train.txt", tmp_path, 1000)
    parts = [pl.read_csv(tmp_path / f"{name}.csv", separator="\t", infer_schema=False) for name in criteo_tsv.SPLITS]
    assert [part.height for part in parts] == [800, 100, 100]
    expected = Criteo().load(raw).head(1000).drop("row").collect()
    assert pl.concat(parts).equals(expected.cast(pl.String))


@pytest.mark.parametrize("task", ["ours", "floor", "hasher"])
def test_every_task_reads_the_rows_it_says(raw: Path, tmp_path: Path, task: str) -> None:
    request = {"task": task, "raw": str(raw), "out": str(tmp_path / "out"), "shard_rows": 500, "rows": 300}
    answer = prepare_criteo.run(request)
    assert answer["rows"] == (300 if task == "hasher" else 1300)
    assert answer["seconds"] > 0
    assert answer["rss"] > 50 * MIB
    if task == "floor":
        assert pl.read_ipc(tmp_path / "out").equals(Criteo().load(raw).drop("row").collect())
    if task == "ours":
        request = {"store": str(tmp_path / "out"), "batch_size": 256, "epochs": 2, "threads": 1, "arrays": 100}
        loaded = load_batches.run({**request, "out": str(tmp_path)})
        rows = {order: [epoch["rows"] for epoch in epochs] for order, epochs in loaded["epochs"].items()}
        assert rows["in order"] == rows["shuffled"]
        assert 900 < rows["shuffled"][0] < 1200
        assert [np.load(loaded["arrays"][name]).shape for name in ("ids", "dense", "labels")] == [
            (100, 26),
            (100, 13),
            (100,),
        ]


def test_requests_are_encoded(raw: Path) -> None:
    answer = encode_requests.run({"raw": str(raw), "calls": 20})
    assert answer["candidates"]["seconds"] > answer["one"]["seconds"] > 0


def test_peak_memory_is_that_of_the_process_and_its_children() -> None:
    hold = "import sys; held = b'x' * (96 << 20); print(flush=True); sys.stdin.read()"
    with PeakMemory() as before:
        pass
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with PeakMemory() as peak:
            pass  # the end of the measure looks once more
        process.communicate()
    assert peak.anonymous >= before.anonymous + 90 * MIB


def test_full_and_quick_ask_for_the_same_things() -> None:
    assert preparation.FULL.rows == 5_000_000
    assert preparation.FULL.more_rows == 20_000_000
    assert preparation.FULL.turns >= 3
    assert preparation.QUICK.rows <= 200_000
    # As many shards a split in a quick run as in a full one: memory is that of a shard.
    assert preparation.QUICK.rows / preparation.QUICK.shard_rows == preparation.FULL.rows / preparation.FULL.shard_rows
