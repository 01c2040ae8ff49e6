"""A store made of pieces is the store that is made at once, bit for bit."""

import functools

import numpy as np
import polars as pl
import pytest

from features.errors import DataError
from features.pipeline import FeaturePipeline
from features.reading.input_files import gather, input_files
from features.reading.sources import scan
from features.spec import FeatureSpec
from features.storage.engines.base import LocalEngine
from features.storage.incremental import IncrementalConfig, update_store
from features.storage.pieces import cut, fit_on_files, write_fit_columns
from features.storage.quality import QualityConfig
from features.storage.splits import ColumnSplit, LastPerGroupSplit, RandomSplit, TimeSplit
from features.storage.store import build_store
from features.validation import validate
from tests.features.conftest import make_events

SPLITS = {
    "random": RandomSplit(fractions=(0.6, 0.2, 0.2), seed=3),
    "shares of time": TimeSplit(columns=["number"]),
    "moments": TimeSplit(valid_from="2024-01-01 02:00:00", test_from="2024-01-01 04:00:00"),
    "last of a group": LastPerGroupSplit(group="user", columns=["number"]),
    "column": ColumnSplit(column="city", values={"train": ["Oslo"], "valid": ["Zürich"], "test": [""]}),
}
QUALITIES = {
    "strict": QualityConfig(),
    "quarantine": QualityConfig(mode="quarantine", max_bad_share=1.0),
    "key": QualityConfig(mode="quarantine", max_bad_share=1.0, key=["user", "city", "words"]),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three files of one log; every 13th row has a label that is none."""
    folder = tmp_path_factory.mktemp("log")
    for number, rows in enumerate((400, 1, 333)):
        events = make_events(400, seed=number).head(rows).with_columns(number=pl.lit(1000 * number) + pl.col("number"))
        events.write_parquet(folder / f"good-{number}.parquet")
        bad = pl.col("click").cast(pl.Int64) + (pl.col("number") % 13 == 5).cast(pl.Int64) * 7
        events.with_columns(click=bad).write_parquet(folder / f"some-{number}.parquet")
    return folder


def build(folder, pattern, spec, split, quality, *, apart):
    paths = sorted(folder.parent.glob(pattern))
    parts = [functools.partial(scan, path) for path in paths]
    events = scan(folder.parent / pattern)
    engine = LocalEngine() if apart else None
    return build_store(events, spec, split, folder, shard_rows=90, quality=quality, engine=engine, parts=parts)


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("split", SPLITS)
def test_a_store_of_pieces_is_that_of_all_rows(files, spec, split, quality):
    pattern = "good-*.parquet" if quality == "strict" else "some-*.parquet"
    name = f"{split}-{quality}".replace(" ", "-")
    once, apart = (
        build(files / f"{name}-{kind}", pattern, spec, SPLITS[split], QUALITIES[quality], apart=kind == "apart")
        for kind in ("once", "apart")
    )
    assert apart.digest == once.digest
    assert apart.manifest == once.manifest
    apart.verify()
    shards = {path.relative_to(once.folder): path.read_bytes() for path in once.folder.rglob("*.arrow")}
    assert {path.relative_to(apart.folder): path.read_bytes() for path in apart.folder.rglob("*.arrow")} == shards
    assert len(once.manifest["shards"]["train"]) > 1
    if quality != "strict":
        assert once.manifest["quarantined"]
        one, other = (pl.read_parquet(store.folder / "quarantine" / "*.parquet") for store in (once, apart))
        assert one.equals(other)
    assert {path.name for path in apart.folder.iterdir()} == {path.name for path in once.folder.iterdir()}


def test_what_is_wrong_with_a_piece_is_an_error_and_leaves_nothing(files, spec):
    folder = files / "wrong"
    with pytest.raises(DataError, match="click: label outside"):
        build(folder, "some-*.parquet", spec, SPLITS["random"], QualityConfig(), apart=True)
    assert not folder.exists()
    assert not [path for path in files.iterdir() if path.name.startswith(".")]


def test_files_read_one_by_one_with_bad_lines(tmp_path):
    spec = validate(FeatureSpec, {"features": [{"type": "id", "name": "a"}], "labels": ["y"]})
    for number in range(3):
        lines = [f"v{k % 7},{k % 2}" for k in range(100)]
        lines[10 * number] = "short"
        (tmp_path / f"e{number}.csv").write_text("\n".join(["a,y", *lines, ""]))
    (tmp_path / "e1.csv").write_text("a,y,more\n" + "x,1,2\n" * 50)
    files = input_files(sorted(tmp_path.glob("*.csv")))
    quality = QualityConfig(mode="quarantine", max_bad_share=1.0)
    digests = []
    for engine in (None, LocalEngine()):
        spool = tmp_path / f"spool-{len(digests)}"
        events, rows, unreadable = gather(files, scan, FeaturePipeline(spec), quality, spool, engine)
        parts = [functools.partial(part.open, scan) for part in rows]
        folder = tmp_path / f"store-{len(digests)}"
        store = build_store(
            events, spec, RandomSplit(), folder, shard_rows=33, quality=quality, unreadable=unreadable,
            engine=engine, parts=parts,
        )  # fmt: skip
        assert store.manifest["quarantined"] == {"too few fields": 2}
        digests.append(store.digest)
    assert digests[0] == digests[1]


def test_the_fit_does_not_hang_on_the_pieces(tmp_path):
    """More rows than one step of the fit takes, cut where no step ends; sums of floats hang on their order."""
    spec = validate(
        FeatureSpec,
        {
            "features": [
                {"type": "number", "name": "x", "standardise": True},
                {"type": "number", "name": "z", "column": "x", "quantiles": 16},
                {"type": "bucket", "name": "b", "column": "x", "quantiles": 8},
                {"type": "frequency", "name": "f", "column": "k", "max_values": 50, "min_count": 2},
            ],
            "labels": ["y"],
            "derive": {"k": "cast(round(x * 100) as bigint)"},
        },
    )
    x = np.random.default_rng(0).lognormal(0, 5, 300_000)
    events = pl.DataFrame({"x": x, "__split__": "train"}).lazy()
    whole = FeaturePipeline(spec).fit(events)
    paths = []
    for piece in cut([lambda: events], [300_000], 70_001):
        paths.append(tmp_path / f"{piece.first}.arrow")
        write_fit_columns(FeaturePipeline(spec), piece.frame(), paths[-1])
    apart = FeaturePipeline(spec)
    fit_on_files(apart, events, paths)
    assert apart.digest() == whole.digest()


@pytest.mark.parametrize("keyed", [False, True])
def test_files_added_by_an_engine(files, spec, tmp_path, keyed):
    quality = QualityConfig(mode="quarantine", max_bad_share=1.0, key=["user", "city"] if keyed else None)
    found = []
    for engine in (None, LocalEngine()):
        folder = tmp_path / f"store-{len(found)}"
        for pattern in ("some-[01].parquet", "some-*.parquet"):
            store = update_store(
                input_files(sorted(files.glob(pattern))), scan, spec, SPLITS["random"], folder, shard_rows=90,
                quality=quality, incremental=IncrementalConfig(piece_rows=70), engine=engine,
            )  # fmt: skip
        store.verify()
        found.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert found[0] == found[1]
    assert len(store.manifest["batches"]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"store-0", "store-1"}


def test_files_of_other_types_are_fitted_on_together(tmp_path):
    spec = validate(FeatureSpec, {"features": [{"type": "number", "name": "x", "standardise": True}], "labels": ["y"]})
    y = [k % 2 for k in range(100)]
    pl.DataFrame({"x": list(range(100)), "y": y}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"x": [k / 7 for k in range(100)], "y": y}).write_parquet(tmp_path / "b.parquet")
    files = input_files(sorted(tmp_path.glob("*.parquet")))
    one, other = (
        update_store(files, scan, spec, RandomSplit(), tmp_path / f"s{number}", engine=engine)
        for number, engine in enumerate((None, LocalEngine()))
    )
    assert one.digest == other.digest
