"""The training loop: steps, validation, early stop, averaging and checkpoints that resume to the same bits."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features.batch import Batch
from features.errors import ArtifactError, ConfigError, DataError, UndefinedMetricError
from recsys.embeddings.torch_table import TorchTable
from recsys.evaluation.metrics import evaluate
from recsys.models.ctr import CTRModel
from recsys.tensorfile import read_into, read_state, write_tensors
from recsys.training.autocast import require_bf16
from recsys.training.average import ModelAverage
from recsys.training.checkpoints import Checkpoints
from recsys.training.config import TrainConfig
from recsys.training.identity import check_identity, identity_of
from recsys.training.listener import TrainingListener
from recsys.training.memory import keep_freed_memory
from recsys.training.prediction import Predictions, predict
from recsys.training.teacher import Teacher

if TYPE_CHECKING:
    from features.loading.loader import Loader


@dataclass
class TrainResult:
    """What a training run came to."""

    best_epoch: int
    """The epoch kept, from 1."""
    best_metrics: dict[str, float]
    """Its validation metrics."""
    history: list[dict[str, float]]
    """One entry an epoch: epoch, step, train/epoch_loss and valid/NAME."""
    steps: int
    examples_per_second: float
    """Over the training steps of this process; validation and checkpoints are left out."""
    stopped: str
    """Why it ended: "epochs" or "patience"."""
    skipped_steps: int
    """Steps that changed nothing, since their loss or gradient was not finite."""
    checkpoint: Path
    """The best weights."""


@dataclass
class _Progress:
    """The part of the training state that is numbers; stored in every checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    best_epoch: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    finished: str = ""
    skipped: int = 0
    skipped_in_a_row: int = 0


