"""Do searched widths beat uniform, random, statistics-only and magnitude-pruned ones at equal lookups, rows and bits?

MovieLens-1M, the Criteo sample and Frappe.  On each data set one supernet is trained and searched; every allocation is
then trained from scratch with three seeds and tested on the same rows, the searched ones also taught by the largest
model and from the supernet's weights.  Also: how well the supernet ranks random allocations, what the search costs
beside one training, and a planted truth on `synthetic`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy.stats import spearmanr

from benchmarks.arms import Arm, Run, Training, difference, run_arms
from benchmarks.harness import ROOT, Bar, Outcome, Settings, main
from features.loading.loader import Loader
from features.recipes import RECIPES
from features.spec import FeatureSpec
from features.storage.splits import RandomSplit, Split, TimeSplit
from features.storage.store import Store, build_store
from features.validation import validate
from recsys.embeddings import EmbeddingConfig, plan_embedding
from recsys.embeddings.config import ChunksConfig
from recsys.evaluation.metrics import auc
from recsys.evaluation.paired import Difference, over_seeds
from recsys.evaluation.plots import Picture, Theme, legend, picture
from recsys.models import CTRModel, ModelConfig
from recsys.models.network import Network
from recsys.search.config import SearchConfig, SupernetConfig
from recsys.search.evolution import evolve
from recsys.search.fitness import Fitness, Sample, drawn_places, judge
from recsys.search.importance import by_magnitude, by_statistics, chunk_norms
from recsys.search.space import Genes, SearchSpace, space_of, uniform
from recsys.search.supernet import SupernetTrainer
from recsys.serving.bundle import save_bundle
from recsys.training import TrainConfig, Trainer, predict

SEEDS: tuple[int, ...] = (0, 1, 2)
SHOWN = 0.03
"""AUC below the best that a picture shows."""
RANDOM = 10
"""Random allocations at the same lookups."""
FIDELITY = 20
"""Random allocations of the whole space that are retrained."""
WITHIN = 0.0005
"""AUC that counts as equal quality on the test rows; validation picks what is within half of it."""


FOLDER = ROOT / "work" / "dimension_search"
OURS, UNIFORM, STATISTICS, MAGNITUDE, LARGEST = "searched", "uniform", "statistics", "magnitude", "largest"
TAUGHT = "taught by the largest"
STARTS: dict[str, dict[str, str]] = {
    TAUGHT: {"teacher": "largest"},
    "from its first weights": {"warm_start": "initial"},
    "from the supernet": {"warm_start": "supernet"},
    "from the supernet, taught by it": {"warm_start": "supernet", "teacher": "supernet"},
}
"""Ways to retrain a searched allocation other than from scratch: fields of `TrainConfig`, and names of bundles."""


@dataclass(frozen=True)
class DataSet:
    """A data set, its table and network, and the budgets that are searched."""

    title: str
    recipe: str
    split: Split
    embedding: Mapping[str, Any]
    """Fields of `EmbeddingConfig`: the same rows and bits for all allocations."""
    model: Mapping[str, Any]
    """Fields of `ModelConfig`."""
    train: Mapping[str, Any]
    """Fields of `TrainConfig`: of the supernet, and of the largest model as a teacher and for magnitude pruning."""
    retrain_epochs: int
    """At most, of the models that are compared."""
    levels: tuple[int, ...]
    """Chunk counts to choose among."""
    budget: int
    """Lookups at which all methods are compared: one a feature."""
    budgets: tuple[int, ...]
    """More lookups, to meet statistics at and to find the fewest for equal quality among."""

    params: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe."""
    features: Sequence[Mapping[str, Any]] = ()
    """In place of the recipe's own."""

    def store(self, folder: Path) -> Store:
        """The prepared rows; the same for all seeds."""
        recipe = RECIPES[self.recipe]
        hint = recipe.spec_hint
        spec = {"features": self.features, "labels": hint["labels"]} if self.features else hint
        return build_store(recipe.load(None, **self.params), validate(FeatureSpec, spec), self.split, folder)


