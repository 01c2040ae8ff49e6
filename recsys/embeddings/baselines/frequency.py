"""Frequency split (adaptive embedding of DeepRec; AdaptEmb in arXiv 2311.15578): own rows for the frequent ids."""

from __future__ import annotations

from torch import Tensor

from features.layout import Layout
from recsys.embeddings.addressing import Addresser, Lookup, Segment
from recsys.embeddings.baselines.base import KEY_BYTES, BaselineConfig, BaselineEmbedding, distinct_values
from recsys.embeddings.plan import IdCounts, exact_index, head_of


class FrequencySplitEmbedding(BaselineEmbedding):
    """The ids seen most often in training, over all features, have rows of their own; the rest hash.

    Who is frequent is counted once, before training.  A feature's other ids hash into rare rows of that feature alone;
    the rare rows are divided among the features by their number of other ids, at least one each.

    Args:
        layout: the features.
        id_counts: distinct training fingerprints of every feature, and how often each was seen.
        budget: bytes of rows and of the index of frequent ids.
        config: the width D, seeds, the optimizer.
        frequent: share of the budget that goes to frequent ids.

    Raises:
        ValueError: the budget has no rare row for every feature, or there are bags.
    """

    def __init__(
        self, layout: Layout, id_counts: IdCounts, budget: int, config: BaselineConfig, *, frequent: float = 0.9
    ) -> None:
        values = distinct_values(layout, id_counts)
        row_bytes = config.width * 4
        own_bytes = row_bytes + KEY_BYTES
        own = head_of(id_counts, list(values), int(budget * frequent) // own_bytes)
        own_rows = sum(len(fingerprints) for fingerprints in own.values())
        rare_rows = (budget - own_rows * own_bytes) // row_bytes
        if rare_rows < len(values):
            raise ValueError(f"{budget:,} bytes leave {rare_rows} rare rows for {len(values)} features")
        rare = {name: n - len(own[name]) for name, n in values.items()}
        spare, total = rare_rows - len(values), max(sum(rare.values()), 1)
        lookups, end, entries = {}, own_rows, 0
        for name in sorted(values):
            span = 1 + spare * rare[name] // total
            segment = Segment(entries, len(own[name]), entries, 1) if len(own[name]) else None
            lookups[name] = Lookup(list(values).index(name), name, 0, end, span, segment)
            end, entries = end + span, entries + len(own[name])
        super().__init__(end, config.width, len(values) * config.width, exact_index(own, config.hash_seed), config)
        self.address = Addresser([lookups[name] for name in values], config.hash_seed)

    def forward(self, ids: Tensor, bag_values: Tensor, bag_lengths: Tensor) -> Tensor:
        rows = self.address(ids, self.exact_keys, self.hot_keys)
        vectors: Tensor = self.table(rows.flatten())
        return vectors.view(len(ids), self.output_width)
