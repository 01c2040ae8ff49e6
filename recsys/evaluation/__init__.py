"""Evaluation: exact metrics, pictures and reports."""

from recsys.evaluation.metrics import evaluate

__all__ = ["evaluate"]