DATA_SETS = {
    "movielens": DataSet(
        title="MovieLens-1M",
        recipe="movielens_1m",
        split=RandomSplit(fractions=(0.8, 0.1, 0.1), seed=0),
        embedding={"width": 8, "rows": 4000, "exact": {"max_values": 64}},
        model={"interaction": "dcnv2", "cross_layers": 1, "hidden": (192,)},
        train={
            "batch_size": 1024,
            "epochs": 14,
            "patience": 2,
            "table_optimizer": "rmsprop",
            "table_learning_rate": 3e-3,
            "table_l2": 2e-4,
            "ema": 0.999,
        },
        retrain_epochs=20,
        levels=(0, 1, 2, 4, 8),
        budget=6,
        budgets=(7, 8, 10, 16, 24),
    ),
    "criteo": DataSet(
        title="Criteo sample",
        recipe="criteo",
        split=TimeSplit(columns=["row"], fractions=(0.8, 0.1, 0.1)),
        embedding={"width": 4, "rows": 100_000, "exact": {"max_values": 64}},
        model={"interaction": "dcnv2", "cross_layers": 2, "hidden": (256, 128)},
        train={
            "batch_size": 512,
            "epochs": 3,
            "patience": 1,
            "learning_rate": 1.5e-3,
            "table_learning_rate": 0.075,
            "table_eps": 1e-4,
        },
        retrain_epochs=3,
        levels=(0, 1, 2, 4, 8),
        budget=26,
        budgets=(13, 20, 32, 52),
    ),
    "frappe": DataSet(
        title="Frappe",
        recipe="frappe",
        split=RandomSplit(fractions=(0.8, 0.1, 0.1), seed=0),
        embedding={"width": 8, "rows": 4000, "exact": {"max_values": 64}},
        model={"interaction": "dcnv2", "cross_layers": 1, "hidden": (256,)},
        train={
            "batch_size": 512,
            "epochs": 12,
            "patience": 2,
            "learning_rate": 3e-3,
            "table_optimizer": "rmsprop",
            "table_learning_rate": 1e-2,
            "table_l2": 2e-5,
            "ema": 0.999,
        },
        retrain_epochs=40,
        levels=(0, 1, 2, 4, 8),
        budget=10,
        budgets=(13, 16, 20),
    ),
}


# ---- a planted truth

PLANTED = "synthetic"
INFORMED = (1.0, 0.8, 0.63, 0.5, 0.4, 0.3, 0.22, 0.15)
"""Standard deviations of the effects of eight fields with 3,000 values each."""
USELESS = (10, 100, 300, 1000, 2000, 3000, 3000, 5000, 10_000, 20_000)
"""Numbers of values of ten fields that tell nothing."""


def _planted(seed: int) -> DataSet:
    """Fields of known information; two lookups for each that has some.

    All values are about as frequent as the others: where few values make up most of the data, it is by luck with their
    collisions that one field needs more lookups than another, and two are enough for any (retrained models cannot tell
    2 everywhere from 4, 3, 3, 2, 2, 1, 1, 0).  Every seed hashes otherwise.
    """
    informed = {f"informed_{place}": 3000 for place in range(len(INFORMED))}
    useless = {f"useless_{place}": values for place, values in enumerate(USELESS)}
    names = [*informed, *useless]
    params = {
        "rows": 400_000,
        "seed": seed,
        "fields": {"country": 20, "device": 5, "user_id": 50, **informed, **useless},
        "effects": dict.fromkeys(names, 0.0) | dict(zip(informed, INFORMED, strict=True)),
        "drifting": [],
        "zipf": 0.5,
        "rare": 1e-4,
        "spread": 1.6,
    }
    return DataSet(
        title=f"synthetic, seed {seed}",
        recipe="synthetic",
        split=RandomSplit(fractions=(0.8, 0.1, 0.1), seed=0),
        embedding={"width": 4, "rows": 4000, "hash_seed": seed},
        model={"interaction": "dcnv2", "cross_layers": 1, "hidden": (64,)},
        train={
            "batch_size": 2048,
            "epochs": 4,
            "patience": 2,
            "learning_rate": 2e-3,
            "table_optimizer": "rmsprop",
            "table_learning_rate": 3e-3,
            "table_l2": 1e-4,
            "ema": 0.99,
        },
        retrain_epochs=0,
        levels=(0, 1, 2, 3, 4, 6, 8),
        budget=2 * len(INFORMED),
        budgets=(),
        params=params,
        features=[{"type": "id", "name": name, "dtype": "integer"} for name in names],
    )


