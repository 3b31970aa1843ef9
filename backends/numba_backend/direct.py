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

Another loop is its transpose, the gradient with respect to w: products of what a tap reads with the
pixels of dy, summed over fixed parts of the batch, whatever the number of threads.

Taps that are neighbours in a row read one *run* of floats, channels and pixels alike. Three taps of
three channels are then a product of depth 9: so the first layer of a network is quick, too.

      x with zeros around it, copied in bands
    +-------------------------+
    | 0  0  0  0  0  0  0  .. |     ROWS pixels of a row of y at a time make a tile. Pixel r reads
    | 0 [c c c][c c c] c ..   |     its run sw * C floats behind that of pixel r - 1.
    | 0 [ a run ]             |     A large y is streamed past the caches, as in winograd.py.
    +-------------------------+
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy
from numba import get_thread_id, intp, njit, prange

from ..base import Array, nchw, nhwc
from ..geometry import Padding, Pair, Shape, output_size
from .arrays import aligned, flat, scratch
from .bias import finished
from .compiler import kernel
from .host import BROAD, HALF, ROWS, TALL, WIDTH
from .pointwise import add
from .simd import (
    add_product,
    add_stored,
    at_least,
    clear,
    copy,
    fence,
    load_tile,
    prefetch,
    rows_of,
    store_rows,
    stream_rows,
    streams,
    tile_width,
    width_of,
    zero_tile,
)

BLOCK = 2**17  # floats of g and x that are in a core's second cache while dW is computed
BAND = 8  # rows of y that share a copy of the rows of x which they read


# ---- kernels ----


@njit
def copy_padded(x, image, shape, y0, rows, x0, columns, to, place):
    """Copy pixels (y0, x0) to (y0 + rows, x0 + columns) of an image, zeros where there are none.

    Its first float is x[image]; the copy's is to[place].
    """
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


@njit
def prefetch_row(x, start, stop):
    """Ask for the pixels x[start:stop], which are needed soon."""
    for i in range(start, min(stop, len(x)), WIDTH):
        prefetch(x, i, 0)


@njit(forceinline=True)  # as a call, it would pass the tile through memory
def add_runs(tile, a, at, line, across, runs, w, wi):
    """Add all runs' products with w to a tile, whose pixels lie `across` floats apart."""
    for k in range(len(runs)):
        ai, length = at + runs[k, 0] * line + runs[k, 1], runs[k, 2]
        tile = add_product(tile, a, ai, across, 1, w, wi, width_of(tile), length)
        wi += length * width_of(tile)
    return tile


@njit(forceinline=True)
def write_tile(y, to, across, tile, n, added, o):
    """Write the first n rows of a tile, or all, past the caches if y is large.

    `added` is (bias, plus, least): bias[o:] and, unless it is empty, plus, which lies as y does,
    are added, and what is below `least` is raised to it.
    """
    bias, plus, least = added
    tile = add_stored(tile, bias, o, 0, ROWS)  # the same in every row
    if len(plus):
        tile = add_stored(tile, plus, to, across, n)
    tile = at_least(tile, least)
    if streams(y):
        stream_rows(y, to, across, tile, n)
    else:
        store_rows(y, to, across, tile, n)


@njit(forceinline=True)
def convolve_row(whole, half, y, start, across, pixels, O, a, at, line, step, runs, w, added):
    """Compute a row of y, whose sums begin with tiles of zeros: `whole`, and `half` at its end.

    Its pixels lie `across` floats apart from y[start] on, those of x `step` from a[at] on.
    """
    depth = len(w) // O
    for o in range(0, O, width_of(whole)):
        for i in range(0, pixels, ROWS):
            ai, to, ahead = at + i * step, start + i * across + o, pixels - i
            if ahead > HALF:
                tile = add_runs(whole, a, ai, line, step, runs, w, o * depth)
                write_tile(y, to, across, tile, ahead, added, o)
            else:
                tile = add_runs(half, a, ai, line, step, runs, w, o * depth)
                write_tile(y, to, across, tile, ahead, added, o)


