"""Initial weights: each function maps a shape and a generator to a float32 NumPy array.

Weights are (out, in) or (out, in/groups, kh, kw).

>>> w = kaiming_normal((64, 32, 3, 3), numpy.random.default_rng(0), mode="fan_out")
>>> round(float(w.std()) * (64 * 3 * 3 / 2) ** 0.5, 1)
1.0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy

Array = numpy.ndarray[Any, Any]
Generator = numpy.random.Generator
Initializer = Callable[[tuple[int, ...], Generator], Array]

_drawing = ContextVar("drawing", default=True)


@contextmanager
def skipped() -> Iterator[None]:
    """Leave weights at 0 inside a `with` block, undrawn: the model is counted, or filled later."""
    before = _drawing.set(False)
    try:
        yield
    finally:
        _drawing.reset(before)


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Count the connections into and out of a unit: (fan_in, fan_out)."""
    if len(shape) < 2:
        raise ValueError(f"init: shape {shape} has no fan-in; expected (out, in) or (O, C, kh, kw)")
    if min(shape) < 1:
        raise ValueError(f"init: shape {shape} is empty; expected every size to be at least 1")
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def kaiming_normal(shape: tuple[int, ...], rng: Generator, *, mode: str = "fan_in") -> Array:
    """N(0, 2/fan), which keeps the variance through ReLU layers. He et al., arXiv 1502.01852."""
    return normal(shape, rng, std=math.sqrt(2 / _fan(shape, mode)))


def kaiming_uniform(
    shape: tuple[int, ...], rng: Generator, *, a: float = math.sqrt(5), mode: str = "fan_in"
) -> Array:
    """U(-b, b), b = sqrt(6 / ((1 + a^2) fan)); a = sqrt(5) is PyTorch's default for layers."""
    return uniform(shape, rng, bound=math.sqrt(6 / ((1 + a * a) * _fan(shape, mode))))


def xavier_uniform(shape: tuple[int, ...], rng: Generator) -> Array:
    """U(-b, b) with b = sqrt(6 / (fan_in + fan_out)), for tanh. Glorot & Bengio, AISTATS 2010."""
    return uniform(shape, rng, bound=math.sqrt(6 / sum(fans(shape))))


def normal(shape: tuple[int, ...], rng: Generator, *, std: float = 0.01) -> Array:
    """N(0, std^2)."""
    if not _drawing.get():
        return numpy.zeros(shape, numpy.float32)
    return (rng.standard_normal(shape) * std).astype(numpy.float32)


def uniform(shape: tuple[int, ...], rng: Generator, *, bound: float) -> Array:
    """U(-bound, bound)."""
    if not _drawing.get():
        return numpy.zeros(shape, numpy.float32)
    return rng.uniform(-bound, bound, shape).astype(numpy.float32)


def _fan(shape: tuple[int, ...], mode: str) -> int:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"init: mode is {mode!r}; expected 'fan_in' or 'fan_out'")
    return fans(shape)[mode == "fan_out"]
