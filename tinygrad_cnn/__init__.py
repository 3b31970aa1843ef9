"""tinygrad_cnn: a small reverse-mode autograd engine for convolutional networks.

>>> import tinygrad_cnn as tg
>>> x = tg.tensor([1.0, 2.0, 3.0], requires_grad=True)
>>> (x**2).sum().backward()
>>> x.grad.numpy().tolist()
[2.0, 4.0, 6.0]
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from . import functional
from .autograd import GraphFreed, SavedTensorChanged, forward_hook, no_grad, op
from .backends import BackendUnavailable, set_backend, use_backend
from .backends import available as available_backends
from .backends import register as register_backend
from .backends.precision import PrecisionUnavailable, set_precision, use_precision
from .creation import full, ones, randn, tensor, zeros
from .functional import concatenate, pad, relu_rule, stack, unfused, where
from .gradcheck import GradcheckError, gradcheck
from .random import manual_seed
from .tensor import BackendMismatch, Tensor, grad

__version__ = "0.1.0"

__all__ = [
    "BackendMismatch", "BackendUnavailable", "GradcheckError", "GraphFreed",
    "PrecisionUnavailable", "SavedTensorChanged", "Tensor", "available_backends",
    "concatenate", "forward_hook", "full", "functional", "grad", "gradcheck", "manual_seed",
    "no_grad", "ones", "op", "pad", "randn", "register_backend", "relu_rule", "set_backend",
    "set_precision", "stack", "tensor", "unfused", "use_backend", "use_precision", "where",
    "zeros",
]  # fmt: skip

_LAZY = (
    "data", "diagnose", "models", "nn", "optim", "report", "summary", "testing", "train",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the heavier parts where they are first used, so that the import stays quick."""
    if name in _LAZY:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
