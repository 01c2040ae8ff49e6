"""The tracking store: many metrics at once, long configs, clear refusals. A real sqlite store each time."""

from pathlib import Path

import pytest

from features.errors import ArtifactError, ConfigError
from recsys.serving.registry import Registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(f"sqlite:///{tmp_path_factory.mktemp('store') / 'new' / 'mlflow.db'}")


def test_more_metrics_and_parameters_than_mlflow_takes_at_once(registry: Registry) -> None:
    run_id = registry.start_run("many", "one")
    registry.log_metrics(run_id, [("loss", 1.0 / (step + 1), step) for step in range(2500)])
    registry.log_params(run_id, {"model": {f"p{i}": i for i in range(250)}})
    run = registry._client.get_run(run_id)
    assert len(registry._client.get_metric_history(run_id, "loss")) == 2500
    assert run.data.params["model.p249"] == "249"


def test_artefacts_lie_beside_the_store(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    run_id = registry.start_run("files", "one")
    registry.log_files(run_id, tmp_path / "a.txt", "texts")
    store = Path(registry.uri.removeprefix("sqlite:///"))
    assert [path.read_text() for path in store.parent.rglob("a.txt")] == ["a"]


def test_a_run_that_fails_is_marked_failed(registry: Registry) -> None:
    run_id = registry.start_run("status", "one")
    with pytest.raises(ZeroDivisionError), registry.running(run_id):
        raise ZeroDivisionError
    assert registry._client.get_run(run_id).info.status == "FAILED"
    with registry.running(run_id):
        assert registry._client.get_run(run_id).info.status == "RUNNING"
    assert registry._client.get_run(run_id).info.status == "FINISHED"


def test_system_metrics_are_logged(registry: Registry) -> None:
    run_id = registry.start_run("system", "one")
    with registry.running(run_id, system_metrics=True):
        pass
    assert registry.has_run(run_id)
    assert not registry.has_run("0" * 32)


def test_names_that_are_none(registry: Registry) -> None:
    for uri in ("models:/a", "models:/a@", "models:/a/b/3", "runs:/a/b", "models:/@x"):
        with pytest.raises(ConfigError, match="models:/NAME@ALIAS"):
            registry.resolve(uri)
    with pytest.raises(ArtifactError, match=r"no such registered model.*an empty registry"):
        registry.resolve("models:/a@b")


def test_a_model_is_found_among_many(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for i in range(105):
        registry._client.create_registered_model(f"model-{i:03d}")
    registry._client.create_model_version("model-104", str(tmp_path))
    assert registry.resolve("models:/model-104/1").version == 1
    with pytest.raises(ArtifactError, match="did you mean 'model-000'"):
        registry.resolve("models:/modell-000/1")


def test_a_reader_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no MLflow store"):
        Registry(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}", create=False)
    assert list(tmp_path.iterdir()) == []
