"""A model as a torch.export program against the scorer: from a file, in a process that imports nothing of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from features.batch import Batch
from features.errors import ArtifactError, ConfigError
from features.pipeline import FeaturePipeline
from features.spec import FeatureSpec
from features.validation import validate
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.models.compact import compact
from recsys.models.convert import convert
from recsys.serving.bundle import save_bundle
from recsys.serving.calibration import Calibration, Line, Steps
from recsys.serving.compiled_program import compile_program, load_compiled
from recsys.serving.program import describe_program, export_program, program_inputs, save_program
from recsys.serving.scorer import Scorer

SPEC = {
    "features": [
        {"type": "id", "name": "user", "dtype": "integer"},
        {"type": "id", "name": "kind"},
        {"type": "id", "name": "dropped", "column": "kind"},
        {"type": "ids", "name": "tags", "pooling": "mean"},
        {"type": "ids", "name": "unread", "column": "tags"},
        {"type": "ids", "name": "words", "column": "tags", "pooling": "sum"},
        {"type": "number", "name": "price", "standardise": True, "missing_flag": True},
        {"type": "vector", "name": "picture", "size": 3},
        {"type": "cross", "name": "user_kind", "of": ["user", "kind"]},
    ],
    "labels": ["click", "buy"],
}
CALIBRATION = Calibration("platt", (Line(0.7, -0.3), Steps((-0.5, 0.0, 0.5), (0.2, 0.4, 0.7))))
ROWS = 10_000

STRANGER = """
import json, sys

unpickled = []
sys.addaudithook(lambda event, told: unpickled.append(told) if event == "pickle.find_class" else None)

import numpy as np
import torch

folder, given, out = sys.argv[1:]
unpickled.clear()
with open(f"{folder}/program.json") as file:
    about = json.load(file)
arrays = np.load(given)
inputs = {}
for told in about["inputs"]:
    name = told["argument"]
    if "place" in told:
        inputs.setdefault(name, []).append(torch.from_numpy(arrays[f"{name}{told['place']}"]))
    else:
        inputs[name] = torch.from_numpy(arrays[name])
