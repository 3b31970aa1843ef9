"""Elementwise kernels: sums, ReLUs and the optimiser's step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..base import Array, nhwc
from .launch import Program, blocks

if TYPE_CHECKING:
    from . import CupyBackend

NAMES = ("add<T>", "add_to_channels<T>", "relu<T>", "relu_grad<T>")
WITH_RATE, WITH_RATE_IN_MEMORY = "sgd_update<T, double>", "sgd_update<T, const double*>"
POINTWISE = Program("pointwise.cu", *NAMES, WITH_RATE, WITH_RATE_IN_MEMORY)
THREADS, EACH = 256, 4


def add(backend: CupyBackend, x: Array, y: Array, *, out: Array = None) -> Array:
    """x + y, into `out` if given; y has x's shape, or one value for each channel."""
    result = backend.empty(x.shape, x.dtype) if out is None else out
    if x.shape == y.shape:
        _launch(backend, "add<T>", (x, y, result))
    else:
        channels = x.shape[1]
        _launch(backend, "add_to_channels<T>", (x, y.reshape(channels), result), channels)
    return result


def relu(backend: CupyBackend, x: Array) -> Array:
    """max(x, 0)."""
    y = backend.empty(x.shape, x.dtype)
    _launch(backend, "relu<T>", (x, y))
    return y


def relu_grad(backend: CupyBackend, g: Array, y: Array) -> Array:
    """Pass g where y = relu(x) is positive; at 0 the subgradient is 0."""
    dx = backend.empty(g.shape, g.dtype)
    _launch(backend, "relu_grad<T>", (g, y, dx))
    return dx


def sgd_update(
    backend: CupyBackend, p: Array, g: Array, velocity: Array, *, lr: float | Array,
    momentum: float, weight_decay: float, nesterov: bool,
) -> None:  # fmt: skip
    """Update p and velocity in place: v <- momentum*v + d, p <- p - lr*v, d = g + decay*p.

    lr is a number, or a float64 array of one that a recorded step reads anew at each replay.
    """
    as_it_lies = nhwc if p.ndim == 4 and nhwc(p).flags.c_contiguous else lambda a: a
    views = [as_it_lies(a) for a in (g, p, velocity)]
    rows = [backend.xp.ascontiguousarray(view) for view in views]
    kernel = WITH_RATE_IN_MEMORY if isinstance(lr, backend.xp.ndarray) else WITH_RATE
    rate = lr if kernel == WITH_RATE_IN_MEMORY else float(lr)
    numbers = rate, float(momentum), float(weight_decay)
    _launch(backend, kernel, [row.reshape(-1) for row in rows], *numbers, nesterov)
    for view, row in zip(views[1:], rows[1:], strict=True):
        if row is not view:
            view[...] = row


def _launch(backend: CupyBackend, name: str, arrays: Sequence[Array], *settings: Any) -> None:
    """Launch a kernel of (arrays, size, settings) that writes as many values as the first has."""
    size, dtype = arrays[0].size, arrays[0].dtype
    args = (*map(backend.flat, arrays), size, *settings)
    backend.launch(POINTWISE, name, dtype, (blocks(size, THREADS * EACH),), THREADS, args)
