"""How many chunks does each feature earn? A search writes candidates, a front and an allocation, tracked in MLflow."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from features.errors import ArtifactError, ConfigError, UndefinedMetricError, list_names
from features.loading.loader import Loader
from features.storage.store import Store
from pipelines.allocation import Allocation, write_allocation
from pipelines.config import ExperimentConfig, with_allocation
from pipelines.console import Console, Task
from pipelines.prepare import open_store
from pipelines.progress import Listeners, ProgressListener
from pipelines.thresholds import without_what_did_not_pass
from pipelines.tracking import MlflowListener, params_of
from pipelines.train import check_trainable, local_trainer, model_of, plan_of
from pipelines.workspace import Search, check_started_with, new_search, searches_of
from recsys.embeddings.formats import FormatName
from recsys.embeddings.kernel import table_memory
from recsys.evaluation.metrics import evaluate
from recsys.memory import require_memory
from recsys.models import CTRModel
from recsys.models.convert import convert
from recsys.processes import launched
from recsys.search.config import SearchConfig
from recsys.search.evolution import Evaluate, evolve
from recsys.search.fitness import Fitness, Sample, check_classes, drawn_places, judge
from recsys.search.front import non_dominated, search_front
from recsys.search.importance import by_magnitude, by_statistics, chunk_norms
from recsys.search.optembed import published_search
from recsys.search.plots import front_picture
from recsys.search.space import Genes, SearchSpace, space_of, uniform
from recsys.search.supernet import SupernetTrainer
from recsys.search.table_bytes import TableBytes
from recsys.search.threshold_supernet import ThresholdSupernetTrainer
from recsys.serving.bundle import save_bundle
from recsys.serving.registry import Registry
from recsys.training import Trainer, TrainingListener, TrainResult, predict

STARTS = 6
"""Budgets from whose best allocations the search for a front begins."""
SHOWN = 4
"""Points of the front that the progress display shows."""
JUDGED = ("candidates", "finalists")
"""What a line of the evaluations may hold: genes judged on the sample, or on all validation rows."""
NORM_ROWS = 16_384
"""Validation rows through which the norms of chunks are measured."""


def search(config: ExperimentConfig, console: Console, *, resume: bool = False) -> dict[str, Any]:
    """Search for the number of chunks of every feature.

    Args:
        config: The experiment; `search` says how, and has its defaults when left out.
        console: Told about progress.
        resume: Go on with the newest search if it was cut; it must have the same config and data. One that came to
            its end is left as it is, and its summary returned.

    Returns:
        search, folder, allocation (the file), chunks (by feature), format (None unless it was searched), lookups,
        table_bytes, input_width, method, metric, fitness (on
        all validation rows; None but for a supernet), candidates, seconds (of each part), front (a line an allocation),
        mlflow_run_id.

    Raises:
        ConfigError: No allocation is within the budget, or settings do not go together; no search is begun.
        UndefinedMetricError: The validation split has one class only; likewise.
        ArtifactError: There is no prepared data or it does not fit; or there is nothing to resume.
    """
    if launched():
        raise ConfigError(
            "several processes only train",
            field="torchrun",
            found="search",
            mend="search in one process; torchrun ... -m pipelines.train CONFIG allocation=...",
        )
    settings = config.search or SearchConfig()
    config = config.model_copy(update={"search": settings})
    store = open_store(config)
    space = _space(config, settings, store)
    _check(config, settings, store, space)
    folder = _search_to_resume(config, store) if resume else None
    if folder is not None and folder.finished:
        console.note(f"search {folder.name}: was finished already, nothing is searched")
        return folder.read("result.json")
    job = _Job.begin(config, settings, store, space, folder, console)
    with job.tracked():
        result = {"supernet": _by_supernet, "statistics": _by_norms, "magnitude": _by_norms}[settings.method](job)
        job.tell(result)
    job.folder.write("result.json", result)
    return result


@dataclass
class _Job:
    """What the parts of a search share."""

    config: ExperimentConfig
    settings: SearchConfig
    store: Store
    space: SearchSpace
    folder: Search
    console: Console
    registry: Registry | None
    run_id: str | None

    @property
    def formats(self) -> tuple[FormatName, ...]:
        """Row formats that candidates have."""
        return self.settings.formats or (self.config.embedding.format,)

    @cached_property
    def table_bytes(self) -> TableBytes:
        """The bytes that an allocation takes in a format."""
        return TableBytes(self.store.layout, self.config.embedding, self.store.id_counts("train"))

    @classmethod
    def begin(
        cls,
        config: ExperimentConfig,
        settings: SearchConfig,
        store: Store,
        space: SearchSpace,
        folder: Search | None,
        console: Console,
    ) -> _Job:
        registry = Registry(config.tracking_uri) if config.tracking.enabled else None
        known: dict[str, Any] = {}
        if folder is None:
            folder = new_search(config)
        elif folder.has("search.json"):
            known = folder.read("search.json")
        else:
            folder.write_config(config)
        run_id = known.get("mlflow_run_id")
        if registry and (run_id is None or not registry.has_run(run_id)):
            tags = {"recsys.search": str(folder.folder.resolve()), "recsys.manifest_digest": store.digest}
            experiment = config.tracking.experiment or config.name
            run_id = registry.start_run(experiment, f"{config.name}-search-{folder.name}", tags)
            registry.log_params(run_id, params_of(config))
            registry.log_files(run_id, folder.folder / "config.yaml")
        digests = {key: digest for key, (_, digest) in _digests(config, store).items()}
        folder.write("search.json", {**known, "mlflow_run_id": run_id, **digests})
        console.note(
            f"search {folder.name}: {len(space.features)} features, {np.prod(space.sizes.astype(float)):.3g} "
            f"allocations, at most {space.lookups(space.largest):g} lookups"
        )
        return cls(config, settings, store, space, folder, console, registry, run_id)

    def tracked(self) -> Any:
        return self.registry.running(self.run_id) if self.registry and self.run_id else ExitStack()

    def loader(self, split: str, config: ExperimentConfig) -> Loader:
        if split == "train":
            return Loader(self.store, split, config.train.batch_size, shuffle_seed=config.seed)
        return Loader(self.store, split, config.train.eval_batch_size)

    def train(self, config: ExperimentConfig, make: Callable[[CTRModel, TrainingListener], Trainer]) -> CTRModel:
        """Trains a model, or takes up a training that was cut; a child run of the search in MLflow."""
        plan = plan_of(config, self.store)
        model = model_of(config, self.store, plan)
        initial = self.folder.folder / "initial"
        supernet = self.settings.method == "supernet"
        if supernet and not initial.is_dir():
            save_bundle(initial, model=model, pipeline=self.store.pipeline)
        data = self.loader("train", config), self.loader("valid", config)
        if self.trained is not None:  # so that nothing is left to do but to take up what is best
            make(model, Listeners([])).fit(*data, resume=True)
            return model.eval()
        started = time.perf_counter()
        watch = ProgressListener(self.console)
        listeners: list[TrainingListener] = [watch]
        with ExitStack() as stack:
            stack.callback(watch.close)
            if self.registry and self.run_id:
                child = self._child(self.registry, self.run_id)
                stack.enter_context(self.registry.running(child))
                mlflow = MlflowListener(self.registry, child)
                stack.callback(mlflow.flush)
                listeners.append(mlflow)
            result = make(model, Listeners(listeners)).fit(*data, resume=True)
        if supernet:
            bundle, served = self.folder.folder / "supernet", model
            if config.thresholds:
                served, _ = without_what_did_not_pass(model, self.store, self.console)
            save_bundle(bundle, model=served, pipeline=self.store.pipeline, metrics=self._full_metrics(served, result))
        seconds = time.perf_counter() - started
        self.folder.write("trained.json", {"valid": result.best_metrics, "seconds": seconds})
        return model.eval()

    def _full_metrics(self, model: CTRModel, result: TrainResult) -> dict[str, float]:
        """The metrics of the supernet as its bundle scores, with all chunks; those of its epochs are of several."""
        whole = predict(model, self.loader("valid", self.config))
        assert whole.labels is not None
        report = evaluate(whole.labels, whole.probabilities, whole.weight)
        return {name: report[name] for name in result.best_metrics}

    def _child(self, registry: Registry, parent: str) -> str:
        """The training's MLflow run: the one that was begun, if it was cut."""
        state = self.folder.read("search.json")
        child = state.get("mlflow_training_run_id")
        if child is None or not registry.has_run(child):
            name = f"{self.config.name}-search-{self.folder.name}-{self.settings.method}"
            experiment = self.config.tracking.experiment or self.config.name
            child = registry.start_run(experiment, name, {"mlflow.parentRunId": parent})
            self.folder.write("search.json", {**state, "mlflow_training_run_id": child})
        return str(child)

    @property
    def trained(self) -> dict[str, Any] | None:
        """What the training came to, once it has come to its end."""
        return self.folder.read("trained.json") if self.folder.has("trained.json") else None

    def costs(self, chunks: np.ndarray, format: FormatName) -> dict[str, Any]:
        """What an allocation costs, from its chunk counts [F], with rows in a format."""
        return {
            "lookups": float(self.space.lookups_of(chunks)),
            "input_width": int(chunks.sum()) * self.config.embedding.width,
            "table_bytes": self.table_bytes(chunks, format),
        }

    def tell(self, result: dict[str, Any]) -> None:
        """Writes the allocation that a search came to, and tells MLflow and the console."""
        about = {
            key: result[key]
            for key in ("search", "method", "metric", "fitness", "lookups", "input_width", "table_bytes")
        }
        write_allocation(self.folder.allocation, Allocation(result["chunks"], result["format"]), about)
        if self.registry and self.run_id:
            self._log(self.registry, self.run_id, result)
        self.console.table("allocation", [{"feature": name, "chunks": c} for name, c in result["chunks"].items()])
        judged = (
            "" if result["fitness"] is None else f", {result['metric']} {abs(result['fitness']):.5f} on the supernet"
        )
        chosen = f", {result['format']} rows" if result["format"] else ""
        self.console.note(f"search {self.folder.name}: {result['lookups']:g} lookups an example{chosen}{judged}")
        self.console.note(f"train it: recsys train CONFIG allocation={self.folder.allocation}")

    def _log(self, registry: Registry, run_id: str, result: dict[str, Any]) -> None:
        registry.log_files(run_id, self.folder.allocation)
        seconds = [(f"search/seconds_{name}", value, 0) for name, value in result["seconds"].items()]
        fitness = [] if result["fitness"] is None else [("search/fitness", result["fitness"], 0)]
        registry.log_metrics(run_id, [("search/lookups", result["lookups"], 0), *fitness, *seconds])

    def result(self, chunks: dict[str, int], costs: dict[str, Any], seconds: dict[str, float], **more: Any) -> Any:
        """The summary of a search."""
        return {
            "search": self.folder.name,
            "folder": str(self.folder.folder),
            "allocation": str(self.folder.allocation),
            "chunks": chunks,
            "format": None,
            **costs,
            "method": self.settings.method,
            "metric": self.settings.metric,
            "fitness": None,
            "candidates": 0,
            "front": [],
            **more,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "mlflow_run_id": self.run_id,
        }


