"""A training starts from a trained model: finds it, takes it over into the new shape, measures both before a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from features.errors import list_names
from features.layout import Layout
from features.loading.loader import Loader
from features.loading.relayout import missing_features, relayout
from features.spec import CrossFeature, FeatureSpec
from features.storage.store import Store
from pipelines.config import ExperimentConfig
from pipelines.console import Console
from recsys.evaluation.metrics import evaluate
from recsys.models import CTRModel
from recsys.models.warm_start import check_warm_start, warm_start
from recsys.serving.bundle import Bundle, load_bundle
from recsys.serving.registry import Registry, is_model_uri
from recsys.training import predict

METRICS = ("auc", "logloss")


def find_model(config: ExperimentConfig, model: str) -> str:
    """A trained model by a name that means the same later: an alias becomes a version.

    Args:
        config: The experiment, whose registry is asked.
        model: A registered model, or the folder of a run or a bundle.

    Raises:
        ArtifactError: There is no such store or model.
    """
    if is_model_uri(model):
        return Registry(config.tracking_uri, create=False).resolve(model).uri
    folder = Path(model)
    return str((folder / "bundle" if (folder / "bundle").is_dir() else folder).resolve())


def start_from(
    config: ExperimentConfig, store: Store, model: CTRModel, trained: str, console: Console
) -> dict[str, Any]:
    """Take a trained model over into a fresh one, and compare the two on the validation split.

    Args:
        config: The experiment.
        store: Its prepared data.
        model: Changed in place.
        trained: What `find_model` gave.
        console: Shows what became of each feature.

    Returns:
        model, auc and logloss right after, old_auc and old_logloss on the same rows (None where a metric does not
        exist or the data lacks a feature that the old model reads), changed (features whose description in the spec
        is another one), report.

    Raises:
        ConfigError: The two do not go together.
        ArtifactError: The trained model is missing, damaged or of another release.
    """
    old = load_model(config, trained)
    changed = changed_features(old.pipeline.spec, store.spec)
    report = warm_start(model, old.model, store.id_counts("train"), reset={*config.train.reset, *changed})
    console.note(f"starting from {trained}")
    console.table("rows that training reads", report.lines())
    console.note(
        f"rows kept {report.rows_kept:,}, merged {report.rows_merged:,}, drawn anew "
        f"{report.rows - report.rows_kept - report.rows_merged:,}; {report.lookups_kept:.1%} of the training data's "
        "lookups read what they read before; optimizers start anew"
    )
    if changed:
        console.note(f"reset, since the spec describes them otherwise than before: {list_names(changed)}")
    task = store.layout.label_names[0]
    missing = _missing(old.model.layout, store.layout, task)
    now = _metrics(config, store, model, task)
    before = dict.fromkeys(METRICS) if missing else _metrics(config, store, old.model, task)
    if missing:
        console.note(f"the old model cannot be measured on this data, which lacks {list_names(missing)}")
    for name in METRICS:
        console.note(f"valid {name} right after {_text(now[name])}, of the old model {_text(before[name])}")
    return {
        "model": trained,
        **now,
        **{f"old_{name}": value for name, value in before.items()},
        "changed": changed,
        "report": report.to_json(),
    }


def check_start(config: ExperimentConfig, store: Store, outline: CTRModel) -> None:
    """Raises what `start_from` would raise, with a model of the same plan whose table may be small."""
    assert config.train.warm_start is not None
    old = load_model(config, find_model(config, config.train.warm_start))
    check_warm_start(outline, old.model, config.train.reset)


def changed_features(old: FeatureSpec, new: FeatureSpec) -> list[str]:
    """Features of both specs whose values no longer mean the same; where they are read from does not count.

    >>> from features.validation import validate
    >>> def spec(dtype):
    ...     features = [{"type": "id", "name": "a", "dtype": dtype}, {"type": "id", "name": "b"}]
    ...     cross = {"type": "cross", "name": "ab", "of": ["a", "b"]}
    ...     return validate(FeatureSpec, {"features": [*features, cross], "labels": ["y"]})
    >>> changed_features(spec("string"), spec("integer"))
    ['a', 'ab']
    """
    before = {feature.name: feature for feature in old.features}
    changed = [
        f.name
        for f in new.features
        if f.name in before and f.model_dump(exclude={"column"}) != before[f.name].model_dump(exclude={"column"})
    ]
    crossed = [f.name for f in new.features if isinstance(f, CrossFeature) and set(f.of) & set(changed)]
    return list(dict.fromkeys([*changed, *(name for name in crossed if name in before)]))


def load_model(config: ExperimentConfig, trained: str) -> Bundle:
    """The model that `find_model` gave a name to."""
    folder = Registry(config.tracking_uri, create=False).bundle_of(trained) if is_model_uri(trained) else Path(trained)
    return load_bundle(folder)


def _metrics(config: ExperimentConfig, store: Store, model: CTRModel, task: str) -> dict[str, float | None]:
    loader = Loader(store, "valid", config.train.eval_batch_size)
    scored = predict(model, (relayout(batch, store.layout, model.layout) for batch in loader))
    assert scored.labels is not None
    column = model.layout.label_names.index(task)
    result = evaluate(scored.labels[:, 0], scored.probabilities[:, column], scored.weight)
    return {name: result[name] for name in METRICS}


def _missing(wanted: Layout, have: Layout, task: str) -> list[str]:
    """What a model reads or tells that the data or the comparison has not."""
    lacking = missing_features(wanted, have)
    return lacking if task in wanted.label_names else [*lacking, task]


def _text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.5f}"