@dataclass
class Searched:
    """What was found out about a data set before anything was retrained."""

    space: SearchSpace
    allocations: dict[str, dict[str, int]]
    """By name; those at a budget B are `searched@B`, `statistics@B` and so on."""
    fitness: dict[str, float]
    """Of the random allocations of the whole space, on all validation rows."""
    bundles: dict[str, Path]
    """The supernet, `initial` with its first weights and `supernet` trained, and the `largest` model trained alone."""
    seconds: dict[str, float]
    candidate_seconds: float
    pass_seconds: float
    """A validation pass of the full model."""


def measure(settings: Settings) -> Outcome:
    """Test AUC of searched widths against others at equal lookups, rows and bits, and what the search costs."""
    figures: dict[str, Any] = {}
    differences: dict[str, dict[str, Difference]] = {}
    bars: list[Bar] = []
    savings = []
    parts = settings.parts or (*DATA_SETS, PLANTED)
    for name in (part for part in parts if part != PLANTED):
        data = DATA_SETS[name]
        with tempfile.TemporaryDirectory() as folder:
            settings.log(f"{data.title}: preparing")
            store = data.store(Path(folder))
            searched = _search(data, store, Path(folder), settings)
            runs = _retrain(data, searched, Path(folder), settings)
            saving, figures[name] = _equal_quality(data, searched, runs, store)
        differences[name] = _against(data, searched, runs)
        savings.append(saving)
        ranked = [(value, runs[arm][0].valid_auc) for arm, value in searched.fitness.items()]
        fidelity = float(spearmanr(*zip(*ranked, strict=True))[0])
        for made in (_lookups_picture(name, data, figures[name]["arms"]), _fidelity_picture(name, ranked)):
            made.write(FOLDER)
        total = sum(searched.seconds[part] for part in ("supernet", "sample", "evolution", "finalists"))
        bars += [
            Bar(f"{data.title}: Spearman, supernet against retrained", fidelity, ">=", 0.7),
            Bar(f"{data.title}: search over one full training", total / searched.seconds["full training"], "<=", 3),
            Bar(
                f"{data.title}: a validation pass over a candidate's evaluation",
                searched.pass_seconds / searched.candidate_seconds,
                ">=",
                20,
            ),
            Bar(
                f"{data.title}: lookups for equal quality over the largest's",
                saving["of_largest"]["lookups"],
                "<=",
                0.35,
            ),
            Bar(f"{data.title}: first layers likewise", saving["of_largest"]["parameters"], "<=", 0.35),
        ]
        figures[name] |= {
            "seconds": searched.seconds,
            "candidate_ms": 1000 * searched.candidate_seconds,
            "fidelity": fidelity,
            "ranked": ranked,
            "against": {other: d.to_json() for other, d in differences[name].items()},
            "allocations": searched.allocations,
        }
    if savings:
        bars += _counts(savings, differences)
    if PLANTED in parts:
        planted, figures[PLANTED] = _find_planted(settings)
        bars += planted
    return Outcome(bars, figures)


def _counts(
    savings: Sequence[Mapping[str, Mapping[str, Any]]], differences: Mapping[str, Mapping[str, Difference]]
) -> list[Bar]:
    """The bars that count data sets."""
    bars = []
    for other in (UNIFORM, "random", STATISTICS, MAGNITUDE):
        ahead = sum(own[other].low > 0 for own in differences.values())
        behind = sum(own[other].high < 0 for own in differences.values())
        met = f"{other}, mean of all budgets" if other == STATISTICS else other
        bars.append(Bar(f"data sets on which the search beats {met}", ahead, ">=", 2))
        bars.append(Bar(f"data sets on which the search is behind {met}", behind, "<=", 0))
    small = 0
    for saving in savings:
        shares = (saving["of_uniform"]["lookups"], saving["of_uniform"]["parameters"])
        small += all(share is not None and share <= 0.6 for share in shares)
    title = "data sets with at most 60 % of the best uniform allocation's lookups and parameters"
    return [*bars, Bar(title, small, ">=", 2)]


