"""How many ids of a batch the model never saw in training, for the features whose values are all indexed."""

from __future__ import annotations

import numpy as np
import torch

from features.batch import Batch
from features.fingerprint import NULL_FINGERPRINT
from recsys.embeddings.addressing import exact_key
from recsys.models.ctr import CTRModel


class UnseenIds:
    """Counts unseen ids of the single-valued features in the exact region; others share rows and know no vocabulary.

    Args:
        model: The model.
    """

    def __init__(self, model: CTRModel) -> None:
        plan, keys = model.plan, model.embedding.exact_keys
        self._seed, self._bits = plan.hash_seed, 32 if keys.dtype == torch.int32 else 64
        self._features = [
            (place, f.name, keys[f.exact_start : f.exact_start + f.values].numpy())
            for place, f in enumerate(f for f in plan.features if not f.bag)
            if f.region == "exact" and f.values > 0
        ]

    @property
    def features(self) -> list[str]:
        """The features that are counted."""
        return [name for _, name, _ in self._features]

    def count(self, batch: Batch) -> dict[str, tuple[int, int]]:
        """By feature: how many values there are, missing ones aside, and how many of them are unseen."""
        counts = {}
        for place, name, known in self._features:
            ids = batch.ids[:, place]
            ids = ids[ids != NULL_FINGERPRINT]
            keys = exact_key(name, ids, self._bits, self._seed).numpy()
            found = known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys
            counts[name] = (len(keys), len(keys) - int(found.sum()))
        return counts
