"""Fingerprints -> rows -> vectors: addressing, the plan of the table, its kernels and the embedding module."""

from recsys.embeddings.addressing import HASH_VERSION
from recsys.embeddings.config import ChunksConfig, EmbeddingConfig, ExactConfig
from recsys.embeddings.kernel import make_table
from recsys.embeddings.multiplexed import MultiplexedEmbedding
from recsys.embeddings.plan import EmbeddingPlan, FeaturePlan, plan_embedding
from recsys.embeddings.table import Table, TableOptimizer

__all__ = [
    "HASH_VERSION",
    "ChunksConfig",
    "EmbeddingConfig",
    "EmbeddingPlan",
    "ExactConfig",
    "FeaturePlan",
    "MultiplexedEmbedding",
    "Table",
    "TableOptimizer",
    "make_table",
    "plan_embedding",
]
