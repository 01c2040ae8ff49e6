"""Pictures of a table: there is one for everything measured, and none for what is not there."""

from __future__ import annotations

import numpy as np
import torch

from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.diagnostics import Diagnostics, diagnose
from recsys.evaluation.table_plots import MOST_FEATURES, overlap_picture, table_pictures
from recsys.models import CTRModel, ModelConfig


def found(features: int = 3, steps: int = 0, **config: object) -> Diagnostics:
    names = tuple(f"f{i}" for i in range(features))
    rng = np.random.default_rng(0)
    counts = {n: (np.sort(rng.integers(-(2**63), 2**63 - 1, 30)), rng.integers(1, 9, 30)) for n in names}
    layout = Layout(id_names=names, label_names=("click",))
    settings = {"width": 4, "rows": 50, "exact": {"max_values": 0}, **config}
    plan = plan_embedding(layout, EmbeddingConfig.model_validate(settings), counts)
    state = {"last": torch.arange(plan.rows), "steps": torch.tensor(steps)} if steps else None
    return diagnose(CTRModel(layout, plan, ModelConfig(hidden=(8,))), counts, state=state)


def names(of: Diagnostics) -> dict[str, list[str]]:
    return {section: [picture.name for picture in pictures] for section, pictures in table_pictures(of).items()}


def test_everything_measured_is_drawn() -> None:
    assert names(found(steps=500)) == {
        "load": ["load", "traffic"],
        "hits": [],
        "features": ["collisions", "row-traffic"],
        "overlap": ["overlap-cross", "overlap-deep"],
        "norms": ["norms", "norms-by-load"],
        "updates": ["ages"],
    }


def test_two_features_need_no_matrix_and_a_table_without_a_past_no_ages() -> None:
    drawn = names(found(features=2))
    assert (drawn["overlap"], drawn["updates"]) == ([], [])


def test_regions_are_drawn_if_one_feature_reads_several() -> None:
    """Every value is exact but those that the plan has not seen."""
    seen = found(exact={"max_values": 100})
    assert names(seen)["hits"] == []
    layout = Layout(id_names=("a",), label_names=("click",))
    trained, later = ({"a": (np.arange(n), np.ones(n, np.int64))} for n in (5, 8))
    plan = plan_embedding(layout, EmbeddingConfig(width=4, rows=50), trained)
    mixed = diagnose(CTRModel(layout, plan, ModelConfig()), later)
    assert names(mixed)["hits"] == ["regions"]


def test_the_dark_picture_differs_in_its_colours_alone() -> None:
    for pictures in table_pictures(found(steps=500)).values():
        for picture in pictures:
            assert picture.light != picture.dark
            assert len(picture.light) == len(picture.dark)
            assert picture.png == b""


def test_of_many_features_those_that_overlap_most_are_drawn() -> None:
    many = found(features=MOST_FEATURES + 5).overlaps[0]
    overlap = np.array(many.matrix) - np.diag(np.diag(many.matrix))
    least = many.features[int(overlap.sum(1).argmin())]
    drawn = overlap_picture(many).light.decode()
    assert sum(f">{name}<" in drawn for name in many.features) == MOST_FEATURES
    assert f">{least}<" not in drawn


def test_tables_of_other_kinds_are_drawn_as_far_as_they_go() -> None:
    assert names(found(kind="collisionless"))["overlap"] == []
    assert names(found(kind="hashed"))["load"] == ["load", "traffic"]