@kernel(
    "void(float32[::1], float32[::1], float32[::1], float32[::1], float32[::1], float32,"
    "float32[::1], intp, intp[:, ::1], UniTuple(intp, 4), UniTuple(intp, 7), UniTuple(intp, 6))"
)
def convolve(x, w, y, bias, plus, least, space, share, runs, x_shape, pixels, window):
    """Sum over all runs; w is [O/width][floats of all runs][width], a run (row, first, length).

    bias [O], plus and `least` are write_tile's.
    `pixels` says which ones of y are computed: rows, columns and channels; then, in floats, the
    place of the first, the step to the next image, to the next row and to the next column.
    A thread has `share` floats of `space`.
    """
    N, H, W, C = x_shape
    rows, columns, O, corner, image, down, across = pixels
    sh, sw, top, left, height, width = window
    copied = (columns - 1) * sw + width  # columns of x
    line, added = copied * C, (bias, plus, least)
    bands = (rows + BAND - 1) // BAND
    for b in prange(N * bands):
        a = space[get_thread_id() * share :]
        n, band = divmod(intp(b), bands)
        first = band * BAND
        count = min(BAND, rows - first)
        read = (count - 1) * sh + height
        copy_padded(x, n * H * W * C, (H, W, C), first * sh + top, read, left, copied, a, 0)
        behind = (n * H + (first + count) * sh + top) * W * C
        for r in range(count):
            prefetch_row(x, behind + r * sh * W * C, behind + (r + 1) * sh * W * C)
            start = corner + n * image + (first + r) * down
            row = y, start, across, columns, O, a, r * sh * line, line, sw * C, runs, w, added
            if tile_width(O) == WIDTH:
                convolve_row(zero_tile(ROWS, WIDTH), zero_tile(HALF, WIDTH), *row)
            else:
                convolve_row(zero_tile(ROWS, BROAD), zero_tile(HALF, BROAD), *row)
        fence()


@njit
def copy_panels(g, first, pixels, O, to, place):
    """Copy g [pixels][O], from g[first] on, as [O/width][pixels][width], the width that of a tile.

    A tile meets so many channels of one pixel after the other: now they lie one behind the other.
    """
    width = tile_width(O)
    for pixel in range(pixels):
        for o in range(0, O, width):
            copy(to, place + o * pixels + pixel * width, g, first + pixel * O + o, width)


@njit(forceinline=True)
def add_rows(tile, a, at, g, gi, shape, lines, across):
    """Add the products of a block's rows to a tile, whose pixels lie `across` floats apart."""
    count, rows, columns, _ = shape
    image, down, _ = lines
    for m in range(count):
        for y in range(rows):
            ai = at + m * image + y * down
            tile = add_product(tile, a, ai, 1, across, g, gi, width_of(tile), columns)
            gi += columns * width_of(tile)
    return tile


@njit
def add_block(whole, half, u, ui, g, gi, a, ai, shape, runs, lines, across):
    """Add the products of a block, its g in panels from g[gi] on, to a part's sums u[ui :].

    Tiles are as large as `whole`, at the end of a run as `half`.
    `shape` is that of its g: images, rows, columns, channels. From a[ai] on lie the floats that it
    meets; `lines` are how many of them an image has, the rows between two of y's, and a row.
    """
    count, rows, columns, O = shape
    for k in range(len(runs)):
        start, length = ai + runs[k, 0] * lines[2] + runs[k, 1], runs[k, 2]
        for i in range(0, length, rows_of(whole)):
            for o in range(0, O, width_of(whole)):
                to, panel, ahead = ui + o, gi + o * count * rows * columns, length - i
                if ahead > HALF:
                    tile = load_tile(u, to, O, whole)
                    tile = add_rows(tile, a, start + i, g, panel, shape, lines, across)
                    store_rows(u, to, O, tile, ahead)
                else:
                    tile = load_tile(u, to, O, half)
                    tile = add_rows(tile, a, start + i, g, panel, shape, lines, across)
                    store_rows(u, to, O, tile, ahead)
            ui += min(rows_of(whole), length - i) * O


