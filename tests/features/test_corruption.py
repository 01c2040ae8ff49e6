"""A hundred damaged files: every one ends in a clear error or in counts that add up, never in a silent loss."""

from collections import Counter

import numpy as np
import polars as pl

from features.errors import DataError
from features.pipeline import FeaturePipeline
from features.reading.input_files import gather, input_files
from features.reading.sources import scan
from features.spec import FeatureSpec
from features.storage.quality import QualityConfig
from features.storage.splits import RandomSplit
from features.storage.store import QUARANTINE, Store, build_store
from features.validation import validate

ROWS = 300
SPEC = validate(
    FeatureSpec,
    {
        "features": [
            {"type": "id", "name": "user", "dtype": "integer"},
            {"type": "id", "name": "city"},
            {"type": "number", "name": "price", "standardise": True},
            {"type": "time", "name": "hour", "column": "at", "part": "hour"},
        ],
        "labels": ["click"],
        "time": "at",
    },
)
SPLIT = RandomSplit(fractions=(0.6, 0.2, 0.2))


def events(seed):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": rng.integers(0, 99, ROWS),
            "city": [["Zürich", "Bern, CH", None, 'the "old" town'][k] for k in rng.integers(0, 4, ROWS)],
            "price": rng.normal(size=ROWS),
            "at": [f"2024-01-01 {k // 60:02d}:{k % 60:02d}:00" for k in range(ROWS)],
            "click": rng.integers(0, 2, ROWS),
        }
    )


def truncated(data, rng):
    return data[: rng.integers(len(data) // 4, len(data))]


def flipped(data, rng):
    octets = bytearray(data)
    for place in rng.integers(0, len(octets), 20):
        octets[place] ^= 1 << int(rng.integers(0, 8))
    return bytes(octets)


def mixed_line_ends(data, rng):
    lines = data.split(b"\n")
    return b"".join(line + [b"\n", b"\r\n", b"\r"][rng.choice(3, p=[0.8, 0.18, 0.02])] for line in lines)


def wrong_delimiter(data, rng):
    lines = data.split(b"\n")
    for place in rng.integers(0, len(lines), 9) if rng.random() < 0.5 else range(len(lines)):
        lines[place] = lines[place].replace(b",", b";").replace(b":", b";")
    return b"\n".join(lines)


def huge_field(data, rng):
    place = rng.integers(len(data) // 3, len(data))
    return data[:place] + b"x" * 2_000_000 + data[place:]


def nulls(data, rng):
    octets = bytearray(data)
    place = int(rng.integers(len(octets) // 3, len(octets) - 40))
    octets[place : place + 40] = bytes(40)
    return bytes(octets)


def marked(data, rng):
    return b"\xef\xbb\xbf" + data


DAMAGES = [truncated, flipped, mixed_line_ends, wrong_delimiter, huge_field, nulls, marked]
KINDS = {"csv": pl.DataFrame.write_csv, "ndjson": pl.DataFrame.write_ndjson, "parquet": pl.DataFrame.write_parquet}


def records_in(path, kind):
    """How many rows the bytes of a text file hold at most: its lines that are not empty, and at least."""
    lines = [line for line in path.read_bytes().split(b"\n") if kind == "csv" or line.strip()]
    return len(lines) - (kind == "csv") - (kind == "csv" and lines[-1:] == [b""])


def outcome(folder, damaged, mode):
    """Builds from a good and a damaged file; returns what became of the damaged one."""
    kind = damaged.suffix[1:]
    quality = QualityConfig(mode=mode, max_bad_share=1.0)
    files = input_files(sorted(folder.glob(f"*.{kind}")))
    error = None
    try:
        rows, _, unreadable = gather(files, scan, FeaturePipeline(SPEC), quality, folder / "spool")
        source = {"source": str(folder)}
        store = build_store(rows, SPEC, SPLIT, folder / mode, source=source, quality=quality, unreadable=unreadable)
    except DataError as caught:
        error = caught
    if error is not None:
        assert mode == "strict", error
        assert error.field
        assert error.found is not None or error.expected is not None or error.mend, error
        assert not (folder / mode).exists()
        return "error"
    manifest = store.manifest
    in_rows, in_records = (
        pl.read_parquet(path).height if path.exists() else 0
        for path in (store.folder / QUARANTINE / name for name in ("rows-00000.parquet", "records.parquet"))
    )
    assert in_rows + in_records == sum(manifest["quarantined"].values())
    assert sum(manifest["rows"].values()) + in_rows + in_records == manifest["rows_read"]
    assert Store.open(store.folder).digest == store.digest
    if manifest["quarantined_files"]:
        (file,) = manifest["quarantined_files"]
        assert file["file"] == damaged.name
        assert file["bytes"] == damaged.stat().st_size
        assert file["reason"]
        assert manifest["rows_read"] == ROWS
        return "file in quarantine"
    mine = manifest["rows_read"] - ROWS
    assert mine == (records_in(damaged, kind) if kind != "parquet" else ROWS), (mine, damaged)
    if manifest["quarantined"]:
        return "rows in quarantine"
    return "read whole"


def test_a_hundred_damaged_files(tmp_path, capsys):
    tally = Counter()
    for seed in range(100):
        rng = np.random.default_rng(seed)
        kind, damage = list(KINDS)[seed % 3], DAMAGES[seed % len(DAMAGES)]
        folder = tmp_path / str(seed)
        folder.mkdir()
        KINDS[kind](events(0), folder / f"a.{kind}")
        damaged = folder / f"b.{kind}"
        KINDS[kind](events(seed + 1), damaged)
        damaged.write_bytes(damage(damaged.read_bytes(), rng))
        for mode in ("quarantine", "strict")[: 2 if seed % 5 == 0 else 1]:
            tally[mode, kind, damage.__name__, outcome(folder, damaged, mode)] += 1
    with capsys.disabled():
        print()
        for key, count in sorted(tally.items()):
            print(f"  {count:3d}  " + "  ".join(f"{word:18s}" for word in key))
    assert sum(tally.values()) == 120
    for kind in KINDS:
        for mode in ("strict", "quarantine"):
            assert {key[3] for key in tally if key[:2] == (mode, kind)} - {"read whole"}, (mode, kind)
