"""Training: the loop, its config, averaging, checkpoints and prediction."""

from recsys.training.config import TrainConfig
from recsys.training.listener import TrainingListener
from recsys.training.prediction import Predictions, predict
from recsys.training.trainer import Trainer, TrainResult, load_best

__all__ = ["Predictions", "TrainConfig", "TrainResult", "Trainer", "TrainingListener", "load_best", "predict"]
