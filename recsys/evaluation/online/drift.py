"""Drift alarms of one model: has a signal's mean moved, has a distribution left the reference's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import chi2

from features.storage.drift import psi
from recsys.evaluation.online.config import AlarmConfig
from recsys.evaluation.online.reference import PREDICTION, Reference, watched
from recsys.evaluation.online.signals import CALIBRATION, SLOPE, block_means, signals

_OF_THE_MODEL = (PREDICTION, CALIBRATION, SLOPE)
_SPAN = 6.0
"""Standard deviations of a block that ADWIN's range of 0 to 1 spans."""


@dataclass(frozen=True)
class Alarm:
    """A change that is too large for chance."""

    signal: str
    """What changed: `prediction`, `calibration`, `calibration slope` or an input."""
    kind: str
    """`mean` (ADWIN: before and now are means) or `distribution` (PSI against the reference)."""
    before: float | None
    now: float
    limit: float
    """Of a mean: the smallest change that counts; of a distribution: the PSI that does."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


class DriftWatch:
    """Watches the windows of one model.

    Means: ADWIN (Bifet and Gavalda, "Learning from time-changing data with adaptive windowing", SDM 2007; river's
    implementation) reads the block means of the windows in memory and of the newest one, stretched so that their spread
    fills its range. It looks at every point in time for a cut between two different means; the newest window in which
    there is one begins a new memory.

    Distributions: the population stability index of the window against the reference is an alarm if it is above
    `psi` and above what chance gives, by its limit law: `psi / (1 / n + 1 / m)` is chi-squared with a degree of freedom
    less than there are buckets. It is told once, and again only after the index was below half of `psi`.

    A window's chance of a false alarm is divided by the number of all detectors: each has `level / detectors`.

    Args:
        config: Levels.
        reference: What to begin with; the first window that has enough rows when left out.
    """

    def __init__(self, config: AlarmConfig, reference: Reference | None = None) -> None:
        self.config = config
        self.reference = reference
        self._memory: dict[str, list[np.ndarray]] = {}
        self._gone: set[str] = set()

    def detectors(self) -> int:
        """How many share the level; 1 before there is a reference."""
        if self.reference is None:
            return 1
        numbers = len(self.reference.edges) - 1
        return len(_OF_THE_MODEL) + 2 * len(self.reference.counts) - 1 + numbers

    def update(self, rows: pl.DataFrame, detectors: int) -> tuple[list[Alarm], dict[str, float]]:
        """Looks at the next window.

        Args:
            rows: `key`, `probability`, inputs, and `label` without nulls.
            detectors: How many detectors there are, over all models.

        Returns:
            The alarms, and the PSI above chance by name; nothing of a window with too few rows.
        """
        if rows.height < self.config.min_rows:
            return [], {}
        first = self.reference is None
        if self.reference is None:
            self.reference = Reference.of(rows)
        level = self.config.level / detectors
        alarms = self._means(rows, level, first)
        if first:
            return alarms, {}
        more, stability = self._distributions(rows, level)
        return alarms + more, stability

    def state(self) -> dict[str, Any]:
        """All there is to go on from, as plain values."""
        memory = {name: [window.tolist() for window in windows] for name, windows in self._memory.items()}
        reference = None if self.reference is None else self.reference.to_json()
        return {"reference": reference, "memory": memory, "gone": sorted(self._gone)}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        self.reference = None if values["reference"] is None else Reference.from_json(values["reference"])
        self._memory = {name: [np.array(w) for w in windows] for name, windows in values["memory"].items()}
        self._gone = set(values["gone"])

    def _means(self, rows: pl.DataFrame, level: float, first: bool) -> list[Alarm]:
        assert self.reference is not None
        alarms, keys = [], rows["key"].to_numpy()
        for name, values in signals(rows, self.reference).items():
            if first and name not in _OF_THE_MODEL:
                # The reference's own rows lie in its buckets as no others do.
                continue
            now = block_means(values, keys)
            memory = self._memory.get(name, [])
            alarm = self._moved(name, memory, now, float(values.mean()), level) if memory else None
            self._memory[name] = [now] if alarm else [*memory, now][-self.config.memory :]
            alarms += [alarm] if alarm else []
        return alarms

    def _moved(self, name: str, memory: list[np.ndarray], newest: np.ndarray, now: float, level: float) -> Alarm | None:
        old = np.concatenate(memory)
        before = float(old.mean())
        unit = self._level_of_predictions() if name in _OF_THE_MODEL else 1.0
        smallest = self.config.smallest_change * unit * _SCALE.get(name, 1.0)
        if abs(now - before) < smallest or not adwin_finds(old, newest, level):
            return None
        return Alarm(name, "mean", before, now, smallest)

    def _level_of_predictions(self) -> float:
        return float(np.mean(np.concatenate(self._memory[PREDICTION])))

    def _distributions(self, rows: pl.DataFrame, level: float) -> tuple[list[Alarm], dict[str, float]]:
        assert self.reference is not None
        alarms, found = [], {}
        for name, values in watched(rows).items():
            if name not in self.reference.counts:
                continue
            before, now = self.reference.counts[name], self.reference.count(name, values)
            if not before.sum():
                continue
            index, freedom = psi(before, now), len(now) - 1
            noise = 1 / before.sum() + 1 / now.sum()
            found[name] = index - freedom * noise
            gone = found[name] > self.config.psi and chi2.sf(index / noise, freedom) < level
            if gone and name not in self._gone:
                alarms.append(Alarm(name, "distribution", None, found[name], self.config.psi))
            if gone:
                self._gone.add(name)
            elif found[name] < self.config.psi / 2:
                self._gone.discard(name)
        return alarms, found


_SCALE = {CALIBRATION: 0.5, SLOPE: 1 / 16}
"""How much of a unit of probability (or probability times log-odds) a signal shows."""


def adwin_finds(old: np.ndarray, newest: np.ndarray, delta: float) -> bool:
    """Whether ADWIN finds two different means in the block means of the windows before and of the newest one.

    Args:
        old: [M] in the order of time.
        newest: [N] those after them.
        delta: ADWIN's bound of a false alarm.

    >>> rng = np.random.default_rng(0)
    >>> old, newest = rng.normal(0.5, 0.02, 256), rng.normal(0.5, 0.02, 256)
    >>> adwin_finds(old, newest, 0.001), adwin_finds(old, newest + 0.02, 0.001)
    (False, True)
    """
    from river.drift import ADWIN  # takes a second to import

    # What never varied may not make the least change infinitely large.
    spread = max(float(old.std()), 1e-4)
    values = (0.5 + (np.concatenate([old, newest]) - old.mean()) / (_SPAN * spread)).clip(0, 1)
    # Looking at every fourth block and not every 32nd: a small window has few, and all of them must count.
    detector = ADWIN(delta=delta, clock=4)
    found = False
    for value in values.tolist():
        detector.update(value)
        found |= bool(detector.drift_detected)
    return found
