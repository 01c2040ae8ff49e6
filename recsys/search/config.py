"""What a user says about the search for widths."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from features.errors import ConfigError
from features.validation import Strict
from recsys.embeddings.config import Chunks
from recsys.embeddings.formats import FormatName

RecipeName = Literal["mixed", "uniform", "nested", "truncated", "lasso"]


class SupernetConfig(Strict):
    """The one model whose features run with any number of chunks."""

    recipe: RecipeName = "mixed"
    """What a step trains beside or instead of the full model. mixed: it and a random allocation an example, distilled
    from it; uniform: a random level a feature and example alone (OptEmbed); nested: the same level everywhere, every
    level in every step, distilled (Matryoshka, Starbucks); truncated: one feature of each example cut short (Maestro);
    lasso: the full model with a hierarchical group lasso on the chunks of the first layers."""
    distill: float = Field(0.5, ge=0, le=1)
    """Of mixed and nested: weight of the full model's probability in what the smaller ones learn from."""
    rows: int | None = Field(None, ge=1, lt=2**31)
    """`embedding.rows` of its table. Left out, those of the models it stands for, times the lookups of the largest
    allocation over the budget (without one: over those of the mean of every feature's levels), so that as many ids
    share a row of it as of theirs."""
    lasso: float = Field(1e-4, ge=0)
    """Of lasso: its weight in the loss."""
    epochs: int | None = Field(None, ge=1)
    """Most passes over the training split; as `train.epochs` when left out."""


class ThresholdConfig(Strict):
    """Thresholds on the norms of values' vectors, learned with the model."""

    rate: float = Field(1.0, gt=0)
    """Of the plain gradient steps of the thresholds."""
    pressure: float = Field(2e-3, ge=0)
    """Weight of `exp(-threshold)`, summed over features, in the loss: about the nats an example that the values near
    the threshold have to be worth together."""


class SearchConfig(Strict):
    """How many chunks does each feature earn?"""

    method: Literal["supernet", "statistics", "magnitude"] = "supernet"
    """supernet: train it, then evolve allocations on it; statistics: from counts and the norms of the first layer after
    one short training; magnitude: train at the largest widths and keep the chunks of the largest norms."""
    levels: tuple[Chunks, ...] = (0, 1, 2, 4, 8)
    """Chunk counts that a feature may have, ascending."""
    features: dict[str, tuple[Chunks, ...]] = Field(default_factory=dict)
    """Other counts for some features, by name."""
    max_lookups: float | None = Field(None, gt=0)
    """The budget: rows of the table read for one example, on average. Left out, the whole front is searched, quality
    against cost; a front within the budget is searched if `objectives` are named."""
    supernet: SupernetConfig = SupernetConfig()
    """How the supernet is trained."""
    metric: Literal["auc", "logloss"] = "auc"
    """Of the validation split, by which allocations are judged."""
    sample_rows: int = Field(4096, ge=2)
    """Validation rows that candidates are judged on; the best ones are judged again on all of them."""
    objectives: tuple[Literal["lookups", "input_width", "table_bytes"], ...] | None = None
    """What a front sets against quality. lookups: rows read for an example; input_width: numbers from the table that
    the network reads; table_bytes: everything indexed by ids. Left out, it is lookups; and with a budget no front is
    searched, but the best allocation within it."""
    formats: tuple[FormatName, ...] = ()
    """Row formats to choose among, beside the chunks; `embedding.format` alone when left out. A candidate is judged
    with the supernet's rows rounded to its format, and the one chosen is that of the smallest table whose metric is
    within `tolerance` of the best."""
    tolerance: float = Field(0.0005, ge=0)
    """Of a front the allocation chosen is the cheapest whose metric is within this of the best; likewise among
    formats."""
    finalists: int = Field(40, ge=1)
    """How many candidates are judged on all validation rows, of each format."""
    evolution: Literal["elitist", "published"] = "elitist"
    """published: OptEmbed's released loop with its mistakes, for comparison; it knows no budget and no front, and its
    generations have 20 candidates."""
    generations: int = Field(40, ge=1)
    """Generations of the evolution. That of a front begins with the best of six budgets, for each of which a
    quarter as many generations go before."""
    population: int = Field(20, ge=2)
    """Candidates a generation."""
    parents: int = Field(15, ge=1)
    """How many of the best so far have children."""
    mutation: float = Field(0.1, ge=0, le=1)
    """Probability that a feature of a child changes."""
    seed: int = Field(0, ge=0)
    """Seeds the evolution and the validation sample."""

    @model_validator(mode="after")
    def _ascending(self) -> SearchConfig:
        for field, levels in (("levels", self.levels), *((f"features.{n}", own) for n, own in self.features.items())):
            if not levels or list(levels) != sorted(set(levels)):
                raise ConfigError(
                    "not ascending numbers of chunks",
                    field=f"search.{field}",
                    found=list(levels),
                    expected="such as [0, 1, 2, 4, 8]",
                )
        return self

    @model_validator(mode="after")
    def _candidates_are_judged(self) -> SearchConfig:
        judged = self.method == "supernet" and self.evolution == "elitist"
        for field, what in (("formats", "are judged in several formats"), ("objectives", "make a front")):
            named = getattr(self, field)
            if named and not judged:
                raise ConfigError(
                    f"only a supernet's candidates {what}",
                    field=f"search.{field}",
                    found=f"search.method {self.method}, search.evolution {self.evolution}",
                    mend=f"leave {field} out, or set method to supernet and evolution to elitist",
                )
            if len(set(named or ())) < len(named or ()):
                raise ConfigError(f"one of the {field} is named twice", field=f"search.{field}", found=list(named))
        if self.objectives == ():
            raise ConfigError(
                "a front needs something to set against quality",
                field="search.objectives",
                found=[],
                expected="some of lookups, input_width and table_bytes",
                mend="name one, or leave it out",
            )
        return self

    @model_validator(mode="after")
    def _published_has_no_budget(self) -> SearchConfig:
        if self.evolution == "published" and self.max_lookups is not None:
            raise ConfigError(
                "the published loop knows no budget",
                field="search.max_lookups",
                found=self.max_lookups,
                mend="set it to null, or search.evolution to elitist",
            )
        return self

    @property
    def for_front(self) -> bool:
        """Whether allocations of all costs are searched, and not the best one within a budget."""
        return self.max_lookups is None or self.objectives is not None

    @property
    def costs(self) -> tuple[str, ...]:
        """What a front sets against quality."""
        return self.objectives or ("lookups",)
