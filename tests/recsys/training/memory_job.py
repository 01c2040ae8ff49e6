"""A job that trains a little and prints by how many bytes its process grew: `python memory_job.py SETTINGS FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from features.batch import Batch
from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, EmbeddingPlan, plan_embedding
from recsys.models import CTRModel, ModelConfig
from recsys.training import TrainConfig, Trainer

LAYOUT = Layout(id_names=tuple(f"f{i}" for i in range(26)), label_names=("click",))
Settings = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
"""Embedding, network and training."""


def configs(settings: Settings) -> tuple[Layout, EmbeddingPlan, ModelConfig, TrainConfig]:
    """The settings as `training_memory` takes them."""
    counts = dict.fromkeys(LAYOUT.id_names, (np.empty(0, np.int64), np.empty(0, np.int64)))
    plan = plan_embedding(LAYOUT, EmbeddingConfig.model_validate(settings[0]), counts)
    return LAYOUT, plan, ModelConfig.model_validate(settings[1]), TrainConfig.model_validate(settings[2])


def train(settings: Settings, folder: Path) -> None:
    """Some steps, and a look at the averaged weights."""
    layout, plan, network, config = configs(settings)
    model = CTRModel(layout, plan, network, optimizer=config.optimizer_of_table).train()
    trainer = Trainer(model, config, seed=0, folder=folder)
    rows = config.batch_size
    for _ in range(3):
        batch = Batch(
            ids=torch.randint(-(2**62), 2**62, (rows, 26)),
            bag_values=torch.empty(0, dtype=torch.int64),
            bag_lengths=torch.empty(0, rows, dtype=torch.int64),
            dense=torch.empty(rows, 0),
            vectors=torch.empty(rows, 0),
            labels=torch.randint(0, 2, (rows, 1)).float(),
        )
        trainer._step(batch, 1.0)
    if trainer._average:
        with trainer._average.in_place():
            pass


def memory(line: str) -> int:
    """Bytes of a line of /proc/self/status."""
    return int(Path("/proc/self/status").read_text().partition(f"{line}:")[2].split()[0]) * 1024


def main() -> int:
    torch.set_num_threads(1)
    settings, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    small = {**settings[2], "batch_size": 4}
    train(({"rows": 10}, {"hidden": [4]}, small), folder)  # what the libraries take is no part of it
    before = memory("VmRSS")
    train(settings, folder)
    print(memory("VmHWM") - before)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