class _Workshop:
    """Trains models of a data set one at a time, on all processors, and takes the time."""

    def __init__(self, data: DataSet, store: Store, settings: Settings) -> None:
        self.data, self.store, self.settings = data, store, settings
        self.counts = store.id_counts("train")
        self.config = SearchConfig(levels=data.levels)
        embedding = EmbeddingConfig.model_validate(data.embedding)
        self.space = space_of(store.layout, embedding, self.counts, self.config, {})
        self.train = TrainConfig.model_validate({**data.train, **({"epochs": 1} if settings.quick else {})})
        self.seconds: dict[str, float] = {}

    def build(self, genes: Genes, rows: int | None = None) -> CTRModel:
        chunks = ChunksConfig(default=0, features=self.space.allocation(genes))
        own = {"rows": rows} if rows else {}
        embedding = EmbeddingConfig.model_validate({**self.data.embedding, **own, "chunks": chunks})
        plan = plan_embedding(self.store.layout, embedding, self.counts)
        network = ModelConfig.model_validate(self.data.model)
        return CTRModel(self.store.layout, plan, network, optimizer=self.train.optimizer_of_table)

    @property
    def supernet_rows(self) -> int:
        """Rows of the supernet's table, for the budget at which all methods are compared."""
        return self.space.supernet_rows(self.data.embedding["rows"], self.data.budget)

    def valid(self) -> Loader:
        return Loader(self.store, "valid", self.train.eval_batch_size)

    def save(self, model: CTRModel, folder: Path) -> Path:
        return save_bundle(folder, model=model, pipeline=self.store.pipeline)

    def fit(self, name: str, genes: Genes, epochs: int | None = None) -> CTRModel:
        """An ordinary training; `supernet` trains that."""
        model = self.build(genes, self.supernet_rows if name == "supernet" else None)
        config = self.train.model_copy(update={"epochs": epochs}) if epochs else self.train
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            common: dict[str, Any] = {"seed": 0, "folder": Path(folder)}
            trainer = (
                SupernetTrainer(model, config, space=self.space, supernet=SupernetConfig(), **common)
                if name == "supernet"
                else Trainer(model, config, **common)
            )
            trainer.fit(Loader(self.store, "train", config.batch_size, shuffle_seed=0), self.valid())
        self.seconds[name] = time.perf_counter() - started
        self.settings.log(f"{self.data.title}: {name} took {self.seconds[name]:.1f} s")
        return model

    def search(self, supernet: CTRModel, fitness: Fitness, budget: int) -> tuple[Genes, int]:
        """The allocation for a budget, as `recsys search` finds it, and the number of candidates."""
        config, space = self.config, self.space
        started = time.perf_counter()
        found = evolve(
            space,
            fitness,
            generations=config.generations,
            population=config.population,
            parents=config.parents,
            mutation=config.mutation,
            max_lookups=budget,
            first=[uniform(space, count) for count in self.data.levels if count],
        )
        evolved = time.perf_counter()
        finalists = found.genes[found.order[: config.finalists]]
        whole = judge(supernet, self.valid(), space, finalists, config.metric)
        self.seconds |= {"evolution": evolved - started, "finalists": time.perf_counter() - evolved}
        return finalists[int(whole.argmax())], len(found.genes)


