"""Batch normalisation in as few passes over memory as there can be.

Forward reads x for its statistics, then x again to write y, with the residual and the ReLU in the
same pass. Backward reads g and x for two sums per channel, then both again to write dx, together
with the gradient that waits at x, if there is one; where a ReLU was applied, its mask is computed
anew from x rather than read from y.

Ioffe & Szegedy, Batch Normalization, arXiv 1502.03167: algorithm 1, and its gradient in section 3.

A channels-last array is looked at as rows of L floats, whole pixels side by side and a multiple of
64. Lane l of such a row belongs to channel l % C. A block of rows is gone through in columns of
SPAN lanes, whose sums, means and factors stay in registers:

               SPAN
            +--------+--------+--------+
    row i   | c c c  | c c c  | c c c  |     C = 4: lanes 0, 4, 8, ... are channel 0
    row i+1 | c c c  | c c c  | c c c  |
      ...   |   |    |   |    |   |    |     a block of rows; many blocks are a part,
            |   v    |   v    |   v    |     and a thread takes a part after the other
            +--------+--------+--------+

Sums of a block are float32 and are added up in float64. The statistics are of the differences from
the block's first row, which is a value of the same channel: the squares can't cancel, at whatever
mean. (With float32 sums of x and x^2, a variance of 1e-4 at mean 30 would be all rounding.) Chan,
Golub & LeVeque, Algorithms for Computing the Sample Variance, The American Statistician 37, 1983.
"""

from __future__ import annotations

import math
from functools import partial

import numpy
from numba import njit, prange

from ..base import Array, nchw
from .arrays import empty_like, flat, images
from .compiler import kernel
from .host import LANES
from .parts import bounds, number_of_parts
from .simd import at_least, fma, load_tile, select_greater, store_rows, zero_tile

SPAN = 4 * LANES  # sums enough in flight to hide the latency of an addition
BLOCK = 32  # rows

allocating = partial(kernel, _nrt=True)  # means, factors and sums of the lanes


def row_length(C: int) -> int:
    """Choose L: whole pixels, and a multiple of SPAN on any CPU."""
    return math.lcm(C, 64)


def rows_of(a: Array) -> Array:
    """View an array (N, C, H, W) as (rows, L)."""
    return images(a).reshape(-1, row_length(a.shape[1]))


# ---- a block of rows, from `first` to before `last` ----


@njit
def sum_differences(x, first, last, s, q):
    """Write the sums of x - x[first], and of their squares, to s and q."""
    L = x.shape[1]
    for l in range(0, L, SPAN):
        total = squares = zero = zero_tile(1, SPAN)
        origin = load_tile(x, first * L + l, 0, zero)
        for i in range(first, last):
            d = load_tile(x, i * L + l, 0, zero) - origin
            total, squares = total + d, fma(d, d, squares)
        store_rows(s, l, 0, total, 1)
        store_rows(q, l, 0, squares, 1)


@njit
def normalise_block(x, residual, at, least, first, last, y):
    """y = (x - mean) * scale + shift + residual, and `least` where that is larger."""
    L = x.shape[1]
    for l in range(0, L, SPAN):
        zero = zero_tile(1, SPAN)
        mean, scale, shift = load_lanes(at, l, zero)
        for place in range(first * L + l, last * L + l, L):
            v = fma(load_tile(x, place, 0, zero) - mean, scale, shift)
            if len(residual):
                v = v + load_tile(residual, place, 0, zero)
            store_rows(y, place, 0, at_least(v, least), 1)


@njit
def sum_gradients(g, y, x, at, relu, first, last, masked, s, q):
    """Write the sums of g and of g * (x - mean), of what the ReLU let pass, to s and q.

    After a residual and ReLU y has the mask, and masked g is written; else both are empty.
    """
    L = x.shape[1]
    for l in range(0, L, SPAN):
        total = products = zero = zero_tile(1, SPAN)
        mean, scale, shift = load_lanes(at, l, zero)
        for place in range(first * L + l, last * L + l, L):
            d = load_tile(x, place, 0, zero) - mean
            passed = load_tile(g, place, 0, zero)
            if len(masked):
                passed = select_greater(load_tile(y, place, 0, zero), zero, passed, zero)
                store_rows(masked, place, 0, passed, 1)
            elif relu:
                passed = select_greater(fma(d, scale, shift), zero, passed, zero)
            total, products = total + passed, fma(passed, d, products)
        store_rows(s, l, 0, total, 1)
        store_rows(q, l, 0, products, 1)


