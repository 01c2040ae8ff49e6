"""What a user says about the embedding table: its kind, width, rows, chunks a feature, exact fields
and hot ids."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from features.validation import Strict
from recsys.embeddings.formats import SHARED_INT8, FormatName
from recsys.embeddings.kernel import KernelName

MOST_CHUNKS = 64
Chunks = Annotated[int, Field(ge=0, le=MOST_CHUNKS)]


class ChunksConfig(Strict):
    """How many rows of the table each feature looks up; its width is that number times the table's width."""

    default: Chunks = 1
    """Chunks of every feature not named below."""
    features: dict[str, Chunks] = Field(default_factory=dict)
    """Chunks by feature name; 0 drops the feature."""

    def of(self, feature: str) -> int:
        """The number of chunks of one feature."""
        return self.features.get(feature, self.default)


class ExactConfig(Strict):
    """Which fields get a row of their own for every value seen in training."""

    max_values: int = Field(64, ge=0)
    """A field with at most this many distinct training values is exact; 0 makes none exact by size."""
    features: dict[str, bool] = Field(default_factory=dict)
    """Overrides the rule for a feature: true makes it exact, false keeps it hashed."""

    def of(self, feature: str, values: int) -> bool:
        """Whether a feature with this many distinct training values is exact."""
        return self.features.get(feature, 0 < values <= self.max_values)


class HotConfig(Strict):
    """Rows of their own for the ids of giant fields that earn them in training."""

    slots: int = Field(0, ge=0, lt=2**28)
    """Ids that own rows, over all features that are neither exact nor named below: each gets as many slots as it has
    ids among so many most frequent ones of the training split, rounded up to a multiple of 8."""
    features: dict[str, Annotated[int, Field(ge=1, lt=2**28)]] = Field(default_factory=dict)
    """Feature name -> how many of its ids own rows, rounded up to a multiple of 8; a slot costs the feature's chunks
    and 4 bytes."""
    start: Literal["counts", "empty"] = "counts"
    """counts: the most frequent ids of the training split own the slots at first; empty: nobody does."""
    half_life: int = Field(1000, ge=1, lt=2**31)
    """Steps after which evidence for an id counts half; shorter follows drift sooner, longer chooses better."""
    expire: int | None = Field(None, ge=1)
    """Steps without a sight of it after which an owner loses its slot; never when left out (it can still be beaten)."""


class EmbeddingConfig(Strict):
    """The embedding table of a model."""

    kind: Literal["multiplexed", "hashed", "collisionless"] = "multiplexed"
    """multiplexed: all features hash into one shared region; hashed: every feature hashes into rows of its own;
    collisionless: every value seen in training has a row, unseen values share one row a feature."""
    width: int = Field(16, ge=1, le=1024)
    """Values in a row."""
    format: FormatName = "fp32"
    """How a row is stored, trained and served: fp32, bf16, fp16, or int8, int4 and int2 codes with a scale a row."""
    rows: int = Field(100_000, ge=1, lt=2**31)
    """Rows that ids hash into: the shared region, or for `hashed` the rows of all features, one each at least."""
    split: Literal["proportional", "sqrt", "equal"] = "proportional"
    """How `hashed` divides its rows: by the number of distinct values, by its square root, or evenly."""
    chunks: ChunksConfig = ChunksConfig()
    """Lookups a feature."""
    exact: ExactConfig = ExactConfig()
    """Fields with a row a value."""
    hot: HotConfig = HotConfig()
    """Rows of their own for the head of giant fields."""
    hash_seed: int = Field(0, ge=0, lt=2**32)
    """Another seed draws all hashes anew; small tables differ by some .001 AUC from one draw to another."""
    init_scale: float = Field(0.05, gt=0)
    """Rows start uniform in [-init_scale, init_scale]."""
    kernel: KernelName = "auto"
    """What computes lookups and updates; auto: the fastest on a CPU, which is numba."""

    @field_validator("format", mode="before")
    @classmethod
    def _is_trained(cls, value: object) -> object:
        if value == SHARED_INT8:
            raise ValueError(f"a format that can be trained, such as int8; `recsys convert` makes {value} of the model")
        return value
