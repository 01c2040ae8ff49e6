"""Names for the places along the axes of a network's parameters.

A parameter of one model is carried into another place by place: two places with the same name mean the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

Axis = Sequence[Hashable]
"""A name for every place, in order."""
Axes = dict[str, tuple[Axis, ...]]
"""Parameter name -> its axes, outputs first."""


def unit_names(layer: str, number: int) -> Axis:
    """The places of a layer whose units have no meaning outside of it.

    >>> unit_names("layer 0", 2)
    [('layer 0', 0), ('layer 0', 1)]
    """
    return [(layer, unit) for unit in range(number)]
