"""Training: the loop, its measurements and its display."""

from .loop import EpochResult, Metrics, evaluate, fit, train_step

__all__ = ["EpochResult", "Metrics", "evaluate", "fit", "train_step"]
