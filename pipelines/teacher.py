"""The trained model that a training learns from."""

from __future__ import annotations

from features.errors import ConfigError, list_names
from features.storage.store import Store
from pipelines.config import ExperimentConfig
from pipelines.warm_start import changed_features, load_model
from recsys.training.teacher import Teacher


def teacher_of(config: ExperimentConfig, store: Store, trained: str | None) -> Teacher | None:
    """The teacher of a training, for batches of this data.

    Args:
        config: The experiment.
        store: Its prepared data.
        trained: What `find_model` gave for `train.teacher`; None without one.

    Raises:
        ConfigError: It reads features that the data lacks or describes otherwise, or predicts none of its labels.
        ArtifactError: It is missing, damaged or of another release.
    """
    if trained is None:
        return None
    bundle = load_model(config, trained)
    read = bundle.model.layout.feature_names
    changed = [name for name in changed_features(bundle.pipeline.spec, store.spec) if name in read]
    if changed:
        raise ConfigError(
            "the spec describes features of the teacher otherwise than it was trained with",
            field="train.teacher",
            found=list_names(changed),
            mend="name a teacher trained with this spec, or give the new features other names",
        )
    return Teacher(bundle.model, store.layout, config.train.distill)
