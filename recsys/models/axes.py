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


def pair_name(first: str, second: str, chunk: int) -> Hashable:
    """The place of a product between two features' chunks, whichever of them is named first.

    >>> pair_name("user", "item", 0) == pair_name("item", "user", 0)
    True
    """
    return frozenset({first, second}), chunk


def features_of(place: Hashable) -> frozenset[str]:
    """The features a place belongs to, if any; a number's missing flag belongs to the number.

    >>> features_of(("price:missing",)), sorted(features_of(pair_name("user", "item", 0)))
    (frozenset({'price'}), ['item', 'user'])
    """
    if not isinstance(place, tuple):
        return frozenset()
    owner = place[0]
    return owner if isinstance(owner, frozenset) else frozenset({str(owner).partition(":")[0]})
