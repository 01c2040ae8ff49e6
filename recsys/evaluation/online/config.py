"""How predictions and labels that come in over time are joined, cut into windows and watched."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from features.times import Length, length_of
from features.validation import Strict


class AlarmConfig(Strict):
    """When a change is an alarm."""

    level: float = Field(0.01, gt=0, lt=1)
    """Chance of a false alarm in a window where nothing changed; all detectors of all models share it."""
    memory: int = Field(8, ge=1, le=1000)
    """Windows before the newest one that it is held against."""
    min_rows: int = Field(200, ge=1)
    """A window with fewer rows of a model is measured, but not watched for drift."""
    smallest_change: float = Field(0.05, ge=0)
    """A change below this is none, however sure: of a prediction relative to its mean, of an input as a share."""
    psi: float = Field(0.25, gt=0)
    """Population stability index, above what as many rows give by chance, from which on it is an alarm."""


class ChallengerConfig(Strict):
    """How traffic is split between a champion and a challenger."""

    share: float | None = Field(None, gt=0, lt=1)
    """Of the requests that the challenger answers, as the server was told (`--challenger-share`). None: it is not
    known, and no difference can be claimed."""
    effect: float | None = Field(None, gt=0, lt=1)
    """The difference of label rates that is worth seeing; a tenth of the first window's rate if None."""


class OnlineConfig(Strict):
    """Lengths of time are a number and s, m, h, d or w."""

    window: Length = "1h"
    """Length of a window of event time; windows begin at whole multiples of it since 1970-01-01 UTC."""
    max_delay: Length = "1h"
    """A label counts if it comes within this time after its prediction."""
    max_lead: Length = "0s"
    """A label may be earlier than its prediction by this much, since the clocks of two machines differ."""
    lateness: Length = "5m"
    """How far the rows of one log may be out of order; a row further behind is late and is left out."""
    max_jump: Length = "1d"
    """A row that is ahead of its log by more than this is left out."""
    believed_after: int = Field(100, ge=1)
    """So many rows ahead of the log one after the other are believed: the log was silent for a while."""
    unlabelled: Literal["negative", "missing"] = "negative"
    """What a prediction is whose label did not come in time: a negative (clicks are logged, their absence is not), or
    left out of the metrics."""
    alarms: AlarmConfig = AlarmConfig()
    """Drift."""
    challenger: ChallengerConfig = ChallengerConfig()
    """Split traffic."""

    @field_validator("window")
    @classmethod
    def _some_length(cls, value: str) -> str:
        if not length_of(value):
            raise ValueError("a window has some length, such as 1h")
        return value