def _by_norms(job: _Job) -> dict[str, Any]:
    """Counts and norms after one short training at the least widths; or norms alone after one at the largest."""
    statistics = job.settings.method == "statistics"
    genes = job.space.thinnest if statistics else job.space.largest
    config = _at(job.config, job.space, genes, 1 if statistics else None)
    model = job.train(
        config,
        lambda model, listener: local_trainer(
            config, model, seed=config.seed, folder=job.folder.checkpoints, listener=listener
        ),
    )
    norms = chunk_norms(model, _first(Loader(job.store, "valid", NORM_ROWS)))
    budget = job.settings.max_lookups
    assert budget is not None
    if statistics:
        chosen = job.space.allocation(by_statistics(job.space, norms, job.store.id_counts("train"), budget))
    else:
        chosen = by_magnitude(job.space, norms, budget)
    assert job.trained is not None
    costs = job.costs(np.array([chosen[name] for name in job.space.names]), job.config.embedding.format)
    return job.result(chosen, costs, {"train": job.trained["seconds"]})


def _by_supernet(job: _Job) -> dict[str, Any]:
    """A supernet, candidates judged on it, and the finalists on all validation rows."""
    settings, space = job.settings, job.space
    config = _of_supernet(job.config, settings, space)

    def make(model: CTRModel, listener: TrainingListener) -> Trainer:
        common: dict[str, Any] = {"space": space, "supernet": settings.supernet, "listener": listener}
        common |= {"seed": config.seed, "folder": job.folder.checkpoints}
        if config.thresholds:
            return ThresholdSupernetTrainer(model, config.train, thresholds=config.thresholds, **common)
        return SupernetTrainer(model, config.train, **common)

    model = job.train(config, make)
    started = time.perf_counter()
    places = _sampled(settings, job.store)
    calls = settings.generations
    if settings.for_front and settings.evolution == "elitist":
        calls += STARTS * _short(settings)
    candidates, finalists, judged = [], [], 0.0
    log = _Evaluations(job)
    with job.console.progress("searching", calls * len(job.formats)) as log.task:
        for format in job.formats:
            rounded = model if format == model.plan.format else convert(model, format)
            rounded.embedding.gate = model.embedding.gate
            sample = Sample.of(rounded, job.loader("valid", config), places)
            log.judge_in(format, Fitness(model, space, sample, settings.metric))
            genes, fitness, best = _evolved(settings, space, log)
            candidates += [_Candidate(format, own, float(value)) for own, value in zip(genes, fitness, strict=True)]
            before = time.perf_counter()
            whole = log.of_finalists(best, _on_all_rows(job, rounded))
            finalists += [_Candidate(format, own, float(value)) for own, value in zip(best, whole, strict=True)]
            judged += time.perf_counter() - before
    searched = time.perf_counter() - started - judged
    chosen, front = _choose(job, finalists)
    _write_candidates(job, candidates, finalists, front)
    assert job.trained is not None
    return job.result(
        space.allocation(chosen.genes),
        job.costs(space.chunks(chosen.genes), chosen.format),
        {"train": job.trained["seconds"], "evolution": searched, "finalists": judged},
        fitness=chosen.fitness,
        candidates=len(candidates),
        front=front,
        format=chosen.format if settings.formats else None,
    )


