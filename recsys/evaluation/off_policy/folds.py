"""Divides rows for cross-fitting: a reward model judges only rows that it was not fitted on."""

from __future__ import annotations

import numpy as np

from features.errors import ConfigError


def assign_folds(rows: int, count: int, seed: int, group: np.ndarray | None = None) -> np.ndarray:
    """A fold for every row, of nearly equal sizes; rows of a group stay together.

    Fit the reward model on the rows of all other folds and let it guess the rewards of this one: what it learned by
    heart then enters no estimate (Chernozhukov et al., "Double/Debiased Machine Learning", Econometrics Journal 2018).

    Args:
        rows: N.
        count: Folds.
        seed: Decides who is with whom.
        group: [N]: rows that belong together, such as those of a user.

    Returns:
        [N] from 0 to `count - 1`.

    Raises:
        ConfigError: Fewer than two folds, or fewer rows or groups than folds.

    >>> np.bincount(assign_folds(10, 3, seed=0)).tolist()
    [4, 3, 3]
    """
    unit = np.arange(rows) if group is None else np.unique(group, return_inverse=True)[1]
    units = int(unit.max()) + 1 if rows else 0
    if not 2 <= count <= units:
        raise ConfigError("cannot be divided so", field="folds", found=count, expected=f"2 to {units}")
    of_unit = np.empty(units, dtype=np.int64)
    of_unit[np.random.default_rng(seed).permutation(units)] = np.arange(units) % count
    return of_unit[unit]
