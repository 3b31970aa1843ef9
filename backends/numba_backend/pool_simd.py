"""Pooling in float32 where the channels fill whole vectors: what `pool.py` does, in registers.

There, each position of a window is a short loop over the channels, which reads and writes the
pixel that is being made. Here the loop over vectors of channels is outside and that over the window
inside. (The gradient of max pooling has too much to find out about each window for that.)
"""

from __future__ import annotations

from functools import partial

import numpy
from numba import prange

from . import pool
from .compiler import kernel
from .host import LANES
from .parts import bounds
from .pool import GEOMETRY, windows
from .simd import load, load_bytes, select_equal, select_larger, splat, store, store_bytes

IMAGES, POSITIONS = "float32[:, :, :, ::1]", "uint8[:, :, :, ::1]"
ZERO, LOWEST = numpy.float32(0), numpy.float32(-numpy.inf)


@kernel(f"void({IMAGES}, {GEOMETRY}, {IMAGES}, {POSITIONS})")
def largest(x, kh, kw, sh, sw, top, left, parts, y, argmax):
    """y = the largest pixel of each window, argmax = its position there; the first one counts."""
    N, H, W, C = x.shape
    _, Ho, Wo, _ = y.shape
    for part in prange(parts):
        start, stop = bounds(N * Ho, parts, part)
        for row in range(start, stop):
            n, h = row // Ho, row % Ho * sh - top
            rows = range(max(0, -h), min(kh, H - h))
            for ow in range(Wo):
                w = ow * sw - left
                columns = range(max(0, -w), min(kw, W - w))
                window, to = ((n * H + h) * W + w) * C, (row * Wo + ow) * C
                for c in range(0, C, LANES):
                    best, at = splat(LOWEST), splat(ZERO)
                    for i in rows:
                        for j in columns:
                            v = load(x, window + (i * W + j) * C + c)
                            at = select_larger(v, best, splat(numpy.float32(i * kw + j)), at)
                            best = select_larger(v, best, v, best)
                    store(y, to + c, best)
                    store_bytes(argmax, to + c, at)


@kernel(f"void({IMAGES}, {POSITIONS}, {GEOMETRY}, {IMAGES})")
def largest_grad(g, argmax, kh, kw, sh, sw, top, left, parts, dx):
    """dx = the sum of g of those windows in which the pixel won."""
    N, H, W, C = dx.shape
    _, Ho, Wo, _ = g.shape
    for part in prange(parts):
        start, stop = bounds(N * H, parts, part)
        for row in range(start, stop):
            n, h = row // H, row % H + top
            rows = windows(h, kh, sh, Ho)
            for w in range(left, W + left):
                to = (row * W + w - left) * C
                for c in range(0, C, LANES):
                    store(dx, to + c, splat(ZERO))
                for oh in rows:
                    for ow in windows(w, kw, sw, Wo):
                        window = ((n * Ho + oh) * Wo + ow) * C
                        position = splat(numpy.float32((h - oh * sh) * kw + w - ow * sw))
                        for c in range(0, C, LANES):
                            won, share = load_bytes(argmax, window + c), load(g, window + c)
                            share = select_equal(won, position, share, splat(ZERO))
                            store(dx, to + c, load(dx, to + c) + share)


@kernel(f"void({IMAGES}, {GEOMETRY}, {IMAGES})")
def average(x, kh, kw, sh, sw, top, left, parts, y):
    """y = the mean of each window; zeros of the padding count."""
    N, H, W, C = x.shape
    _, Ho, Wo, _ = y.shape
    share = splat(numpy.float32(1 / (kh * kw)))
    for part in prange(parts):
        start, stop = bounds(N * Ho, parts, part)
        for row in range(start, stop):
            n, h = row // Ho, row % Ho * sh - top
            rows = range(max(0, -h), min(kh, H - h))
            for ow in range(Wo):
                w = ow * sw - left
                columns = range(max(0, -w), min(kw, W - w))
                window, to = ((n * H + h) * W + w) * C, (row * Wo + ow) * C
                for c in range(0, C, LANES):
                    total = splat(ZERO)
                    for i in rows:
                        for j in columns:
                            total = total + load(x, window + (i * W + j) * C + c)
                    store(y, to + c, share * total)


@kernel(f"void({IMAGES}, {GEOMETRY}, {IMAGES})")
def average_grad(g, kh, kw, sh, sw, top, left, parts, dx):
    """dx = the sum of g / (kh * kw) of the windows that the pixel is in."""
    N, H, W, C = dx.shape
    _, Ho, Wo, _ = g.shape
    share = splat(numpy.float32(1 / (kh * kw)))
    for part in prange(parts):
        start, stop = bounds(N * H, parts, part)
        for row in range(start, stop):
            n, h = row // H, row % H + top
            rows = windows(h, kh, sh, Ho)
            for w in range(left, W + left):
                to, columns = (row * W + w - left) * C, windows(w, kw, sw, Wo)
                for c in range(0, C, LANES):
                    total = splat(ZERO)
                    for oh in rows:
                        for ow in columns:
                            total = total + load(g, ((n * Ho + oh) * Wo + ow) * C + c)
                    store(dx, to + c, share * total)


max_pool2d = partial(pool.max_pool2d, run=largest)
max_pool2d_grad = partial(pool.max_pool2d_grad, run=largest_grad)
avg_pool2d = partial(pool.avg_pool2d, run=average)
avg_pool2d_grad = partial(pool.avg_pool2d_grad, run=average_grad)
