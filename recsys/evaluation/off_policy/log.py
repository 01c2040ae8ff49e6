"""A log of what a policy showed, with which chance, and what came of it: the ground of every off-policy estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from features.errors import DataError


@dataclass(frozen=True)
class Problem:
    """Rows that no estimate can use, and why; a row is in the first problem it has."""

    role: str
    """action, reward, propensity or position."""
    what: str
    expected: str
    rows: np.ndarray
    """[N] bool."""
    found: object
    """The first such value."""


@dataclass(frozen=True)
class BanditLog:
    """N logged rows of a contextual bandit.

    With several positions a row is one place of a slate that was shown, and the reward is that of this place alone: the
    independent-position model, in which the item at one place changes nothing at another (Li et al., "Offline
    Evaluation of Ranking Policies with Click Models", KDD 2018).

    Raises:
        DataError: There is no row, the columns are not equally long, or a row cannot be used; `find_problems` says
            which, so that they can be left out and counted.

    >>> log = BanditLog(np.array([0, 2]), np.array([1, 0]), np.array([0.5, 0.25]), actions=3)
    >>> len(log), log.positions
    (2, 1)
    """

    action: np.ndarray
    """[N] from 0 to `actions - 1`: what was shown."""
    reward: np.ndarray
    """[N]: what came of it."""
    propensity: np.ndarray
    """[N] in (0, 1]: the chance that the logging policy had to show this action, at this position."""
    actions: int
    position: np.ndarray | None = None
    """[N] from 0 to `positions - 1`; all 0 when left out."""
    positions: int = 1
    reward_range: tuple[float, float] = (0.0, 1.0)
    """What a reward can be. Bounds of the values rest on it."""

    def __post_init__(self) -> None:
        place = np.zeros(len(self.action), dtype=np.int64) if self.position is None else self.position
        columns = {"action": self.action, "reward": self.reward, "propensity": self.propensity, "position": place}
        raise_if_any(find_problems(columns, self.actions, self.positions, self.reward_range))
        for name in ("action", "position"):
            object.__setattr__(self, name, np.asarray(columns[name]).astype(np.int64))
        for name in ("reward", "propensity"):
            object.__setattr__(self, name, np.asarray(columns[name], dtype=np.float64))

    def __len__(self) -> int:
        return len(self.action)

    @property
    def place(self) -> np.ndarray:
        """[N] the position of every row."""
        assert self.position is not None  # filled in above
        return self.position

    def take(self, rows: np.ndarray | slice) -> BanditLog:
        """Some of the rows."""
        return BanditLog(
            self.action[rows],
            self.reward[rows],
            self.propensity[rows],
            self.actions,
            self.place[rows],
            self.positions,
            self.reward_range,
        )

    def at_place(self, values: np.ndarray) -> np.ndarray:
        """What holds at every row's own position.

        Args:
            values: [N, K], the same at every position, or [N, K, P].

        Returns:
            [N, K].

        Raises:
            DataError: The shape fits neither the rows nor the actions nor the positions.
        """
        shapes = ((len(self), self.actions), (len(self), self.actions, self.positions))
        if values.shape not in shapes:
            raise DataError(
                "the shape is not that of the log",
                found=values.shape,
                expected=f"(rows, actions) {shapes[0]} or (rows, actions, positions) {shapes[1]}",
            )
        if values.ndim == 2:
            return values
        picked: np.ndarray = np.take_along_axis(values, self.place[:, None, None], axis=2)[:, :, 0]
        return picked


def find_problems(
    columns: Mapping[str, np.ndarray], actions: int, positions: int = 1, reward_range: tuple[float, float] = (0.0, 1.0)
) -> list[Problem]:
    """The rows that cannot be used.

    Args:
        columns: action, reward, propensity and position, each [N]; what is missing in a column is NaN.
        actions: How many there are.
        positions: How many there are.
        reward_range: What a reward can be.

    Returns:
        One problem a reason, those without a row left out.

    Raises:
        DataError: There is no row, or the columns are not equally long.

    >>> bad = {"action": np.array([0, 1, 9]), "reward": np.array([1, 0, 1]), "position": np.zeros(3)}
    >>> for problem in find_problems(bad | {"propensity": np.array([0.5, 0.0, 0.5])}, actions=2):
    ...     print(problem.what, int(problem.rows.sum()))
    propensity is not above 0 1
    action is out of range 1
    """
    values = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    shapes = {name: column.shape for name, column in values.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise DataError("the columns are not equally long", field="log", found=shapes, expected="one number a row")
    if not len(values["action"]):
        raise DataError("there is no row", field="log", mend="give a log with at least one row")
    action, reward, propensity, position = (values[k] for k in ("action", "reward", "propensity", "position"))
    low, high = reward_range
    checks = (
        ("propensity", "propensity is missing", "a number in (0, 1]", ~np.isfinite(propensity)),
        ("propensity", "propensity is not above 0", "a chance in (0, 1]: what was shown had one", propensity <= 0),
        ("propensity", "propensity is above 1", "a chance in (0, 1]", propensity > 1),
        ("reward", "reward is missing", "a number", ~np.isfinite(reward)),
        ("reward", "reward is out of range", f"{low:g} to {high:g}", (reward < low) | (reward > high)),
        ("action", "action is out of range", f"a whole number from 0 to {actions - 1}", _no_index(action, actions)),
        (
            "position",
            "position is out of range",
            f"a whole number from 0 to {positions - 1}",
            _no_index(position, positions),
        ),
    )
    problems, seen = [], np.zeros(len(action), dtype=bool)
    for role, what, expected, rows in checks:
        new = rows & ~seen
        seen |= rows
        if new.any():
            problems.append(Problem(role, what, expected, new, values[role][new][0].item()))
    return problems


def raise_if_any(problems: Sequence[Problem], names: Mapping[str, str] | None = None) -> None:
    """Turns the first problem into an error.

    Args:
        problems: Of `find_problems`.
        names: Role -> what the column is called where the log comes from.

    Raises:
        DataError: There is a problem.
    """
    if not problems:
        return
    first, rows = problems[0], len(problems[0].rows)
    more = f" (and {len(problems) - 1} more kinds of bad rows)" if len(problems) > 1 else ""
    raise DataError(
        f"{first.what} in {int(first.rows.sum()):,} of {rows:,} rows{more}",
        field=(names or {}).get(first.role, first.role),
        found=first.found,
        expected=first.expected,
        mend="mend the log, or leave these rows out, which is counted",
    )


def _no_index(values: np.ndarray, count: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        wrong: np.ndarray = ~((values >= 0) & (values < count) & (values == np.floor(values)))
    return wrong
