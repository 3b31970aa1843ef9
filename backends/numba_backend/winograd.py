"""3x3 convolutions of stride 1 with a quarter of the multiplications: Winograd's F(4x4, 3x3).

Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, arXiv 1509.09308, section 4.

An image is cut into tiles of 4x4 output pixels. The 6x6 input pixels d of a tile and the filter g
are transformed, multiplied element by element, and transformed back (`transforms.py`):

    y = A^T [ (B^T d B) * (G g G^T) ] A        36 multiplications for 16 pixels; directly it is 144

In between stands the sum over the input channels. So for each of the 36 elements there is a matrix
product over all tiles, (tiles, C) @ (C, O). Tiles are taken in blocks that stay in the L2 cache:

        x                  v [36][tiles][C]       m [36][tiles][O]             y
    +--------+              +------+               +------+               +--------+
    | 6x6 of |   B^T d B    |      |+   @ u[36]    |      |+   A^T m A    | 4x4 of |
    | every  | -----------> |      || -----------> |      || -----------> | each   |
    | tile   |              +------+|              +------+|              | tile   |
    +--------+               +------+               +------+              +--------+

In memory u is [36][O/width][C][width], the width that of a tile: what a tile of a product meets, it
meets in that order.

The gradient with respect to x is a convolution too, with the filters turned round and their inputs
and outputs exchanged. The one with respect to w is the transpose of all the above:

    dw = G^T [ sum over tiles of (B^T d B) * (A dy A^T) ] G

Its sums are taken over fixed parts of the batch, so they don't depend on the number of threads.

Where y is larger than the caches it is streamed: written past them, for a line that is stored in
the usual way is first read. Bias, residual (or the gradient that waits for this one) and ReLU take
place where y is written.

The powers of the points cost precision: the error is some 1e-5 of the largest output, where a
direct convolution's is 1e-7. And a tile is one sum: an infinity or a NaN in its pixels spoils all
of its 16 outputs, not only those that it reaches.
"""

from __future__ import annotations

from typing import Any

import numpy
from numba import get_thread_id, intp, njit, prange

from ..base import Array, nchw
from ..geometry import Padding, Shape
from .arrays import aligned, flat, scratch
from .compiler import kernel
from .host import BROAD, LANES, ROWS, WIDTH
from .simd import (
    add_product,
    clear,
    fence,
    load_line,
    load_tile,
    prefetch,
    store_rows,
    streams,
    tile_width,
    width_of,
    zero_tile,
)
from .transforms import (
    PATCH,
    transform_filter,
    transform_filter_gradient,
    transform_gradient,
    transform_input,
    transform_output,
)  # fmt: skip

F = 36  # elements of a transformed tile
PLANE = LANES  # floats between planes: were they a power of two apart, all would fall into one set

# ---- kernels: `shape` is (N, H, W, C, H', W', O, top, left) ----