def _search(data: DataSet, store: Store, folder: Path, settings: Settings) -> Searched:
    """Searches at every budget, and makes the allocations it is held against; nothing else runs meanwhile."""
    shop = _Workshop(data, store, settings)
    space, config = shop.space, shop.config
    shop.build(uniform(space, 1)).logits(next(iter(shop.valid())))  # compiles the kernels before the clock runs
    short = shop.fit("short training", uniform(space, 1), epochs=1)
    full = shop.fit("full training", space.largest)
    supernet = shop.fit("supernet", space.largest)
    bundles = {
        "initial": shop.save(shop.build(space.largest, shop.supernet_rows), folder / "initial"),
        "supernet": shop.save(supernet, folder / "supernet"),
        "largest": shop.save(full, folder / "largest"),
    }
    sample = next(iter(shop.valid()))
    norms = {STATISTICS: chunk_norms(short, [sample]), MAGNITUDE: chunk_norms(full, [sample])}

    allocations = {LARGEST: space.allocation(space.largest)}
    for count in sorted(set(data.levels) - {0}):
        allocations[f"{UNIFORM}@{count * len(space.features)}"] = dict.fromkeys(space.names, count)
    allocations[f"{MAGNITUDE}@{data.budget}"] = by_magnitude(space, norms[MAGNITUDE], data.budget)
    started = time.perf_counter()
    places = drawn_places(store.rows("valid"), config.sample_rows, 0)
    fitness = Fitness(supernet, space, Sample.of(supernet, shop.valid(), places), config.metric)
    shop.seconds["sample"] = time.perf_counter() - started
    for budget in (*data.budgets, data.budget):
        statistical = by_statistics(space, norms[STATISTICS], shop.counts, budget)
        allocations[f"{STATISTICS}@{budget}"] = space.allocation(statistical)
        chosen, candidates = shop.search(supernet, fitness, budget)
        allocations[f"{OURS}@{budget}"] = space.allocation(chosen)
    passes = []
    for _ in range(3):
        started = time.perf_counter()
        predict(full, shop.valid())
        passes.append(time.perf_counter() - started)
    generator = np.random.Generator(np.random.PCG64(1))
    for number, genes in enumerate(_random_at(space, data.budget, RANDOM, generator)):
        allocations[f"random {number}"] = space.allocation(genes)
    drawn = [space.repair(genes, None, generator) for genes in space.random(generator, FIDELITY)]
    values = judge(supernet, shop.valid(), space, np.stack(drawn), config.metric)
    for number, genes in enumerate(drawn):
        allocations[f"drawn {number}"] = space.allocation(genes)
    ranked = {f"drawn {number}": float(value) for number, value in enumerate(values)}
    seconds = shop.seconds
    candidate_seconds = seconds["evolution"] / candidates
    return Searched(space, allocations, ranked, bundles, seconds, candidate_seconds, statistics.median(passes))


def _find_planted(settings: Settings) -> tuple[list[Bar], dict[str, Any]]:
    """Whether useless fields get nothing and informative ones the more the more they tell."""
    dropped, orders, found = [], [], []
    for seed in SEEDS[:1] if settings.quick else SEEDS:
        data = _planted(seed)
        with tempfile.TemporaryDirectory() as folder:
            settings.log(f"{data.title}: preparing")
            shop = _Workshop(data, data.store(Path(folder)), settings)
            supernet = shop.fit("supernet", shop.space.largest)
            fitness = Fitness(supernet, shop.space, Sample.of(supernet, shop.valid()), shop.config.metric)
            chunks = shop.space.chunks(shop.search(supernet, fitness, data.budget)[0])
        informed, useless = chunks[: len(INFORMED)], chunks[len(INFORMED) :]
        dropped.append(float((useless == 0).mean()))
        orders.append(float(spearmanr(INFORMED, informed)[0]))
        found.append({"seed": seed, "informed": informed.tolist(), "useless": useless.tolist()})
        settings.log(f"{data.title}: {found[-1]}")
    bars = [
        Bar("synthetic: share of useless fields without a chunk", statistics.mean(dropped), ">=", 0.9),
        Bar("synthetic: Spearman of chunks and information", statistics.mean(orders), ">=", 0.8),
    ]
    return bars, {"effects": INFORMED, "useless_values": USELESS, "found": found}


def _random_at(space: SearchSpace, budget: int, number: int, generator: np.random.Generator) -> list[Genes]:
    """Random allocations of exactly so many lookups."""
    out: list[Genes] = []
    while len(out) < number:
        genes = space.repair(space.random(generator, 1)[0], budget, generator)
        if space.lookups(genes) == budget and not any((genes == other).all() for other in out):
            out.append(genes)
    return out


