"""Layers, and modules that are made of them."""

from . import init
from .checkpoint import checkpoint
from .fold import fold_batch_norm
from .layers import (
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Identity,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Tanh,
)
from .module import Module, ModuleList, Parameter
from .rehearsal import rehearsal
from .sequential import Sequential, checkpoint_activations
from .trace import Call, trace

__all__ = [
    "AvgPool2d", "BatchNorm2d", "Call", "Conv2d", "Dropout", "Flatten", "GlobalAvgPool2d",
    "Identity", "Linear", "LocalResponseNorm", "MaxPool2d", "Module", "ModuleList", "Parameter",
    "ReLU", "Sequential", "Tanh", "checkpoint", "checkpoint_activations", "fold_batch_norm", "init",
    "rehearsal", "trace",
]  # fmt: skip
