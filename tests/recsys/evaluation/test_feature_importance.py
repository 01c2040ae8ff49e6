"""Importance: a shuffle is a shuffle of the values themselves, and what the model does not read is worth nothing."""

import numpy as np
import pytest
import torch

from features.batch import Batch
from features.errors import DataError
from recsys.evaluation.feature_importance import Importance, feature_importance, read_places
from recsys.evaluation.metrics import auc, logloss
from recsys.models import CTRModel
from tests.recsys.search.models import LARGEST, LAYOUT, WIDTH, batch, build, networks


def scored(model: CTRModel, rows: Batch) -> np.ndarray:
    with torch.no_grad():
        return torch.sigmoid(model.logits(rows)[:, 0].double()).numpy()


def by_feature(found: list[Importance]) -> dict[str, Importance]:
    return {one.feature: one for one in found}


def test_the_input_is_divided_among_the_features() -> None:
    parts = {part.name: part for part in read_places(LAYOUT, build().plan)}
    assert set(parts) == {"user", "item", "city", "tags", "words", "price", "image"}
    assert sorted(torch.cat([part.places for part in parts.values()]).tolist()) == list(
        range(build().network.input_width)
    )
    assert parts["user"].places.tolist() == list(range(LARGEST["user"] * WIDTH))
    assert (len(parts["price"].places), parts["price"].kind) == (2, "number")
    assert {name: part.chunks for name, part in parts.items() if part.chunks} == LARGEST


@networks
def test_what_was_dropped_is_not_there_and_the_rest_has_its_place(network: dict[str, object]) -> None:
    model = build(network, chunks=LARGEST | {"item": 0, "tags": 0})
    found = by_feature(feature_importance(model, batch(rows=30)))
    assert set(found) == {"user", "city", "words", "price", "image"}
    ablation = found["user"].ablation
    assert ablation is not None
    assert len(ablation.by_chunk) == LARGEST["user"]
    assert found["price"].ablation is None


def test_a_shuffle_hands_the_values_to_other_rows() -> None:
    """One draw of the library, done again on the ids themselves."""
    model, rows, draws, seed = build(), batch(rows=200), 4, 3
    found = by_feature(feature_importance(model, rows, draws=draws, seed=seed))
    assert rows.labels is not None
    assert rows.weight is not None
    y, w = rows.labels[:, 0].double().numpy(), rows.weight.double().numpy()
    generator = torch.Generator().manual_seed(seed)
    rises, falls = [], []
    for _ in range(draws):
        shuffle = torch.randperm(200, generator=generator)
        ids = rows.ids.clone()
        ids[:, 1] = rows.ids[shuffle, 1]
        other = Batch(ids, rows.bag_values, rows.bag_lengths, rows.dense, rows.vectors)
        rises.append(logloss(y, scored(model, other), w) - logloss(y, scored(model, rows), w))
        falls.append(auc(y, scored(model, rows), w) - auc(y, scored(model, other), w))
    item = found["item"]
    assert item.logloss.value == pytest.approx(np.mean(rises), abs=1e-6)
    assert item.logloss_spread == pytest.approx(np.std(rises, ddof=1), abs=1e-6)
    assert item.auc == pytest.approx(np.mean(falls), abs=1e-6)
    assert item.logloss.low < item.logloss.value < item.logloss.high


def test_an_ablated_feature_is_as_if_its_rows_were_zero() -> None:
    model, rows = build(), batch(rows=100)
    found = by_feature(feature_importance(model, rows))["city"].ablation
    assert rows.labels is not None
    assert rows.weight is not None
    y, w = rows.labels[:, 0].double().numpy(), rows.weight.double().numpy()
    inputs = model.inputs_of(rows).detach()
    place = next(part for part in read_places(LAYOUT, model.plan) if part.name == "city").places
    inputs[:, place] = 0
    with torch.no_grad():
        p = torch.sigmoid(model.network(inputs)[:, 0].double()).numpy()
    assert found is not None
    assert found.logloss == pytest.approx(logloss(y, p, w) - logloss(y, scored(model, rows), w), abs=1e-9)
    assert found.by_chunk == (found.logloss,)


def test_what_carries_the_signal_comes_first_and_a_constant_is_worth_nothing() -> None:
    model, rows = build(), batch(rows=2000)
    rows.ids[:, 2] = 5
    p = scored(model, rows)
    rows.labels = torch.from_numpy((np.random.default_rng(0).random((2000, 2)) < p[:, None]).astype(np.float32))
    found = feature_importance(model, rows)
    city = by_feature(found)["city"]
    assert (city.logloss.value, city.logloss_spread, city.auc) == (0, 0, 0)
    assert found[0].logloss.low > 0
    assert [one.logloss.value for one in found] == sorted((one.logloss.value for one in found), reverse=True)
    # labels drawn from the model: nothing that it reads can be better shuffled, beyond chance
    assert all(one.logloss.high > 0 for one in found if one.feature != "city")


def test_the_same_seed_gives_the_same_figures_and_another_one_others() -> None:
    model, rows = build(), batch(rows=50)
    first = [one.to_json() for one in feature_importance(model, rows, seed=1)]
    assert first == [one.to_json() for one in feature_importance(model, rows, seed=1)]
    assert first != [one.to_json() for one in feature_importance(model, rows, seed=2)]


def test_one_class_has_a_loss_but_no_auc() -> None:
    rows = batch(rows=50)
    assert rows.labels is not None
    rows.labels = torch.zeros_like(rows.labels)
    found = feature_importance(build(), rows)
    assert all(one.auc is None and one.auc_spread is None for one in found)
    assert all(np.isfinite(one.logloss.value) for one in found)


def test_rows_without_labels_are_refused() -> None:
    rows = batch(rows=50)
    rows.labels = None
    with pytest.raises(DataError, match="labelled rows"):
        feature_importance(build(), rows)
    with pytest.raises(DataError, match="labelled rows"):
        feature_importance(build(), batch(rows=1))
