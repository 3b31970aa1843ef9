"""Pooling, in which a thread gathers what its value is made of; so do the gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy

from ..base import Array
from ..geometry import Padding, Pair, Shape, output_size
from .launch import Program, blocks

if TYPE_CHECKING:
    from . import CupyBackend

NAMES = ("max_pool2d", "max_pool2d_grad", "max_pool2d_gather", "avg_pool2d", "avg_pool2d_grad")
POOL = Program("pool.cu", *(f"{name}<T>" for name in NAMES))
THREADS = 256

GEOMETRY = numpy.dtype([(field, "i4") for field in (
    *("N", "H", "W", "C", "Ho", "Wo"), *("kh", "kw", "stride_h", "stride_w", "top", "left"),
)])  # fmt: skip


def max_pool2d(backend: CupyBackend, x: Array, **window: Any) -> tuple[Array, Array]:
    """Take the largest pixel of each window: (y, argmax), both (N, C, H', W')."""
    at = _geometry(x.shape, **window)
    y, argmax = (_pooled(backend, x, at, dtype) for dtype in (x.dtype, "uint8"))
    _launch(backend, "max_pool2d", (x, y, argmax), at)
    return y, argmax


def max_pool2d_grad(
    backend: CupyBackend, g: Array, argmax: Array, *, x_shape: Shape, **window: Any
) -> Array:
    """Send each gradient of g (N, C, H', W') to the pixel that won -> (N, C, H, W)."""
    dx = backend.empty(x_shape, g.dtype)
    _launch(backend, "max_pool2d_grad", (g, argmax, dx), _geometry(x_shape, **window))
    return dx


def max_pool2d_gather(backend: CupyBackend, x: Array, argmax: Array, **window: Any) -> Array:
    """Read x (N, C, H, W) at the pixels that won -> (N, C, H', W'); the gradient's adjoint."""
    y = backend.empty(argmax.shape, x.dtype)
    _launch(backend, "max_pool2d_gather", (x, argmax, y), _geometry(x.shape, **window))
    return y


def avg_pool2d(backend: CupyBackend, x: Array, **window: Any) -> Array:
    """Average each window -> (N, C, H', W'); zeros of the padding count."""
    at = _geometry(x.shape, **window)
    y = _pooled(backend, x, at, x.dtype)
    _launch(backend, "avg_pool2d", (x, y), at)
    return y


def avg_pool2d_grad(backend: CupyBackend, g: Array, *, x_shape: Shape, **window: Any) -> Array:
    """Spread each gradient of g (N, C, H', W') evenly over its window -> (N, C, H, W)."""
    dx = backend.empty(x_shape, g.dtype)
    _launch(backend, "avg_pool2d_grad", (g, dx), _geometry(x_shape, **window))
    return dx


def _geometry(x: Shape, *, kernel_size: Pair, stride: Pair, padding: Padding) -> Any:
    """Fill the struct Pooling of pool.cu."""
    n, c, h, w = x
    out = output_size((h, w), kernel=kernel_size, stride=stride, padding=padding)
    (top, _), (left, _) = padding
    return numpy.array((n, h, w, c, *out, *kernel_size, *stride, top, left), GEOMETRY)


def _pooled(backend: CupyBackend, x: Array, at: Any, dtype: Any) -> Array:
    return backend.empty((*x.shape[:2], int(at["Ho"]), int(at["Wo"])), dtype)


def _launch(backend: CupyBackend, name: str, arrays: tuple[Array, ...], at: Any) -> None:
    """Launch a kernel with a thread for each value of the array that it writes, the last."""
    written, dtype = arrays[-1].size, arrays[0].dtype
    args = (*map(backend.images, arrays), at)
    backend.launch(POOL, f"{name}<T>", dtype, (blocks(written, THREADS),), THREADS, args)
