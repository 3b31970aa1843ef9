"""Batch normalisation in as few passes over memory as there can be.

Forward reads x for its statistics, then x again to write y, with the residual and the ReLU in the
same pass. Backward reads g and x for two sums per channel, then both again to write dx; where a
ReLU was applied, its mask is computed anew from x rather than read from y.

Ioffe & Szegedy, Batch Normalization, arXiv 1502.03167: algorithm 1, and its gradient in section 3.

A channels-last array is looked at as rows of L = k*C values, `k` pixels side by side. Lane l of
such a row belongs to channel l % C. All lanes do the same, so the inner loops are vectorised for
any number of channels:

             pixel 0   pixel 1         pixel k-1
    row i   [c c c c | c c c c |  ...  | c c c c]    C = 4: lanes 0, 4, 8, ... are channel 0
    row i+1 [c c c c | c c c c |  ...  | c c c c]
      ...                                            BLOCK rows are a block, many blocks a part;
                                                     a thread takes a part after the other

Sums run over blocks of a few rows in the array's own dtype and are added up in float64. The
statistics are of the differences from the block's first row, which is a value of the same channel:
the squares can't cancel, at whatever mean. (With float32 sums of x and x^2, a variance of 1e-4 at
mean 30 would be all rounding.) Chan, Golub & LeVeque, Algorithms for Computing the Sample Variance,
The American Statistician 37, 1983.
"""

from __future__ import annotations

import math

import numpy
from numba import njit, prange

from ..base import Array
from .arrays import empty_like, flat, images
from .compiler import kernel
from .parts import bounds, number_of_parts, pixels_per_row

BLOCK = 32  # rows of about 256 values: float32 blocks fit the L1 cache


def rows_of(a: Array) -> Array:
    """View an array (N, C, H, W) as (rows, L)."""
    n, c, h, w = a.shape
    return images(a).reshape(-1, c * pixels_per_row(n * h * w, c))