@njit
def input_gradient_block(g, x, plus, at, mean_g, slope, relu, first, last, dx):
    """dx = (g - mean_g - (x - mean) * slope) * scale + plus, of what the ReLU let pass."""
    L = x.shape[1]
    for l in range(0, L, SPAN):
        zero = zero_tile(1, SPAN)
        mean, scale, shift = load_lanes(at, l, zero)
        center, factor = load_tile(mean_g, l, 0, zero), load_tile(slope, l, 0, zero)
        for place in range(first * L + l, last * L + l, L):
            d = load_tile(x, place, 0, zero) - mean
            passed = load_tile(g, place, 0, zero)
            if relu:
                passed = select_greater(fma(d, scale, shift), zero, passed, zero)
            v = (passed - center - d * factor) * scale
            if len(plus):
                v = v + load_tile(plus, place, 0, zero)
            store_rows(dx, place, 0, v, 1)


@njit(forceinline=True)
def load_lanes(at, l, like):
    """Read mean, scale and shift of a column of lanes."""
    m, scale, shift = at
    return load_tile(m, l, 0, like), load_tile(scale, l, 0, like), load_tile(shift, l, 0, like)


# ---- kernels ----


@allocating(
    "void(float32[:, ::1], intp, float64[:, :, ::1], float64[:, ::1], float64[::1], float64[::1])"
)
def statistics(x, parts, partial, sums, mean, var):
    """Compute each channel's mean and variance.

    Of scratch memory, zeros: partial sums (parts, 2, C) and sums (2, C).
    """
    rows, L = x.shape
    C = mean.size
    origin = lanes(L, x[0, :C])
    for part in prange(parts):
        start, stop = bounds(rows, parts, part)
        s, q, total, squares = room_for_sums(L)
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            sum_differences(x, first, last, s, q)
            for l in range(L):  # the same sums, of the differences from the channel's first value
                shift = numpy.float64(x[first, l]) - numpy.float64(origin[l])
                n_shift = (last - first) * shift
                total[l] += s[l] + n_shift
                squares[l] += q[l] + shift * (2 * s[l] + n_shift)
        add_lanes(total, squares, partial[part])
    add_parts(partial, sums)
    count = rows * (L // C)
    for c in range(C):
        off = sums[0, c] / count
        mean[c], var[c] = x[0, c] + off, max(sums[1, c] / count - off * off, 0)


@allocating(
    "void(float32[:, ::1], float32[:, ::1], float64[::1], float64[::1], float32[::1], "
    "float32[::1], float64, boolean, intp, float32[:, ::1])"
)
def normalise(x, residual, mean, var, weight, bias, eps, relu, parts, y):
    """y = (x - mean) / sqrt(var + eps) * weight + bias + residual, and relu of it if wanted."""
    rows, L = x.shape
    at = coefficients(L, mean, var, weight, bias, eps)
    least = numpy.float32(0 if relu else -numpy.inf)
    for part in prange(parts):
        start, stop = bounds(rows, parts, part)
        for first in range(start, stop, BLOCK):
            normalise_block(x, residual, at, least, first, min(first + BLOCK, stop), y)


@njit
def lanes(L, per_channel):
    """Repeat a value of each channel for all its lanes, in float32."""
    values = numpy.empty(L, numpy.float32)
    for l in range(L):
        values[l] = per_channel[l % len(per_channel)]
    return values


@njit
def coefficients(L, mean, var, weight, bias, eps):
    """Give each lane its mean, and scale and shift of y = (x - mean) * scale + shift."""
    scale = numpy.empty_like(var)
    for c in range(len(var)):
        scale[c] = weight[c] / math.sqrt(var[c] + eps)
    return lanes(L, mean), lanes(L, scale), lanes(L, bias)


@allocating(
    "void(float32[:, ::1], float32[:, ::1], float32[:, ::1], float64[::1], float64[::1], "
    "float32[::1], float32[::1], float64, boolean, intp, float32[:, ::1], float64[:, :, ::1], "
    "float64[:, ::1])"
)
def gradient_sums(g, y, x, mean, var, weight, bias, eps, relu, parts, masked, partial, sums):
    """Sum g and g * (x - mean) over each channel, where the ReLU let x pass.

    After a residual and ReLU y has the mask, and the residual wants masked g; else both are empty.
    `partial` (parts, 2, C) and `sums` (2, C) are zeros before.
    """
    rows, L = x.shape
    at = coefficients(L, mean, var, weight, bias, eps)
    for part in prange(parts):
        start, stop = bounds(rows, parts, part)
        s, q, total, products = room_for_sums(L)
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            sum_gradients(g, y, x, at, relu, first, last, masked, s, q)
            for l in range(L):
                total[l] += s[l]
                products[l] += q[l]
        add_lanes(total, products, partial[part])
    add_parts(partial, sums)


@njit
def room_for_sums(L):
    """Make room for two sums of a block and two of a part, which are zeros, in each lane."""
    block = numpy.empty((2, L), numpy.float32)
    return block[0], block[1], numpy.zeros(L), numpy.zeros(L)


@njit
def add_lanes(total, products, sums):
    """Add the sums of all lanes up to those of the channels, sums (2, C), which are zeros."""
    for l in range(len(total)):
        sums[0, l % sums.shape[1]] += total[l]
        sums[1, l % sums.shape[1]] += products[l]


@njit
def add_parts(partial, sums):
    """Add partial sums (parts, 2, C) up to sums (2, C), in an order that is always the same."""
    for part in partial:
        sums += part


@allocating(
    "void(float32[:, ::1], float32[:, ::1], float32[:, ::1], float64[::1], float64[::1], "
    "float32[::1], float32[::1], float64, boolean, float64[:, ::1], intp, float32[:, ::1])"
)
def input_gradient(g, x, plus, mean, var, weight, bias, eps, relu, means, parts, dx):
    """dx = (g - mean(g) - x_hat * mean(g * x_hat)) * weight / sqrt(var + eps), g masked by relu.

    `plus` is added, unless it is empty.
    `means` (2, C) are mean(g) and mean(g * (x - mean)) / (var + eps); zeros in evaluation, when
    mean and var are constants.
    """
    rows, L = x.shape
    at = coefficients(L, mean, var, weight, bias, eps)
    mean_g, slope = lanes(L, means[0]), lanes(L, means[1])
    for part in prange(parts):
        start, stop = bounds(rows, parts, part)
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            # dx may be g: of a view Numba doesn't promise LLVM that it lies apart
            input_gradient_block(g, x, plus, at, mean_g, slope, relu, first, last, dx[:])


def batch_norm(
    x: Array, weight: Array, bias: Array, residual: Array = None, *,
    mean: Array = None, var: Array = None, eps: float, relu: bool = False,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Normalise x (N, C, H, W) per channel, add `residual`, apply relu: (y, mean, var)."""
    C, rows, y = x.shape[1], rows_of(x), empty_like(x)
    parts = number_of_parts(rows.size, len(rows))
    if mean is None:
        mean, var, sums = numpy.empty(C), numpy.empty(C), numpy.zeros((2, C))
        statistics(rows, parts, numpy.zeros((parts, 2, C)), sums, mean, var)
    added = rows[:0] if residual is None else rows_of(residual)
    at = _per_channel(weight, bias, mean, var)
    normalise(rows, added, *at, eps, relu, parts, rows_of(y))
    return y, mean, var


def batch_norm_grad(
    g: Array, x: Array, weight: Array, bias: Array, *, mean: Array, var: Array, y: Array = None,
    eps: float, training: bool, residual: bool = False, overwrite_g: bool = False,
    plus: Array = None,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """Give batch_norm's gradients: dx + plus, dweight, dbias and, if any, its residual's.

    What is written over g needs no memory of its own, which would be read before it is written.
    """
    g_rows, x_rows, relu = rows_of(g), rows_of(x), y is not None
    masks, at = relu and residual, _per_channel(weight, bias, mean, var)
    keep = not overwrite_g or (residual and not relu)  # without a ReLU g is the residual's gradient
    y_rows = masked = x_rows[:0]
    dx = rows_of(empty_like(x)) if masks or keep else g_rows
    if masks:
        y_rows, masked = rows_of(y), rows_of(empty_like(x)) if keep else g_rows
    parts = number_of_parts(x.size, len(x_rows))
    partial, sums = numpy.zeros((parts, 2, weight.size)), numpy.zeros((2, weight.size))
    gradient_sums(g_rows, y_rows, x_rows, *at, eps, relu, parts, masked, partial, sums)
    if masks:
        g_rows, relu = masked, False
    means = sums / (x.size // weight.size) if training else numpy.zeros_like(sums)
    means[1] /= at[1] + eps
    added = x_rows[:0] if plus is None else rows_of(plus)
    input_gradient(g_rows, x_rows, added, *at, eps, relu, means, parts, dx)
    dweight = sums[1] / numpy.sqrt(at[1] + eps)
    of_residual = _images(g_rows, x) if residual else None
    return _images(dx, x), dweight.astype(x.dtype), sums[0].astype(x.dtype), of_residual


def _images(rows: Array, like: Array) -> Array:
    """View rows as what they are of, (N, C, H, W)."""
    n, c, h, w = like.shape
    return nchw(rows.reshape(n, h, w, c))


def _per_channel(weight: Array, bias: Array, mean: Array, var: Array) -> list[Array]:
    """Give mean and var in float64, weight and bias as they are, as kernels take them."""
    statistics = (numpy.asarray(a, numpy.float64) for a in (mean, var))
    return [flat(a) for a in (*statistics, weight, bias)]
