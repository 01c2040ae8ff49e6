"""Run folders count up, and files appear whole or not at all."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from features.errors import ArtifactError
from pipelines.config import ExperimentConfig, config_from
from pipelines.workspace import Run, new_run, runs_of, trained_run, write_bytes


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    data = {
        "name": "x",
        "workspace": str(tmp_path),
        "data": {"source": "events.parquet", "split": {"kind": "random"}},
        "spec": {"features": [{"type": "id", "name": "user"}], "labels": ["click"]},
    }
    return config_from(data)


def finish(run: Run) -> Run:
    run.write("train.json", {})
    return run


def test_runs_count_up_and_keep_their_config(config: ExperimentConfig) -> None:
    assert runs_of(config) == []
    first, second = new_run(config), new_run(config)
    assert [first.name, second.name] == ["0001", "0002"]
    assert runs_of(config) == [first, second]
    assert "name: x" in (first.folder / "config.yaml").read_text()


def test_trainings_that_begin_together_get_a_folder_each(config: ExperimentConfig) -> None:
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: new_run(config), range(40)))
    assert sorted(run.name for run in runs) == [f"{i:04d}" for i in range(1, 41)]
    assert runs_of(config) == sorted(runs, key=lambda run: run.name)


def test_a_bundle_without_a_summary_is_no_trained_run(config: ExperimentConfig) -> None:
    run = new_run(config)
    write_bytes(run.bundle / "bundle.json", b"{}")
    assert not run.trained


def test_the_newest_finished_run_is_the_trained_one(config: ExperimentConfig) -> None:
    with pytest.raises(ArtifactError, match="no trained run"):
        trained_run(config)
    first = finish(new_run(config))
    new_run(config)
    assert trained_run(config) == first
    with pytest.raises(ArtifactError, match=r"no trained run '0002'.*0002 \(not finished\)"):
        trained_run(config, "0002")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_bytes(tmp_path / "taken", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_json_of_a_run_reads_back(tmp_path: Path) -> None:
    run = Run(tmp_path / "0001")
    run.write("a.json", {"auc": None, "rows": 3})
    assert run.read("a.json") == {"auc": None, "rows": 3}
    with pytest.raises(ArtifactError, match=r"b\.json"):
        run.read("b.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write("c.json", {"auc": float("nan")})
