"""Convolution as it is written: a sum over taps, each a matrix product with the channels.

    y[n, oy, ox] = sum over taps t of  x[n, sh * oy + row(t), sw * ox + column(t)] @ w[t]

A tap is one element of the kernel. With its row and column left open, one loop computes

* the convolution: tap (i, j) reads at row i * dh - top, column j * dw - left;
* its gradient with respect to x: stride 2, say, cuts an image into 2 x 2 phases, the even and the
  odd rows and columns. All pixels of a phase meet the same taps, and read dy with stride 1:

      3x3, stride 2, padding 1        even row, even column   tap (1, 1)
                                      even row, odd column    taps (1, 0), (1, 2)
                                      odd row,  even column   taps (0, 1), (2, 1)
                                      odd row,  odd column    the four corners

Taps that are neighbours in a row read one *run* of floats, channels and pixels alike. Three taps of
three channels are then a product of depth 9: so the first layer of a network is quick, too.

      x with zeros around it, copied in bands
    +-------------------------+
    | 0  0  0  0  0  0  0  .. |     ROWS pixels of a row of y at a time make a tile. Pixel r reads
    | 0 [c c c][c c c] c ..   |     its run sw * C floats behind that of pixel r - 1.
    | 0 [ a run ]             |
    +-------------------------+
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy
from numba import get_thread_id, intp, njit, prange

from ..base import Array, nchw, nhwc
from ..geometry import Padding, Pair, Shape, output_size
from .arrays import aligned, flat, scratch
from .compiler import kernel
from .host import ROWS, WIDTH
from .pointwise import add
from .simd import add_product, clear, copy, load_tile, prefetch, store_tile, zero_tile

BAND = 8  # rows of y that share a copy of the rows of x which they read


# ---- kernels ----


@njit
def copy_padded(x, image, shape, y0, rows, x0, columns, to, place):
    """Copy pixels (y0, x0) to (y0 + rows, x0 + columns) of x[image], zeros where there are none."""
    H, W, C = shape
    start, end = max(x0, 0), min(x0 + columns, W)
    for r in range(rows):
        line, y = place + r * columns * C, y0 + r
        if y < 0 or y >= H or start >= end:
            clear(to, line, columns * C)
            continue
        clear(to, line, (start - x0) * C)
        source = image + (y * W + start) * C
        copy(to, line + (start - x0) * C, x, source, (end - start) * C)
        clear(to, line + (end - x0) * C, (x0 + columns - end) * C)


@kernel(
    "void(float32[::1], float32[::1], float32[::1], float32[::1], intp[::1], UniTuple(intp, 4),"
    "UniTuple(intp, 7), UniTuple(intp, 6))"
)
def convolve(x, w, y, space, runs, x_shape, places, window):
    """Sum over all runs; w is [O/WIDTH][floats of all runs][WIDTH], a run (row, first, length).

    `places` says which pixels of y are computed: rows and columns, then in floats the width of a
    pixel, the step to the next image, to the first pixel, to the next row and to the next column.
    """
    N, H, W, C = x_shape
    rows_out, columns_out, O, image, corner, down, across = places
    sh, sw, top, left, height, width = window
    columns = (columns_out - 1) * sw + width
    bands = (rows_out + BAND - 1) // BAND
    depth = len(w) // O
    share = ((BAND - 1) * sh + height) * columns * C + ROWS * sw * C
    for b in prange(N * bands):
        n, band = divmod(intp(b), bands)
        first = band * BAND
        count = min(BAND, rows_out - first)
        a = space[get_thread_id() * share :]
        rows = (count - 1) * sh + height
        copy_padded(x, n * H * W * C, (H, W, C), first * sh + top, rows, left, columns, a, 0)
        behind = (n * H + (first + count) * sh + top) * W * C
        for r in range(count):
            for i in range(
                behind + r * sh * W * C, min(behind + (r + 1) * sh * W * C, len(x)), WIDTH
            ):
                prefetch(x, i, 0)
            start = n * image + corner + (first + r) * down
            for o in range(0, O, WIDTH):
                for ox in range(0, columns_out, ROWS):
                    tile, wi = zero_tile(), o * depth
                    at = (r * sh * columns + ox * sw) * C
                    for k in range(0, len(runs), 3):
                        i = at + runs[k] * columns * C + runs[k + 1]
                        tile = add_product(tile, a, i, sw * C, 1, w, wi, WIDTH, runs[k + 2])
                        wi += runs[k + 2] * WIDTH
                    store_tile(y, start + ox * across + o, across, tile, columns_out - ox)


@kernel(
    "void(float32[::1], float32[::1], float32[::1], float32[::1], intp[::1], UniTuple(intp, 4),"
    "UniTuple(intp, 3), UniTuple(intp, 6), intp, intp, intp)"
)
def correlate(x, g, u, space, runs, x_shape, g_shape, window, depth, parts, together):
    """u [parts][depth][O] = for each float of each run its products with g, summed over pixels.

    As many images are taken `together` as stay in the cache with their padding.
    """
    N, H, W, C = x_shape
    rows_out, columns_out, O = g_shape
    sh, sw, top, left, height, width = window
    rows, columns = (rows_out - 1) * sh + height, (columns_out - 1) * sw + width
    image, line = rows * columns * C, sh * columns * C
    for p in prange(parts):
        part, a = intp(p), space[get_thread_id() * (together * image + ROWS) :]
        clear(u, part * depth * O, depth * O)
        end = N * (part + 1) // parts
        for first in range(N * part // parts, end, together):
            count = min(together, end - first)
            for m in range(count):
                start = (first + m) * H * W * C
                copy_padded(x, start, (H, W, C), top, rows, left, columns, a, m * image)
            ui = part * depth * O
            for k in range(0, len(runs), 3):
                for i in range(0, runs[k + 2], ROWS):
                    at = runs[k] * columns * C + runs[k + 1] + i
                    for o in range(0, O, WIDTH):
                        tile = load_tile(u, ui + o, O)
                        for y in range(count * rows_out):
                            m, oy = divmod(y, rows_out)
                            gi = (first * rows_out + y) * columns_out * O + o
                            tile = add_product(
                                tile,
                                a,
                                at + m * image + oy * line,
                                1,
                                sw * C,
                                g,
                                gi,
                                O,
                                columns_out,
                            )
                        store_tile(u, ui + o, O, tile, runs[k + 2] - i)
                    ui += min(ROWS, runs[k + 2] - i) * O


# ---- taps and runs ----

Tap = tuple[int, int]  # row, column


def run_list(taps: Sequence[Tap], C: int) -> Array:
    """Join the taps that are neighbours in a row: (row, first float, length) of each run."""
    runs: list[list[int]] = []
    for row, column in taps:
        if runs and runs[-1][0] == row and sum(runs[-1][1:]) == column * C:
            runs[-1][2] += C
        else:
            runs.append([row, column * C, C])
    return numpy.array(runs, numpy.intp).reshape(-1)


def window_of(taps: Sequence[Tap]) -> tuple[list[Tap], Tap, Tap]:
    """Give taps from their window's corner on, the corner, and the window's size."""
    rows, columns = [row for row, _ in taps] or [0], [column for _, column in taps] or [0]
    top, left = min(rows), min(columns)
    moved = [(row - top, column - left) for row, column in taps]
    return moved, (top, left), (max(rows) - top + 1, max(columns) - left + 1)


def panels(w: Array) -> Array:
    """Arrange w [taps][C][O] as [O/WIDTH][taps * C][WIDTH], with zeros for what O lacks."""
    taps, C, O = w.shape
    padded = numpy.zeros((taps * C, wide(O)), numpy.float32)
    padded[:, :O] = w.reshape(taps * C, O)
    grouped = padded.reshape(taps * C, wide(O) // WIDTH, WIDTH)
    return numpy.ascontiguousarray(grouped.swapaxes(0, 1)).reshape(-1)


def wide(O: int) -> int:
    """Round a number of channels up to a whole number of tiles."""
    return -(-O // WIDTH) * WIDTH


# ---- a convolution and its gradients ----


def conv2d(
    x: Array, w: Array, *, stride: Pair, padding: Padding, dilation: Pair, **at: Any
) -> Array:
    """Cross-correlate x (N, C, H, W) with w (O, C, kh, kw) -> (N, O, H', W')."""
    O, C, *kernel = w.shape
    out = output_size(
        x.shape[2:], kernel=tuple(kernel), stride=stride, padding=padding, dilation=dilation
    )
    y = _empty(len(x), *out, O)
    _sum_taps(x, _filters(w), _taps(kernel, padding, dilation), y, step_x=stride)
    return nchw(_narrowed(y, O))


def conv2d_input_grad(
    g: Array, w: Array, *, x_shape: Shape, stride: Pair, padding: Padding, dilation: Pair,
    plus: Array = None, **at: Any,
) -> Array:  # fmt: skip
    """Gradient with respect to x, and `plus` if given: g (N, O, H', W') -> (N, C, H, W)."""
    (N, C, H, W), (sh, sw) = x_shape, stride
    dx, filters = _empty(N, H, W, C), _filters(w.swapaxes(0, 1))  # (taps, O, C)
    # In reverse, so that the columns that a phase's taps read rise.
    taps = list(enumerate(_taps(w.shape[2:], padding, dilation)))[::-1]
    for y0, x0 in product(range(min(sh, H)), range(min(sw, W))):  # the phases
        met = [
            (t, ((y0 - row) // sh, (x0 - column) // sw))
            for t, (row, column) in taps
            if (y0 - row) % sh == 0 and (x0 - column) % sw == 0
        ]
        chosen = filters[[t for t, _ in met]]
        _sum_taps(g, chosen, [tap for _, tap in met], dx, first_y=(y0, x0), step_y=stride)
    dx = nchw(_narrowed(dx, C))
    return dx if plus is None else add(dx, plus, out=dx)


def conv2d_weight_grad(
    g: Array, x: Array, *, w_shape: Shape, stride: Pair, padding: Padding, dilation: Pair,
    **at: Any,
) -> Array:  # fmt: skip
    """Gradient of conv2d with respect to w: g (N, O, H', W'), x (N, C, H, W) -> w's shape."""
    (N, C, H, W), (O, _, *kernel) = x.shape, w_shape
    taps, corner, size = window_of(_taps(kernel, padding, dilation))
    depth, parts = C * len(taps), min(max(2**18 // (C * len(taps) * O), 4), 16)
    g = _widened(g)
    rows, columns = ((n - 1) * s + k for n, s, k in zip(g.shape[1:3], stride, size, strict=True))
    u = aligned((parts * depth + ROWS) * g.shape[3])  # tiles are read in whole
    together = max(1, 2**16 // (rows * columns * C))
    space = scratch(together * rows * columns * C + ROWS)  # so are runs
    correlate(
        flat(x), g.reshape(-1), u, space, run_list(taps, C), (N, H, W, C), g.shape[1:],
        (*stride, *corner, *size), depth, parts, together,
    )  # fmt: skip
    sums = u[: parts * depth * g.shape[3]].reshape(parts, *kernel, C, -1).sum(axis=0)
    return numpy.ascontiguousarray(sums[..., :O].transpose(3, 2, 0, 1))


def _taps(kernel: Sequence[int], padding: Padding, dilation: Pair) -> list[Tap]:
    """Say where the taps of a kernel read, seen from y's first pixel."""
    (top, _), (left, _) = padding
    return [
        (i * dilation[0] - top, j * dilation[1] - left)
        for i, j in product(range(kernel[0]), range(kernel[1]))
    ]


def _filters(w: Array) -> Array:
    """Arrange w (O, C, kh, kw) as the matrices (taps, C, O)."""
    O, C, kh, kw = w.shape
    return w.transpose(2, 3, 1, 0).reshape(kh * kw, C, O)


def _empty(N: int, H: int, W: int, C: int) -> Array:
    """Allocate images (N, H, W, C or more)."""
    return aligned(N * H * W * wide(C)).reshape(N, H, W, wide(C))


def _narrowed(y: Array, O: int) -> Array:
    """Give the first O channels of y (N, H, W, O or more)."""
    return numpy.ascontiguousarray(y[..., :O])


def _widened(g: Array) -> Array:
    """Give g (N, O, H, W) as (N, H, W, O or more), with zeros in the further channels."""
    N, O, H, W = g.shape
    if wide(O) == O:
        return flat(g).reshape(N, H, W, O)
    wider = numpy.zeros((N, H, W, wide(O)), numpy.float32)
    wider[..., :O] = nhwc(g)
    return wider


def _sum_taps(
    x: Array, w: Array, taps: Sequence[Tap], y: Array, *, step_x: Pair = (1, 1),
    first_y: Pair = (0, 0), step_y: Pair = (1, 1),
) -> None:  # fmt: skip
    """Fill the pixels first_y + step_y * (i, j) of y (N, H', W', O) with sums over taps.

    They read x (N, C, H, W) at step_x * (i, j) + tap, times that tap's matrix in w (taps, C, O).
    """
    N, C, H, W = x.shape
    _, H_y, W_y, O = y.shape
    moved, corner, size = window_of(taps)
    out = [len(range(f, n, s)) for f, n, s in zip(first_y, (H_y, W_y), step_y, strict=True)]
    pixel = first_y[0] * W_y + first_y[1]
    places = (*out, O, H_y * W_y * O, pixel * O, step_y[0] * W_y * O, step_y[1] * O)
    columns = (out[1] - 1) * step_x[1] + size[1]
    rows = (BAND - 1) * step_x[0] + size[0]
    convolve(
        flat(x), panels(w), y.reshape(-1), scratch((rows * columns + ROWS * step_x[1]) * C),
        run_list(moved, C), (N, H, W, C), places, (*step_x, *corner, *size),
    )  # fmt: skip
