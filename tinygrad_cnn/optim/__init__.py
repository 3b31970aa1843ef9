"""Optimisers, which move parameters against their gradients, and schedules of the learning rate."""

from .optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from .schedules import Schedule, constant, cosine, multistep, one_cycle, step, warm_up

__all__ = [
    "SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "Schedule", "constant", "cosine", "multistep",
    "one_cycle", "step", "warm_up",
]  # fmt: skip
