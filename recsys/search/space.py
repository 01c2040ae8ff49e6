"""What a search chooses among: a short list of chunk counts for every feature, and what a choice costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from features.errors import ConfigError, unknown_name
from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.config import ChunksConfig
from recsys.embeddings.plan import IdCounts
from recsys.search.config import SearchConfig

Genes = np.ndarray
"""[F] int64: for every feature the place of its chunk count in its list; several are [N, F]."""


@dataclass(frozen=True)
class SearchFeature:
    """One feature that can have more or fewer chunks."""

    name: str
    levels: tuple[int, ...]
    """Chunk counts to choose among, ascending."""
    values_per_row: float = 1.0
    """Mean number of values in a row; other than 1 for bags, each of whose values is looked up."""
    bytes_per_chunk: int = 0
    """Bytes of the table that a chunk takes beside the shared rows: exact and hot ones."""
    index_bytes: int = 0
    """Bytes of its exact and its hot index, which it has with any chunk."""


@dataclass(frozen=True)
class SearchSpace:
    """All allocations that a search may propose.

    >>> space = SearchSpace((SearchFeature("user", (0, 1, 2, 4)), SearchFeature("tags", (0, 1), 3.0)))
    >>> genes = np.array([3, 1])
    >>> space.allocation(genes), float(space.lookups(genes))
    ({'user': 4, 'tags': 1}, 7.0)
    """

    features: tuple[SearchFeature, ...]
    needs_a_chunk: bool = False
    """Whether the model would have no input without any chunk."""
    shared_bytes: int = 0
    """Bytes of the table that no allocation changes."""

    @property
    def names(self) -> list[str]:
        """The features, in order."""
        return [f.name for f in self.features]

    @property
    def sizes(self) -> np.ndarray:
        """[F] int64: how many levels each feature has."""
        return np.array([len(f.levels) for f in self.features])

    @property
    def largest(self) -> Genes:
        """The most chunks everywhere."""
        return self.sizes - 1

    @property
    def thinnest(self) -> Genes:
        """Every feature with the fewest chunks with which it is read; one that can have none is not."""
        return np.array([next((place for place, level in enumerate(f.levels) if level), 0) for f in self.features])

    @property
    def least_lookups(self) -> float:
        """What the cheapest allocation costs."""
        least = self.lookups(np.zeros(len(self.features), np.int64))
        if least or not self.needs_a_chunk:
            return float(least)
        return min(f.levels[1] * f.values_per_row for f in self.features if len(f.levels) > 1)

    def chunks(self, genes: np.ndarray) -> np.ndarray:
        """Chunk counts [..., F] of genes [..., F]."""
        out = np.zeros(genes.shape, np.int64)
        for i, feature in enumerate(self.features):
            out[..., i] = np.array(feature.levels)[genes[..., i]]
        return out

    def lookups(self, genes: np.ndarray) -> np.ndarray:
        """Rows of the table read for one example, on average: [...] of genes [..., F]."""
        return self.lookups_of(self.chunks(genes))

    def lookups_of(self, counts: np.ndarray) -> np.ndarray:
        """The same of chunk counts [..., F], whether they are levels or not."""
        out: np.ndarray = counts @ np.array([f.values_per_row for f in self.features])
        return out

    def supernet_rows(self, rows: int, max_lookups: float | None) -> int:
        """The rows of a supernet's shared region, of which a model within the budget has `rows`.

        In the supernet every feature looks up its most chunks.  In as many rows as the smaller models have, each would
        be shared by more ids than there, and features that stand in for each other would be judged by their
        collisions: the supernet has as many times the rows as it has lookups, a whole number.

        Args:
            rows: of the models it stands for.
            max_lookups: the budget; without one, the mean of the levels of every feature.
        """
        middle = [float(np.mean(f.levels)) for f in self.features]
        typical = max_lookups if max_lookups is not None else float(self.lookups_of(np.array(middle)))
        times = round(float(self.lookups(self.largest)) / typical)
        return int(min(rows * max(times, 1), 2**31 - 1))

    def bytes_of(self, counts: np.ndarray) -> np.ndarray:
        """Bytes of the table, [...] of chunk counts [..., F]: exact and hot rows grow with them."""
        rows: np.ndarray = counts @ np.array([f.bytes_per_chunk for f in self.features])
        indices: np.ndarray = (counts > 0) @ np.array([f.index_bytes for f in self.features])
        return self.shared_bytes + rows + indices

    def allocation(self, genes: Genes) -> dict[str, int]:
        """The chunks of every feature by name."""
        return dict(zip(self.names, self.chunks(genes).tolist(), strict=True))

    def genes(self, allocation: Mapping[str, int]) -> Genes:
        """The genes of an allocation; a count that a feature cannot have becomes the next smaller one."""
        return np.array(
            [max(np.searchsorted(f.levels, allocation[f.name], "right") - 1, 0) for f in self.features], np.int64
        )

    def random(self, generator: np.random.Generator, number: int) -> np.ndarray:
        """Genes [number, F], every level of a feature as likely as the others."""
        return generator.integers(self.sizes, size=(number, len(self.features)))

    def repair(self, genes: Genes, max_lookups: float | None, generator: np.random.Generator) -> Genes:
        """Genes within the budget: while they cost too much, a feature drawn at random goes down by a level.

        Without a chunk anywhere a feature drawn at random gets its first one, if the model needs one.

        Args:
            genes: left as they are.
            max_lookups: the budget; None for none.
            generator: draws the features.
        """
        out = genes.copy()
        while max_lookups is not None and self.lookups(out) > max_lookups:
            out[generator.choice(np.flatnonzero(out))] -= 1
        if self.needs_a_chunk and not self.chunks(out).any():
            affordable = [
                i
                for i, f in enumerate(self.features)
                if len(f.levels) > 1 and (max_lookups is None or f.levels[1] * f.values_per_row <= max_lookups)
            ]
            out[generator.choice(affordable)] = 1
        return out

    def check_order(self, names: Sequence[str]) -> None:
        """Raises ValueError unless these, a model's features with ids, are the space's in its order."""
        if list(names) != self.names:
            raise ValueError(f"the space has the features {self.names}, the model {list(names)}")

    def check_budget(self, max_lookups: float | None) -> None:
        """Refuses a budget that no allocation meets.

        Raises:
            ConfigError: says the smallest that one does.
        """
        if max_lookups is not None and max_lookups < self.least_lookups:
            raise ConfigError(
                "no allocation is within the budget",
                field="search.max_lookups",
                found=f"{max_lookups:g}",
                expected=f"{np.ceil(self.least_lookups * 100) / 100:g} or more",
                mend="raise it, or let search.levels begin with a smaller number",
            )


def space_of(
    layout: Layout,
    embedding: EmbeddingConfig,
    id_counts: IdCounts,
    config: SearchConfig,
    values_per_row: Mapping[str, float],
) -> SearchSpace:
    """The space of a search over a table.

    Args:
        layout: the features.
        embedding: the table; its chunks are not minded.
        id_counts: distinct training fingerprints of every feature.
        config: names the levels.
        values_per_row: mean number of values in a row of each bag.

    Raises:
        ConfigError: the levels of a feature that is none, or a single allocation to choose from.
    """
    known = (*layout.id_names, *layout.bag_names)
    for name in config.features:
        if name not in known:
            what, field = "there is no such feature with ids", f"search.features.{name}"
            raise unknown_name(what, name, known, field=field, otherwise="remove it")
    one = embedding.model_copy(update={"chunks": ChunksConfig()})
    plan = plan_embedding(layout, one, id_counts)
    features = []
    for f in plan.features:
        exact = f.region == "exact"
        levels = config.features.get(f.name) or levels_of(config.levels, f.values, plan.width, exact)
        own = (f.values if exact else 0) + f.hot_slots
        costs = own * plan.row_bytes, plan.index_bytes_of(f)
        features.append(SearchFeature(f.name, tuple(levels), values_per_row.get(f.name, 1.0), *costs))
    if all(len(f.levels) == 1 for f in features):
        raise ConfigError(
            "there is one allocation to choose from",
            field="search.levels",
            found=list(config.levels),
            expected="two or more numbers of chunks",
        )
    shared = plan.table_bytes - sum(f.bytes_per_chunk + f.index_bytes for f in features)
    return SearchSpace(
        tuple(features), needs_a_chunk=not layout.dense_names and not layout.vector_names, shared_bytes=shared
    )


def uniform(space: SearchSpace, chunks: int) -> Genes:
    """The genes of the same number of chunks everywhere, as far as every feature can have it."""
    return space.genes(dict.fromkeys(space.names, chunks))


def levels_of(levels: Sequence[int], values: int, width: int, exact: bool) -> tuple[int, ...]:
    """The chunk counts worth trying for a feature.

    A field with a row a value spans no more dimensions than it has values: once its width has reached that number,
    further chunks add nothing that the first layer could not do alone.

    >>> levels_of((0, 1, 2, 4, 8), values=21, width=8, exact=True)
    (0, 1, 2, 4)
    >>> levels_of((0, 1, 2, 4, 8), values=21, width=8, exact=False)
    (0, 1, 2, 4, 8)
    """
    if not exact:
        return tuple(levels)
    enough = next((i for i, level in enumerate(levels) if level * width >= values), len(levels) - 1)
    return tuple(levels[: enough + 1])
