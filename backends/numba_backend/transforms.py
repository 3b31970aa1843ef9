"""The transforms of Winograd's F(4x4, 3x3), along one line of vectors and of whole tiles.

Lavin & Gray, arXiv 1509.09308, section 4.3: B, G and A for the points 0, 1, -1, 2, -2 and infinity.
Lines with the same coefficients up to sign share their sums: that is what a, b, c and e are.

A tile is transformed along its columns into `patch`, a few lines of the L1 cache, and from there
along its rows. Element (i, j) of a transformed tile goes to plane 6 * i + j.
"""

from __future__ import annotations

import numpy
from numba import njit

from .host import LANES
from .simd import (
    add_lines,
    at_least,
    fma,
    gather,
    load_inside,
    load_line,
    scatter,
    splat,
    store_rows,
    stream_rows,
    streams,
)  # fmt: skip

PATCH = 36 * LANES  # floats


@njit
def number(value):
    """Repeat a number in all lanes."""
    return splat(numpy.float32(value))


# ---- lines ----


@njit
def input_line(d):
    """B^T d: 6 pixels -> 6 elements."""
    d0, d1, d2, d3, d4, d5 = d
    two, four, minus_four, minus_five = number(2), number(4), number(-4), number(-5)
    a, b, c, e = fma(minus_four, d2, d4), fma(minus_four, d1, d3), d4 - d2, d3 - d1
    first, last = fma(four, d0, fma(minus_five, d2, d4)), fma(four, d1, fma(minus_five, d3, d5))
    return first, a + b, a - b, fma(two, e, c), fma(number(-2), e, c), last


@njit
def output_line(m):
    """A^T m: 6 elements -> 4 pixels."""
    m0, m1, m2, m3, m4, m5 = m
    a, b, c, e = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + a + c, fma(number(2), e, b), fma(number(4), c, a), fma(number(8), e, b) + m5


@njit
def gradient_line(g):
    """Compute A g: 4 pixels -> 6 elements."""
    g0, g1, g2, g3 = g
    a, b, c, e = g0 + g2, g1 + g3, fma(number(4), g2, g0), fma(number(2), g1, number(8) * g3)
    return g0, a + b, a - b, c + e, c - e, g3


@njit
def filter_line(w):
    """G w: 3 weights -> 6 elements."""
    w0, w1, w2 = w
    sixth, minus_sixth, twelfth = number(1 / 6), number(-1 / 6), number(1 / 12)
    a, c = minus_sixth * (w0 + w2), fma(number(1 / 24), w0, sixth * w2)
    b, e = fma(minus_sixth, w1, a), fma(sixth, w1, a)
    return number(1 / 4) * w0, b, e, fma(twelfth, w1, c), fma(number(-1 / 12), w1, c), w2


@njit
def filter_gradient_line(u):
    """G^T u: 6 elements -> 3 weights."""
    u0, u1, u2, u3, u4, u5 = u
    sixth, twelfth = number(1 / 6), number(1 / 12)
    a, b, c = number(-1 / 6) * (u1 + u2), u3 + u4, u3 - u4
    first = fma(number(1 / 4), u0, fma(number(1 / 24), b, a))
    return first, fma(sixth, u2 - u1, twelfth * c), fma(sixth, b, a) + u5


# ---- tiles ----


@njit
def transform_input(x, image, y0, x0, H, W, C, patch, v, at, plane):
    """Write B^T d B of the 6x6 pixels from (y0, x0) on; x[image] is the image's first float."""
    for j in range(6):
        corner = image + (y0 * W + x0 + j) * C
        rows = H if 0 <= x0 + j < W else 0
        line = input_line(load_inside(x, corner, W * C, 6, y0, rows))
        store_rows(patch, j * LANES, 6 * LANES, line, 6)
    for i in range(6):
        line = input_line(load_line(patch, 6 * i * LANES, LANES, 6))
        store_rows(v, at + 6 * i * plane, plane, line, 6)


@njit
def transform_output(m, at, plane, patch, y, added, image, y0, x0, H, W, O):
    """Write A^T m A to the 4x4 pixels from (y0, x0) on, as far as the image goes.

    `added` is (bias, plus, least): a line of the bias, what else is added unless it is empty, and
    the least value to be written.
    """
    bias, plus, least = added
    for j in range(6):
        line = output_line(load_line(m, at + j * plane, 6 * plane, 6))
        store_rows(patch, j * LANES, 6 * LANES, line, 4)
    for i in range(min(4, H - y0)):
        line = add_lines(output_line(load_line(patch, 6 * i * LANES, LANES, 6)), bias)
        place = image + ((y0 + i) * W + x0) * O
        if len(plus):
            line = add_lines(line, load_inside(plus, place, O, 4, x0, W))
        line = at_least(line, least)
        if streams(y):
            stream_rows(y, place, O, line, W - x0)
        else:
            store_rows(y, place, O, line, W - x0)


@njit
def transform_gradient(g, image, y0, x0, H, W, O, patch, d, at, plane):
    """Write A g A^T of the 4x4 pixels from (y0, x0) on."""
    for j in range(4):
        corner = image + (y0 * W + x0 + j) * O
        rows = H if x0 + j < W else 0
        line = gradient_line(load_inside(g, corner, W * O, 4, y0, rows))
        store_rows(patch, j * LANES, 4 * LANES, line, 6)
    for i in range(6):
        line = gradient_line(load_line(patch, 4 * i * LANES, LANES, 4))
        store_rows(d, at + 6 * i * plane, plane, line, 6)


@njit
def transform_filter(w, first, step, tap, patch, u, at, plane):
    """Write G w G^T of LANES filters, `step` apart, their nine weights `tap` apart."""
    for j in range(3):
        w0 = gather(w, first + j * tap, step)
        w1 = gather(w, first + (3 + j) * tap, step)
        w2 = gather(w, first + (6 + j) * tap, step)
        store_rows(patch, j * LANES, 3 * LANES, filter_line((w0, w1, w2)), 6)
    for i in range(6):
        line = filter_line(load_line(patch, 3 * i * LANES, LANES, 3))
        store_rows(u, at + 6 * i * plane, plane, line, 6)


@njit
def transform_filter_gradient(u, at, plane, part, parts, patch, dw, first, step):
    """Write G^T u G for LANES filters; u is the sum of `parts` that lie `part` floats apart."""
    for j in range(6):
        total = load_line(u, at + j * plane, 6 * plane, 6)
        for p in range(1, parts):
            total = add_lines(total, load_line(u, at + p * part + j * plane, 6 * plane, 6))
        store_rows(patch, j * LANES, 6 * LANES, filter_gradient_line(total), 3)
    for i in range(3):
        w0, w1, w2 = filter_gradient_line(load_line(patch, 6 * i * LANES, LANES, 6))
        scatter(dw, first + 3 * i, step, w0)
        scatter(dw, first + 3 * i + 1, step, w1)
        scatter(dw, first + 3 * i + 2, step, w2)
