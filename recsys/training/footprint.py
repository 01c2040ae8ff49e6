"""What a training will take in memory, estimated from its config before anything is allocated."""

from __future__ import annotations

from dataclasses import replace

import torch

from features.layout import Layout
from recsys.embeddings.hot import hot_memory
from recsys.embeddings.kernel import table_memory
from recsys.embeddings.plan import EmbeddingPlan
from recsys.memory import MemoryPart
from recsys.models import CTRModel, ModelConfig
from recsys.training.config import TrainConfig

FLOAT = 4
NETWORK_COPIES = 4
"""Weights, gradients and Adam's two states."""
TABLE_AVERAGE_COPIES = 4
"""The average; in validation also the rows' values, the averaged ones and a term of their sum, beside the stored rows
that are set aside."""
NETWORK_AVERAGE_COPIES = 2
"""As above, less the gradients, which are gone by then."""
INPUT_COPIES = 4
"""Vectors gathered, their gradients, and what is summed and updated of them in a step."""
LAYER_COPIES = 3
"""Of a layer's output: before and after its nonlinearity, and the gradient."""


def training_memory(layout: Layout, plan: EmbeddingPlan, network: ModelConfig, config: TrainConfig) -> list[MemoryPart]:
    """The parts of a training that are large: table, its optimizer, averages, network, and the values of a batch.

    The numbers of copies were counted in the code and measured: the sum is .8 to 1.7 times what a process grows by.
    A bag counts as one value an example.  What the data and the program itself take is left out.
    """
    with torch.device("meta"):  # shapes alone
        outline = CTRModel(layout, replace(plan, rows=min(plan.rows, 1)), network, kernel="torch")
    parameters = sum(p.numel() for p in outline.dense_parameters().values())
    inputs = plan.output_width + len(layout.dense_names) + layout.vector_width
    crossed = outline.network.cross.output_width if outline.network.cross is not None else 0
    # fm: vectors scaled and squared, then the output; ipnn: the output, which is longer than the products before it
    layers = {"mlp": 0, "fm": inputs + crossed, "ipnn": crossed}.get(
        network.interaction, network.cross_layers * inputs
    ) + sum(network.hidden)
    trained = config.batch_size * (INPUT_COPIES * inputs + LAYER_COPIES * layers)
    evaluated = config.eval_batch_size * (inputs + LAYER_COPIES * max([inputs, crossed, *network.hidden]))
    averaged = TABLE_AVERAGE_COPIES * plan.rows * plan.width + NETWORK_AVERAGE_COPIES * parameters
    average = averaged * FLOAT + plan.rows * plan.row_bytes if config.ema is not None else 0
    return [
        *table_memory(plan.rows, plan.row_format, config.optimizer_of_table),
        hot_memory(plan.hot_slots),
        MemoryPart("moving average", average, "train.ema", "leave it out, or lower embedding.rows"),
        MemoryPart(
            f"network of {parameters:,} parameters",
            NETWORK_COPIES * parameters * FLOAT,
            "embedding.chunks",
            f"the network reads {inputs:,} numbers an example: lower the chunks of features or embedding.width, or set "
            "model.low_rank",
        ),
        MemoryPart(
            f"a batch with {inputs:,} numbers an example",
            max(trained, evaluated) * FLOAT,
            "train.batch_size" if trained > evaluated else "train.eval_batch_size",
            "lower it, or the chunks of features",
        ),
    ]