def _retrain(data: DataSet, searched: Searched, folder: Path, settings: Settings) -> dict[str, list[Run]]:
    """Trains every allocation: three seeds each, one of those that only rank the supernet."""
    seeds = SEEDS[:2] if settings.quick else SEEDS

    def arm(name: str, allocation: str, start: Mapping[str, str]) -> Arm:
        chunks = {"default": 0, "features": searched.allocations[allocation]}
        table = {**data.embedding, "chunks": chunks, **({"hash_seed": 0} if "warm_start" in start else {})}
        own = {field: str(searched.bundles[bundle]) for field, bundle in start.items()}
        chosen = seeds[:1] if name.startswith("drawn") else seeds
        return Arm(name, table, train=own, seeds=chosen)

    arms = [arm(name, name, {}) for name in searched.allocations]
    for name in (name for name in searched.allocations if name.startswith(OURS)):
        starts = STARTS if name == f"{OURS}@{data.budget}" else [TAUGHT]
        arms += [arm(f"{name} {how}", name, STARTS[how]) for how in starts]
    train = {**data.train, "threads": 1, "epochs": 1 if settings.quick else data.retrain_epochs}
    runs = run_arms(arms, Training(data.model, train), dict.fromkeys(seeds, folder), settings.log)
    return {method: own for (method, _), own in runs.items()}


def _against(data: DataSet, searched: Searched, runs: Mapping[str, list[Run]]) -> dict[str, Difference]:
    """Test AUC of the searched allocation minus others at the same lookups; statistics are met at all budgets."""
    at = data.budget
    budgets = (at, *data.budgets)
    out = {name: difference(runs[f"{OURS}@{at}"], runs[f"{name}@{at}"], True)["auc"] for name in (UNIFORM, MAGNITUDE)}
    for budget in budgets:
        pair = runs[f"{OURS}@{budget}"], runs[f"{STATISTICS}@{budget}"]
        out[f"{STATISTICS}@{budget}"] = difference(*pair, True)["auc"]
    seeds = range(len(runs[f"{OURS}@{at}"]))

    def mean(arms: Sequence[str], seed: int) -> float:
        return float(np.mean([_auc(runs[arm][seed]) for arm in arms]))

    def against(ours: Sequence[str], others: Sequence[str]) -> Difference:
        return over_seeds([mean(ours, seed) - mean(others, seed) for seed in seeds])

    out["random"] = against([f"{OURS}@{at}"], [f"random {number}" for number in range(RANDOM)])
    out[STATISTICS] = against(*([f"{name}@{budget}" for budget in budgets] for name in (OURS, STATISTICS)))
    return out


