"""Do neighbours make sense, and what does an inverted file cost and miss?

genres: models of MovieLens-1M never see a film's genres. For every film with 50 ratings and more: how alike are the
genres of its 10 nearest neighbours (cosine) to its own, beside those of any film? As `configs/movielens_1m.yaml` has
it, where films share the rows of a small table, and with rows for every film; three seeds.

index: a million made vectors in clusters, 32 wide; share of the 10 exact neighbours that `ivf` finds, and its time.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, Outcome, Settings, main
from pipelines.config import load_config
from pipelines.console import Console
from pipelines.prepare import prepare
from pipelines.train import train
from pipelines.vectors import COUNT, Wanted, matrix_of, vectors_of
from recsys.serving.neighbours import INDICES, Neighbours

FILM = "movie_id"
RATINGS = 50
K = 10
ARMS = {"shared rows": [], "rows of their own": [f"embedding.exact.features.{FILM}=true"]}
SEEDS = (0, 1, 2)
VECTORS, WIDTH, CLUSTERS, QUERIES = 1_000_000, 32, 2000, 1000


def measure(settings: Settings) -> Outcome:
    """Genres of a film's neighbours on MovieLens-1M; recall and time of the inverted file."""
    parts = settings.parts or ("genres", "index")
    figures: dict[str, Any] = {}
    if "genres" in parts:
        figures["genres"] = [
            line for seed in SEEDS[: 1 if settings.quick else None] for line in _trained(seed, settings)
        ]
    if "index" in parts:
        figures["index"] = _index(VECTORS // (10 if settings.quick else 1), settings)
    return Outcome([], figures)


def genre_overlap(vectors: np.ndarray, genres: list[list[str]], k: int = K) -> dict[str, float]:
    """How alike the genres of neighbours are.

    Args:
        vectors: [n, d].
        genres: of each.
        k: neighbours.

    Returns:
        jaccard (mean over films of the genres in common by the genres of either), in_common (share of neighbours with
        one genre in common at least), both also of any other film (`..._any`), jaccard_error (standard error over films
        of the difference).
    """
    names = sorted({name for own in genres for name in own})
    has = np.array([[name in own for name in names] for own in genres], np.float64)
    both = has @ has.T
    jaccard = both / (has.sum(1)[:, None] + has.sum(1) - both)
    _, rows = Neighbours(vectors).of_rows(np.arange(len(vectors)), k)
    found: dict[str, float] = {}
    for name, alike in (("jaccard", jaccard), ("in_common", (both > 0).astype(np.float64))):
        near = np.take_along_axis(alike, rows, 1).mean(1)
        any_other = (alike.sum(1) - alike.diagonal()) / (len(alike) - 1)
        found |= {name: float(near.mean()), f"{name}_any": float(any_other.mean())}
        found[f"{name}_error"] = float((near - any_other).std(ddof=1) / len(alike) ** 0.5)
    return {name: round(value, 4) for name, value in found.items()}


def _trained(seed: int, settings: Settings) -> list[dict[str, Any]]:
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for arm, own in ARMS.items():
            changes = [f"workspace={folder}", "tracking.enabled=false", f"seed={seed}", f"embedding.hash_seed={seed}"]
            config = load_config(ROOT / "configs" / "movielens_1m.yaml", [*changes, *own])
            prepare(config, Console(quiet=True))
            trained = train(config, Console(quiet=True))
            table = vectors_of(trained["folder"], None, Wanted(FILM, keep=("genres",)), tracking_uri="").table()
            often = table.column(COUNT).to_numpy() >= RATINGS
            films = [own for own, kept in zip(table.column("genres").to_pylist(), often, strict=True) if kept]
            line = {"arm": arm, "seed": seed, "films": len(films), "valid_auc": trained["valid"]["auc"]}
            lines.append(line | genre_overlap(matrix_of(table)[often], films))
            settings.log(str(lines[-1]))
    return lines


def _index(count: int, settings: Settings) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLUSTERS, WIDTH)).astype(np.float32)
    vectors = centres[rng.integers(0, CLUSTERS, count)]
    vectors += rng.normal(size=vectors.shape).astype(np.float32)
    queries = rng.choice(count, QUERIES, replace=False)
    lines: list[dict[str, Any]] = []
    truth = np.empty(0)
    for index in INDICES:
        started = time.perf_counter()
        search = Neighbours(vectors, index=index)
        built = time.perf_counter()
        _, rows = search.of_rows(queries, K)
        milliseconds = (time.perf_counter() - built) * 1000 / QUERIES
        truth = rows if index == "exact" else truth
        recall = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(truth, rows, strict=True)])
        line = {"index": index, "vectors": count, "recall": round(float(recall), 4)}
        lines.append(line | {"build_seconds": round(built - started, 2), "ms_a_query": round(milliseconds, 3)})
        settings.log(str(lines[-1]))
    return lines


if __name__ == "__main__":
    raise SystemExit(main("neighbours", measure, parts=("genres", "index")))
