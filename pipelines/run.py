"""The whole way in one command: prepare, search (if the config asks for it), train, evaluate, register."""

from __future__ import annotations

from typing import Any

from features.errors import ConfigError
from pipelines.allocation import Allocation
from pipelines.config import ExperimentConfig, with_allocation
from pipelines.console import Console
from pipelines.evaluate import evaluate
from pipelines.prepare import open_store, prepare
from pipelines.register import register
from pipelines.search import search
from pipelines.train import train
from pipelines.workspace import runs_of, searches_of
from recsys.processes import launched


def run(config: ExperimentConfig, console: Console, *, resume: bool = False) -> dict[str, Any]:
    """Prepare, search if there is a `search` section, train, evaluate, register.

    Args:
        config: The experiment.
        console: Told about progress.
        resume: Go on with the newest search if there is one, and with the newest run if it is of this config and
            data; what is not there is begun.

    Returns:
        prepare, search, train, evaluate, register: what each step returned (`search` is None without one). A model
        that fails a gate is not registered: `register` is None and `gates_failed` names the metrics.

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
    steps = ["prepare", *(["search"] if config.search else []), "train", "evaluate", "register"]

    def begin(step: str) -> None:
        console.title(f"{steps.index(step) + 1}/{len(steps)} {step}")

    begin("prepare")
    prepared = prepare(config, console)
    searched = None
    if config.search:
        begin("search")
        searched = search(config, console, resume=resume and bool(searches_of(config)))
        config = with_allocation(config, Allocation(searched["chunks"], searched["format"]))
    begin("train")
    trained = train(config, console, resume=resume and _begun(config))
    begin("evaluate")
    evaluated = evaluate(config, console, run_name=trained["run"])
    failed = evaluated["gates_failed"]
    registered = None
    begin("register")
    if failed:
        console.note(f"not registered: a gate failed ({', '.join(failed)})")
    elif not config.tracking.enabled:
        console.note("not registered: tracking is off")
    else:
        registered = register(config, console, run_name=trained["run"])
    return {
        "prepare": prepared,
        "search": searched,
        "train": trained,
        "evaluate": evaluated,
        "register": registered,
        "gates_failed": failed,
    }


def _begun(config: ExperimentConfig) -> bool:
    """Whether the newest run is of this config and this data; what was cut before the training has none."""
    runs = runs_of(config)
    if not runs or not runs[-1].has("run.json"):
        return False
    state = runs[-1].read("run.json")
    return (state["config_digest"], state["store_digest"]) == (config.digest(), open_store(config).digest)
