"""The event time of a log that is read in the order it was written: how far it is, and which rows cannot be true."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

START = -(2**62)
"""The watermark of a log of which nothing is read; far enough from the ends of int64 to add to it."""
END = 2**62
"""The watermark of a log that is over."""


@dataclass
class Clock:
    """The newest time of a log, row by row, so that it does not matter in what pieces the log is read.

    A row that is more than `max_jump` ahead of all rows before it is not believed and does not move the clock, until
    `believed_after` of them stand one after the other: then the log was silent, and the clock goes to the earliest of
    them.

    Attributes:
        lateness: How far rows may be out of order, in microseconds.
        max_jump: How far a row may be ahead, in microseconds.
        believed_after: Rows ahead in a row that are believed.
        newest: The newest time that is believed; None before the first row.
        ahead: How many rows in a row were ahead, up to now.
        earliest_ahead: The earliest of these.
    """

    lateness: int
    max_jump: int
    believed_after: int
    newest: int | None = None
    ahead: int = 0
    earliest_ahead: int = END

    @property
    def watermark(self) -> int:
        """No row to come is accepted with an earlier time."""
        return START if self.newest is None else self.newest - self.lateness

    def read(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads on.

        Args:
            times: [N] microseconds, in the order of the log.

        Returns:
            For each row whether it jumped ahead, and the watermark it met: a row below it is late.

        >>> clock = Clock(lateness=10, max_jump=100, believed_after=2)
        >>> jumped, watermarks = clock.read(np.array([50, 60, 900, 45, 905, 910]))
        >>> jumped.tolist(), watermarks[1:].tolist(), clock.newest
        ([False, False, True, False, True, False], [40, 50, 50, 50, 50], 910)
        """
        jumped, watermarks = np.zeros(len(times), dtype=bool), np.empty(len(times), dtype=np.int64)
        newest, ahead, earliest = self.newest, self.ahead, self.earliest_ahead
        for place, time in enumerate(times.tolist()):
            watermarks[place] = START if newest is None else newest - self.lateness
            if newest is not None and time > newest + self.max_jump:
                ahead, earliest = ahead + 1, min(earliest, time)
                if ahead < self.believed_after:
                    jumped[place] = True
                    continue
                newest = earliest
                jumped[place] = time > newest + self.max_jump
            ahead, earliest = 0, END
            if not jumped[place]:
                newest = time if newest is None else max(newest, time)
        self.newest, self.ahead, self.earliest_ahead = newest, ahead, earliest
        return jumped, watermarks

    def state(self) -> dict[str, int | None]:
        """Where it stands."""
        return asdict(self)