class Trainer:
    """Trains a CTR model.

    The same model, config, seed, data and thread count give the same bits, whether or not the run was cut and
    resumed in between.

    Args:
        model: trained in place; holds the best epoch's weights at the end.
        config: how.
        seed: of dropout.
        folder: where checkpoints go (see `recsys.training.checkpoints`).
        listener: told about progress.
        teacher: learned from beside the labels.
    """

    def __init__(
        self,
        model: CTRModel,
        config: TrainConfig,
        *,
        seed: int,
        folder: Path,
        listener: TrainingListener | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        if model.plan.pruned:
            raise ConfigError(
                "a pruned table is not trained: all that was pruned is one row of zeros",
                field="embedding",
                found=f"{model.plan.pruned.left:,} of {model.plan.pruned.hashed:,} hashed rows",
                mend="train a fresh model that starts from it: train.warm_start",
            )
        model.embedding.table.require_trainable()
        if config.clip_norm is not None and not model.embedding.table.clips:
            raise ConfigError(
                "the fbgemm kernel sums the gradients of equal rows inside its step, so they cannot be clipped before",
                field="train.clip_norm",
                found=config.clip_norm,
                mend="leave it out, or set embedding.kernel to auto",
            )
        if config.ema is not None and not isinstance(model.embedding.table, TorchTable):
            raise ConfigError(
                "the fbgemm kernel keeps no moving average of weights",
                field="train.ema",
                found=config.ema,
                mend="leave it out, or set embedding.kernel to auto",
            )
        if model.embedding.table.optimizer != config.optimizer_of_table:
            raise ConfigError(
                "the model's table was made for another optimizer",
                field="train.table_optimizer",
                found=model.embedding.table.optimizer,
                expected=config.optimizer_of_table,
                mend="build the model with optimizer=config.optimizer_of_table",
            )
        if config.autocast:
            require_bf16()
        model.network.autocast = config.autocast
        self.model = model
        self.config = config
        self.seed = seed
        self.folder = folder
        self.listener = listener
        self._teacher = teacher
        self._parameters = model.dense_parameters()
        self._dense = _adam(self._parameters.values(), config.learning_rate)
        self._checkpoints = Checkpoints(folder)
        self._average = ModelAverage(model, config.ema) if config.ema is not None else None
        self._progress = _Progress()

    def fit(self, train: Loader, valid: Loader, *, resume: bool = False) -> TrainResult:
        """Trains until the epochs are done or patience runs out, and loads the best epoch's weights.

        Args:
            train: shuffled loader of the training split.
            valid: unshuffled loader of the validation split.
            resume: go on from the newest checkpoint in the folder, if there is one; else old checkpoints are removed.

        Raises:
            UndefinedMetricError: the monitored metric does not exist on the validation split.
            DataError: the loss or the gradient was not finite for `max_skipped_steps` steps in a row.
            ArtifactError: a checkpoint cannot be written, is damaged, or is of another config.
            ValueError: this trainer has run before; its optimizers are spent.
        """
        if self._progress.step:
            raise ValueError("a Trainer fits once: make another for another run")
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        keep_freed_memory()
        torch.manual_seed(self.seed)
        self._checkpoints.clear(unfinished_only=resume)
        self._resume()
        p = self._progress
        total_steps = len(train) * self.config.epochs
        if self.listener:
            self.listener.on_start(total_steps, self.config.epochs, p.step)
        seconds, examples = 0.0, 0
        while not p.finished:
            epoch_seconds, epoch_examples = self._train_epoch(train, total_steps)
            seconds += epoch_seconds
            examples += epoch_examples
            self._end_epoch(valid)
        best = self._checkpoints.best
        _fill(self.model, functools.partial(self._checkpoints.restore, best))
        self._checkpoints.restore(best, self._hot_state())
        # The steps before led to other weights than these; the table's part goes on telling when its rows moved.
        self._average = None
        rate = examples / seconds if seconds else 0.0
        result = TrainResult(p.best_epoch, p.best_metrics, p.history, p.step, rate, p.finished, p.skipped, best)
        if self.listener:
            self.listener.on_end(result)
        return result

    def learn(self, batches: Iterable[Batch]) -> int:
        """Trains on batches once, in their order: what comes in while a fitted model is in use.

        Optimizers go on as they are, with the config's rates; nothing is validated or written.

        Returns:
            The rows of the batches.

        Raises:
            DataError: As `fit` does for steps that are not finite.
        """
        self.model.train()
        if self.config.ema is not None and self._average is None:
            self._average = ModelAverage(self.model, self.config.ema)
        learned = 0
        for batch in batches:
            _, _, rows = self._step(batch, 1.0)
            self._progress.step += 1
            learned += rows
        return learned

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the model holds the moving average of its weights, if there is one and it has begun."""
        with self._average.in_place() if self._average and self._average.begun else nullcontext():
            yield

    def _train_epoch(self, train: Loader, total_steps: int) -> tuple[float, int]:
        """Runs the rest of the current epoch; returns the seconds and examples it took."""
        p, config = self._progress, self.config
        self.model.train()
        train.load_state_dict({"epoch": p.epoch, "batch": p.batch})
        seconds, examples = 0.0, 0
        since, since_weight = 0.0, 0.0
        started = time.perf_counter()
        for batch in train:
            factor = rate_factor(config, p.step, total_steps)
            loss, weight, rows = self._step(batch, factor)
            p.step += 1
            p.batch += 1
            p.loss_sum += loss * weight
            p.weight_sum += weight
            examples += rows
            since += loss * weight
            since_weight += weight
            if self.listener and p.step % config.log_steps == 0:
                values = {
                    "train/loss": since / since_weight if since_weight else math.nan,
                    "train/learning_rate": config.learning_rate * factor,
                    "train/skipped_steps": p.skipped,
                }
                self.listener.on_step(p.step, values)
                since, since_weight = 0.0, 0.0
            if config.checkpoint_steps and p.step % config.checkpoint_steps == 0 and p.batch < len(train):
                seconds += time.perf_counter() - started
                self._save()
                started = time.perf_counter()
        return seconds + time.perf_counter() - started, examples

    def _step(self, batch: Batch, factor: float) -> tuple[float, float, int]:
        """One optimizer step; returns mean loss and weight, both 0 if it was skipped, and the rows of the batch."""
        config = self.config
        table_rate = config.table_learning_rate * factor
        self.model.embedding.table.set_learning_rate(table_rate)
        loss, value, weight, rows = self._loss(batch)
        loss.backward()
        self._share_gradients()
        norm = self._gradient_norm()
        if not (math.isfinite(value) and math.isfinite(norm)):
            self._skip(value, norm)
            return 0.0, 0.0, rows
        self._progress.skipped_in_a_row = 0
        scale = self._clip(norm)
        for group in self._dense.param_groups:
            group["lr"] = config.learning_rate * factor
        self._dense.step()
        self._dense.zero_grad(set_to_none=True)
        self.model.embedding.step(table_rate, scale)
        if self._average:
            self._average.update()
        return value, weight, rows

    def _loss(self, batch: Batch) -> tuple[Tensor, float, float, int]:
        """What to differentiate; and of the whole step the mean loss, the weight and the rows."""
        loss, weight = weighted_loss(self.model.logits(batch), self._taught(batch))
        return loss, float(loss.detach()), weight, len(batch)

    def _taught(self, batch: Batch) -> Batch:
        """The batch with what is learned of it in place of the labels."""
        return self._teacher.teach(batch) if self._teacher else batch

    def _share_gradients(self) -> None:
        """Where several processes train, they agree on the network's gradients here."""

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters.values() if p.grad is not None]

    def _gradient_norm(self) -> float:
        """Global norm of the gradient, network and table together; one number tells whether all of it is finite."""
        table = self.model.embedding.table.gradient_norm(coalesced=self.config.clip_norm is not None)
        norms = [*torch._foreach_norm(self._gradients()), table]
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    def _clip(self, norm: float) -> float:
        """Scales the network's gradients to the largest norm allowed; returns the factor for the table's."""
        if self.config.clip_norm is None or norm <= self.config.clip_norm:
            return 1.0
        scale = self.config.clip_norm / norm
        torch._foreach_mul_(self._gradients(), scale)
        return scale

    def _skip(self, loss: float, norm: float) -> None:
        """Leaves network, table and their optimizers as they were before the step; stops when it happens too often."""
        p, most = self._progress, self.config.max_skipped_steps
        self._dense.zero_grad(set_to_none=True)
        self.model.embedding.discard()
        p.skipped += 1
        p.skipped_in_a_row += 1
        if p.skipped_in_a_row >= most:
            raise DataError(
                f"the loss or the gradient was not finite for {most} step{'s' if most > 1 else ''} in a row",
                field="train",
                found=f"loss {loss:g}, gradient norm {norm:g} at step {p.step + 1}, {p.skipped} steps skipped in all",
                mend="lower train.learning_rate and train.table_learning_rate, set train.clip_norm, or clip the number "
                "features; checkpoints so far are untouched",
            )

    def _end_epoch(self, valid: Loader) -> None:
        p, config = self._progress, self.config
        p.epoch += 1
        p.batch = 0
        with self.averaged():
            metrics = self._validate(valid)
        values = {f"valid/{name}": value for name, value in metrics.items()}
        values["train/epoch_loss"] = p.loss_sum / p.weight_sum if p.weight_sum else 0.0
        p.loss_sum = p.weight_sum = 0.0
        p.history.append({"epoch": p.epoch, "step": p.step, **values})
        if p.epoch == config.epochs:
            p.finished = "epochs"
        elif config.patience and p.epoch - p.best_epoch >= config.patience:
            p.finished = "patience"
        self._save()
        if self.listener:
            self.listener.on_epoch(p.epoch, p.step, values)

    def _validate(self, valid: Loader) -> dict[str, float]:
        """Metrics of the weights now in the model, which become the best weights if they are."""
        p, monitor = self._progress, self.config.monitor
        metrics = self._metrics(valid)
        sign = 1 if monitor == "auc" else -1
        if not p.best_metrics or sign * metrics[monitor] > sign * p.best_metrics[monitor]:
            p.best_epoch, p.best_metrics = p.epoch, metrics
            self._save_best({"epoch": p.epoch, "step": p.step, "metrics": metrics, **identity_of(self.model)})
        return metrics

    def _metrics(self, valid: Loader) -> dict[str, float]:
        """What the epoch is worth."""
        return self._report(self._predict(valid))

    def _report(self, predictions: Predictions) -> dict[str, float]:
        """The metrics of predictions that exist, the monitored one among them."""
        monitor = self.config.monitor
        assert predictions.labels is not None
        report = evaluate(predictions.labels, predictions.probabilities, predictions.weight)
        if report[monitor] is None:
            raise UndefinedMetricError(
                f"{monitor} is undefined on the validation split",
                field="train.monitor",
                found=report["undefined"][monitor],
                mend="split the data so that validation holds both classes, or set train.monitor to logloss",
            )
        return {name: report[name] for name in ("auc", "logloss", "calibration_ratio") if report[name] is not None}

    def _predict(self, valid: Loader) -> Predictions:
        return predict(self.model, valid)

    def _save_best(self, state: dict[str, Any]) -> None:
        write_tensors(self._checkpoints.best, {**self.model.tensors(), **self._hot_state()}, state)

    def _tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name; live tensors but for the random state."""
        table_state = self.model.embedding.table.optimizer_state()
        # Rows of a master copy are made from it whenever they are asked for: they are no state of their own.
        own = self.model.tensors(table="master" not in table_state)
        out = {f"model.{name}": t for name, t in own.items()}
        for name, t in table_state.items():
            out[f"table_optimizer.{name}"] = t
        out |= self._hot_state()
        for name, parameter in self._parameters.items():
            for key, t in self._dense.state[parameter].items():
                out[f"optimizer.{name}.{key}"] = t
        for name, t in (self._average.state() if self._average else {}).items():
            out[f"average.{name}"] = t
        out["random_state"] = torch.get_rng_state()
        return out

    def _hot_state(self) -> dict[str, Tensor]:
        """Who owns the hot slots and why, by name; live tensors."""
        hot = self.model.embedding.hot
        return {f"hot.{name}": t for name, t in hot.state().items()} if hot else {}

    def _save(self) -> None:
        p = self._progress
        if p.skipped_in_a_row:
            return  # what led to steps that are not finite may be in the weights: it must not drive out sound ones
        state = {"progress": asdict(p), **self._settings(), **identity_of(self.model)}
        self._checkpoints.save(p.step, self._tensors(), state)

    def _settings(self) -> dict[str, Any]:
        """What a checkpoint must agree with; into how many processes the work is divided is not of it."""
        return {"train": self.config.model_dump(mode="json", exclude={"distributed"}), "seed": self.seed}

    @torch.no_grad()
    def _resume(self) -> None:
        """Takes up the newest checkpoint, if there is one."""
        newest = self._checkpoints.newest()
        if newest is None:
            return
        state = self._checkpoints.state(newest)
        for key, value in self._settings().items():
            if state[key] != value:
                raise ArtifactError(
                    "the checkpoint was written under another config",
                    field=key,
                    found=state[key],
                    expected=value,
                    mend="resume with the config it was started with, or train without --resume",
                )
        check_identity(self.model, state, newest)
        tensors = self._tensors()
        self._checkpoints.restore(newest, tensors)
        if "random_state" in tensors:
            torch.set_rng_state(tensors["random_state"])
        self._progress = _Progress(**state["progress"])


def _adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    """Adam with its state there from the start, so that a checkpoint can be read into it."""
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    for parameter in optimizer.param_groups[0]["params"]:
        moments = {name: torch.zeros_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.zeros(()), **moments}
    return optimizer


def weighted_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, float]:
    """Mean binary cross-entropy over rows (by weight) and tasks.

    Args:
        logits: [B, T].
        batch: with labels [B, T] and perhaps weight [B].

    Returns:
        The loss in nats, and the summed weight of the batch (its rows when unweighted).
    """
    assert batch.labels is not None
    if batch.weight is None:
        return F.binary_cross_entropy_with_logits(logits, batch.labels), float(len(batch))
    losses = F.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none").mean(1)
    total = batch.weight.sum()
    return (losses * batch.weight).sum() / total.clamp(min=1e-12), float(total)


def rate_factor(config: TrainConfig, step: int, total_steps: int) -> float:
    """What both learning rates are multiplied by at a step (from 0).

    >>> c = TrainConfig(schedule="linear", warmup_steps=2)
    >>> [round(rate_factor(c, s, 6), 2) for s in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def load_best(model: CTRModel, folder: Path) -> dict[str, Any]:
    """Loads the best weights a trainer left in its folder into the model.

    Returns:
        Their epoch, step and validation metrics.

    Raises:
        ArtifactError: there are none, or they belong to another model.
    """
    path = Checkpoints(folder).best
    state = read_state(path)
    check_identity(model, state, path)
    _fill(model, functools.partial(read_into, path))
    return {key: state[key] for key in ("epoch", "step", "metrics")}


@torch.no_grad()
def _fill(model: CTRModel, read: Callable[[Mapping[str, Tensor]], None]) -> None:
    """Lets `read` write into the tensors of a model; rows made from a master copy go back into it."""
    tensors = model.tensors()
    read(tensors)
    model.embedding.table.load_stored(tensors["table"])
