"""What is watched of a window: a few figures a row, each between 0 and 1, whose mean stays where nothing changes."""

from __future__ import annotations

import numpy as np
import polars as pl

from recsys.evaluation.online.reference import PREDICTION, Reference, buckets, log_odds, watched

CALIBRATION, SLOPE = "calibration", "calibration slope"
BLOCKS = 256
"""Means that stand for a window of a signal."""
_BLOCK_ROWS = 4


def signals(rows: pl.DataFrame, reference: Reference) -> dict[str, np.ndarray]:
    """The signals of the rows of a window.

    - `prediction` is the probability.
    - `calibration` is `(1 + label - probability) / 2`: one half on the mean if the model is calibrated.
    - `calibration slope` is the residual times how far the log-odds are above those of the reference: lower if the
      model becomes too sure of itself, though it may be calibrated on the whole.
    - `input:NAME` of a number is its place among the reference's deciles, `input:NAME missing` whether it is missing.
    - `input:NAME` of a text is how rare its bucket was in the reference, in nats over the most there can be.

    Args:
        rows: `key`, `probability`, inputs, and `label` without nulls.
        reference: Gives the buckets; an input it does not know is left out.

    Returns:
        [N] by name.
    """
    p, y = rows["probability"].to_numpy(), rows["label"].to_numpy().astype(np.float64)
    slope = (y - p) * (log_odds(p) - reference.logit).clip(-8, 8)
    found = {PREDICTION: p, CALIBRATION: (1 + y - p) / 2, SLOPE: 0.5 + slope / 16}
    for name, values in watched(rows).items():
        if name == PREDICTION or name not in reference.counts:
            continue
        counts, edges = reference.counts[name], reference.edges.get(name)
        places = buckets(values, edges)
        if edges is None:
            shares = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
            found[name] = (-np.log(shares) / np.log(2 * counts.sum() + len(counts)))[places]
        else:
            missing = places == len(edges) + 1
            found[name] = np.where(missing, 0.5, places / max(len(edges), 1))
            found[f"{name} missing"] = missing.astype(np.float64)
    return found


def block_means(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Means of up to `BLOCKS` blocks of equally many rows, dealt by the hash of the request.

    So a block is a random part of the whole window, and what changes within a window, such as from night to day, is no
    drift as long as it comes again in each.

    >>> block_means(np.arange(16.0), np.arange(16)).tolist()
    [1.5, 5.5, 9.5, 13.5]
    """
    blocks = int(np.clip(len(values) // _BLOCK_ROWS, 1, BLOCKS))
    dealt = values[np.argsort(keys, kind="stable")]
    starts = np.arange(blocks) * len(values) // blocks
    means: np.ndarray = np.add.reduceat(dealt, starts) / np.diff(np.r_[starts, len(values)])
    return means