@njit
def count_tiles(shape):
    """Count the tiles of all images: (in all, in one row)."""
    N, H, W, C, H_out, W_out, O, top, left = shape
    across = (W_out + 3) // 4
    return N * ((H_out + 3) // 4) * across, across


@njit
def position(tile, shape):
    """Say where a tile lies: (image, first row, first column)."""
    N, H, W, C, H_out, W_out, O, top, left = shape
    across = (W_out + 3) // 4
    line, column = divmod(tile, across)
    n, row = divmod(line, (H_out + 3) // 4)
    return n, 4 * row, 4 * column


@njit
def transform_inputs(x, shape, first, count, patch, v, at, plane):
    """Transform the pixels of tiles first ... first + count - 1 to v[36][tiles][C]."""
    N, H, W, C, H_out, W_out, O, top, left = shape
    for t in range(count):
        n, row, column = position(first + t, shape)
        for c in range(0, C, LANES):
            image = n * H * W * C + c
            place = at + t * C + c
            transform_input(x, image, row - top, column - left, H, W, C, patch, v, place, plane)


@njit
def transform_outputs(m, at, plane, shape, first, count, patch, y, bias, plus, least):
    """Transform m[36][tiles][O] to the pixels of tiles first ... first + count - 1."""
    N, H, W, C, H_out, W_out, O, top, left = shape
    for t in range(count):
        n, row, column = position(first + t, shape)
        for o in range(0, O, LANES):
            image, place = n * H_out * W_out * O + o, at + t * O + o
            added = load_line(bias, o, 0, 4), plus, least
            transform_output(m, place, plane, patch, y, added, image, row, column, H_out, W_out, O)


@njit
def transform_gradients(g, shape, first, count, patch, d, at, plane):
    """Transform the gradients of tiles first ... first + count - 1 to d[36][tiles][O]."""
    N, H, W, C, H_out, W_out, O, top, left = shape
    for t in range(count):
        n, row, column = position(first + t, shape)
        for o in range(0, O, LANES):
            image = n * H_out * W_out * O + o
            place = at + t * O + o
            transform_gradient(g, image, row, column, H_out, W_out, O, patch, d, place, plane)


@njit
def fetch(a, first, count, tiles, f, write):
    """Fetch the f-th of 36 shares of the memory of tiles first ... first + count - 1.

    The products leave the memory idle, and the transforms before and after them wait for it. The
    instruction for what will be written is another one, so `prefetch` wants a literal.
    """
    start, stop = len(a) * first // tiles, len(a) * min(first + count, tiles) // tiles
    for i in range(start + (stop - start) * f // F, start + (stop - start) * (f + 1) // F, WIDTH):
        if write:
            prefetch(a, i, 1)
        else:
            prefetch(a, i, 0)


@njit
def transform_filters(w, places, C, O, vector, patch, u):
    """Transform a vector of filters, of all inputs, to u [36][O/width][C][width].

    A filter begins at w[first + c * c_step + o * o_step]; its nine weights are `tap` apart.
    """
    c_step, o_step, first, tap = places
    o, width = vector * LANES, tile_width(O)
    for c in range(C):
        at = o // width * width * C + c * width + o % width
        corner = first + c * c_step + o * o_step
        transform_filter(w, corner, o_step, tap, patch, u, at, C * O + PLANE)


@njit(forceinline=True)  # as a call, it would read the zeros from memory
def multiply(zeros, v, vi, tiles, C, u, ui, O, m, mi):
    """m (tiles, O) = v (tiles, C) @ u (C, O), which lies in panels as wide as a tile of zeros."""
    width = width_of(zeros)
    for o in range(0, O, width):
        for t in range(0, tiles, ROWS):
            tile = add_product(zeros, v, vi + t * C, C, 1, u, ui + o * C, width, C)
            store_rows(m, mi + t * O + o, O, tile, ROWS)


@kernel(
    "void(float32[::1], float32[::1], float32[::1], float32[::1], float32[::1], float32[::1],"
    "float32, float32[::1], UniTuple(intp, 9), UniTuple(intp, 4), intp)"
)
def convolve(x, w, u, y, bias, plus, least, space, shape, places, block):
    """y (N, H', W', O) = x (N, H, W, C) convolved with w, + bias + plus, and at least `least`.

    `plus` may be empty. `places` says how the filters lie in w; they are transformed to u
    first. y begins at a cache line, for it may be streamed.
    """
    C, O, tiles = shape[3], shape[6], count_tiles(shape)[0]
    u_plane, v_plane, m_plane = C * O + PLANE, block * C + PLANE, block * O + PLANE
    share = PATCH + F * (v_plane + m_plane)
    for vector in prange(O // LANES):
        transform_filters(w, places, C, O, intp(vector), space[get_thread_id() * share :], u)
    for b in prange((tiles + block - 1) // block):
        patch = space[get_thread_id() * share :]
        v = patch[PATCH:]
        m = v[F * v_plane :]
        first = intp(b) * block
        count = min(block, tiles - first)
        transform_inputs(x, shape, first, count, patch, v, 0, v_plane)
        for f in range(F):
            fetch(x, first + block, block, tiles, f, 0)
            if not streams(y):
                fetch(y, first, count, tiles, f, 1)
            fetch(plus, first, count, tiles, f, 0)
            product = v, f * v_plane, count, C, u, f * u_plane, O, m, f * m_plane
            if tile_width(O) == WIDTH:
                multiply(zero_tile(ROWS, WIDTH), *product)
            else:
                multiply(zero_tile(ROWS, BROAD), *product)
        transform_outputs(m, 0, m_plane, shape, first, count, patch, y, bias, plus, least)
        fence()


@njit
def add_transposed_product(like, v, vi, tiles, C, d, di, O, u, ui, c_start, c_end):
    """u (C, O) += v (tiles, C)^T @ d (tiles, O), rows c_start to c_end, by tiles."""
    for c in range(c_start, c_end, ROWS):
        for o in range(0, O, width_of(like)):
            at = ui + c * O + o
            tile = add_product(load_tile(u, at, O, like), v, vi + c, 1, C, d, di + o, O, tiles)
            store_rows(u, at, O, tile, ROWS)


@njit
def transform_filter_gradients(u, parts, C, O, vector, patch, dw):
    """Transform the sum of the parts of u [parts][36][C][O] to a vector of filters of dw."""
    o, plane = vector * LANES, C * O + PLANE
    for c in range(C):
        transform_filter_gradient(
            u, c * O + o, plane, F * plane, parts, patch, dw, (o * C + c) * 9, 9 * C
        )


@kernel(
    "void(float32[::1], float32[::1], float32[::1], float32[::1], float32[::1],"
    "UniTuple(intp, 9), intp, intp)"
)
def correlate(x, g, u, dw, space, shape, block, parts):
    """dw (O, C, 3, 3) = x correlated with g; u [parts][36][C][O] has the sums of each part."""
    C, O, tiles = shape[3], shape[6], count_tiles(shape)[0]
    u_plane, v_plane, d_plane = C * O + PLANE, block * C + PLANE, block * O + PLANE
    share = PATCH + F * (v_plane + d_plane)
    for p in prange(parts):
        part, patch = intp(p), space[get_thread_id() * share :]
        v = patch[PATCH:]
        d = v[F * v_plane :]
        clear(u, part * F * u_plane, F * u_plane)
        end = tiles * (part + 1) // parts
        for first in range(tiles * part // parts, end, block):
            count = min(block, end - first)
            transform_inputs(x, shape, first, count, patch, v, 0, v_plane)
            transform_gradients(g, shape, first, count, patch, d, 0, d_plane)
            for f in range(F):
                fetch(x, first + block, block, tiles, f, 0)
                fetch(g, first + block, block, tiles, f, 0)
                mine = (part * F + f) * u_plane
                product = v, f * v_plane, count, C, d, f * d_plane, O, u, mine, 0, C
                if tile_width(O) == WIDTH:
                    add_transposed_product(zero_tile(ROWS, WIDTH), *product)
                else:
                    add_transposed_product(zero_tile(ROWS, BROAD), *product)
    for vector in prange(O // LANES):
        patch = space[get_thread_id() * share :]
        transform_filter_gradients(u, parts, C, O, intp(vector), patch, dw)


@kernel(
    "void(float32[::1], float32[::1], float32[::1], float32[::1], float32[::1], float32[::1],"
    "float32[::1], UniTuple(intp, 9), intp)"
)
def correlate_at_once(x, g, u, dw, space, v, d, shape, block):
    """Do the same with all tiles in memory, for filters that are larger than the images."""
    C, O, tiles = shape[3], shape[6], count_tiles(shape)[0]
    u_plane, v_plane, d_plane = C * O + PLANE, tiles * C + PLANE, tiles * O + PLANE
    for b in prange((tiles + block - 1) // block):
        patch = space[get_thread_id() * PATCH :]
        first = intp(b) * block
        count = min(block, tiles - first)
        transform_inputs(x, shape, first, count, patch, v, first * C, v_plane)
        transform_gradients(g, shape, first, count, patch, d, first * O, d_plane)
    bands = C // WIDTH
    for i in prange(F * bands):
        f, band = divmod(intp(i), bands)
        start = band * WIDTH
        clear(u, f * u_plane + start * O, WIDTH * O)
        place, stop = f * u_plane, start + WIDTH
        product = v, f * v_plane, tiles, C, d, f * d_plane, O, u, place, start, stop
        if tile_width(O) == WIDTH:
            add_transposed_product(zero_tile(ROWS, WIDTH), *product)
        else:
            add_transposed_product(zero_tile(ROWS, BROAD), *product)
    for vector in prange(O // LANES):
        patch = space[get_thread_id() * PATCH :]
        transform_filter_gradients(u, 1, C, O, intp(vector), patch, dw)


# ---- a convolution and its gradients ----


def conv2d(
    x: Array, w: Array, bias: Array = None, residual: Array = None, *, padding: Padding,
    relu: bool = False, **at: Any,
) -> Array:  # fmt: skip
    """Cross-correlate x (N, C, H, W) with w (O, C, 3, 3); add bias and residual; apply relu."""
    O, C, _, _ = w.shape
    (top, bottom), (left, right) = padding
    out = x.shape[2] + top + bottom - 2, x.shape[3] + left + right - 2
    lying = (9, 9 * C, 0, 1)  # c_step, o_step, first, tap: see transform_filters
    added = dict(bias=bias, plus=residual, relu=relu)
    return _convolve(x, w, O, places=lying, out=out, corner=(top, left), **added)


def conv2d_input_grad(
    g: Array, w: Array, *, x_shape: Shape, padding: Padding, plus: Array = None, **at: Any
) -> Array:
    """Gradient with respect to x, and `plus` if given: g (N, O, H', W') -> (N, C, H, W)."""
    C, (top, _), (left, _) = w.shape[1], *padding
    turned = (9 * C, 9, 8, -1)  # from the last of the nine weights to the first
    corner = 2 - top, 2 - left
    return _convolve(g, w, C, places=turned, out=x_shape[2:], corner=corner, plus=plus)


def _convolve(
    x: Array, w: Array, O: int, *, places: tuple[int, ...], out: tuple[int, ...],
    corner: tuple[int, int], bias: Array = None, plus: Array = None, relu: bool = False,
) -> Array:  # fmt: skip
    N, C, H, W = x.shape
    u, y = aligned(F * (C * O + PLANE)), aligned(N * out[0] * out[1] * O)
    bias = numpy.zeros(O, y.dtype) if bias is None else flat(bias)
    added = bias, y[:0] if plus is None else flat(plus)
    block, shape = tiles_per_block(C, O, tiles_of(N, *out)), (N, H, W, C, *out, O, *corner)
    least, space = 0 if relu else -numpy.inf, _space(block, C, O)
    convolve(flat(x), flat(w.reshape(-1)), u, y, *added, least, space, shape, places, block)
    return nchw(y.reshape(N, *out, O))


def conv2d_weight_grad(g: Array, x: Array, *, w_shape: Shape, padding: Padding, **at: Any) -> Array:
    """Gradient with respect to w: g (N, O, H', W'), x (N, C, H, W) -> (O, C, 3, 3)."""
    (N, C, H, W), (_, O, H_out, W_out) = x.shape, g.shape
    shape = (N, H, W, C, H_out, W_out, O, padding[0][0], padding[1][0])
    tiles, parts = tiles_of(N, H_out, W_out), parts_of_batch(C, O)
    dw = numpy.empty(w_shape, numpy.float32)
    arrays = flat(x), flat(g), aligned(parts * F * (C * O + PLANE)), dw.reshape(-1)
    if parts * C * O >= tiles * (C + O):
        v, d = aligned(F * (tiles * C + PLANE)), aligned(F * (tiles * O + PLANE))
        correlate_at_once(*arrays, scratch(PATCH), v, d, shape, ROWS)
    else:
        block = tiles_per_block(C, O, tiles)
        correlate(*arrays, _space(block, C, O), shape, block, parts)
    return dw


def _space(block: int, C: int, O: int) -> Array:
    """Give every thread room for the transformed tiles of a block."""
    return scratch(PATCH + F * (block * (C + O) + 2 * PLANE))


def tiles_of(N: int, H_out: int, W_out: int) -> int:
    """Count the tiles of all images."""
    return N * -(-H_out // 4) * -(-W_out // 4)


def tiles_per_block(C: int, O: int, tiles: int) -> int:
    """Choose a block that leaves room in an L2 cache, for the filters and for what is fetched.

    2048 floats in each of the 36 planes are 0.3 MB. But a block has at least 16 tiles, or 32 where
    the filters are larger than 1 MB, for it reads them all. Of few tiles, as a single image has,
    make up to four blocks, for the threads to share.

    >>> [tiles_per_block(C, C, 4096) for C in (16, 32, 64, 128)]
    [64, 32, 16, 32]
    """
    fitting, quarter = 2**11 // (C + O), -(-tiles // 4)
    least = 16 if F * C * O <= 2**18 else 32
    return min(max(fitting // ROWS * ROWS, least), 64, -(-quarter // ROWS) * ROWS)


def parts_of_batch(C: int, O: int) -> int:
    """Cut the batch into so many parts that their sums, 36 C O floats each, fill two megabytes.

    4, 8 or 16 parts: few threads share them evenly.
    """
    return next((n for n in (16, 8) if n * F * C * O <= 2**19), 4)
