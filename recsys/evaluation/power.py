"""How many rows it takes to see a difference, and how small a difference so many rows can show.

Two-sided tests of a mean, by the normal approximation: with rows in the thousands nothing is lost by it.
"""

from __future__ import annotations

import math

from scipy.special import ndtri

LEVEL = 0.05
"""Chance of claiming a difference where there is none."""
POWER = 0.8
"""Chance of claiming a difference where there is one of the planned size."""


def sample_size(deviation: float, effect: float, *, level: float = LEVEL, power: float = POWER) -> int:
    """Rows needed to see a mean difference: `((z_{1 - level/2} + z_power) * deviation / effect)^2`.

    Args:
        deviation: Standard deviation of a row's difference. Of any metric whose standard error on N rows is known it is
            that error times `sqrt(N)`.
        effect: The difference to be seen; its sign does not matter.
        level: Chance of a false claim.
        power: Chance of a true one.

    Raises:
        ValueError: The effect is 0, or level and power are no chances.

    >>> sample_size(deviation=0.2, effect=0.001)
    313956
    """
    if effect == 0 or not math.isfinite(effect):
        raise ValueError("no number of rows shows a difference of 0")
    return max(2, math.ceil((_quantiles(level, power) * deviation / effect) ** 2))


def detectable(deviation: float, rows: float, *, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest mean difference that so many rows show: what `sample_size` asks so many rows for.

    Args:
        deviation: Standard deviation of a row's difference.
        rows: How many there are.
        level: Chance of a false claim.
        power: Chance of a true one.

    >>> round(detectable(deviation=0.2, rows=313_956), 6)
    0.001
    """
    return _quantiles(level, power) * deviation / math.sqrt(rows)


def rates_deviation(rate: float, share: float = 0.5) -> float:
    """Standard deviation, a request, of the difference of two arms' click rates near `rate`.

    With `sample_size` it gives the requests of both arms together.

    Args:
        rate: Of clicks, in (0, 1).
        share: Of the requests that go to one of the arms, in (0, 1).

    >>> sample_size(rates_deviation(rate=0.05), effect=0.005)
    59652
    """
    if not (0 < rate < 1 and 0 < share < 1):
        raise ValueError(f"rate {rate} and share {share} must be between 0 and 1")
    return math.sqrt(rate * (1 - rate) / (share * (1 - share)))


def _quantiles(level: float, power: float) -> float:
    if not (0 < level < 1 and level / 2 < power < 1):
        raise ValueError(f"level {level} and power {power} must be chances, power the larger")
    return float(ndtri(1 - level / 2) + ndtri(power))