def _equal_quality(
    data: DataSet, searched: Searched, runs: Mapping[str, list[Run]], store: Store
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The fewest lookups whose quality is that of the best uniform allocation, and of the largest model.

    Both are trained from scratch; searched allocations may also be taught by the largest model, or start from the
    supernet.
    Validation picks the best uniform allocation, and the fewest lookups with which a searched one is within half of
    WITHIN of it, which leaves the other half to chance; the test rows judge whether it is within WITHIN.  Shares are
    None where it is not.  Beside that, the same where validation must be as good.
    """
    table = {
        name: _line(data, searched, name, own, store) for name, own in runs.items() if not name.startswith("drawn")
    }
    best = max((name for name in table if name.startswith(UNIFORM)), key=lambda name: table[name]["valid_auc"])
    searched_arms = sorted(
        (name for name in table if name.startswith(OURS)),
        key=lambda name: (table[name]["lookups"], -table[name]["valid_auc"]),
    )
    from_scratch = [name for name in searched_arms if " " not in name]

    def equal_to(target: str, among: Sequence[str], allowed: float = WITHIN / 2) -> dict[str, Any]:
        enough = [name for name in among if table[name]["valid_auc"] >= table[target]["valid_auc"] - allowed]
        chosen = enough[0] if enough else max(among, key=lambda name: table[name]["valid_auc"])
        against = difference(runs[chosen], runs[target], True)["auc"]
        equal = against.mean >= -WITHIN
        return {
            "target": target,
            "arm": chosen,
            "auc": against.to_json(),
            "lookups": table[chosen]["lookups"] / table[target]["lookups"] if equal else None,
            "parameters": table[chosen]["first_layer_parameters"] / table[target]["first_layer_parameters"]
            if equal
            else None,
        }

    saving = {"of_uniform": equal_to(best, searched_arms), "of_largest": equal_to(LARGEST, searched_arms)}
    figures = {
        "equal_quality": saving,
        "equal_quality_from_scratch": {
            "of_uniform": equal_to(best, from_scratch),
            "of_largest": equal_to(LARGEST, from_scratch),
        },
        "as_good_on_validation": {
            "of_uniform": equal_to(best, searched_arms, 0.0),
            "of_largest": equal_to(LARGEST, searched_arms, 0.0),
        },
        "arms": table,
    }
    return saving, figures


def _line(data: DataSet, searched: Searched, name: str, runs: Sequence[Run], store: Store) -> dict[str, float]:
    chunks = searched.allocations[name if name in searched.allocations else name.split(" ")[0]]
    embedding = EmbeddingConfig.model_validate({**data.embedding, "chunks": {"default": 0, "features": chunks}})
    plan = plan_embedding(store.layout, embedding, store.id_counts("train"))
    with torch.device("meta"):
        network = Network(store.layout, plan, ModelConfig.model_validate(data.model))
    tests = [_auc(run) for run in runs]
    return {
        "lookups": plan.lookups,
        "first_layer_parameters": sum(weight.numel() for weight in network.first_layers().values()),
        "table_bytes": plan.table_bytes,
        "valid_auc": float(np.mean([run.valid_auc for run in runs])),
        "test_auc": float(np.mean(tests)),
        "test_auc_std": float(np.std(tests, ddof=1)) if len(tests) > 1 else 0.0,
    }


def _lookups_picture(name: str, data: DataSet, arms: Mapping[str, Mapping[str, float]]) -> Picture:
    """Test AUC against lookups: searched and uniform allocations as lines, the others as dots."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for arm, line in arms.items():
        start = next((how for how in STARTS if arm.endswith(f" {how}")), None)
        kind = start or arm.split("@")[0].split(" ")[0]
        if start in (None, TAUGHT):
            groups.setdefault(kind, []).append((line["lookups"], line["test_auc"]))
    best = max(auc for points in groups.values() for _, auc in points)

    def draw(axes: Axes, theme: Theme) -> None:
        lines = [
            (kind, colour, "o-")
            for kind, colour in zip((OURS, UNIFORM, STATISTICS, MAGNITUDE), theme.series, strict=True)
        ]
        for kind, colour, style in [*lines, (TAUGHT, theme.series[0], "^--")]:
            x, y = zip(*sorted(groups[kind]), strict=True)
            label = f"{OURS}, {kind}" if kind == TAUGHT else kind
            axes.plot(x, y, style, color=colour, label=label, markersize=5, linewidth=2 if kind == OURS else 1.2)
        x, y = zip(*groups["random"], strict=True)
        axes.plot(x, y, ".", color=theme.faint, label="random", zorder=0)
        axes.set(xlabel="lookups an example", ylabel="test AUC", ylim=(best - SHOWN, best + SHOWN / 10))
        legend(axes, theme, "lower right")

    return picture(f"lookups-{name}", f"{data.title}: test AUC of retrained models against lookups.", draw)


def _fidelity_picture(name: str, ranked: Sequence[tuple[float, float]]) -> Picture:
    """Retrained validation AUC against that of the supernet."""

    def draw(axes: Axes, theme: Theme) -> None:
        x, y = zip(*ranked, strict=True)
        axes.plot(x, y, "o", color=theme.series[0], markersize=5)
        axes.set(xlabel="validation AUC of the supernet", ylabel="of the retrained model")

    return picture(f"fidelity-{name}", "Random allocations: how the supernet judges them, and what they come to.", draw)


def _auc(run: Run) -> float:
    return auc(run.labels, run.probabilities)


if __name__ == "__main__":
    raise SystemExit(main("dimension_search", measure, parts=(*DATA_SETS, PLANTED)))
