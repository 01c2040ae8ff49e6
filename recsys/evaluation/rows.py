"""What every metric does first: labels, scores and weights as checked columns, and a clear error if they are unfit."""

from __future__ import annotations

import numpy as np

from features.errors import DataError, UndefinedMetricError

_CLIP = 1e-12


def columns(
    labels: np.ndarray, scores: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and weights of one task (of the first, when there are several columns), checked.

    Args:
        labels: [N] or [N, T] in {0, 1}.
        scores: [N] or [N, T], finite.
        weight: [N] non-negative; 1 when left out.

    Returns:
        Three float64 arrays [N].

    Raises:
        DataError: A label is neither 0 nor 1, a score is not finite, a weight is negative or not finite, or the
            lengths differ.
    """
    y, s = first_task(labels).astype(np.float64, copy=False), first_task(scores).astype(np.float64, copy=False)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, dtype=np.float64)
    require_same_rows(y, s, w)
    require(np.isfinite(s), s, "scores are not finite", "predictions", "finite numbers", _DIVERGED)
    require((y == 0) | (y == 1), y, "labels are not binary", "labels", "0 or 1", "leave these rows out")
    require_weights(w)
    return y, s, w


def first_task(values: np.ndarray) -> np.ndarray:
    """[N] of [N] or [N, T]."""
    values = np.asarray(values)
    return values[:, 0] if values.ndim == 2 else values


def require_same_rows(labels: np.ndarray, scores: np.ndarray, weight: np.ndarray) -> None:
    """Raises a DataError unless all three are [N]."""
    if not labels.shape == scores.shape == weight.shape:
        raise DataError(
            "labels, scores and weights are not of the same rows",
            field="predictions",
            found=f"shapes {labels.shape}, {scores.shape} and {weight.shape}",
            expected="one of each a row",
        )


def require_weights(weight: np.ndarray) -> None:
    """Raises a DataError unless all weights are finite and non-negative."""
    good = np.isfinite(weight) & (weight >= 0)
    require(good, weight, "weights are negative or not finite", "weight", "numbers from 0", "mend the weight column")


def require_probabilities(values: np.ndarray) -> None:
    """Raises a DataError unless all values are in [0, 1]."""
    mend = "give probabilities; logits become such by 1 / (1 + exp(-logit))"
    require((values >= 0) & (values <= 1), values, "probabilities are out of range", "predictions", "0 to 1", mend)


def require_both_classes(positive: float, negative: float, rows: int) -> None:
    """Raises an UndefinedMetricError when one of the classes has no weight."""
    if positive > 0 and negative > 0:
        return
    missing = "positive" if positive == 0 else "negative"
    raise UndefinedMetricError(f"none of {rows} rows is {missing}")


def require(good: np.ndarray, values: np.ndarray, what: str, field: str, expected: str, mend: str) -> None:
    """Raises a DataError that counts the values that are not good and names the first of them."""
    if good.all():
        return
    bad = values[~good]
    raise DataError(
        what,
        field=field,
        found=f"{len(bad):,} of {len(values):,} rows, the first {bad[0]:g}",
        expected=expected,
        mend=mend,
    )


def mean(values: np.ndarray, weight: np.ndarray) -> float:
    """Weighted mean of a column.

    Raises:
        UndefinedMetricError: There are no rows, or all weights are 0.
    """
    total = weight.sum()
    if total == 0:
        raise UndefinedMetricError("all weights are 0" if len(values) else "there are no rows")
    return float((values * weight).sum() / total)


def row_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Binary cross-entropy of every row, in nats; probabilities are kept 1e-12 away from 0 and 1.

    Args:
        labels: [N] float64 in {0, 1}.
        probabilities: [N] float64.

    Returns:
        [N].
    """
    p = probabilities.clip(_CLIP, 1 - _CLIP)
    losses: np.ndarray = -(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    return losses


_DIVERGED = "lower train.learning_rate and train.table_learning_rate, or set train.clip_norm"
