"""Convolution and its gradients as matrix products that read the images where they lie.

The weights go to the kernels as (O, kh, kw, C/groups), in which a filter's values have the order of
the pixels' channels that they meet: a copy of some KB where they lie otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy

from ..base import Array, nchw, nhwc
from ..geometry import Padding, Pair, Shape, output_size
from .launch import MOST_BLOCKS, Program, blocks

if TYPE_CHECKING:
    from . import CupyBackend

# A block's rows and columns, and how many of each are one thread's; by the columns that are wanted.
TILES = {16: (128, 16, 8, 4), 32: (128, 32, 8, 4), 64: (128, 64, 8, 8)}

GEOMETRY = numpy.dtype([(field, "i4") for field in (
    *("N", "H", "W", "C", "Ho", "Wo", "O", "kh", "kw", "groups"),
    *("stride_h", "stride_w", "top", "left", "dilation_h", "dilation_w"),
)])  # fmt: skip


def _kernels(name: str) -> tuple[str, ...]:
    return tuple(_kernel(name, columns) for columns in TILES)


def _kernel(name: str, columns: int) -> str:
    """Name the instance whose tile is `columns` wide, or the widest."""
    return f"{name}<T, {', '.join(map(str, _tile(columns)))}>"


def _tile(columns: int) -> tuple[int, int, int, int]:
    return TILES[next((width for width in TILES if columns <= width), max(TILES))]


FORWARD = Program("conv2d.cu", *_kernels("conv2d"))


def conv2d(
    backend: CupyBackend, x: Array, w: Array, *, stride: Pair, padding: Padding, dilation: Pair,
    groups: int,
) -> Array:  # fmt: skip
    """Cross-correlate x (N, C, H, W) with w (O, C/groups, kh, kw) -> (N, O, H', W')."""
    at = _geometry(x.shape, w.shape, stride, padding, dilation, groups)
    y = backend.empty((x.shape[0], w.shape[0], at["Ho"], at["Wo"]), x.dtype)
    rows = y.size // y.shape[1]
    _launch(
        backend, FORWARD, "conv2d", rows, at["O"], groups,
        (backend.images(x), backend.images(w), nhwc(y), at),
    )  # fmt: skip
    return y


def _launch(
    backend: CupyBackend, program: Program, name: str, rows: int, columns: int, layers: int,
    args: tuple[Any, ...],
) -> None:  # fmt: skip
    """Launch a kernel that covers rows x columns, in each of so many layers, with its tiles."""
    height, width, *share = _tile(columns)
    grid = blocks(rows, height), blocks(columns, width), layers
    threads = height * width // (share[0] * share[1])
    backend.launch(program, _kernel(name, columns), args[0].dtype, grid, threads, args)


def _geometry(
    x: Shape, w: Shape, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Any:
    """Fill the struct Convolution of convolution.cuh."""
    n, _, *size = x
    o, c, *kernel = w
    out = output_size(size, kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    (top, _), (left, _) = padding
    numbers = (n, *size, c, *out, o // groups, *kernel, groups, *stride, top, left, *dilation)
    return numpy.array(numbers, GEOMETRY)
