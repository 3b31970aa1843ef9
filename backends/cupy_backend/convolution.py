"""Convolution and its gradients as matrix products that read the images where they lie.

The weights go to the kernels as (O, kh, kw, C/groups), in which a filter's values have the order of
the pixels' channels that they meet: a copy of some KB where they lie otherwise.

Arrays are float32 or float64 and so are the sums. What is multiplied is rounded to the backend's
precision if that is not fp32 and the arrays are float32: see tensor_cores.cuh.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy

from ..base import Array, nhwc
from ..geometry import Padding, Pair, Shape, output_size
from .launch import CAPABILITY, TYPES, Program, blocks

if TYPE_CHECKING:
    from . import CupyBackend

# A block's rows and columns, and how many of each are one thread's; by the columns that are wanted.
TILES = {16: (128, 16, 8, 4), 32: (128, 32, 8, 4), 64: (128, 64, 8, 8)}

DEPTH = 16  # pixels that a block takes at a time, product.cuh's
WANTED_BLOCKS = 512  # of a weight gradient: enough for the largest GPUs, and their sums are few
LEAST_PIXELS = 256  # of a part
THREADS = 256

GEOMETRY = numpy.dtype([(field, "i4") for field in (
    *("N", "H", "W", "C", "Ho", "Wo", "O", "kh", "kw", "groups"),
    *("stride_h", "stride_w", "top", "left", "dilation_h", "dilation_w"),
)])  # fmt: skip


def _programs(name: str, *more: str) -> dict[str, Program]:
    """Name the instances of a kernel for each precision; only float64 has no choice."""
    return {
        precision: Program(
            f"{name}.cu", *(_kernel(name, columns, precision) for columns in TILES), *more,
            dtypes=tuple(TYPES) if precision == "fp32" else ("float32",), capability=least,
        )
        for precision, least in CAPABILITY.items()
    }  # fmt: skip


def _kernel(name: str, columns: int, precision: str) -> str:
    """Name the instance whose tile is `columns` wide, or the widest."""
    kind = "Threads<T" if precision == "fp32" else f"Warps<{precision.capitalize()}"
    return f"{name}<T, {kind}, {', '.join(map(str, _tile(columns)))}>>"


def _tile(columns: int) -> tuple[int, int, int, int]:
    return TILES[next((width for width in TILES if columns <= width), max(TILES))]


FORWARD = _programs("conv2d")
INPUT_GRAD = _programs("conv2d_input_grad")
WEIGHT_GRAD = _programs("conv2d_weight_grad", "add_parts<T>")


def conv2d(
    backend: CupyBackend, x: Array, w: Array, bias: Array = None, residual: Array = None, *,
    stride: Pair, padding: Padding, dilation: Pair, groups: int, relu: bool = False,
) -> Array:  # fmt: skip
    """Cross-correlate x (N, C, H, W) with w (O, C/groups, kh, kw); add the rest; apply relu."""
    at = _geometry(x.shape, w.shape, stride, padding, dilation, groups)
    y = backend.empty((x.shape[0], w.shape[0], at["Ho"], at["Wo"]), x.dtype)
    rows = y.size // y.shape[1]
    added = (None if a is None else backend.flat(a) for a in (bias, residual))
    _launch(
        backend, FORWARD, "conv2d", rows, at["O"], groups,
        (backend.images(x), backend.images(w), *added, relu, nhwc(y), at),
    )  # fmt: skip
    return y


def conv2d_input_grad(
    backend: CupyBackend, g: Array, w: Array, *, x_shape: Shape, stride: Pair, padding: Padding,
    dilation: Pair, groups: int, plus: Array = None,
) -> Array:  # fmt: skip
    """Gradient of conv2d with respect to x, and `plus` if given: -> (N, C, H, W)."""
    at = _geometry(x_shape, w.shape, stride, padding, dilation, groups)
    dx = backend.empty(x_shape, g.dtype)
    n, _, h, width = x_shape
    rows = n * blocks(h, stride[0]) * blocks(width, stride[1])  # of the largest phase
    waiting = None if plus is None else backend.images(plus)
    _launch(
        backend, INPUT_GRAD, "conv2d_input_grad", rows, at["C"], groups * math.prod(stride),
        (backend.images(g), backend.images(w), waiting, nhwc(dx), at),
    )  # fmt: skip
    return dx


def conv2d_weight_grad(
    backend: CupyBackend, g: Array, x: Array, *, w_shape: Shape, stride: Pair, padding: Padding,
    dilation: Pair, groups: int,
) -> Array:  # fmt: skip
    """Gradient of conv2d with respect to w: g (N, O, H', W'), x (N, C, H, W) -> w's shape."""
    at = _geometry(x.shape, w_shape, stride, padding, dilation, groups)
    rows, columns = math.prod(w_shape[1:]), w_shape[0] // groups
    parts, length = _parts(g.size // g.shape[1], rows, columns, groups)
    partial = backend.empty((parts * math.prod(w_shape),), x.dtype)
    _launch(
        backend, WEIGHT_GRAD, "conv2d_weight_grad", rows, columns, groups * parts,
        (backend.images(g), backend.images(x), partial, length, at),
    )  # fmt: skip
    dw = backend.xp.empty(w_shape, x.dtype)
    grid = (blocks(dw.size, THREADS),)
    program = WEIGHT_GRAD[backend.precision_of(x.dtype)]
    backend.launch(program, "add_parts<T>", x.dtype, grid, THREADS, (partial, dw, parts, at))
    return dw


def _parts(pixels: int, rows: int, columns: int, groups: int) -> tuple[int, int]:
    """Cut the pixels into parts, and say how long one is: about WANTED blocks, none too short."""
    height, width, *_ = _tile(columns)
    tiles = blocks(rows, height) * blocks(columns, width) * groups
    parts = max(1, min(WANTED_BLOCKS // tiles, pixels // LEAST_PIXELS))
    length = blocks(pixels, parts * DEPTH) * DEPTH
    return blocks(pixels, length), length


def _launch(
    backend: CupyBackend, programs: dict[str, Program], name: str, rows: int, columns: int,
    layers: int, args: tuple[Any, ...],
) -> None:  # fmt: skip
    """Launch a kernel that covers rows x columns, in each of so many layers, with its tiles."""
    height, width, *share = _tile(columns)
    grid = blocks(rows, height), blocks(columns, width), layers
    threads = height * width // (share[0] * share[1])
    dtype = args[0].dtype
    precision = backend.precision_of(dtype)
    kernel = _kernel(name, columns, precision)
    backend.launch(programs[precision], kernel, dtype, grid, threads, args)


def _geometry(
    x: Shape, w: Shape, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Any:
    """Fill the struct Convolution of convolution.cuh."""
    (n, _, h, wide), (o, c, kh, kw) = x, w
    size, kernel = (h, wide), (kh, kw)
    out = output_size(size, kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    (top, _), (left, _) = padding
    numbers = (n, *size, c, *out, o // groups, *kernel, groups, *stride, top, left, *dilation)
    return numpy.array(numbers, GEOMETRY)
