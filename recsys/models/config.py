"""What a user says about the network above the embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from features.validation import Strict


class ModelConfig(Strict):
    """The interaction between features, and the head."""

    interaction: Literal["mlp", "dcn", "dcnv2", "fm", "ipnn"] = "dcnv2"
    """mlp: a feed-forward network alone; dcn and dcnv2: a cross network beside it; fm: a factorisation machine beside
    it, which is DeepFM (alone if `hidden` is empty); ipnn: it also reads the inner products of all pairs of id
    features."""
    cross_layers: int = Field(2, ge=1, le=16)
    """Cross layers of dcn and dcnv2."""
    low_rank: int | None = Field(None, ge=1)
    """Rank of dcnv2's cross matrices; full when left out."""
    structure: Literal["parallel", "stacked"] = "parallel"
    """Of dcn and dcnv2. parallel: cross network and feed-forward network side by side; stacked: the second reads the
    first."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (256, 128)
    """Units of each layer of the feed-forward network; empty leaves it out."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of hidden units dropped in training."""
