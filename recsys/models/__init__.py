"""CTR models: embeddings, an interaction, a head."""

from recsys.models.config import ModelConfig
from recsys.models.ctr import CTRModel

__all__ = ["CTRModel", "ModelConfig"]
