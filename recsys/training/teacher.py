"""Distillation: a student learns from a trained model beside the labels (Hinton et al., 2015)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from features.batch import Batch
from features.errors import ConfigError, list_names
from features.layout import Layout
from features.loading.relayout import missing_features, relayout
from recsys.models.ctr import CTRModel


class Teacher:
    """A trained model that says how likely each label of a batch was.

    Args:
        model: trained; put into evaluation mode and never changed.
        layout: of the batches that come; it must have what the model reads.
        share: weight of the model's probability in what is learned, in (0, 1]; the label has the rest.

    Raises:
        ConfigError: the batches lack a feature that the model reads, or they have no task in common.
    """

    def __init__(self, model: CTRModel, layout: Layout, share: float) -> None:
        lacking = missing_features(model.layout, layout)
        if lacking:
            raise ConfigError(
                "the teacher reads features that the data lacks",
                field="train.teacher",
                found=f"no {list_names(lacking)}",
                mend="name a teacher trained on these features, or put them into the spec",
            )
        tasks = [name for name in layout.label_names if name in model.layout.label_names]
        if not tasks:
            raise ConfigError(
                "the teacher predicts none of these labels",
                field="train.teacher",
                found=list_names(model.layout.label_names),
                expected=list_names(layout.label_names),
                mend="name a teacher of the same task",
            )
        self._model = model.eval()
        self._layout = layout
        self._share = share
        self._taught = [layout.label_names.index(name) for name in tasks]
        self._theirs = [model.layout.label_names.index(name) for name in tasks]

    @torch.no_grad()
    def teach(self, batch: Batch) -> Batch:
        """The batch with labels [B, T] drawn towards what the teacher predicts; labels it does not know stay."""
        assert batch.labels is not None
        logits = self._model.logits(relayout(batch, self._layout, self._model.layout))
        labels = batch.labels.clone()
        labels[:, self._taught] = distilled(labels[:, self._taught], logits[:, self._theirs], self._share)
        return replace(batch, labels=labels)


def distilled(labels: Tensor, logits: Tensor, share: float) -> Tensor:
    """Labels drawn towards the probabilities of a teacher.

    Cross-entropy is linear in the labels, so the loss on these is the weighted sum of the losses on both.

    Args:
        labels: [B, T] in [0, 1].
        logits: [B, T] of the teacher.
        share: weight of the teacher.

    >>> distilled(torch.tensor([[1.0]]), torch.tensor([[0.0]]), 0.5)
    tensor([[0.7500]])
    """
    return torch.lerp(labels, torch.sigmoid(logits), share)
