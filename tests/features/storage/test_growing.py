"""A shard that grows on disk has the bytes of one written from memory at once."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from features.columns import record_batch
from features.storage.growing import GrowingShard
from features.storage.shards import read_shard, write_shard

IDS, DENSE = pa.list_(pa.int64(), 2), pa.list_(pa.float32(), 3)
BAG, LABELS, TIME = pa.large_list(pa.int64()), pa.list_(pa.float32(), 1), pa.int64()
TYPES = {
    "ids first": {"ids": IDS, "dense": DENSE, "bag:a": BAG, "bag:b": BAG, "labels": LABELS, "time": TIME},
    "a bag first": {"bag:a": BAG, "labels": LABELS},
    "numbers alone": {"dense": DENSE, "labels": LABELS},
}


def encoded(rows: int, types: dict[str, pa.DataType]) -> pl.DataFrame:
    rng = np.random.default_rng(rows)
    columns = {
        "ids": pl.Series(rng.integers(-(2**63), 2**63 - 1, (rows, 2)), dtype=pl.Array(pl.Int64, 2)),
        "dense": pl.Series(rng.random((rows, 3), dtype=np.float32), dtype=pl.Array(pl.Float32, 3)),
        "bag:a": pl.Series([list(range(row % 4)) for row in range(rows)], dtype=pl.List(pl.Int64)),
        "bag:b": pl.Series([[] for _ in range(rows)], dtype=pl.List(pl.Int64)),
        "labels": pl.Series(rng.integers(0, 2, (rows, 1)).astype(np.float32), dtype=pl.Array(pl.Float32, 1)),
        "time": pl.Series(np.arange(rows)),
    }
    return pl.DataFrame({name: columns[name] for name in types})


@pytest.mark.parametrize("types", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("rows", [1, 7, 70_000])
def test_the_bytes_are_those_of_a_shard_written_at_once(tmp_path, types, rows):
    frame = encoded(2 * rows, types)
    taken = np.arange(0, 2 * rows, 2)
    wanted = write_shard(tmp_path, "at_once.arrow", record_batch(frame[taken], types))
    shard = GrowingShard(tmp_path, "grown.arrow", types)
    for start in range(0, 2 * rows, 30_001):
        piece = frame[start : start + 30_001]
        fixed = {
            name: piece[name].to_numpy().reshape(piece.height, -1)
            for name, kind in types.items()
            if not pa.types.is_large_list(kind)
        }
        shard.append(piece, fixed, np.arange(start % 2, piece.height, 2))
    entry = shard.finish()
    assert entry == {**wanted, "path": "grown.arrow"}
    assert (tmp_path / "grown.arrow").read_bytes() == (tmp_path / "at_once.arrow").read_bytes()
    read_shard(tmp_path / "grown.arrow").validate(full=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at_once.arrow", "grown.arrow"]