def _on_all_rows(job: _Job, model: CTRModel) -> Evaluate:
    """Judges by the whole validation split."""
    return lambda genes: judge(model, job.loader("valid", job.config), job.space, genes, job.settings.metric)


@dataclass(frozen=True)
class _Candidate:
    """An allocation in a row format, and what it was judged to be worth."""

    format: FormatName
    genes: Genes
    fitness: float


def _evolved(
    settings: SearchConfig, space: SearchSpace, log: _Evaluations
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every candidate [N, F], its fitness on the sample [N], and the finalists [K, F]."""
    if settings.evolution == "published":
        published = published_search(space, log.fitness, generations=settings.generations, seed=settings.seed)
        return published.genes, published.fitness, published.saved[None]
    common: dict[str, Any] = {
        "generations": settings.generations,
        "population": settings.population,
        "mutation": settings.mutation,
        "max_lookups": settings.max_lookups,
        "seed": settings.seed,
    }
    same = [uniform(space, count) for count in sorted({c for f in space.features for c in f.levels} - {0})]
    if not settings.for_front:
        evolved = evolve(space, log.fitness, parents=settings.parents, first=same, **common)
        return evolved.genes, evolved.fitness, evolved.genes[evolved.order[: settings.finalists]]
    starts = _starts(settings, space, log)
    search_front(space, log.objectives, objectives=1 + len(settings.costs), first=[*starts, *same], **common)
    genes, fitness = log.judged()
    front = non_dominated(np.column_stack([-fitness, log.costs(genes)]))
    return genes, fitness, genes[_spread(front, settings.finalists)]


def _starts(settings: SearchConfig, space: SearchSpace, log: _Evaluations) -> list[Genes]:
    """Good allocations of a few budgets, each found from the one above it; NSGA-II alone takes far longer to them."""
    found: list[Genes] = []
    largest, least = float(space.lookups(space.largest)), max(space.least_lookups, 1.0)
    budgets = np.geomspace(largest, least, STARTS + 2)[1:-1]
    if settings.max_lookups is not None and settings.max_lookups < largest:
        budgets = np.geomspace(settings.max_lookups, min(least, settings.max_lookups), STARTS + 1)[:-1]
    for budget in budgets:
        short: dict[str, Any] = {"generations": _short(settings), "population": settings.population}
        short |= {"parents": settings.parents, "mutation": settings.mutation, "seed": settings.seed}
        evolved = evolve(space, log.fitness, max_lookups=float(budget), first=found[-1:], **short)
        found.append(evolved.best)
    return found


def _short(settings: SearchConfig) -> int:
    """Generations of a search for one of the starts."""
    return -(-settings.generations // 4)


class _Evaluations:
    """All that was judged, kept in a file line by line; what is there already is not judged again."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._path = job.folder.folder / "evaluations.jsonl"
        self._known: dict[tuple[str, str, bytes], float] = {}
        self._generation = 0
        self._front = np.empty((0, 2))
        self.task: Task | None = None
        whole = 0
        if self._path.is_file():
            for line in self._path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break  # the line at which the search was cut
                told = json.loads(line)
                for rows in JUDGED:
                    for genes, value in told.get(rows, ()):
                        self._known[rows, told["format"], np.array(genes, np.int64).tobytes()] = value
                whole += len(line)
            os.truncate(self._path, whole)

    def judge_in(self, format: FormatName, judge: Fitness) -> None:
        """From now on candidates have rows in this format."""
        self._format, self._judge = format, judge

    def fitness(self, genes: np.ndarray) -> np.ndarray:
        """[N] of genes [N, F] on the sample, higher is better."""
        out = self._valued("candidates", genes, self._judge)
        self._tell(genes, out)
        return out

    def of_finalists(self, genes: np.ndarray, judge: Evaluate) -> np.ndarray:
        """[N] of genes [N, F] on all validation rows, by a function that looks at them."""
        return self._valued("finalists", genes, judge)

    def objectives(self, genes: np.ndarray) -> np.ndarray:
        """[N, K] of genes [N, F], lower is better: minus the fitness, then the costs."""
        return np.column_stack([-self.fitness(genes), self.costs(genes)])

    def costs(self, genes: np.ndarray) -> np.ndarray:
        """[N, K - 1] of genes [N, F]: what a front sets against quality."""
        job = self._job
        costs = [job.costs(own, self._format) for own in job.space.chunks(genes)]
        return np.array([[cost[name] for name in job.settings.costs] for cost in costs], np.float64)

    def judged(self) -> tuple[np.ndarray, np.ndarray]:
        """All genes [N, F] that were judged in this format, in order, and their fitness [N]."""
        wanted = ("candidates", self._format)
        own = {genes: value for (*known, genes), value in self._known.items() if tuple(known) == wanted}
        return np.stack([np.frombuffer(genes, np.int64) for genes in own]), np.array(list(own.values()))

    def _valued(self, rows: str, genes: np.ndarray, judge: Evaluate) -> np.ndarray:
        """What is known of genes [N, F] on these rows [N]; the others are judged, and kept."""
        keys = [(rows, self._format, own.tobytes()) for own in genes]
        fresh = [own for key, own in zip(keys, genes, strict=True) if key not in self._known]
        if fresh:
            values = [float(value) for value in judge(np.stack(fresh))]
            for own, value in zip(fresh, values, strict=True):
                self._known[rows, self._format, own.tobytes()] = value
            judged = [[own.tolist(), value] for own, value in zip(fresh, values, strict=True)]
            with self._path.open("a") as file:
                file.write(json.dumps({"format": self._format, rows: judged}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return np.array([self._known[key] for key in keys])

    def _tell(self, genes: np.ndarray, fitness: np.ndarray) -> None:
        """Shows some points of the front so far."""
        job = self._job
        self._generation += 1
        seen = np.concatenate([self._front, np.column_stack([job.space.lookups(genes), -fitness])])
        self._front = seen[non_dominated(seen)]
        if self.task is not None:
            points = self._front[_spread(np.arange(len(self._front)), SHOWN)]
            text = ", ".join(f"{abs(value):.4f} at {lookups:g}" for lookups, value in points)
            self.task.update(self._generation, f"{job.settings.metric} {text} lookups")
        if job.registry and job.run_id:
            values = {"search/best": -float(self._front[:, 1].min()), "search/mean": float(fitness.mean())}
            rows = [(name, value, self._generation) for name, value in values.items()]
            job.registry.log_metrics(job.run_id, rows)


def _choose(job: _Job, finalists: Sequence[_Candidate]) -> tuple[_Candidate, list[dict[str, Any]]]:
    """The finalist that the search comes to, and the front among the finalists, cheapest first."""
    settings = job.settings
    costs = [job.costs(job.space.chunks(own.genes), own.format) for own in finalists]
    named = (*settings.costs, *(["table_bytes"] if settings.formats else []))
    fitness = np.array([own.fitness for own in finalists])
    order = non_dominated(np.column_stack([[cost[name] for cost in costs] for name in named] + [-fitness]))
    front = [
        {
            **costs[i],
            **({"format": finalists[i].format} if settings.formats else {}),
            settings.metric: abs(finalists[i].fitness),
            "chunks": job.space.allocation(finalists[i].genes),
        }
        for i in order
    ]
    if not settings.for_front and not settings.formats:
        return finalists[int(np.argmax(fitness))], front
    enough = [i for i in order if fitness[i] >= fitness.max() - settings.tolerance]
    if settings.formats:
        least = min(costs[i]["table_bytes"] for i in enough)
        enough = [i for i in enough if costs[i]["table_bytes"] == least]
        if not settings.for_front:
            enough = [max(enough, key=lambda i: fitness[i])]
    return finalists[int(enough[0])], front


def _write_candidates(
    job: _Job, candidates: Sequence[_Candidate], finalists: Sequence[_Candidate], front: Sequence[dict[str, Any]]
) -> None:
    judged = {(own.format, own.genes.tobytes()): own.fitness for own in finalists}
    rows = [
        {
            "candidate": number,
            "format": own.format,
            **job.costs(job.space.chunks(own.genes), own.format),
            "sample_fitness": own.fitness,
            "fitness": judged.get((own.format, own.genes.tobytes())),
            **job.space.allocation(own.genes),
        }
        for number, own in enumerate(candidates)
    ]
    job.folder.write("candidates.json", {"candidates": rows})
    job.folder.write("front.json", {"front": list(front)})
    picture = front_picture(
        [(row["lookups"], abs(row["sample_fitness"])) for row in rows],
        [(row["lookups"], row[job.settings.metric]) for row in front],
        job.settings.metric,
    )
    files = picture.write(job.folder.folder)
    job.console.table("front", [{k: v for k, v in row.items() if k != "chunks"} for row in front])
    if job.registry and job.run_id:
        job.registry.log_table(job.run_id, rows, "candidates.json")
        job.registry.log_files(job.run_id, job.folder.folder / "front.json")
        for file in files:
            job.registry.log_files(job.run_id, file)


def _spread(places: np.ndarray, number: int) -> np.ndarray:
    """So many of the places, evenly along the front."""
    if len(places) <= number:
        return places
    chosen: np.ndarray = places[np.unique(np.linspace(0, len(places) - 1, number).round().astype(int))]
    return chosen


def _at(config: ExperimentConfig, space: SearchSpace, genes: Genes, epochs: int | None) -> ExperimentConfig:
    """The experiment as an ordinary training with these chunks, from scratch."""
    start: dict[str, Any] = {"warm_start": None, "reset": (), "teacher": None} | ({"epochs": epochs} if epochs else {})
    config = with_allocation(config, Allocation(space.allocation(genes)))
    return config.model_copy(update={"train": config.train.model_copy(update=start)})


def _of_supernet(config: ExperimentConfig, settings: SearchConfig, space: SearchSpace) -> ExperimentConfig:
    """The experiment as the training of the supernet."""
    config = _at(config, space, space.largest, settings.supernet.epochs)
    rows = settings.supernet.rows or space.supernet_rows(config.embedding.rows, settings.max_lookups)
    return config.model_copy(update={"embedding": config.embedding.model_copy(update={"rows": rows})})


def _check(config: ExperimentConfig, settings: SearchConfig, store: Store, space: SearchSpace) -> None:
    """Refuses what could not be searched, before anything is begun."""
    space.check_budget(settings.max_lookups)
    if settings.method != "supernet" and settings.max_lookups is None:
        raise ConfigError(
            "this method needs a budget",
            field="search.max_lookups",
            found="nothing",
            expected="rows read for an example",
            mend=f"give it, such as search.max_lookups={len(space.features)}; a front takes search.method=supernet",
        )
    if settings.evolution == "published" and space.lacks_a_chunk(np.zeros(len(space.features), np.int64)):
        needed = [f.name for f in space.features if f.suffices]
        raise ConfigError(
            "the published loop repairs nothing, so that it may propose an allocation that cannot be trained",
            field="search.levels",
            found=f"0 for {list_names(needed)}",
            mend="let the levels of one of them begin at 1, or set search.evolution to elitist",
        )
    largest = _at(config, space, space.largest, None)
    label, mean = next(iter(store.manifest["label_means"]["valid"].items()))
    if mean in (0, 1):
        raise UndefinedMetricError(
            "no allocation can be judged on rows of one class",
            field="data.split",
            found=f"every {label} of the validation split is {mean:.0f}",
            mend="split the data so that validation holds both classes",
        )
    check_trainable(largest, store, plan_of(largest, store))
    if settings.method == "supernet":
        supernet = _of_supernet(config, settings, space)
        plan = plan_of(supernet, store)
        parts = table_memory(plan.rows, plan.row_format, supernet.train.optimizer_of_table)
        fewer = f"set search.supernet.rows, to embedding.rows ({config.embedding.rows}) for example"
        require_memory([replace(part, field="search.supernet.rows", mend=fewer) for part in parts])
        check_classes(_labels(config, store)[_sampled(settings, store)])


def _sampled(settings: SearchConfig, store: Store) -> np.ndarray:
    """The validation rows on which candidates are judged."""
    return drawn_places(store.rows("valid"), settings.sample_rows, settings.seed)


def _labels(config: ExperimentConfig, store: Store) -> np.ndarray:
    """[N, T] of the validation split."""
    batches = Loader(store, "valid", config.train.eval_batch_size)
    return np.concatenate([batch.labels.numpy() for batch in batches if batch.labels is not None])


def _space(config: ExperimentConfig, settings: SearchConfig, store: Store) -> SearchSpace:
    """What there is to choose among."""
    space = space_of(store.layout, config.embedding, store.id_counts("train"), settings, _bag_lengths(store))
    return replace(space, needs_a_chunk=True) if config.thresholds else space  # which know no model without a table


def _bag_lengths(store: Store) -> dict[str, float]:
    """Mean number of values in a row of each bag."""
    counts, rows = store.id_counts("train"), store.rows("train")
    return {name: float(counts[name][1].sum()) / rows for name in store.layout.bag_names}


def _digests(config: ExperimentConfig, store: Store) -> dict[str, tuple[str, str]]:
    """What a search is started with, and must be gone on with: key -> (name, digest)."""
    assert config.search is not None
    return {
        "config_digest": ("config", config.digest()),
        "search_digest": ("search section", config.search.model_dump_json()),
        "store_digest": ("prepared data", store.digest),
    }


def _search_to_resume(config: ExperimentConfig, store: Store) -> Search:
    """The newest search, if it may be gone on with."""
    searches = searches_of(config)
    if not searches:
        raise ArtifactError(
            "there is no search to resume", field=str(config.folder / "searches"), mend="search without --resume"
        )
    folder = searches[-1]
    if folder.has("search.json"):  # else it was cut before it had begun
        check_started_with(folder, folder.read("search.json"), _digests(config, store), "search", "search")
    return folder


def _first(loader: Loader) -> list[Any]:
    return [next(iter(loader))]