run = torch.export.load(f"{folder}/program.pt2").module()
np.save(out, run(**inputs).numpy())
assert not unpickled, unpickled
ours = {"features", "recsys", "pipelines"} & set(sys.modules)
assert not ours, ours
"""


def events(rows: int, seed: int, values: int = 2) -> pl.DataFrame:
    """One value in ten is null; with `values` 1 only half of the ids."""
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 200 * values, rows),
            "kind": [f"k{k}" for k in rng.integers(0, 12 * values, rows)],
            "tags": [[f"t{t}" for t in rng.integers(0, 45 * values, n)] for n in rng.integers(0, 4, rows)],
            "price": rng.gamma(2.0, 10.0, rows),
            "picture": rng.normal(size=(rows, 3)).tolist(),
        }
    )
    return frame.with_columns(
        pl.when(pl.Series(rng.random(rows) < 0.9)).then(pl.col(name)).otherwise(None).alias(name)
        for name in frame.columns
    )


SEEN = events(3000, 0, values=1)


@pytest.fixture(scope="module")
def pipeline() -> FeaturePipeline:
    return FeaturePipeline(validate(FeatureSpec, SPEC)).fit(SEEN)


def model_of(pipeline: FeaturePipeline, **network: Any) -> CTRModel:
    """A model with shared, exact and hot rows, and features of 0, 1 and 2 chunks."""
    encoded, layout = pipeline.encode_frame(SEEN), pipeline.layout
    ids = {name: encoded.ids[:, place] for place, name in enumerate(layout.id_names)}
    bags = encoded.bag_values.split(encoded.bag_lengths.sum(1).tolist())
    columns = {**ids, **dict(zip(layout.bag_names, bags, strict=True))}
    counts = {name: np.unique(values.numpy(), return_counts=True) for name, values in columns.items()}
    config = EmbeddingConfig.model_validate(
        {
            "width": 5,
            "rows": 600,
            "init_scale": 1.0,
            "chunks": {"features": {"user": 2, "dropped": 0, "unread": 0, "words": 2}},
            "exact": {"max_values": 0, "features": {"kind": True, "tags": True}},
            "hot": {"features": {"user": 64, "words": 16}},
        }
    )
    plan = plan_embedding(layout, config, counts)
    settings = ModelConfig.model_validate({"interaction": "dcnv2", "hidden": (32, 16), **network})
    return CTRModel(layout, plan, settings, seed=2, kernel="torch").eval()


def scorer_of(
    model: CTRModel, pipeline: FeaturePipeline, folder: Path, calibration: Calibration | None = CALIBRATION
) -> Scorer:
    return Scorer.load(save_bundle(folder / "bundle", model=model, pipeline=pipeline, calibration=calibration))


def written(program: ExportedProgram, scorer: Scorer, folder: Path) -> Path:
    folder.mkdir()
    save_program(program, folder / "program.pt2")
    (folder / "program.json").write_text(json.dumps(describe_program(scorer.bundle)))
    return folder


def scored_by_a_stranger(folder: Path, batch: Batch, scorer: Scorer) -> np.ndarray:
    """What a process with torch alone makes of a batch."""
    arrays = {}
    for name, given in program_inputs(batch, scorer.bundle.pipeline.layout).items():
        if isinstance(given, Tensor):
            arrays[name] = given.numpy()
        else:
            arrays |= {f"{name}{place}": values.numpy() for place, values in enumerate(given)}
    np.savez(folder / "given.npz", **arrays)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", STRANGER, str(folder), str(folder / "given.npz"), str(folder / "out.npy")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.asarray(np.load(folder / "out.npy"))


def check(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def int4(pipeline: FeaturePipeline, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return scorer_of(convert(model_of(pipeline), "int4"), pipeline, tmp_path_factory.mktemp("int4"))


@pytest.fixture(scope="module")
def program(int4: Scorer) -> ExportedProgram:
    return export_program(int4.bundle)


@pytest.fixture(scope="module")
def folder(program: ExportedProgram, int4: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(program, int4, tmp_path_factory.mktemp("written") / "program")


def test_torch_alone_scores_as_the_scorer_does(folder: Path, int4: Scorer, pipeline: FeaturePipeline) -> None:
    batch = pipeline.encode_frame(events(ROWS, seed=1))
    expected = int4.score(batch)
    assert expected.std(0).min() > 0.05
    check(scored_by_a_stranger(folder, batch, int4), expected)


def test_every_region_is_read(int4: Scorer, pipeline: FeaturePipeline) -> None:
    """Else the test above could agree on shared rows alone."""
    model, batch = int4.bundle.model, pipeline.encode_frame(events(ROWS, seed=1))
    for name, base, size in [
        *((f.name, f.exact_base, f.values) for f in model.plan.features if f.region == "exact"),
        *((f.name, f.hot_base, f.hot_slots) for f in model.plan.features if f.hot_slots),
    ]:
        place = pipeline.layout.feature_names.index(name)
        values = batch.ids[:, place] if place < batch.ids.shape[1] else batch.bag_values
        first = model.embedding.rows_of(name, values)[:, 0]
        own = (first >= base) & (first < base + size * next(f.chunks for f in model.plan.features if f.name == name))
        assert own.any()
        assert not own.all()


@pytest.mark.parametrize("rows", [0, 1, 2, 17])
def test_any_number_of_rows(program: ExportedProgram, int4: Scorer, pipeline: FeaturePipeline, rows: int) -> None:
    batch = pipeline.encode_frame(events(20, seed=3)[:rows])
    found = program.module()(**program_inputs(batch, pipeline.layout)).numpy()
    assert found.shape == (rows, 2)
    check(found, int4.score(batch))


def test_a_row_of_nulls(program: ExportedProgram, int4: Scorer, pipeline: FeaturePipeline) -> None:
    nothing = dict.fromkeys(int4.spec.feature_columns)
    inputs = program_inputs(pipeline.encode([nothing]), pipeline.layout)
    check(program.module()(**inputs).numpy(), int4.score(nothing))


def test_no_values_in_any_bag(program: ExportedProgram, int4: Scorer, pipeline: FeaturePipeline) -> None:
    batch = pipeline.encode_frame(events(20, 3))
    batch = replace(batch, bag_values=batch.bag_values[:0], bag_lengths=torch.zeros_like(batch.bag_lengths))
    check(program.module()(**program_inputs(batch, pipeline.layout)).numpy(), int4.score(batch))


def test_the_archive_holds_no_pickle_and_no_path(folder: Path) -> None:
    with zipfile.ZipFile(folder / "program.pt2") as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    payloads = [
        payload
        for name, text in members.items()
        if name.endswith("_config.json")
        for payload in json.loads(text)["config"].values()
    ]
    assert len(payloads) > 10
    assert not any(payload["use_pickle"] for payload in payloads)
    tensors = {payload["path_name"] for payload in payloads}
    others = [name for name in members if name.rpartition("/")[2] not in tensors]
    assert {name for name in others if not name.endswith(".json") and members[name]} == {
        "archive_format",
        "archive_version",
        "byteorder",
        ".data/version",
        ".data/serialization_id",
    }
    assert os.fsencode(os.getcwd()) not in members["models/model.json"]


def test_the_table_is_stored_in_its_format(folder: Path, int4: Scorer) -> None:
    with zipfile.ZipFile(folder / "program.pt2") as archive:
        sizes = [info.file_size for info in archive.infolist()]
    assert int4.bundle.model.embedding.table.stored().nbytes in sizes
    assert max(size for size in sizes if size != max(sizes)) < 100_000


def test_equal_programs_give_equal_bytes(program: ExportedProgram, folder: Path, tmp_path: Path) -> None:
    save_program(program, tmp_path / "program.pt2")
    assert (tmp_path / "program.pt2").read_bytes() == (folder / "program.pt2").read_bytes()


def test_what_a_caller_must_know(int4: Scorer, pipeline: FeaturePipeline) -> None:
    about = describe_program(int4.bundle, name="clicks", version=3)
    assert about["inputs"] == [
        {
            "argument": "ids",
            "dtype": "int64",
            "shape": ["rows", 4],
            "columns": ["user", "kind", "dropped", "user_kind"],
        },
        {"argument": "bag_values", "dtype": "int64", "shape": ["values of tags"], "columns": ["tags"], "place": 0},
        {"argument": "bag_values", "dtype": "int64", "shape": ["values of unread"], "columns": ["unread"], "place": 1},
        {"argument": "bag_values", "dtype": "int64", "shape": ["values of words"], "columns": ["words"], "place": 2},
        {"argument": "bag_lengths", "dtype": "int64", "shape": [3, "rows"], "columns": ["tags", "unread", "words"]},
        {"argument": "dense", "dtype": "float32", "shape": ["rows", 2], "columns": ["price", "price:missing"]},
        {
            "argument": "vectors",
            "dtype": "float32",
            "shape": ["rows", 3],
            "columns": ["picture:0", "picture:1", "picture:2"],
        },
    ]
    assert about["outputs"] == [{"dtype": "float64", "shape": ["rows", 2], "columns": ["p_click", "p_buy"]}]
    told = {key: about[key] for key in ("bundle", "pipeline", "format", "calibration", "model")}
    assert told == {
        "bundle": int4.bundle.digest,
        "pipeline": pipeline.digest(),
        "format": "int4",
        "calibration": "platt",
        "model": {"name": "clicks", "version": 3},
    }
    assert {"fingerprint_version", "hash_version", "hash_seed", "torch", "program_version"} < set(about)


class Undecided(nn.Module):
    """Which way it goes hangs on the values, which a graph cannot follow."""

    output_width = 16

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :16] if x.sum() > 0 else -x[:, :16]


def test_a_layer_that_torch_cannot_export_is_refused(pipeline: FeaturePipeline, tmp_path: Path) -> None:
    scorer = scorer_of(model_of(pipeline), pipeline, tmp_path)
    scorer.bundle.model.network.deep = Undecided()  # type: ignore[assignment]
    with pytest.raises(ArtifactError, match="torch cannot export this model"):
        export_program(scorer.bundle)


def test_a_plan_that_leads_outside_of_the_table_is_refused(int4: Scorer, pipeline: FeaturePipeline) -> None:
    model = model_of(pipeline)
    features = tuple(replace(f, base=f.base + 5000) for f in model.plan.features)
    model.plan = replace(model.plan, features=features)
    with pytest.raises(ArtifactError, match="leads outside of the table"):
        export_program(replace(int4.bundle, model=model))


def test_a_place_that_cannot_be_written(program: ExportedProgram, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be written"):
        save_program(program, tmp_path / "missing" / "program.pt2")


def test_compiling_needs_a_compiler(program: ExportedProgram, tmp_path: Path) -> None:
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ConfigError, match="no-such-compiler"),
    ):
        compile_program(program, tmp_path / "compiled.pt2")
    assert list(tmp_path.iterdir()) == []


OTHERS: dict[str, tuple[str, dict[str, Any], bool, Calibration | None]] = {
    "fp32": ("fp32", {}, False, CALIBRATION),
    "bf16, fm": ("bf16", {"interaction": "fm"}, False, None),
    "int8-table": ("int8-table", {}, False, None),
    "int8, ipnn": ("int8", {"interaction": "ipnn"}, False, CALIBRATION),
    "int2, dcn": ("int2", {"interaction": "dcn"}, False, None),
    "pruned, stacked": ("int8", {"structure": "stacked"}, True, CALIBRATION),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_every_format_and_network(pipeline: FeaturePipeline, tmp_path: Path, kind: str) -> None:
    format, network, pruned, calibration = OTHERS[kind]
    model = model_of(pipeline, **network)
    if pruned:
        model = compact(model, torch.from_numpy(np.random.default_rng(0).random(model.plan.rows) < 0.6))
    if format != "fp32":
        model = convert(model, format)
    scorer = scorer_of(model, pipeline, tmp_path, calibration)
    folder = written(export_program(scorer.bundle), scorer, tmp_path / "program")
    batch = pipeline.encode_frame(events(ROWS, seed=1))
    check(scored_by_a_stranger(folder, batch, scorer), scorer.score(batch))


@pytest.mark.slow
def test_a_compiled_program_scores_as_the_scorer_does(
    program: ExportedProgram, int4: Scorer, pipeline: FeaturePipeline, tmp_path: Path
) -> None:
    compile_program(program, tmp_path / "compiled.pt2")
    run = load_compiled(tmp_path / "compiled.pt2")
    for rows in (ROWS, 1, 0):
        batch = pipeline.encode_frame(events(ROWS, seed=1)[:rows])
        check(run(**program_inputs(batch, pipeline.layout)).numpy(), int4.score(batch))
