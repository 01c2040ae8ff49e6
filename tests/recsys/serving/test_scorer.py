"""The scorer against the trainer's own prediction, and its compiled lookup against the model's, bit for bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from features.batch import Batch
from features.errors import ArtifactError, ConfigError, DataError
from features.layout import Layout
from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.validation import validate
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.addressing import exact_key
from recsys.models import CTRModel, ModelConfig
from recsys.models.compact import compact
from recsys.models.convert import convert
from recsys.serving.bundle import save_bundle
from recsys.serving.calibration import Calibration, Line, Steps
from recsys.serving.network_inputs import NetworkInputs
from recsys.serving.scorer import Scorer
from recsys.training import predict

LAYOUT = Layout(
    id_names=("user", "item", "city", "hour"),
    bag_names=("tags", "seen", "dropped"),
    bag_poolings=("mean", "sum", "sum"),
    dense_names=("price", "age"),
    vector_names=("picture",),
    vector_sizes=(3,),
    label_names=("click", "buy"),
)
CHUNKS = {"user": 3, "item": 2, "hour": 0, "tags": 2, "dropped": 0}
ROWS = 200
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("bf16", "fp16")]  # seconds each to compile


def batch(rows: int, seed: int = 0) -> Batch:
    """Ids of a few dozen values, some of them never seen in training; bags of 0 to 3 values."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, (3, rows))
    return Batch(
        ids=torch.from_numpy(rng.integers(-40, 40, (rows, 4))),
        bag_values=torch.from_numpy(rng.integers(-40, 40, lengths.sum())),
        bag_lengths=torch.from_numpy(lengths),
        dense=torch.from_numpy(rng.normal(size=(rows, 2)).astype(np.float32)),
        vectors=torch.from_numpy(rng.normal(size=(rows, 3)).astype(np.float32)),
    )


def model_of(pruned: bool = False, **embedding: Any) -> CTRModel:
    values = np.arange(-30, 30, dtype=np.int64)
    counts = {name: (values, np.arange(60) + 1) for name in (*LAYOUT.id_names, *LAYOUT.bag_names)}
    config = EmbeddingConfig.model_validate({"width": 4, "rows": 90, "chunks": {"features": CHUNKS}, **embedding})
    plan = plan_embedding(LAYOUT, config, counts)
    model = CTRModel(LAYOUT, plan, ModelConfig(hidden=(32, 16)), seed=1, kernel="torch").eval()
    if pruned:
        model = compact(model, torch.from_numpy(np.random.default_rng(0).random(plan.rows) < 0.6))
        assert model.embedding.kept is not None
    return model


EXACT = {"max_values": 0, "features": {"item": True, "tags": True}}
REGIONS: dict[str, dict[str, Any]] = {
    "shared": {"exact": {"max_values": 0}, "hash_seed": 7},
    "exact": {"exact": EXACT},
    "hot": {"exact": EXACT, "hot": {"features": {"user": 16, "seen": 24}}},
    "hashed": {"kind": "hashed"},
    "collisionless": {"kind": "collisionless"},
    "pruned": {"pruned": True, "exact": {"max_values": 0}},
    "pruned exact": {"pruned": True, "exact": {"max_values": 0, "features": {"hour": True}}, "width": 3},
    "wide": {"exact": EXACT, "width": 19},
}


@pytest.mark.parametrize("region", REGIONS)
def test_the_lookup_is_the_models_own(region: str) -> None:
    model = model_of(**REGIONS[region])
    for rows in (ROWS, 1, 0):
        some = batch(rows)
        assert torch.equal(NetworkInputs(model)(some), model.inputs_of(some))


@pytest.mark.parametrize("format", ["int8", "int4", "int2", *SLOW])
def test_the_lookup_reads_every_format(format: str) -> None:
    model = model_of(exact=EXACT, format=format, width=5)
    assert torch.equal(NetworkInputs(model)(batch(ROWS)), model.inputs_of(batch(ROWS)))


@pytest.mark.parametrize("region", ["hot", "pruned"])
def test_the_lookup_reads_rows_that_share_a_step(region: str) -> None:
    model = convert(model_of(**REGIONS[region]), "int8-table")
    assert torch.equal(NetworkInputs(model)(batch(ROWS)), model.inputs_of(batch(ROWS)))
    assert torch.equal(NetworkInputs(model)(batch(ROWS)), convert(model, "fp32").inputs_of(batch(ROWS)))