@kernel(
    "void(float32[::1], float32[::1], float32[::1], float32[::1], intp, intp[:, ::1],"
    "UniTuple(intp, 4), UniTuple(intp, 3), UniTuple(intp, 6), intp, UniTuple(intp, 2))"
)
def correlate(x, g, u, space, share, runs, x_shape, g_shape, window, parts, block):
    """u [parts][floats of all runs][O] = their products with g, summed over a part's pixels.

    A block is whole images, or some rows of g of one image: what stays in the cache, x with its
    padding and g in panels. u ends with TALL rows more: a tile is read in whole, though only its
    run's rows are written.
    """
    N, H, W, C = x_shape
    rows, columns, O = g_shape
    sh, sw, top, left, height, width = window
    together, band = block
    copied = (columns - 1) * sw + width
    lines = ((band - 1) * sh + height) * copied * C, sh * copied * C, copied * C
    size, room = (len(u) - TALL * O) // parts, together * band * columns * O
    for p in prange(parts):
        a, part = space[get_thread_id() * share :], intp(p)
        clear(u, part * size, size)
        end = N * (part + 1) // parts
        for first in range(N * part // parts, end, together):
            count = min(together, end - first)
            for y0 in range(0, rows, band):
                high = min(band, rows - y0)
                for n in range(count):
                    to, start = room + n * lines[0], (first + n) * H * W * C
                    read = (high - 1) * sh + height
                    copy_padded(x, start, (H, W, C), y0 * sh + top, read, left, copied, a, to)
                shape, start = (count, high, columns, O), (first * rows + y0) * columns * O
                panelled = g
                if tile_width(O) < O:  # else g is one panel
                    copy_panels(g, start, count * high * columns, O, a, 0)
                    panelled, start = a, 0
                block = u, part * size, panelled, start, a, room, shape, runs, lines, sw * C
                if tile_width(O) == WIDTH:
                    add_block(zero_tile(TALL, WIDTH), zero_tile(HALF, WIDTH), *block)
                else:
                    add_block(zero_tile(ROWS, BROAD), zero_tile(HALF, BROAD), *block)


# ---- taps and runs ----

Tap = tuple[int, int]  # row, column


def run_list(taps: Sequence[Tap], C: int) -> Array:
    """Join the taps that are neighbours in a row: (row, first float, length) of each run.

    >>> run_list([(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)], C=3).tolist()
    [[0, 0, 9], [1, 0, 3], [1, 6, 3]]
    """
    runs: list[list[int]] = []
    for row, column in taps:
        if runs and runs[-1][0] == row and sum(runs[-1][1:]) == column * C:
            runs[-1][2] += C
        else:
            runs.append([row, column * C, C])
    return numpy.array(runs, numpy.intp).reshape(-1, 3)


def window_of(taps: Sequence[Tap]) -> tuple[list[Tap], Tap, Pair]:
    """Give the taps as seen from their window's corner, the corner, and the window's size.

    >>> window_of([(-1, -1), (-1, 1), (1, -1), (1, 1)])
    ([(0, 0), (0, 2), (2, 0), (2, 2)], (-1, -1), (3, 3))
    """
    rows, columns = [row for row, _ in taps] or [0], [column for _, column in taps] or [0]
    top, left = min(rows), min(columns)
    seen = [(row - top, column - left) for row, column in taps]
    return seen, (top, left), (max(rows) - top + 1, max(columns) - left + 1)


def panels(w: Array) -> Array:
    """Arrange w [taps][C][O] as [O/width][taps * C][width], with zeros for what O lacks."""
    taps, C, O = w.shape
    padded = numpy.zeros((taps * C, wide(O)), numpy.float32)
    padded[:, :O] = w.reshape(taps * C, O)
    width = tile_width(wide(O))
    grouped = padded.reshape(taps * C, wide(O) // width, width)
    return numpy.ascontiguousarray(grouped.swapaxes(0, 1)).reshape(-1)


def wide(O: int) -> int:
    """Round a number of channels up to a whole number of tiles."""
    return -(-O // WIDTH) * WIDTH


# ---- a convolution and its gradients ----


def conv2d(
    x: Array, w: Array, bias: Array = None, residual: Array = None, *, stride: Pair,
    padding: Padding, dilation: Pair, relu: bool = False, **at: Any,
) -> Array:  # fmt: skip
    """Cross-correlate x (N, C, H, W) with w (O, C, kh, kw); add bias and residual; apply relu."""
    (N, _, *size), (O, _, *kernel) = x.shape, w.shape
    out = output_size(size, kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    y, taps = _empty(N, *out, O), _taps(kernel, padding, dilation)
    if residual is None or wide(O) == O:  # else it doesn't lie as y does
        _sum_taps(x, _matrices(w), taps, y, stride=stride, bias=bias, plus=residual, relu=relu)
        return nchw(_narrowed(y, O))
    _sum_taps(x, _matrices(w), taps, y, stride=stride)
    return finished(nchw(_narrowed(y, O)), bias, residual, relu=relu)


def conv2d_input_grad(
    g: Array, w: Array, *, x_shape: Shape, stride: Pair, padding: Padding, dilation: Pair,
    plus: Array = None, **at: Any,
) -> Array:  # fmt: skip
    """Gradient with respect to x, and `plus` if given: g (N, O, H', W') -> (N, C, H, W)."""
    N, C, H, W = x_shape
    dx, matrices = _empty(N, H, W, C), _matrices(w.swapaxes(0, 1))  # (taps, O, C)
    added = plus if wide(C) == C else None  # else it doesn't lie as dx does
    taps = _taps(w.shape[2:], padding, dilation)
    for phase in product(range(min(stride[0], H)), range(min(stride[1], W))):
        met = _taps_that_meet(phase, taps, stride)
        pixels = dx[:, phase[0] :: stride[0], phase[1] :: stride[1]]
        _sum_taps(g, matrices[[*met]], [*met.values()], dx, pixels, plus=added)
    dx = nchw(_narrowed(dx, C))
    return dx if plus is added else add(dx, plus, out=dx)


def conv2d_weight_grad(
    g: Array, x: Array, *, w_shape: Shape, stride: Pair, padding: Padding, dilation: Pair,
    **at: Any,
) -> Array:  # fmt: skip
    """Gradient of conv2d with respect to w: g (N, O, H', W'), x (N, C, H, W) -> w's shape."""
    (N, C, H, W), (O, _, *kernel) = x.shape, w_shape
    taps, corner, size = window_of(_taps(kernel, padding, dilation))
    g, depth = _widened(g), C * len(taps)
    parts = parts_of_batch(depth, O)
    block, share = block_of(g.shape, C, stride, size)
    u = aligned((parts * depth + TALL) * g.shape[3])
    correlate(
        flat(x), g.reshape(-1), u, scratch(share), share, run_list(taps, C), (N, H, W, C),
        g.shape[1:], (*stride, *corner, *size), parts, block,
    )  # fmt: skip
    sums = u.reshape(-1, g.shape[3])[: parts * depth].reshape(parts, *kernel, C, -1).sum(axis=0)
    return numpy.ascontiguousarray(sums[..., :O].transpose(3, 2, 0, 1))


def block_of(g: Shape, C: int, stride: Pair, window: Pair) -> tuple[Pair, int]:
    """Choose a block of g (N, H', W', O): images and rows of each; and count its floats."""
    _, rows, columns, O = g
    line = ((columns - 1) * stride[1] + window[1]) * C
    whole = rows * columns * O + ((rows - 1) * stride[0] + window[0]) * line
    images = max(1, BLOCK // whole)
    band = min(rows, max(1, BLOCK // (columns * O + stride[0] * line)))
    of_x = images * ((band - 1) * stride[0] + window[0]) * line
    # a tile's rows may reach beyond a run; shares begin at cache lines
    return (images, band), wide(images * band * columns * O + of_x + TALL)


def parts_of_batch(depth: int, O: int) -> int:
    """Cut the batch into so many parts that their sums, depth * O floats each, fill a megabyte."""
    return min(max(2**18 // (depth * O), 4), 16)


def _taps(kernel: Sequence[int], padding: Padding, dilation: Pair) -> tuple[Tap, ...]:
    """Say where the taps of a kernel read, seen from y's first pixel."""
    (top, _), (left, _) = padding
    return tuple(
        (i * dilation[0] - top, j * dilation[1] - left)
        for i, j in product(range(kernel[0]), range(kernel[1]))
    )


@cache  # a fourth of the time that a small gradient takes before its kernels run
def _taps_that_meet(phase: Pair, taps: tuple[Tap, ...], stride: Pair) -> Mapping[int, Tap]:
    """Select the taps that the pixels of a phase meet: their numbers, and where these read dy.

    Tap (row, column) is at pixel (y, x) when dy is at ((y - row) / sh, (x - column) / sw).
    """
    met = {}
    for t in reversed(range(len(taps))):  # so that the columns of dy rise, and join to runs
        (row, beyond), (column, aside) = (
            divmod(place - tap, s) for place, tap, s in zip(phase, taps[t], stride, strict=True)
        )
        if beyond == aside == 0:
            met[t] = row, column
    return met


def _matrices(w: Array) -> Array:
    """Arrange w (O, C, kh, kw) as a matrix for each tap: (taps, C, O)."""
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
    x: Array, w: Array, taps: Sequence[Tap], y: Array, pixels: Array = None, *,
    stride: Pair = (1, 1), bias: Array = None, plus: Array = None, relu: bool = False,
) -> None:  # fmt: skip
    """Fill y (N, H', W', O), or `pixels`, a view of it, with the sum over taps.

    Pixel (i, j) of the view reads x (N, C, H, W) at stride * (i, j) + tap, times the tap's matrix
    of w (taps, C, O); bias and `plus` are added if given, and relu is applied.
    """
    N, C, H, W = x.shape
    seen, corner, size = window_of(taps)
    pixels = y if pixels is None else pixels
    _, rows, columns, O = pixels.shape
    first = (_address(pixels) - _address(y)) // y.itemsize
    steps = (step // y.itemsize for step in pixels.strides[:3])
    height, width = ((n - 1) * s + k for n, s, k in zip((BAND, columns), stride, size, strict=True))
    share = (height * width + ROWS * stride[1]) * C  # a tile reads ROWS pixels, though y has less
    added, biases = y.reshape(-1)[:0] if plus is None else flat(plus), numpy.zeros(O, y.dtype)
    if bias is not None:
        biases[: len(bias)] = bias
    convolve(
        flat(x), panels(w), y.reshape(-1), biases, added, 0 if relu else -numpy.inf, scratch(share),
        share, run_list(seen, C), (N, H, W, C), (rows, columns, O, first, *steps),
        (*stride, *corner, *size),
    )  # fmt: skip


def _address(a: Array) -> int:
    return a.__array_interface__["data"][0]
