"""What a student learns of a teacher's probabilities."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from features.batch import Batch
from features.errors import ConfigError
from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.training.teacher import Teacher, distilled

HAVE = Layout(
    id_names=("user", "ad", "zip"),
    bag_names=("tags", "words"),
    bag_poolings=("mean", "mean"),
    dense_names=("age", "price"),
    vector_names=("image", "text"),
    vector_sizes=(2, 3),
    label_names=("click", "sale"),
)
THEIRS = Layout(
    id_names=("zip", "user"),
    bag_names=("words",),
    bag_poolings=("mean",),
    dense_names=("price",),
    vector_names=("text",),
    vector_sizes=(3,),
    label_names=("sale",),
)


def batch_of(rows: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 4, (2, rows), generator=generator)
    return Batch(
        ids=torch.randint(1 << 40, (rows, 3), generator=generator),
        bag_values=torch.randint(1 << 40, (int(lengths.sum()),), generator=generator),
        bag_lengths=lengths,
        dense=torch.randn(rows, 2, generator=generator),
        vectors=torch.randn(rows, 5, generator=generator),
        labels=torch.randint(2, (rows, 2), generator=generator).float(),
        weight=torch.rand(rows, generator=generator),
    )


def model_of(layout: Layout) -> CTRModel:
    plan = plan_embedding(layout, EmbeddingConfig(width=4, rows=50), {})
    return CTRModel(layout, plan, ModelConfig(hidden=(8,)), seed=3)


def test_a_teacher_of_another_layout_reads_its_own_features_and_teaches_its_own_task():
    batch = batch_of()
    assert batch.labels is not None
    words = int(batch.bag_lengths[0].sum())
    seen = Batch(
        ids=batch.ids[:, [2, 0]],
        bag_values=batch.bag_values[words:],
        bag_lengths=batch.bag_lengths[1:],
        dense=batch.dense[:, 1:],
        vectors=batch.vectors[:, 2:],
    )
    model = model_of(THEIRS)
    with torch.no_grad():
        sale = torch.sigmoid(model.eval().logits(seen))[:, 0]
    before = batch.labels.clone()
    taught = Teacher(model.train(), HAVE, 0.25).teach(batch)
    assert taught.labels is not None
    torch.testing.assert_close(taught.labels[:, 1], 0.75 * before[:, 1] + 0.25 * sale)
    assert torch.equal(taught.labels[:, 0], before[:, 0])
    assert torch.equal(batch.labels, before)
    assert taught.weight is batch.weight
    assert not model.training


def test_the_loss_on_drawn_labels_is_the_weighted_sum_of_both_losses():
    torch.manual_seed(0)
    labels, theirs, own = torch.randint(2, (9, 1)).float(), torch.randn(9, 1), torch.randn(9, 1)
    loss = F.binary_cross_entropy_with_logits
    both = 0.7 * loss(own, labels) + 0.3 * loss(own, torch.sigmoid(theirs))
    torch.testing.assert_close(loss(own, distilled(labels, theirs, 0.3)), both)


@pytest.mark.parametrize(
    ("have", "words"),
    [
        (Layout(id_names=("user",), label_names=("sale",)), ("train.teacher", "no zip, words, price, text")),
        (
            Layout(**{**HAVE.to_json(), "label_names": ("click",)}),
            ("train.teacher", "none of these labels", "Found: sale", "Expected: click"),
        ),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(have: Layout, words: tuple[str, ...]):
    with pytest.raises(ConfigError) as caught:
        Teacher(model_of(THEIRS), have, 0.5)
    assert all(word in str(caught.value) for word in words), caught.value
