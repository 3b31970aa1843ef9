"""Pooling: threads share the rows of all images, and each row is made pixel after pixel.

Gradients gather instead of scattering. Pixel (h, w) gets its share from every window that it is in:
with stride s and kernel k, the windows from ceil((h - k + 1) / s) to floor(h / s), padding
included. No two threads write to one place then, and each sum has a fixed order.

    x  | 0 1 2 3 4 5 6        k = 3, s = 2: pixel 2 is the last of window 0
    y  | [0 0 0]              and the first of window 1
       |     [1 1 1]
       |         [2 2 2]
"""

from __future__ import annotations

import numpy
from numba import njit, prange

from ..base import Array
from ..geometry import Padding, Pair, Shape, output_size
from .arrays import empty, images
from .compiler import Kernel, kernel
from .parts import bounds, number_of_parts

GEOMETRY = "intp, intp, intp, intp, intp, intp, intp"  # kh, kw, sh, sw, top, left, parts


@kernel(f"void(T[:, :, :, ::1], {GEOMETRY}, T[:, :, :, ::1], uint8[:, :, :, ::1])")
def largest(x, kh, kw, sh, sw, top, left, parts, y, argmax):
    """y = the largest pixel of each window, argmax = its position there; the first one counts."""
    N, H, W, C = x.shape
    _, Ho, Wo, _ = y.shape
    for part in prange(parts):
        start, stop = bounds(N * Ho, parts, part)
        for row in range(start, stop):
            n, oh = divmod(row, Ho)
            h = oh * sh - top
            for ow in range(Wo):
                w = ow * sw - left
                best, at = y[n, oh, ow], argmax[n, oh, ow]
                best[:], at[:] = -numpy.inf, 0
                for i in range(max(0, -h), min(kh, H - h)):
                    for j in range(max(0, -w), min(kw, W - w)):
                        pixel, position = x[n, h + i, w + j], numpy.uint8(i * kw + j)
                        for c in range(C):
                            v = pixel[c]
                            wins = v > best[c] or v != v  # a NaN is the largest of all
                            best[c] = v if wins else best[c]
                            at[c] = position if wins else at[c]


@kernel(f"void(T[:, :, :, ::1], uint8[:, :, :, ::1], {GEOMETRY}, T[:, :, :, ::1])")
def largest_grad(g, argmax, kh, kw, sh, sw, top, left, parts, dx):
    """dx = the sum of g of those windows in which the pixel won."""
    N, H, W, C = dx.shape
    _, Ho, Wo, _ = g.shape
    zero = g.dtype.type(0)
    for part in prange(parts):
        start, stop = bounds(N * H, parts, part)
        for row in range(start, stop):
            n, h = divmod(row, H)
            rows = windows(h + top, kh, sh, Ho)
            for w in range(W):
                pixel = dx[n, h, w]
                pixel[:] = 0
                for oh in rows:
                    for ow in windows(w + left, kw, sw, Wo):
                        position = (h + top - oh * sh) * kw + w + left - ow * sw
                        won, share = argmax[n, oh, ow], g[n, oh, ow]
                        for c in range(C):
                            pixel[c] += share[c] if won[c] == position else zero


@kernel(f"void(T[:, :, :, ::1], {GEOMETRY}, T[:, :, :, ::1])")
def average(x, kh, kw, sh, sw, top, left, parts, y):
    """y = the mean of each window; zeros of the padding count."""
    N, H, W, C = x.shape
    _, Ho, Wo, _ = y.shape
    size = x.dtype.type(kh * kw)
    for part in prange(parts):
        start, stop = bounds(N * Ho, parts, part)
        for row in range(start, stop):
            n, oh = divmod(row, Ho)
            h = oh * sh - top
            for ow in range(Wo):
                w = ow * sw - left
                pixel = y[n, oh, ow]
                pixel[:] = 0
                for i in range(max(0, -h), min(kh, H - h)):
                    for j in range(max(0, -w), min(kw, W - w)):
                        pixel += x[n, h + i, w + j]
                pixel /= size


@kernel(f"void(T[:, :, :, ::1], {GEOMETRY}, T[:, :, :, ::1])")
def average_grad(g, kh, kw, sh, sw, top, left, parts, dx):
    """dx = the sum of g / (kh * kw) of the windows that the pixel is in."""
    N, H, W, C = dx.shape
    _, Ho, Wo, _ = g.shape
    size = g.dtype.type(kh * kw)
    for part in prange(parts):
        start, stop = bounds(N * H, parts, part)
        for row in range(start, stop):
            n, h = divmod(row, H)
            rows = windows(h + top, kh, sh, Ho)
            for w in range(W):
                pixel = dx[n, h, w]
                pixel[:] = 0
                for oh in rows:
                    for ow in windows(w + left, kw, sw, Wo):
                        pixel += g[n, oh, ow]
                pixel /= size


@njit
def windows(place, k, s, count):
    """Give those of `count` windows of size k and stride s that contain a place."""
    place, k, s = numpy.uint64(place), numpy.uint64(k), numpy.uint64(s)  # quicker to divide
    after = min(place // s + numpy.uint64(1), numpy.uint64(count))
    return range(numpy.intp((max(place + s, k) - k) // s), numpy.intp(after))


def max_pool2d(
    x: Array, *, kernel_size: Pair, stride: Pair, padding: Padding, run: Kernel = largest
) -> tuple[Array, Array]:
    """Take the largest pixel of each window: (y, argmax), both (N, C, H', W')."""
    out = output_size(x.shape[2:], kernel=kernel_size, stride=stride, padding=padding)
    y, argmax = (empty((*x.shape[:2], *out), dtype) for dtype in (x.dtype, "uint8"))
    at = _geometry(y, kernel_size, stride, padding)
    run(images(x), *at, images(y), images(argmax))
    return y, argmax


def max_pool2d_grad(
    g: Array, argmax: Array, *, x_shape: Shape, kernel_size: Pair, stride: Pair, padding: Padding,
    run: Kernel = largest_grad,
) -> Array:  # fmt: skip
    """Send each gradient of g (N, C, H', W') to the pixel that won -> (N, C, H, W)."""
    dx = empty(x_shape, g.dtype)
    at = _geometry(dx, kernel_size, stride, padding)
    run(images(g), images(argmax), *at, images(dx))
    return dx


def avg_pool2d(
    x: Array, *, kernel_size: Pair, stride: Pair, padding: Padding, run: Kernel = average
) -> Array:
    """Average each window -> (N, C, H', W'); zeros of the padding count."""
    out = output_size(x.shape[2:], kernel=kernel_size, stride=stride, padding=padding)
    y = empty((*x.shape[:2], *out), x.dtype)
    run(images(x), *_geometry(y, kernel_size, stride, padding), images(y))
    return y


def avg_pool2d_grad(
    g: Array, *, x_shape: Shape, kernel_size: Pair, stride: Pair, padding: Padding,
    run: Kernel = average_grad,
) -> Array:  # fmt: skip
    """Spread each gradient of g (N, C, H', W') evenly over its window -> (N, C, H, W)."""
    dx = empty(x_shape, g.dtype)
    run(images(g), *_geometry(dx, kernel_size, stride, padding), images(dx))
    return dx


def _geometry(written: Array, kernel: Pair, stride: Pair, padding: Padding) -> tuple[int, ...]:
    """List what the kernels want to know, and the parts for an array that is to be written."""
    (top, _), (left, _) = padding
    n, _, h, _ = written.shape
    return (*kernel, *stride, top, left, number_of_parts(written.size, n * h))
