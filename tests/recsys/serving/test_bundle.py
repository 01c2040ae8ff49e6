"""A bundle scores as the model did, from mappings and frames alike, and is refused when it is not whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from features.errors import ArtifactError, DataError
from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.validation import validate
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.models.convert import convert
from recsys.serving.bundle import load_bundle, save_bundle
from recsys.serving.calibration import Calibration, Steps
from recsys.serving.scorer import Scorer

SPEC = {
    "features": [
        {"name": "user", "type": "id", "dtype": "integer"},
        {"name": "kind", "type": "id"},
        {"name": "tags", "type": "ids", "dtype": "string", "pooling": "mean"},
        {"name": "price", "type": "number", "standardise": True, "missing_flag": True},
    ],
    "labels": ["click", "buy"],
}
ROWS = [
    {"user": 1, "kind": "a", "tags": ["x", "y"], "price": 2.5},
    {"user": None, "kind": "b", "tags": [], "price": None},
    {"user": 77, "kind": None, "tags": ["z"], "price": -1.0},
]
FRAME = pl.DataFrame(ROWS)


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, CTRModel, FeaturePipeline]:
    return make_bundle(tmp_path)


def make_bundle(tmp_path: Path, **network: object) -> tuple[Path, CTRModel, FeaturePipeline]:
    pipeline = FeaturePipeline(validate(FeatureSpec, SPEC)).fit(FRAME)
    ids = pipeline.encode_frame(FRAME).ids.numpy()
    counts = {n: np.unique(ids[:, i], return_counts=True) for i, n in enumerate(pipeline.layout.id_names)}
    config = EmbeddingConfig.model_validate({"width": 4, "rows": 20, "hash_seed": 3})
    plan = plan_embedding(pipeline.layout, config, counts)
    assert plan.exact_values > 0
    model = CTRModel(pipeline.layout, plan, ModelConfig.model_validate({"hidden": (8,), **network}), seed=1).eval()
    return save_bundle(tmp_path / "bundle", model=model, pipeline=pipeline, metrics={"auc": 0.7}), model, pipeline


@pytest.mark.parametrize("interaction", ["mlp", "dcn", "dcnv2", "fm", "ipnn"])
def test_a_loaded_bundle_scores_as_the_model_did(tmp_path: Path, interaction: str) -> None:
    folder, model, pipeline = make_bundle(tmp_path, interaction=interaction)
    scorer = Scorer.load(folder)
    expected = model.logits(pipeline.encode_frame(FRAME)).double().sigmoid().detach().numpy()
    assert expected.shape == (3, 2)
    np.testing.assert_allclose(scorer.score(FRAME), expected, rtol=1e-6)
    np.testing.assert_allclose(scorer.score(ROWS), expected, rtol=1e-6)
    np.testing.assert_allclose(scorer.score(ROWS[1]), expected[1:2], rtol=1e-6)
    assert scorer.bundle.description["metrics"] == {"auc": 0.7}


def test_equal_models_give_equal_files(bundle: tuple[Path, CTRModel, FeaturePipeline], tmp_path: Path) -> None:
    folder, model, pipeline = bundle
    other = save_bundle(tmp_path / "other", model=model, pipeline=pipeline, metrics={"auc": 0.7})
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    assert all((folder / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_a_bundle_whose_rows_share_a_step(bundle: tuple[Path, CTRModel, FeaturePipeline], tmp_path: Path) -> None:
    folder, model, pipeline = bundle
    assert '"step"' not in (folder / "bundle.json").read_text()  # so that bundles of a scale a row stay as they were
    shared = convert(model, "int8-table")
    small = save_bundle(tmp_path / "small", model=shared, pipeline=pipeline)
    scorer = Scorer.load(small)
    plain = convert(shared, "fp32").logits(pipeline.encode_frame(FRAME)).double().sigmoid().detach().numpy()
    np.testing.assert_allclose(scorer.score(FRAME), plain, rtol=1e-6)
    np.testing.assert_allclose(scorer.score(ROWS), plain, rtol=1e-6)
    assert scorer.bundle.model.plan == shared.plan
    assert torch.equal(scorer.bundle.model.embedding.table.stored(), shared.embedding.table.stored())
    assert "int8-table" in (small / "model_card.md").read_text()
    sizes = [(place / "weights.safetensors").stat().st_size for place in (folder, small)]
    assert sizes[0] - sizes[1] == pytest.approx(model.plan.table_bytes - shared.plan.table_bytes, abs=32)
    # and written again it is the same
    again = save_bundle(tmp_path / "again", model=scorer.bundle.model, pipeline=pipeline)
    assert (again / "bundle.json").read_bytes() == (small / "bundle.json").read_bytes()


@pytest.mark.parametrize(
    "change", [{"step": 0.0}, {"step": "0.1"}, {"step": 1e999}, {"format": "int4"}, {"step": None}]
)
def test_a_step_that_makes_no_sense_is_refused(
    bundle: tuple[Path, CTRModel, FeaturePipeline], tmp_path: Path, change: dict[str, Any]
) -> None:
    small = save_bundle(tmp_path / "small", model=convert(bundle[1], "int8-table"), pipeline=bundle[2])
    description = json.loads((small / "bundle.json").read_text())
    description["plan"].update(change)
    (small / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(ArtifactError):
        Scorer.load(small)


def test_a_row_that_lacks_a_column_is_refused(bundle: tuple[Path, CTRModel, FeaturePipeline]) -> None:
    scorer = Scorer.load(bundle[0])
    with pytest.raises(DataError, match="kind: column is missing"):
        scorer.score(FRAME.drop("kind"))
    with pytest.raises(DataError, match="price: column is missing"):
        scorer.score({key: value for key, value in ROWS[0].items() if key != "price"})


@pytest.mark.parametrize("name", ["weights.safetensors", "pipeline/pipeline.json"])
def test_a_damaged_file_is_named(bundle: tuple[Path, CTRModel, FeaturePipeline], name: str) -> None:
    path = bundle[0] / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match=f"{path.name}: the bundle is damaged"):
        Scorer.load(bundle[0])


def test_a_missing_file_is_named(bundle: tuple[Path, CTRModel, FeaturePipeline]) -> None:
    (bundle[0] / "weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match="no file"):
        Scorer.load(bundle[0])


def test_a_bundle_of_another_release_is_refused(bundle: tuple[Path, CTRModel, FeaturePipeline]) -> None:
    path = bundle[0] / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bundle_version": 99}))
    with pytest.raises(ArtifactError, match="another release"):
        Scorer.load(bundle[0])


def test_a_bundle_with_ids_of_another_fingerprint_is_refused(bundle: tuple[Path, CTRModel, FeaturePipeline]) -> None:
    inner, outer = bundle[0] / "pipeline" / "pipeline.json", bundle[0] / "bundle.json"
    inner.write_text(json.dumps({**json.loads(inner.read_text()), "fingerprint_version": 7}))
    description = json.loads(outer.read_text())
    description["files"]["pipeline/pipeline.json"] = hashlib.sha256(inner.read_bytes()).hexdigest()
    outer.write_text(json.dumps(description))
    with pytest.raises(
        ArtifactError, match=r"another version of the fingerprint.*version 7\. Expected: 1.*train again"
    ):
        Scorer.load(bundle[0])


def test_no_rows_give_no_scores(bundle: tuple[Path, CTRModel, FeaturePipeline]) -> None:
    scorer = Scorer.load(bundle[0])
    assert scorer.score([]).shape == scorer.score(FRAME.clear()).shape == (0, 2)


def test_a_bundle_takes_the_place_of_an_older_one(bundle: tuple[Path, CTRModel, FeaturePipeline]) -> None:
    folder, model, pipeline = bundle
    save_bundle(folder, model=model, pipeline=pipeline, metrics={"auc": 0.8})
    assert Scorer.load(folder).bundle.description["metrics"] == {"auc": 0.8}
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="tells mappings on Linux only")
def test_the_table_is_read_from_its_file_and_never_written_to(bundle: tuple[Path, CTRModel, FeaturePipeline]) -> None:
    before = (bundle[0] / "weights.safetensors").read_bytes()
    first, second = load_bundle(bundle[0]).model, load_bundle(bundle[0]).model
    table = first.embedding.table.stored()
    areas = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [area[0].split("-") for area in areas if area[-1] == str(bundle[0] / "weights.safetensors")]
    assert any(int(start, 16) <= table.data_ptr() < int(end, 16) for start, end in mapped)
    table.zero_()
    assert (bundle[0] / "weights.safetensors").read_bytes() == before
    assert torch.equal(second.embedding.table.stored(), bundle[1].embedding.table.stored())


def test_a_bundle_outlives_its_folder(bundle: tuple[Path, CTRModel, FeaturePipeline]) -> None:
    scorer = Scorer.load(bundle[0])
    expected = scorer.score(FRAME)
    shutil.rmtree(bundle[0])
    np.testing.assert_array_equal(scorer.score(FRAME), expected)


def test_the_calibration_is_part_of_it(bundle: tuple[Path, CTRModel, FeaturePipeline]) -> None:
    folder, model, pipeline = bundle
    plain = load_bundle(folder)
    assert plain.calibration is None
    calibration = Calibration("isotonic", (Steps((-0.1, 0.1 + 0.2), (0.1, 1 / 3)), Steps((0.0,), (0.5,))))
    save_bundle(folder, model=model, pipeline=pipeline, calibration=calibration)
    calibrated = load_bundle(folder)
    assert calibrated.calibration == calibration
    assert calibrated.digest != plain.digest
    assert "isotonic" in (folder / "model_card.md").read_text()


def test_the_card_tells_what_the_bundle_holds(bundle: tuple[Path, CTRModel, FeaturePipeline]) -> None:
    folder, model, pipeline = bundle
    card = (folder / "model_card.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if "|" in line]
    assert ["predicts", "p_click, the probability of click, p_buy, the probability of buy"] in rows
    assert ["bytes of the table and its indices", str(model.plan.table_bytes)] in rows
    assert ["feature spec", f"sha256 {pipeline.spec.digest()}"] in rows
    assert ["`tags`", "string[]"] in rows
    assert ["`user`", "exact", "1", "4", "3"] in rows
    assert ["auc", "0.7"] in rows


def test_a_file_that_is_not_listed_is_refused(bundle: tuple[Path, CTRModel, FeaturePipeline]) -> None:
    (bundle[0] / "pipeline" / "extra.pkl").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"extra.pkl: the bundle has a file that it does not list"):
        Scorer.load(bundle[0])


SENSELESS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no plan": lambda told: told.update(plan=7),
    "no metrics": lambda told: told.update(metrics=[]),
    "chunks no number": lambda told: told["plan"]["features"][0].update(chunks="1"),
    "hot start of words": lambda told: told["plan"]["features"][0].update(hot_start="%s"),
    "no files": lambda told: told.update(files=None),
    "rows no number": lambda told: told["plan"].update(rows="many"),
    "too many rows": lambda told: told["plan"].update(rows=10**15),
    "too wide": lambda told: told["plan"].update(width=10**9),
    "unknown format": lambda told: told["plan"].update(format="int3"),
    "other format": lambda told: told["plan"].update(format="int8"),
    "many chunks": lambda told: told["plan"]["features"][0].update(chunks=10**9),
    "before the table": lambda told: told["plan"]["features"][0].update(base=-5),
    "beyond the table": lambda told: told["plan"]["features"][0].update(base=10**6),
    "many values": lambda told: told["plan"]["features"][0].update(values=10**12),
    "many hot slots": lambda told: told["plan"]["features"][0].update(hot_slots=10**12),
    "a feature less": lambda told: told["plan"]["features"].pop(),
    "unknown network": lambda told: told["model"].update(interaction="none"),
    "large network": lambda told: told["model"].update(hidden=[10**9]),
    "calibration lacking": lambda told: told.pop("calibration"),
    "calibration of no task": lambda told: told.update(calibration={"method": "platt", "curves": []}),
    "calibration of words": lambda told: told.update(calibration={"method": "platt", "curves": [{"slope": "x"}] * 2}),
}


@pytest.mark.parametrize("name", SENSELESS)
def test_a_description_that_makes_no_sense_is_refused(
    bundle: tuple[Path, CTRModel, FeaturePipeline], name: str
) -> None:
    rewrite(bundle[0], SENSELESS[name])
    with pytest.raises(ArtifactError):
        Scorer.load(bundle[0])


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes what bundle.json says."""
    told = json.loads((folder / "bundle.json").read_text())
    change(told)
    (folder / "bundle.json").write_text(json.dumps(told))


@pytest.mark.parametrize("text", ["{}", "[]", "not json"])
def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(ArtifactError, match="is no model bundle"):
        Scorer.load(tmp_path)


def test_a_bundle_that_cannot_be_written_leaves_nothing(
    bundle: tuple[Path, CTRModel, FeaturePipeline], tmp_path: Path
) -> None:
    _, model, pipeline = bundle
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="could not be written"):
        save_bundle(tmp_path / "file" / "bundle", model=model, pipeline=pipeline)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "file"]
