"""Reading an experiment: defaults, overrides, messages that help, and a resolved config that reads back."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from features.errors import ConfigError
from pipelines.config import ExperimentConfig, config_from, load_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def minimal() -> dict[str, Any]:
    return {
        "name": "x",
        "data": {"source": "events.parquet", "split": {"kind": "random"}},
        "spec": {"features": [{"type": "id", "name": "user"}], "labels": ["click"]},
    }


def write(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def test_defaults_fill_the_rest() -> None:
    config = config_from(minimal())
    assert config.seed == 0
    assert config.registered_model == "x"
    assert config.store_folder == Path("work/x/data")
    assert config.tracking_uri == f"sqlite:///{Path('work/mlflow.db').resolve()}"


def test_resolved_config_reads_back_as_the_same(tmp_path: Path) -> None:
    config = config_from(minimal(), ["train.epochs=3", "model.hidden=[8,4]"])
    assert load_config(write(tmp_path / "c.yaml", config.to_yaml())) == config


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.learning_rate=1e-3", lambda c: c.train.learning_rate == 0.001),
        ("train.patience=null", lambda c: c.train.patience is None),
        ("model.hidden=[64, 32]", lambda c: c.model.hidden == (64, 32)),
        ("tracking.uri=sqlite:///a=b.db", lambda c: c.tracking.uri == "sqlite:///a=b.db"),
        ("spec.features.0.name=who", lambda c: c.spec.features[0].name == "who"),
        ("gates.auc={min: 0.7}", lambda c: c.gates["auc"].min == 0.7),
        ("embedding.chunks.features.user=3", lambda c: c.embedding.chunks.of("user") == 3),
    ],
)
def test_overrides_are_yaml_values(override: str, read: Any) -> None:
    assert read(config_from(minimal(), [override]))


def test_overrides_leave_the_given_values_alone() -> None:
    data = minimal()
    config_from(data, ["train.epochs=3", "spec.features.0.dtype=integer"])
    assert data == minimal()


def test_later_overrides_win() -> None:
    assert config_from(minimal(), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("override", ["name.x=1", "spec.features.one.name=a", "=3", "seed", "seed=[", "gates.auc={}"])
def test_wrong_overrides_are_config_errors(override: str) -> None:
    with pytest.raises(ConfigError):
        config_from(minimal(), [override])


def test_misspelt_key_names_its_path_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"train\.learning_rat: unknown key.*did you mean 'learning_rate'"):
        config_from(minimal(), ["train.learning_rat=1"])


def test_recipe_and_source_exclude_one_another() -> None:
    for data in ({"split": {"kind": "random"}}, {**minimal()["data"], "recipe": "criteo"}):
        with pytest.raises(ConfigError, match="either 'recipe' or 'source'"):
            config_from({**minimal(), "data": data})


def test_numbers_as_people_write_them_and_merge_keys(tmp_path: Path) -> None:
    text = yaml.safe_dump(minimal()) + "base: &b {epochs: 2}\ntrain: {<<: *b, learning_rate: 1e-4}\n"
    with pytest.raises(ConfigError, match="base: unknown key"):
        load_config(write(tmp_path / "c.yaml", text))
    text = text.replace("base: &b {epochs: 2}\n", "").replace("<<: *b", "<<: {epochs: 2}")
    config = load_config(write(tmp_path / "c.yaml", text))
    assert (config.train.epochs, config.train.learning_rate) == (2, 1e-4)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(write(tmp_path / "c.yaml", "name: !!python/object/apply:os.getcwd []\n"))


def test_digest_is_of_what_decides_the_result() -> None:
    base = config_from(minimal())
    same = config_from(minimal(), ["workspace=elsewhere", "tracking.enabled=false", "gates.auc.min=0.5"])
    other = config_from(minimal(), ["seed=1"])
    assert base.digest() == same.digest()
    assert base.digest() != other.digest()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_right(path: Path) -> None:
    config = load_config(path)
    assert isinstance(config, ExperimentConfig)
    assert config.name == path.stem


def test_a_recipe_brings_its_spec() -> None:
    data = {"name": "x", "data": {"recipe": "criteo", "split": {"kind": "random"}}}
    config = config_from(data)
    assert config.spec.layout.id_names == tuple(f"C{n}" for n in range(1, 27))
    assert config_from(yaml.safe_load(config.to_yaml())) == config
    with pytest.raises(ConfigError, match="spec"):
        config_from({"name": "x", "data": {"source": "events.csv", "split": {"kind": "random"}}})
    with pytest.raises(ConfigError, match=r"data\.recipe"):
        config_from({"name": "x", "data": {"recipe": ["criteo"], "split": {"kind": "random"}}})


def test_a_secret_is_the_name_of_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    override = "data.storage_options={aws_region: x, aws_secret_access_key: %s}"
    with pytest.raises(ConfigError, match=r"data\.storage_options\.aws_secret_access_key: a secret") as error:
        config_from(minimal(), [override % "hush"])
    assert "hush" not in str(error.value)
    config = config_from(minimal(), [override % "env:HUSH"])
    with pytest.raises(ConfigError, match=r"environment variable is not set\. Found: env:HUSH"):
        _ = config.data.resolved_options
    monkeypatch.setenv("HUSH", "hush")
    assert config.data.resolved_options == {"aws_region": "x", "aws_secret_access_key": "hush"}
    assert "hush" not in config.to_yaml().replace("env:HUSH", "").lower()
    assert config.digest() == config_from(minimal()).digest()


def test_an_as_of_join_takes_the_time_of_the_spec() -> None:
    join = "data.join=[{source: users.csv, on: user, time: at%s}]"
    with pytest.raises(ConfigError, match=r"data\.join \(users\.csv\)\.event_time: an as-of join needs"):
        config_from(minimal(), [join % ""])
    assert config_from(minimal(), [join % ", event_time: t"]).data.join[0].time_of_event(None) == "t"
    config = config_from(minimal(), [join % "", "spec.time=t"])
    assert config_from(yaml.safe_load(config.to_yaml())) == config
    with pytest.raises(ConfigError, match=r"data\.join\.0\.tiem: unknown key.*did you mean 'time'"):
        config_from(minimal(), ["data.join=[{source: users.csv, on: user, tiem: at}]"])
