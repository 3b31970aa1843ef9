"""Local response normalisation: each value divided by what its neighbours amount to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..base import Array
from .launch import Program, blocks

if TYPE_CHECKING:
    from . import CupyBackend

NAMES = ("local_response_norm", "local_response_norm_grad")
RESPONSE_NORM = Program("response_norm.cu", *(f"{name}<T>" for name in NAMES))
THREADS = 256


def local_response_norm(
    backend: CupyBackend, x: Array, *, size: int, alpha: float, beta: float, k: float
) -> tuple[Array, Array]:
    """Divide x by scale**beta; scale = k + alpha/size * sum of squares of `size` channels."""
    y, scale = (backend.empty(x.shape, x.dtype) for _ in range(2))
    window, numbers = (size // 2, (size - 1) // 2), (alpha / size, float(beta), float(k))
    _launch(backend, "local_response_norm", x, window, *numbers, y, scale)
    return y, scale


def local_response_norm_grad(
    backend: CupyBackend, g: Array, x: Array, scale: Array, *, size: int, alpha: float, beta: float
) -> Array:
    """Gradient of local_response_norm with respect to x."""
    dx, mirrored = backend.empty(x.shape, x.dtype), ((size - 1) // 2, size // 2)
    numbers = alpha / size, float(beta)
    _launch(backend, "local_response_norm_grad", x, mirrored, *numbers, g, scale, dx)
    return dx


def _launch(backend: CupyBackend, name: str, x: Array, window: tuple[int, int], *args: Any) -> None:
    """Launch a kernel of x whose threads sum over (before, after) channels around their own."""
    values = (backend.flat(a) if getattr(a, "ndim", 0) else a for a in (*window, *args))
    shared = (THREADS + sum(window)) * x.itemsize
    args = (backend.flat(x), x.size, x.shape[1], *values)
    grid = (blocks(x.size, THREADS),)
    backend.launch(RESPONSE_NORM, f"{name}<T>", x.dtype, grid, THREADS, args, shared=shared)