def test_ids_with_rows_of_their_own_are_found() -> None:
    """Else the tests above could agree on hashed rows alone."""
    model = model_of(**REGIONS["hot"])
    some = batch(ROWS)
    before = NetworkInputs(model)(some)
    model.embedding.exact_keys.fill_(123)
    model.embedding.hot_keys.fill_(123)
    after = NetworkInputs(model)(some)
    assert not torch.equal(after, before)
    assert torch.equal(after, model.inputs_of(some))


def test_keys_of_64_bits_are_found() -> None:
    model = model_of(exact=EXACT)
    embedding = model.embedding
    some = batch(ROWS)
    wide = embedding.exact_keys.to(torch.int64)
    for f in model.plan.features:
        if f.region == "exact":
            keys = exact_key(f.name, torch.arange(-30, 30), 64)
            wide[f.exact_start : f.exact_start + f.values] = keys.sort().values
    embedding.register_buffer("exact_keys", wide)
    assert torch.equal(NetworkInputs(model)(some), model.inputs_of(some))


OUTSIDE = [{"base": 250}, {"span": 10_000}, {"chunks": -1}, {"exact_start": 100}, {"values": 300}, {"exact_base": -1}]


@pytest.mark.parametrize("change", OUTSIDE)
def test_a_plan_that_leads_outside_of_the_table_is_refused(change: dict[str, int]) -> None:
    model = model_of(exact=EXACT)
    item = next(f for f in model.plan.features if f.name == "item")
    features = tuple(replace(f, **change) if f is item else f for f in model.plan.features)
    model.plan = replace(model.plan, features=features)
    with pytest.raises(ArtifactError, match="item: the plan leads outside of the table"):
        NetworkInputs(model)


def test_a_damaged_index_of_kept_rows_is_refused() -> None:
    model = model_of(pruned=True, exact={"max_values": 0})
    assert model.embedding.kept is not None
    model.embedding.kept.before += 1
    with pytest.raises(ArtifactError, match="kept_words"):
        NetworkInputs(model)


SPEC = {
    "features": [
        {"type": "id", "name": "user", "dtype": "integer"},
        {"type": "id", "name": "kind"},
        {"type": "ids", "name": "tags", "pooling": "mean"},
        {"type": "number", "name": "price", "standardise": True, "missing_flag": True},
        {"type": "cross", "name": "user_kind", "of": ["user", "kind"]},
    ],
    "labels": ["click", "buy"],
}
CALIBRATION = Calibration("platt", (Line(0.7, -0.3), Steps((-0.5, 0.0, 0.5), (0.2, 0.4, 0.7))))


def events(rows: int, seed: int = 0) -> pl.DataFrame:
    """One value in ten is null; users from 0 to 2,000."""
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 2000, rows),
            "kind": [f"k{k}" for k in rng.integers(0, 12, rows)],
            "tags": [[f"t{t}" for t in rng.integers(0, 90, n)] for n in rng.integers(0, 4, rows)],
            "price": rng.gamma(2.0, 10.0, rows),
        }
    )
    return frame.with_columns(
        pl.when(pl.Series(rng.random(rows) < 0.9)).then(pl.col(name)).otherwise(None).alias(name)
        for name in frame.columns
    )


@pytest.fixture(scope="module")
def pipeline() -> FeaturePipeline:
    """Fitted on users below 1,000: the others are unseen."""
    return FeaturePipeline(validate(FeatureSpec, SPEC)).fit(events(3000).filter(pl.col("user") < 1000))


@pytest.fixture(scope="module")
def model(pipeline: FeaturePipeline) -> CTRModel:
    encoded = pipeline.encode_frame(events(3000).filter(pl.col("user") < 1000))
    counts = {
        name: np.unique(encoded.ids[:, i].numpy(), return_counts=True)
        for i, name in enumerate(pipeline.layout.id_names)
    }
    config = EmbeddingConfig.model_validate(
        {"width": 8, "rows": 5000, "init_scale": 1.0, "chunks": {"features": {"user": 2}}}
    )
    plan = plan_embedding(pipeline.layout, config, counts)
    return CTRModel(pipeline.layout, plan, ModelConfig(hidden=(64, 32)), seed=2, kernel="torch").eval()


