"""What the network reads of a few examples, in one compiled call (see `recsys.embeddings.numba_lookup`)."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch

from features.batch import Batch
from features.errors import ArtifactError, DataError
from recsys.embeddings import numba_lookup as kernel
from recsys.embeddings.addressing import COLUMN, TOLD, WAYS, Addresser
from recsys.embeddings.kept import KeptRows, words_of
from recsys.embeddings.numba_table import bits_or_step, typed
from recsys.embeddings.plan import EmbeddingPlan
from recsys.models.ctr import CTRModel


class NetworkInputs:
    """`CTRModel.inputs_of`, to the bit, for models that are served.

    Args:
        model: trained; later changes of its table are seen (not of a master copy), those of its plan are not.

    Raises:
        ArtifactError: the plan leads outside of the table or of an index.
    """

    def __init__(self, model: CTRModel) -> None:
        embedding, plan, layout = model.embedding, model.plan, model.layout
        check_addresses(plan, embedding.kept)
        self._layout = layout
        self._width = model.network.input_width
        bags = [cast(Addresser, address).lookups.copy() for address in embedding.address_bags]
        for number, lookups in enumerate(bags):
            lookups[:, COLUMN] = number
        kept = embedding.kept
        self._fixed = (
            typed(embedding.table.stored(), embedding.table.format),
            bits_or_step(embedding.table.format),
            np.uint64(plan.width),
            embedding.address.lookups,
            np.concatenate([*bags, np.empty((0, TOLD), np.uint64)]),
            np.array([pooling == "mean" for pooling in layout.bag_poolings], bool),
            embedding.exact_keys.numpy(),
            embedding.hot_keys.numpy(),
            kept.words.numpy() if kept is not None else np.empty(0, np.int64),
            kept.before.numpy() if kept is not None else np.empty(0, np.int32),
            kept.left if kept is not None else 0,
        )

    def __call__(self, batch: Batch) -> torch.Tensor:
        """[B, I] fp32 of a batch that has the layout's shapes (see `check`)."""
        out = np.empty((len(batch), self._width), np.float32)
        kernel.look_up(
            *self._fixed,
            batch.ids.numpy(),
            batch.bag_values.numpy(),
            batch.bag_lengths.numpy(),
            batch.dense.numpy(),
            batch.vectors.numpy(),
            out,
        )
        return torch.from_numpy(out)

    def check(self, batch: Batch) -> Batch:
        """The batch, its tensors contiguous.

        Raises:
            DataError: it was encoded for another model.
        """
        layout, rows = self._layout, len(batch)
        wanted = {
            "ids": (torch.int64, (rows, len(layout.id_names))),
            "bag_values": (torch.int64, (int(batch.bag_lengths.sum()),)),
            "bag_lengths": (torch.int64, (len(layout.bag_names), rows)),
            "dense": (torch.float32, (rows, len(layout.dense_names))),
            "vectors": (torch.float32, (rows, layout.vector_width)),
        }
        tensors = {}
        for name, (dtype, shape) in wanted.items():
            tensor = getattr(batch, name)
            if tensor.dtype != dtype or tuple(tensor.shape) != shape:
                raise DataError(
                    "the batch was encoded for another model",
                    field=name,
                    found=f"{tensor.dtype} {tuple(tensor.shape)}",
                    expected=f"{dtype} {shape}",
                    mend="encode the rows with the pipeline of this model",
                )
            tensors[name] = tensor.contiguous()
        if len(layout.bag_names) and rows and int(batch.bag_lengths.min()) < 0:
            raise DataError("a bag has fewer than no values", field="bag_lengths", found=int(batch.bag_lengths.min()))
        return Batch(**tensors)


def check_addresses(plan: EmbeddingPlan, kept: KeptRows | None) -> None:
    """Refuses a plan that leads outside of the table: the compiled lookup looks at no bounds.

    Raises:
        ArtifactError: it does, or the index of the rows that pruning left contradicts itself.
    """
    reach = plan.rows
    if kept is not None:
        counts = np.bitwise_count(kept.words.numpy().view(np.uint64)).astype(np.int64)
        before = np.cumsum(counts) - counts
        intact = kept.left < plan.rows and int(counts.sum()) == kept.left and len(counts) == words_of(kept.rows)
        if not intact or (before != kept.before.numpy()).any():
            raise ArtifactError("the index of the rows that pruning left is damaged", field="kept_words")
        reach = kept.rows
    for f in (f for f in plan.features if f.chunks):
        own = [(f.exact_base, f.exact_start, f.values, len(plan.exact_keys))] if f.region == "exact" else []
        own += [(f.hot_base, f.hot_start, f.hot_slots, len(plan.hot_keys))] if f.hot_slots else []
        inside = f.base >= 0 and 1 <= f.span < 2**31 and f.base + f.span <= reach and f.chunks > 0
        for base, start, size, entries in own:
            inside &= min(base, start, size) >= 0
            inside &= base + size * f.chunks <= plan.rows and start + size <= entries
        if not inside or len(own) > 1 or f.hot_slots % WAYS or f.hot_start % WAYS:
            raise ArtifactError(
                "the plan leads outside of the table",
                field=f.name,
                found=f"{plan.rows:,} rows, {f}",
                mend="register the model again",
            )
