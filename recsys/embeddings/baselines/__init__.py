"""Published ways to make embedding tables small: for comparison at equal bytes, not for users' models."""

from recsys.embeddings.baselines.base import BaselineConfig, BaselineEmbedding
from recsys.embeddings.baselines.frequency import FrequencySplitEmbedding
from recsys.embeddings.baselines.quotient_remainder import QuotientRemainderEmbedding
from recsys.embeddings.baselines.robe import RobeEmbedding

__all__ = [
    "BaselineConfig",
    "BaselineEmbedding",
    "FrequencySplitEmbedding",
    "QuotientRemainderEmbedding",
    "RobeEmbedding",
]
