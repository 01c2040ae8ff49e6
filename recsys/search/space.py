"""What a search chooses among: a short list of chunk counts for every feature, and what a choice costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from features.errors import ConfigError, list_names, unknown_name
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
    suffices: bool = True
    """Whether a chunk of it is enough for a model that needs one."""


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
    """Whether there is no model unless one of the features that suffice has a chunk."""

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
        least = np.zeros(len(self.features), np.int64)
        if not self.lacks_a_chunk(least):
            return float(self.lookups(least))
        return min(self._first_chunks().values())

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

    def lacks_a_chunk(self, genes: Genes) -> bool:
        """Whether there is no model with this allocation."""
        return self.needs_a_chunk and not self.chunks(genes)[[f.suffices for f in self.features]].any()

    def owed(self, genes: Genes) -> float:
        """Lookups that have to be left for the chunk without which there is no model; 0 once it is there."""
        nothing = np.zeros(len(self.features), np.int64)
        return self.least_lookups - float(self.lookups(nothing)) if self.lacks_a_chunk(genes) else 0.0

    def allocation(self, genes: Genes) -> dict[str, int]:
        """The chunks of every feature by name."""
        return dict(zip(self.names, self.chunks(genes).tolist(), strict=True))

    def genes(self, allocation: Mapping[str, int]) -> Genes:
        """The genes of an allocation; a count that a feature cannot have becomes the next smaller one, or its first
        level if there is none."""
        return np.array(
            [max(np.searchsorted(f.levels, allocation[f.name], "right") - 1, 0) for f in self.features], np.int64
        )

    def random(self, generator: np.random.Generator, number: int) -> np.ndarray:
        """Genes [number, F], every level of a feature as likely as the others."""
        return generator.integers(self.sizes, size=(number, len(self.features)))

    def repair(self, genes: Genes, max_lookups: float | None, generator: np.random.Generator) -> Genes:
        """Genes within the budget: while they cost too much, a feature drawn at random goes down by a level.

        Without a chunk that the model needs, a feature drawn at random among those that suffice gets its first one.

        Args:
            genes: left as they are.
            max_lookups: the budget; None for none.
            generator: draws the features.
        """
        out = genes.copy()
        free = np.ones(len(out), bool)

        def lower() -> None:
            while max_lookups is not None and self.lookups(out) > max_lookups:
                out[generator.choice(np.flatnonzero(out * free))] -= 1

        lower()
        if self.lacks_a_chunk(out):
            costs = self._first_chunks()
            first = generator.choice([i for i, cost in costs.items() if max_lookups is None or cost <= max_lookups])
            out[first], free[first] = 1, False
            lower()
        return out

    def _first_chunks(self) -> dict[int, float]:
        """The features whose first chunk is enough, and what the cheapest allocation with it costs."""
        enough = [i for i, f in enumerate(self.features) if f.suffices and len(f.levels) > 1]
        alone = np.eye(len(self.features), dtype=np.int64)
        return {i: float(self.lookups(alone[i])) for i in enough}

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
        ConfigError: the levels of a feature that is none, a single allocation to choose from, or no feature for the
            hot slots in any.
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
        suffices = not embedding.hot.slots or not (exact or f.name in embedding.hot.features)
        features.append(SearchFeature(f.name, tuple(levels), values_per_row.get(f.name, 1.0), suffices))
    if all(len(f.levels) == 1 for f in features):
        raise ConfigError(
            "there is one allocation to choose from",
            field="search.levels",
            found=list(config.levels),
            expected="two or more numbers of chunks",
        )
    if embedding.hot.slots and not any(f.suffices and f.levels[-1] for f in features):
        raise ConfigError(
            "no allocation has a feature whose ids could be hot",
            field="search.levels",
            found=f"0 alone for {list_names([f.name for f in features if f.suffices])}",
            mend="give one of them other levels, or leave embedding.hot.slots out",
        )
    needs_a_chunk = bool(embedding.hot.slots) or not (layout.dense_names or layout.vector_names)
    return SearchSpace(tuple(features), needs_a_chunk)


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
