"""What an engine offers, and the one that needs nothing: one piece after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Works off pieces, here or elsewhere."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Yields what `function` gives for each item, in the order of the items.

        Args:
            function: May be called in another process, and twice for one item if that process dies: what it writes
                must be the same each time and get its name when it is whole.
            items: What it is called with.

        Raises:
            RecsysError: `function` raised it, for the first of the items for which it did.
        """
        ...


class LocalEngine:
    """One item after the other, when its result is asked for."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """See `Engine`."""
        return map(function, items)


LOCAL = LocalEngine()
"""The engine of this process."""
