"""Evaluation while a model serves: logs of predictions and labels, joined with delay, in windows, with drift alarms."""

from recsys.evaluation.online.config import AlarmConfig, OnlineConfig
from recsys.evaluation.online.join import DelayedJoin, Window
from recsys.evaluation.online.logs import LABEL_LOG, PREDICTION_LOG, ROLES
from recsys.evaluation.online.monitor import Monitor
from recsys.evaluation.online.reference import Reference

__all__ = [
    "LABEL_LOG",
    "PREDICTION_LOG",
    "ROLES",
    "AlarmConfig",
    "DelayedJoin",
    "Monitor",
    "OnlineConfig",
    "Reference",
    "Window",
]
