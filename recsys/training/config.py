"""What a user says about training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from features.errors import ConfigError
from features.validation import Strict
from recsys.embeddings.sharded import Sharding
from recsys.embeddings.table import OptimizerName, TableOptimizer


class DistributedConfig(Strict):
    """How several processes, started by `torchrun`, train one model; a single process takes no notice."""

    sharding: Sharding = "auto"
    """row_wise: every process has some rows; column_wise: some columns (sgd only); table_wise: one process has the
    whole table; auto: TorchRec's planner chooses."""
    timeout_seconds: float = Field(300.0, ge=1)
    """How long a process waits for another one before it ends with an error."""


class TrainConfig(Strict):
    """Optimizers, stopping, averaging and checkpoints."""

    batch_size: int = Field(4096, ge=1)
    """Examples a step, over all processes."""
    epochs: int = Field(1, ge=1)
    """Most passes over the training split."""
    learning_rate: float = Field(1e-3, gt=0)
    """Adam's rate for the network."""
    table_optimizer: OptimizerName = "rowwise_adagrad"
    """rowwise_adagrad: one state a row; adam: on the rows touched, two states a value; rmsprop: Adam with beta1 = 0
    over the whole table, one state a value, good where ids are rare; rowwise_adam, rowwise_rmsprop: one second moment
    a row; sgd: none."""
    table_learning_rate: float = Field(0.05, gt=0)
    """The table's rate."""
    table_eps: float = Field(1e-8, ge=1e-30)
    """Added to the root of a row's second moment before it divides the step; about as large as the gradient of one
    example (1e-4 at some hundred rows a batch), it makes the steps of rows seen rarely smaller, against overfitting."""
    table_l2: float = Field(0.0, ge=0)
    """Pull of the table's rows towards 0 whenever they are touched, added to their gradient."""
    table_master: bool = False
    """Train a table of a low-bit format on an fp32 copy, rounded for every lookup (quantisation-aware): better at int4
    and int2, at the memory of fp32; else the stored rows are trained with stochastic rounding."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How both rates fall to 0 over `epochs`."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which both rates rise from 0."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest global norm of the gradient, network and table together."""
    max_skipped_steps: int = Field(10, ge=1)
    """A step whose loss or gradient is not finite is skipped and changes nothing; training stops with an error after
    this many in a row."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay a step of an exponential moving average of all weights; it is evaluated and kept in their place."""
    monitor: Literal["auc", "logloss"] = "auc"
    """The validation metric that picks the epoch."""
    patience: int | None = Field(None, ge=1)
    """Stops after this many epochs without a better one."""
    eval_batch_size: int = Field(16_384, ge=1)
    """Examples a step in evaluation."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints; one is also written after every epoch."""
    log_steps: int = Field(50, ge=1)
    """Steps between reports of the training loss."""
    autocast: bool = False
    """Compute the network's products in bf16 while training; embeddings, head, loss and evaluation stay fp32. The CPU
    needs AVX512-BF16 or AMX. Not the same bits, so see that the AUC stays; see formats.md."""
    threads: int | None = Field(None, ge=1)
    """Threads torch computes with; its own choice when left out."""
    warm_start: str | None = Field(None, min_length=1)
    """A trained model to start from: the folder of a run or a bundle, or `models:/NAME@ALIAS`. See growing.md."""
    reset: tuple[str, ...] = ()
    """Features that forget what the model of `warm_start` had learned of them."""
    teacher: str | None = Field(None, min_length=1)
    """A trained model to learn from beside the labels, named as for `warm_start`. See distillation.md."""
    distill: float = Field(0.5, gt=0, le=1)
    """Weight of the teacher's probability in what is learned; the label has the rest."""
    distributed: DistributedConfig = DistributedConfig()
    """Under `torchrun`: how the work is divided."""

    @model_validator(mode="after")
    def _reset_of_something(self) -> TrainConfig:
        if self.reset and self.warm_start is None:
            raise ConfigError(
                "only a model that is taken over has features to reset",
                field="train.reset",
                found=", ".join(self.reset),
                mend="name the model in train.warm_start, or leave it out",
            )
        return self

    @property
    def optimizer_of_table(self) -> TableOptimizer:
        """The table's optimizer, for the model that is to be trained."""
        return TableOptimizer(self.table_optimizer, eps=self.table_eps, l2=self.table_l2, master=self.table_master)
