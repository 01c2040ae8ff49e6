"""The whole way in one command: prepare, train, evaluate, register."""

from __future__ import annotations

from typing import Any

from features.errors import ConfigError
from pipelines.config import ExperimentConfig
from pipelines.console import Console
from pipelines.evaluate import evaluate
from pipelines.prepare import prepare
from pipelines.register import register
from pipelines.train import train
from recsys.processes import launched


def run(config: ExperimentConfig, console: Console, *, resume: bool = False) -> dict[str, Any]:
    """Prepare, train, evaluate, register.

    Args:
        config: The experiment.
        console: Told about progress.
        resume: Go on with the newest run if its training was cut.

    Returns:
        prepare, train, evaluate, register: what each step returned. A model that fails a gate is not registered:
        `register` is None and `gates_failed` names the metrics.

    Raises:
        ConfigError: Under torchrun: each process would evaluate and register.
    """
    if launched():
        raise ConfigError(
            "several processes only train",
            field="torchrun",
            found="run",
            mend="torchrun ... -m pipelines.train; prepare, evaluate and register without it",
        )
    console.title("1/4 prepare")
    prepared = prepare(config, console)
    console.title("2/4 train")
    trained = train(config, console, resume=resume)
    console.title("3/4 evaluate")
    evaluated = evaluate(config, console, run_name=trained["run"])
    failed = evaluated["gates_failed"]
    registered = None
    console.title("4/4 register")
    if failed:
        console.note(f"not registered: a gate failed ({', '.join(failed)})")
    elif not config.tracking.enabled:
        console.note("not registered: tracking is off")
    else:
        registered = register(config, console, run_name=trained["run"])
    return {
        "prepare": prepared,
        "train": trained,
        "evaluate": evaluated,
        "register": registered,
        "gates_failed": failed,
    }
