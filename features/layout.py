"""Layout: the names and sizes of everything in a Batch, in order.

It is all that a model needs to know about a FeatureSpec.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of the columns of a Batch.

    Attributes:
        id_names: Single-valued id features (F of them): id, bucket, cross, time, recency and
            frequency features in spec order.
        bag_names: Features with a list of ids a row (G of them); the gaps of sequence x are "x:gap", right after it.
        bag_poolings: "sum" or "mean", one a bag.
        dense_names: Numbers (N of them); the missing flag of number x is "x:missing", right after it; cyclic
            feature x is "x:sin" and "x:cos".
        vector_names: Features with a vector a row.
        vector_sizes: Their sizes; V is their sum.
        label_names: Binary tasks (T of them).
        has_weight: Whether a row carries a sample weight.
        has_group: Whether a row carries a group key.
        has_time: Whether a row carries a time.
        has_reference: Whether a row carries a reference probability.
    """

    id_names: tuple[str, ...] = ()
    bag_names: tuple[str, ...] = ()
    bag_poolings: tuple[str, ...] = ()
    dense_names: tuple[str, ...] = ()
    vector_names: tuple[str, ...] = ()
    vector_sizes: tuple[int, ...] = ()
    label_names: tuple[str, ...] = ()
    has_weight: bool = False
    has_group: bool = False
    has_time: bool = False
    has_reference: bool = False

    @property
    def vector_width(self) -> int:
        """V: the width of all vectors side by side."""
        return sum(self.vector_sizes)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Everything that a model reads, by kind."""
        return (*self.id_names, *self.bag_names, *self.dense_names, *self.vector_names)

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict that `json.dumps` takes."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        """Reads what `to_json` wrote.

        Example:
            >>> layout = Layout(id_names=("user",), label_names=("click",))
            >>> Layout.from_json(layout.to_json()) == layout
            True
        """
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**fields)
