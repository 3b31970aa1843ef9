"""Batch normalisation in as few passes over memory as there can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..base import Array
from .launch import Program, blocks

if TYPE_CHECKING:
    from . import CupyBackend

NAMES = ("statistics<T>", "normalise<T>", "gradient_sums<T>", "input_gradient<T>")
JOINS = ("join_statistics", "join_gradient_sums<T>")
NORM = Program("norm.cu", *NAMES, *JOINS, "running_average<T>")
THREADS = 256  # of a block, as norm.cu has it


def batch_norm(
    backend: CupyBackend, x: Array, weight: Array, bias: Array, residual: Array = None, *,
    mean: Array = None, var: Array = None, eps: float, relu: bool = False,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Normalise x (N, C, H, W) per channel, add `residual`, apply relu: (y, mean, var)."""
    run = _Pass(backend, x)
    if mean is None:
        mean, var = backend.empty((2, run.channels), "float64")
        partial = run.partial_sums(3)
        run("statistics<T>", x, *run.share, partial)
        run.join("join_statistics", partial, mean, var)
    y = backend.empty(x.shape, x.dtype)
    at = run.per_channel(mean, var, weight, bias, eps)
    run("normalise<T>", x, residual, *at, relu, *run.share, y)
    return y, mean, var


def batch_norm_grad(
    backend: CupyBackend, g: Array, x: Array, weight: Array, bias: Array, *, mean: Array,
    var: Array, y: Array = None, eps: float, training: bool, residual: bool = False,
    overwrite_g: bool = False, plus: Array = None,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """Give batch_norm's gradients: dx + plus, dweight, dbias and, if any, its residual's."""
    run, relu = _Pass(backend, x), y is not None
    at, partial = run.per_channel(mean, var, weight, bias, eps), run.partial_sums(2)
    masked = backend.empty(g.shape, g.dtype) if relu and residual else None
    mask = None if masked is None else y
    run("gradient_sums<T>", g, x, mask, *at, relu, *run.share, masked, partial)
    dx, dweight, dbias = (backend.empty(a.shape, x.dtype) for a in (x, weight, bias))
    means = backend.empty((2, run.channels), "float64")
    statistics = *at[:2], at[-1], run.share[0]
    run.join("join_gradient_sums<T>", partial, *statistics, training, dweight, dbias, means)
    if masked is not None:
        g, relu = masked, False
    run("input_gradient<T>", g, x, plus, *at, relu, means, *run.share, dx)
    return dx, dweight, dbias, g if residual else None


def running_average(
    backend: CupyBackend, old: Array, *, new: Array, momentum: float, scale: float
) -> Array:
    """(1 - momentum) * old + momentum * scale * new (C,), in a new array."""
    result, batch = backend.empty(old.shape, old.dtype), backend.xp.asarray(new, "float64")
    arrays = backend.flat(old), backend.flat(batch)
    args = (*arrays, float(momentum), float(scale), old.size, result)
    grid = (blocks(old.size, THREADS),)
    backend.launch(NORM, "running_average<T>", old.dtype, grid, THREADS, args)
    return result


class _Pass:
    """Launches over the pixels of x, which blocks and threads share as norm.cu draws it."""

    def __init__(self, backend: CupyBackend, x: Array) -> None:
        self.backend, self.dtype, self.channels = backend, x.dtype, x.shape[1]
        pixels, lines = x.size // self.channels, THREADS // min(self.channels, THREADS)
        # About 1,000 blocks fill any GPU. At least 16 values a thread, for a block's sums cost as
        # much as some values do; at most 256, for the sake of their sums in float32.
        each = min(max(16, blocks(pixels, 1000 * lines)), 256)
        self.grid = blocks(pixels, each * lines), blocks(self.channels, THREADS)
        self.share = pixels, self.channels, each

    def __call__(self, kernel: str, *args: Any) -> None:
        flat = self.backend.flat
        values = tuple(flat(a) if getattr(a, "ndim", 0) else a for a in args)
        self.backend.launch(NORM, kernel, self.dtype, self.grid, THREADS, values)

    def join(self, kernel: str, partial: Array, *args: Any) -> None:
        """Launch a block for each channel, to join the partial sums of all blocks."""
        args = (partial, self.grid[0], *args)
        self.backend.launch(NORM, kernel, self.dtype, (self.channels,), THREADS, args)

    def partial_sums(self, kinds: int) -> Array:
        return self.backend.empty((self.channels, self.grid[0], kinds), "float64")

    def per_channel(
        self, mean: Array, var: Array, weight: Array, bias: Array, eps: float
    ) -> tuple[Any, ...]:
        """Give them as kernels take them: the statistics in float64."""
        statistics = (self.backend.xp.asarray(a, "float64") for a in (mean, var))
        return *statistics, weight, bias, float(eps)