@pytest.mark.parametrize("calibration", [None, CALIBRATION], ids=["plain", "calibrated"])
def test_ten_thousand_rows_score_as_in_training(
    model: CTRModel, pipeline: FeaturePipeline, tmp_path: Path, calibration: Calibration | None
) -> None:
    folder = save_bundle(tmp_path / "bundle", model=model, pipeline=pipeline, calibration=calibration)
    scorer, frame = Scorer.load(folder), events(10_000, seed=1)
    encoded = pipeline.encode_frame(frame)
    expected = predict(model, [encoded], calibration).probabilities
    assert expected.shape == (10_000, 2)
    assert expected.std() > 0.05
    rows = frame.to_dicts()
    one_by_one = np.concatenate([scorer.score(row) for row in rows[:100]])
    np.testing.assert_allclose(one_by_one, expected[:100], rtol=0, atol=1e-6)
    for given in (rows, frame, encoded):
        np.testing.assert_allclose(scorer.score(given), expected, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def scorer(model: CTRModel, pipeline: FeaturePipeline, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    folder = tmp_path_factory.mktemp("scorer") / "bundle"
    return Scorer.load(save_bundle(folder, model=model, pipeline=pipeline))


def test_a_users_fields_are_given_once(scorer: Scorer) -> None:
    user = {"user": 7, "tags": ["t1", "t2"]}
    candidates = [{"kind": f"k{i}", "price": float(i)} for i in range(50)]
    together = scorer.score([{**user, **candidate} for candidate in candidates])
    np.testing.assert_array_equal(scorer.score(candidates, shared=user), together)
    with pytest.raises(DataError, match="tags: is given twice"):
        scorer.score([{"kind": "a", "price": 1.0, "tags": []}], shared=user)


def test_threads_may_share_one(scorer: Scorer) -> None:
    rows = events(400, seed=3).to_dicts()
    parts = [rows[start : start + 20] for start in range(0, 400, 20)]
    with ThreadPoolExecutor(4) as pool:
        found = np.concatenate(list(pool.map(scorer.score, parts)))
    np.testing.assert_array_equal(found, np.concatenate([scorer.score(part) for part in parts]))


def test_rows_of_a_frame_share_nothing(scorer: Scorer) -> None:
    with pytest.raises(ConfigError, match="shared"):
        scorer.score(events(3), shared={"user": 1})


def test_a_batch_of_another_model_is_refused(scorer: Scorer) -> None:
    encoded = scorer.bundle.pipeline.encode_frame(events(3))
    encoded.ids = encoded.ids[:, :2]
    with pytest.raises(DataError, match="ids: the batch was encoded for another model"):
        scorer.score(encoded)


def test_columns_of_a_batch_need_not_be_contiguous(scorer: Scorer) -> None:
    encoded = scorer.bundle.pipeline.encode_frame(events(40))
    expected = scorer.score(encoded)
    encoded.ids = encoded.ids.t().contiguous().t()
    np.testing.assert_array_equal(scorer.score(encoded), expected)


def test_a_registered_model_needs_its_store() -> None:
    with pytest.raises(ConfigError, match="tracking_uri"):
        Scorer.load("models:/clicks@champion")


def test_a_number_too_large_for_a_probability_is_refused_and_named(scorer: Scorer) -> None:
    good = events(4, seed=5)
    large = good.with_columns(price=pl.Series([1.0, 1e300, 2.0, -1e300]))
    for rows in (large, large.to_dicts(), scorer.bundle.pipeline.encode_frame(large)):
        with pytest.raises(DataError, match=r"no probability \(in 2 rows\)") as refused:
            scorer.score(rows)
        assert refused.value.field == "price"
    encoded = scorer.bundle.pipeline.encode_frame(large)
    assert scorer.without_probability(encoded) == {1: "price", 3: "price"}
    assert scorer.without_probability(encoded.rows([0, 2])) == {}
    assert np.isfinite(scorer.score(encoded.rows([0, 2]))).all()


def test_a_model_that_gives_none_is_not_the_numbers_fault(scorer: Scorer) -> None:
    broken = Scorer(scorer.bundle)
    asked = scorer.bundle.pipeline.encode_frame(events(3, seed=6))
    weights = next(iter(broken.bundle.model.network.parameters()))
    before = weights.detach().clone()
    try:
        weights.data.fill_(float("nan"))
        with pytest.raises(ArtifactError, match=r"whatever the numbers. Found: 3 of 3 rows"):
            broken.score(asked)
    finally:
        weights.data.copy_(before)
