"""FuxiCTR's own preprocessing and its own loader on Criteo's columns, in the peer's environment.

It reads a file with a header only and has its rows divided beforehand, both of which happen before the clock starts; so
does the start of Ray, on which it runs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Prepare the three files and iterate over what came out.

    Args:
        request: raw (folder of train.csv, valid.csv and test.csv, with tabs), out (a folder), batch_size, epochs of
            the loader.

    Returns:
        rows and seconds of the preparation; by order, rows and seconds of every epoch of the loader; versions.
    """
    # Imported here: these packages are in the peer's environment only.
    import polars as pl
    from fuxictr.preprocess import FeatureProcessor, build_dataset, init_ray

    raw = {split: str(Path(request["raw"]) / f"{split}.csv") for split in ("train", "valid", "test")}
    rows = sum(pl.scan_csv(path, separator="\t").select(pl.len()).collect().item() for path in raw.values())
    init_ray()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    numbers = [f"I{n}" for n in range(1, 14)]
    ids = [f"C{n}" for n in range(1, 27)]
    processor = FeatureProcessor(
        feature_cols=[
            {"name": numbers, "active": True, "dtype": "float", "type": "numeric", "normalizer": "StandardScaler"},
            {"name": ids, "active": True, "dtype": "str", "type": "categorical"},
        ],
        label_col={"name": "label", "dtype": "float"},
        dataset_id="criteo",
        data_root=request["out"],
    )
    started = time.perf_counter()
    train, _, _ = build_dataset(
        processor, raw["train"], raw["valid"], raw["test"], data_format="csv", sep="\t", min_categr_count=1
    )
    seconds = time.perf_counter() - started
    return {
        "rows": rows,
        "seconds": seconds,
        "epochs": {
            order: _epochs(processor.feature_map, train, request, shuffle=order == "shuffled")
            for order in ("in order", "shuffled")
        },
        "versions": {name: metadata.version(name) for name in ("fuxictr", "polars", "ray", "torch", "numpy")},
    }


def _epochs(feature_map: Any, path: str, request: dict[str, Any], *, shuffle: bool) -> list[dict[str, float]]:
    from fuxictr.pytorch.dataloaders import RankDataLoader

    loader, _ = RankDataLoader(
        feature_map,
        stage="train",
        train_data=path,
        batch_size=request["batch_size"],
        shuffle=shuffle,
        data_format="parquet",
    )
    epochs = []
    for _ in range(request["epochs"]):
        started = time.perf_counter()
        rows = sum(len(batch["label"]) for batch in loader)
        epochs.append({"rows": rows, "seconds": time.perf_counter() - started})
    return epochs


if __name__ == "__main__":
    request = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        answer = run(request)
    print(json.dumps(answer))