@kernel("void(T[:, ::1], intp, float64[:, :, ::1], float64[:, ::1], float64[::1], float64[::1])")
def statistics(x, parts, partial, sums, mean, var):
    """Compute each channel's mean and variance.

    Of scratch memory, zeros: partial sums (parts, 2, L) and sums (2, C).
    """
    rows, L = x.shape
    C = mean.size
    origin = lanes(L, x[0, :C], x)
    for part in prange(parts):
        start, stop = bounds(rows, parts, part)
        total, squares = partial[part, 0], partial[part, 1]
        s, q = zeros(L, x), zeros(L, x)
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            for i in range(first, last):
                for l in range(L):
                    d = x[i, l] - x[first, l]
                    s[l] += d
                    q[l] += d * d
            for l in range(L):  # the same sums, of the differences from the channel's first value
                shift = numpy.float64(x[first, l]) - numpy.float64(origin[l])
                n_shift = (last - first) * shift
                total[l] += s[l] + n_shift
                squares[l] += q[l] + shift * (2 * s[l] + n_shift)
                s[l] = q[l] = 0
    add_parts(partial, sums)
    count = rows * (L // C)
    for c in range(C):
        off = sums[0, c] / count
        mean[c], var[c] = x[0, c] + off, max(sums[1, c] / count - off * off, 0)


@kernel(
    "void(T[:, ::1], T[:, ::1], float64[::1], float64[::1], T[::1], T[::1], float64, boolean, "
    "intp, T[:, ::1])"
)
def normalise(x, residual, mean, var, weight, bias, eps, relu, parts, y):
    """y = (x - mean) / sqrt(var + eps) * weight + bias + residual, and relu of it if wanted."""
    rows, L = x.shape
    m, scale, shift = coefficients(x, mean, var, weight, bias, eps)
    least = x.dtype.type(0 if relu else -numpy.inf)
    for part in prange(parts):
        start, stop = bounds(rows, parts, part)
        for i in range(start, stop):
            if len(residual):
                for l in range(L):
                    v = (x[i, l] - m[l]) * scale[l] + shift[l] + residual[i, l]
                    y[i, l] = least if v <= least else v  # so a NaN stays one
            else:
                for l in range(L):
                    v = (x[i, l] - m[l]) * scale[l] + shift[l]
                    y[i, l] = least if v <= least else v


@njit
def lanes(L, per_channel, like):
    """Repeat a value of each channel for all its lanes, in the dtype of `like`."""
    C = len(per_channel)
    values = numpy.empty(L, like.dtype)
    for l in range(L):
        values[l] = per_channel[l % C]
    return values


@njit
def coefficients(x, mean, var, weight, bias, eps):
    """Give each lane its mean, and scale and shift of y = (x - mean) * scale + shift."""
    L = x.shape[1]
    scale = numpy.empty_like(var)
    for c in range(len(var)):
        scale[c] = weight[c] / math.sqrt(var[c] + eps)
    return lanes(L, mean, x), lanes(L, scale, x), lanes(L, bias, x)


@kernel(
    "void(T[:, ::1], T[:, ::1], float64[::1], float64[::1], T[::1], T[::1], float64, boolean, "
    "intp, float64[:, :, ::1], float64[:, ::1])"
)
def gradient_sums(g, x, mean, var, weight, bias, eps, relu, parts, partial, sums):
    """Sum g and g * (x - mean) over each channel, where the ReLU let x pass.

    `partial` (parts, 2, L) and `sums` (2, C) are zeros before.
    """
    rows, L = x.shape
    m, scale, shift = coefficients(x, mean, var, weight, bias, eps)
    linear, zero = not relu, x.dtype.type(0)  # a plain 0 would make the sum float64
    for part in prange(parts):
        start, stop = bounds(rows, parts, part)
        total, products = partial[part, 0], partial[part, 1]
        s, q = zeros(L, x), zeros(L, x)
        for first in range(start, stop, BLOCK):
            for i in range(first, min(first + BLOCK, stop)):
                for l in range(L):
                    d = x[i, l] - m[l]
                    passed = g[i, l] if linear | (d * scale[l] + shift[l] > 0) else zero
                    s[l] += passed
                    q[l] += passed * d
            add_block(total, s)
            add_block(products, q)
    add_parts(partial, sums)


@kernel(
    "void(T[:, ::1], T[:, ::1], T[:, ::1], float64[::1], intp, T[:, ::1], float64[:, :, ::1], "
    "float64[:, ::1])"
)
def masked_gradient_sums(g, y, x, mean, parts, masked, partial, sums):
    """Do the same where a residual was added: y has the mask, and the residual wants masked g."""
    rows, L = x.shape
    m = lanes(L, mean, x)
    zero = x.dtype.type(0)
    for part in prange(parts):
        start, stop = bounds(rows, parts, part)
        total, products = partial[part, 0], partial[part, 1]
        s, q = zeros(L, x), zeros(L, x)
        for first in range(start, stop, BLOCK):
            for i in range(first, min(first + BLOCK, stop)):
                for l in range(L):
                    passed = g[i, l] if y[i, l] > 0 else zero
                    masked[i, l] = passed
                    s[l] += passed
                    q[l] += passed * (x[i, l] - m[l])
            add_block(total, s)
            add_block(products, q)
    add_parts(partial, sums)


@njit
def zeros(L, like):
    """Make a zero for each lane; written out in a kernel, that would be a parallel loop."""
    return numpy.zeros(L, like.dtype)


@njit
def add_block(total, block):
    """Add a block's sums to the float64 ones and begin anew."""
    for l in range(len(total)):
        total[l] += block[l]
        block[l] = 0


@njit
def add_parts(partial, sums):
    """Add partial sums (parts, 2, L) up to sums (2, C), in an order that is always the same."""
    parts, kinds, L = partial.shape
    for kind in range(kinds):
        total = partial[0, kind]
        for part in range(1, parts):
            for l in range(L):
                total[l] += partial[part, kind, l]
        for l in range(L):
            sums[kind, l % sums.shape[1]] += total[l]


@kernel(
    "void(T[:, ::1], T[:, ::1], float64[::1], float64[::1], T[::1], T[::1], float64, boolean, "
    "float64[:, ::1], intp, T[:, ::1])"
)
def input_gradient(g, x, mean, var, weight, bias, eps, relu, means, parts, dx):
    """dx = (g - mean(g) - x_hat * mean(g * x_hat)) * weight / sqrt(var + eps), g masked by relu.

    `means` (2, C) are mean(g) and mean(g * (x - mean)) / (var + eps); zeros in evaluation, when
    mean and var are constants.
    """
    rows, L = x.shape
    m, scale, shift = coefficients(x, mean, var, weight, bias, eps)
    mean_g, slope = lanes(L, means[0], x), lanes(L, means[1], x)
    linear, zero = not relu, x.dtype.type(0)
    for part in prange(parts):
        start, stop = bounds(rows, parts, part)
        for i in range(start, stop):
            for l in range(L):
                d = x[i, l] - m[l]
                passed = g[i, l] if linear | (d * scale[l] + shift[l] > 0) else zero
                dx[i, l] = (passed - mean_g[l] - d * slope[l]) * scale[l]


def batch_norm(
    x: Array, weight: Array, bias: Array, residual: Array = None, *,
    mean: Array = None, var: Array = None, eps: float, relu: bool = False,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Normalise x (N, C, H, W) per channel, add `residual`, apply relu: (y, mean, var)."""
    rows, y, parts = rows_of(x), empty_like(x), _parts(x)
    if mean is None:
        mean, var = numpy.empty(weight.size), numpy.empty(weight.size)
        statistics(rows, parts, *_scratch(rows, parts, x.shape[1]), mean, var)
    added = rows[:0] if residual is None else rows_of(residual)
    at = _per_channel(weight, bias, mean, var)
    normalise(rows, added, *at, eps, relu, parts, rows_of(y))
    return y, mean, var


def batch_norm_grad(
    g: Array, x: Array, weight: Array, bias: Array, *, mean: Array, var: Array, y: Array = None,
    eps: float, training: bool, residual: bool = False,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """Give batch_norm's gradients: dx, dweight, dbias and, if it had one, the residual's."""
    g_rows, x_rows, dx, parts = rows_of(g), rows_of(x), empty_like(x), _parts(x)
    at, relu, masked = _per_channel(weight, bias, mean, var), y is not None, g
    partial, sums = _scratch(x_rows, parts, weight.size)
    if relu and residual:
        masked, relu = empty_like(g), False
        masked_gradient_sums(
            g_rows, rows_of(y), x_rows, at[0], parts, rows_of(masked), partial, sums
        )
        g_rows = rows_of(masked)
    else:
        gradient_sums(g_rows, x_rows, *at, eps, relu, parts, partial, sums)
    means = sums / (x.size // weight.size) if training else numpy.zeros_like(sums)
    means[1] /= at[1] + eps
    input_gradient(g_rows, x_rows, *at, eps, relu, means, parts, rows_of(dx))
    dweight = sums[1] / numpy.sqrt(at[1] + eps)
    return dx, dweight.astype(x.dtype), sums[0].astype(x.dtype), masked if residual else None


def _parts(x: Array) -> int:
    pixels = x.size // x.shape[1]
    return number_of_parts(x.size, pixels // pixels_per_row(pixels, x.shape[1]))


def _scratch(rows: Array, parts: int, channels: int) -> tuple[Array, Array]:
    return numpy.zeros((parts, 2, rows.shape[1])), numpy.zeros((2, channels))


def _per_channel(weight: Array, bias: Array, mean: Array, var: Array) -> list[Array]:
    """Give mean and var in float64, weight and bias as they are, as kernels take them."""
    statistics = (numpy.asarray(a, numpy.float64) for a in (mean, var))
    return [flat(a) for a in (*statistics, weight, bias)]
