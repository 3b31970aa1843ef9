"""Pooling in float32 where the channels fill whole vectors: what `pool.py` does, in registers.

Max pooling makes a row in *stretches*: pixels whose windows the image's edges cut alike. A stretch
is one loop over vectors, in which the usual windows are unrolled.

    3x3, stride 2, padding 1       x  . 0 1 2 3 4 5 6         y   0 is cut; 1 2 3 are a stretch
                                     [0 0 0]
                                         [1 1 1]              dx  0 2 4 are in one window each,
                                             [2 2 2]              1 3 5 in two

The pixels of dx are taken in *phases*, at stride 2 the even and the odd ones of a row: all of a
phase are in equally many windows, at the same positions there.

Forward, a window asks for the pixels that are new to the one below it, at stride 2: a row is too
short for the CPU to see where reading goes on. A large gradient is written past the caches, which
spares reading what was there before.
"""

from __future__ import annotations

from functools import partial

import numpy
from numba import njit, prange

from . import pool
from .compiler import kernel
from .host import LANES
from .parts import bounds
from .pool import GEOMETRY, windows
from .simd import (
    fence,
    load,
    prefetch,
    select_larger,
    splat,
    store,
    store_bytes,
    stream,
    streams,
    where_byte,
)

IMAGES, POSITIONS = "float32[:, :, :, ::1]", "uint8[:, :, :, ::1]"
ZERO, LOWEST = numpy.float32(0), numpy.float32(-numpy.inf)


@njit(forceinline=True)
def write(a, i, v):
    """Write a[i : i + LANES] = v, past the caches if a is large."""
    if streams(a):
        stream(a, i, v)
    else:
        store(a, i, v)


# ---- forward: `window` is where the first window begins in x, `across` the floats to the next ----


@njit
def cut_alike(ow, k, s, left, W, Wo):
    """Give the columns of a window that are in the image, and how many from it on have the same."""
    w = ow * s - left
    first, last = max(0, -w), min(k, W - w)
    whole = first == 0 and last == k
    return first, last - first, (min(Wo, (W + left - k) // s + 1) - ow if whole else 1)


@njit(forceinline=True)
def write_largest(x, y, argmax, rows, columns, position, kw, window, line, across, to, count):
    """Write the largest of `count` windows; the first pixel of each has this position."""
    C, c = x.shape[3], 0
    for place in range(to, to + count * C, LANES):
        best, at = splat(LOWEST), splat(ZERO)
        for i in range(rows):
            for j in range(columns):
                v = load(x, window + i * line + j * C)
                at = select_larger(v, best, splat(numpy.float32(position + i * kw + j)), at)
                best = select_larger(v, best, v, best)
        for i in range(2):
            for j in range(2):
                prefetch(x, window + (rows + i) * line + j * C, 0)
        store(y, place, best)
        store_bytes(argmax, place, at)
        c, window = c + LANES, window + LANES
        if c == C:
            c, window = 0, window + across - C


@kernel(f"void({IMAGES}, {GEOMETRY}, {IMAGES}, {POSITIONS})")
def largest(x, kh, kw, sh, sw, top, left, parts, y, argmax):
    """y = the largest pixel of each window, argmax = its position there; the first one counts."""
    N, H, W, C = x.shape
    _, Ho, Wo, _ = y.shape
    for part in prange(parts):
        start, stop = bounds(N * Ho, parts, part)
        for row in range(start, stop):
            n, h = row // Ho, row % Ho * sh - top
            above, ow = max(0, -h), 0
            rows = min(kh, H - h) - above
            while ow < Wo:
                aside, columns, count = cut_alike(ow, kw, sw, left, W, Wo)
                window = ((n * H + h + above) * W + ow * sw - left + aside) * C
                to, position = (row * Wo + ow) * C, above * kw + aside
                at = window, W * C, sw * C, to, count
                if position == 0 and rows == columns == kw == 2:
                    write_largest(x, y, argmax, 2, 2, 0, 2, *at)
                elif position == 0 and rows == columns == kw == 3:
                    write_largest(x, y, argmax, 3, 3, 0, 3, *at)
                else:
                    write_largest(x, y, argmax, rows, columns, position, kw, *at)
                ow += count


# ---- backward ----


@njit
def met_alike(w, k, s, left, W, Wo):
    """Give the windows of a pixel, and how many of its phase from it on are in as many."""
    (last, phase), met = divmod(w + left, s), windows(w + left, k, s, Wo)
    whole = len(met) == (k - 1 - phase) // s + 1 > 0  # none where the stride leaves gaps
    return met, min(Wo - last, (W - w + s - 1) // s) if whole else 1


@njit(forceinline=True)
def write_won(g, argmax, dx, rows, columns, at, down, aside, window, line, across, to, count):
    """Write what `count` pixels won; the first is at position `at` of its first window."""
    C, c = g.shape[3], 0
    for first in range(window, window + count * C, LANES):
        total = splat(ZERO)
        for i in range(rows):
            for j in range(columns):
                place, position = first + i * line + j * C, at - i * down - j * aside
                total = total + where_byte(argmax, place, numpy.uint8(position), load(g, place))
        write(dx, to, total)
        c, to = c + LANES, to + LANES
        if c == C:
            c, to = 0, to + across - C


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
            for phase in range(min(sw, W)):
                w = phase
                while w < W:
                    met, count = met_alike(w, kw, sw, left, W, Wo)
                    to, window = (row * W + w) * C, ((n * Ho + rows.start) * Wo + met.start) * C
                    at = (h - rows.start * sh) * kw + w + left - met.start * sw
                    rest = at, sh * kw, sw, window, Wo * C, sw * C, to, count
                    if len(rows) == len(met) == 1:
                        write_won(g, argmax, dx, 1, 1, *rest)
                    elif len(rows) == 1 and len(met) == 2:
                        write_won(g, argmax, dx, 1, 2, *rest)
                    elif len(rows) == 2 and len(met) == 1:
                        write_won(g, argmax, dx, 2, 1, *rest)
                    elif len(rows) == len(met) == 2:
                        write_won(g, argmax, dx, 2, 2, *rest)
                    else:
                        write_won(g, argmax, dx, len(rows), len(met), *rest)
                    w += count * sw
        fence()


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
                            prefetch(x, window + ((sh + i) * W + j) * C + c, 0)
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
                    write(dx, to + c, share * total)
        fence()


max_pool2d = partial(pool.max_pool2d, run=largest)
max_pool2d_grad = partial(pool.max_pool2d_grad, run=largest_grad)
avg_pool2d = partial(pool.avg_pool2d, run=average)
avg_pool2d_grad = partial(pool.avg_pool2d_grad, run=average_grad)
