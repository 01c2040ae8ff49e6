"""`recsys init`: a config that runs as it stands, written from what a source holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from features.errors import ArtifactError, DataError, list_names
from pipelines.config import config_from
from pipelines.console import Console
from pipelines.profile import Study, name_of, show, study, table_text
from pipelines.suggest import Suggestion
from pipelines.workspace import write_bytes

SMALL, MIDDLE = 50_000, 2_000_000
"""Up to so many rows a data set is small or of middle size, for the choice of model and training."""
STEPS = 200
"""Least steps an epoch should have, by which small data get a small batch."""
_TRAIN_SHARE = 0.8


def init(
    source: str,
    console: Console,
    *,
    out: Path | None = None,
    label: str | None = None,
    time: str | None = None,
    name: str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write a config for a source.

    Args:
        source: File or glob.
        console: Shows the columns.
        out: The YAML file; `NAME.yaml` when left out.
        label: Column of the label; looked for when left out.
        time: Column of the time; looked for when left out.
        name: Of the experiment; made from the source's name when left out.
        force: Replace a file that is there.

    Returns:
        config (its path), name, label, time, group, features, dropped (column -> reason), table_bytes.

    Raises:
        ArtifactError: The file is there already, or cannot be written.
        DataError: The source is absent, damaged or empty, has no label, or no column that could be a feature.
        ConfigError: The name cannot be one.
    """
    name = name or name_of(source)
    path = out or Path(f"{name}.yaml")
    if path.exists() and not force:
        raise ArtifactError("the file is there already", field=str(path), mend="choose another --out, or add --force")
    found = study(source, console, label=label, time=time)
    if found.roles.label is None:
        raise _no_label(found)
    show(found, console)
    if not any(item.features for item in found.suggestions):
        raise DataError(
            "no column can be a feature",
            field=source,
            found="; ".join(f"{item.column}: {item.reason}" for item in found.suggestions),
            mend="give columns that say something about the event",
        )
    text = config_text(found, name)
    config = config_from(yaml.safe_load(text))
    write_bytes(path, text.encode())
    console.note(f"config: {path}")
    console.note(f"next: recsys run {path}")
    return {
        "config": str(path),
        "name": name,
        "label": found.roles.label,
        "time": found.roles.time,
        "group": found.roles.group,
        "features": [feature.name for feature in config.spec.features],
        "dropped": {item.column: item.reason for item in found.suggestions if item.operator == "drop"},
        "table_bytes": found.table.bytes,
    }


def config_text(found: Study, name: str) -> str:
    """The YAML of a study that has a label and some feature."""
    roles, profile, table = found.roles, found.profile, found.table
    split = "random" if roles.time is None else "time"
    why = "by a hash of the row's number, for want of a time" if roles.time is None else "the oldest rows train"
    lines = [
        f"# Written by `recsys init` from {profile.rows:,} rows of {_plain(found.source)}.",
        f"# {100 * (found.positives or 0):.3g} % of the rows have label 1. It runs as it stands: recsys run FILE",
        f"name: {_flow(name)}",
        "data:",
        f"  source: {_flow(found.source)}",
        f"  split: {{kind: {split}, fractions: [{_TRAIN_SHARE}, 0.1, 0.1]}}    # {why}",
        "spec:",
        "  features:",
    ]
    columns = {column.name: column for column in profile.columns}
    for item in found.suggestions:
        column = columns[item.column]
        comment = _plain(item.reason)
        if item.operator in ("id", "ids"):
            comment += f"; {'' if column.exact else 'about '}{column.distinct:,} values"
        if item.operator == "ngrams":
            comment += f"; at least {item.values:,} words and pairs of words"
        if column.missing:
            comment += f"; {100 * column.missing_share:.2g} % missing"
        lines += [f"    - {_flow(feature)}    # {comment}" for feature in item.features]
    lines += [f"    # left out: {_plain(item.column)}: {_plain(item.reason)}" for item in _dropped(found)]
    lines.append(f"  labels: {_flow([roles.label])}")
    if roles.group is not None:
        lines.append(f"  group: {_flow(roles.group)}    # grouped metrics are computed by it")
    if roles.time is not None:
        lines.append(f"  time: {_flow(roles.time)}")
    if roles.time_unit is not None:
        lines.append(f"  time_unit: {roles.time_unit}")
    lines += [
        f"# {table_text(table)}.",
        "embedding:",
        f"  width: {table.width}",
        f"  rows: {table.rows}    # shared by all features that are not exact",
        f"  exact: {{max_values: {table.max_values}}}    # a feature with so few values has a row for each",
    ]
    if table.chunks:
        lines.append(f"  chunks: {_flow({'default': 1, 'features': table.chunks})}")
    if table.hot:
        lines.append(f"  hot: {_flow({'features': table.hot})}    # the head of a giant field has rows of its own")
    lines += _sized(profile.rows)
    return "\n".join(lines) + "\n"


def _sized(rows: int) -> list[str]:
    """Model and training for so many rows."""
    train = _TRAIN_SHARE * rows
    batch = 64
    while batch < 4096 and 2 * batch * STEPS <= train:
        batch *= 2
    hidden = [32] if rows <= SMALL else [128, 64] if rows <= MIDDLE else [256, 128]
    epochs = 12 if rows <= SMALL else 6 if rows <= MIDDLE else 2
    return [
        "model:",
        "  interaction: dcnv2",
        "  cross_layers: 1" if rows <= MIDDLE else "  cross_layers: 2",
        f"  hidden: {hidden}",
        "train:",
        f"  batch_size: {batch}",
        f"  epochs: {epochs}    # at most: validation picks the best",
        f"  patience: {2 if rows <= MIDDLE else 1}",
        "  learning_rate: 0.001",
        "  table_optimizer: adam",
        "  table_learning_rate: 0.003",
        "  table_l2: 0.0001    # against overfitting of rare values",
    ]


def _dropped(found: Study) -> list[Suggestion]:
    return [item for item in found.suggestions if item.operator == "drop"]


def _no_label(found: Study) -> DataError:
    names = found.roles.candidates
    if names:
        return DataError(
            "the label is not clear",
            field=found.source,
            found=f"several columns of 0 and 1: {list_names(names)}",
            mend=f"say which, such as --label {names[0]}",
        )
    held = [f"{column.name} ({column.distinct:,} values)" for column in found.profile.columns]
    return DataError(
        "no label was found",
        field=found.source,
        found=f"columns {list_names(held)}",
        expected="a column of 0 and 1, or false and true, without missing values and with both classes",
        mend="add one, or name it with --label",
    )


def _flow(value: Any) -> str:
    """A value as YAML in one line; JSON writes strings that YAML reads as they are."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, str):
        # a word that YAML reads as this very text needs no quotes
        plain = value.replace("_", "").isalnum() and yaml.safe_load(value) == value
        return value if plain else json.dumps(value)
    return json.dumps(value)


def _plain(text: str) -> str:
    """Text for a comment: one line."""
    return " ".join(text.split())
