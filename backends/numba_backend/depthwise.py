"""Depthwise convolution: every channel has a filter of its own, and there is no sum over channels.

Howard et al., MobileNets, arXiv 1704.04861, section 3.1. Without that sum there is no matrix
product either, and memory is the limit. The channels of a pixel lie side by side, and so do their
weights of one tap, w [tap][C]: vectors of channels are multiplied by vectors of weights.

        x   . [c c c c] . .        y   [c c c c]
              *  *  *  *                +  +  +  +       for each tap, each vector of channels
      w[tap] [c c c c]

As in `pool.py`, threads share the rows of what is written, so no two write to one place. What the
next row reads anew, at stride 1, is asked for early: one row is too short for the CPU to see where
it goes on.
"""

from __future__ import annotations

from typing import Any

import numpy
from numba import prange

from ..base import Array
from ..geometry import Padding, Pair, Shape, output_size
from .arrays import empty, flat, images
from .bias import finished
from .compiler import kernel
from .host import LANES
from .parts import bounds, inside, number_of_parts
from .pointwise import add
from .simd import fma, load, prefetch, splat, store

IMAGES = "float32[:, :, :, ::1]"
WINDOW = "UniTuple(intp, 8)"  # kh, kw, sh, sw, dh, dw, top, left
ZERO = numpy.float32(0)


@kernel(f"void({IMAGES}, float32[::1], {IMAGES}, {WINDOW}, intp)")
def convolve(x, w, y, window, parts):
    """y = the sum over taps of x * w[tap]."""
    N, H, W, C = x.shape
    _, Ho, Wo, _ = y.shape
    kh, kw, sh, sw, dh, dw, top, left = window
    for part in prange(parts):
        start, stop = bounds(N * Ho, parts, part)
        for row in range(start, stop):
            n, h0 = row // Ho, row % Ho * sh - top
            rows = inside(h0, dh, kh, H)
            for ow in range(Wo):
                w0 = ow * sw - left
                columns = inside(w0, dw, kw, W)
                for c in range(0, C, LANES):
                    total = splat(ZERO)
                    for i in rows:
                        for j in columns:
                            pixel = ((n * H + h0 + i * dh) * W + w0 + j * dw) * C
                            weights = load(w, (i * kw + j) * C + c)
                            total = fma(load(x, pixel + c), weights, total)
                    prefetch(x, ((n * H + h0 + kh * dh) * W + ow * sw) * C + c, 0)
                    store(y, (row * Wo + ow) * C + c, total)


@kernel(f"void({IMAGES}, float32[::1], {IMAGES}, {WINDOW}, intp)")
def convolve_back(g, w, dx, window, parts):
    """dx = the sum over taps of g * w[tap], from the places of y that read the pixel."""
    N, H, W, C = dx.shape
    _, Ho, Wo, _ = g.shape
    kh, kw, sh, sw, dh, dw, top, left = window
    for part in prange(parts):
        start, stop = bounds(N * H, parts, part)
        for row in range(start, stop):
            n, h = row // H, row % H + top
            for column in range(W):
                to = (row * W + column) * C
                for c in range(0, C, LANES):
                    store(dx, to + c, splat(ZERO))
                for i in range(kh):
                    oh = (h - i * dh) // sh
                    if oh * sh != h - i * dh or not 0 <= oh < Ho:
                        continue
                    for j in range(kw):
                        ow = (column + left - j * dw) // sw
                        if ow * sw != column + left - j * dw or not 0 <= ow < Wo:
                            continue
                        pixel, weights = ((n * Ho + oh) * Wo + ow) * C, (i * kw + j) * C
                        for c in range(0, C, LANES):
                            share = fma(load(g, pixel + c), load(w, weights + c), load(dx, to + c))
                            store(dx, to + c, share)


@kernel(f"void({IMAGES}, {IMAGES}, float32[:, :, ::1], {WINDOW})")
def correlate(x, g, u, window):
    """u [parts][tap][C] = the sum over a part's rows of g of x * g; zeros before."""
    N, H, W, C = x.shape
    _, Ho, Wo, _ = g.shape
    kh, kw, sh, sw, dh, dw, top, left = window
    parts, taps, _ = u.shape
    for part in prange(parts):
        start, stop = bounds(N * Ho, parts, part)
        for row in range(start, stop):
            n, h0 = row // Ho, row % Ho * sh - top
            for i in inside(h0, dh, kh, H):
                for j in range(kw):
                    w0 = j * dw - left
                    read = inside(w0, sw, Wo, W)
                    to, line = ((part * taps) + i * kw + j) * C, (n * H + h0 + i * dh) * W
                    for c in range(0, C, LANES):
                        total = load(u, to + c)
                        for ow in read:
                            pixel = load(x, (line + w0 + ow * sw) * C + c)
                            total = fma(pixel, load(g, (row * Wo + ow) * C + c), total)
                        store(u, to + c, total)


def conv2d(
    x: Array, w: Array, *added: Array, stride: Pair, padding: Padding, dilation: Pair,
    relu: bool = False, **at: Any,
) -> Array:  # fmt: skip
    """Cross-correlate x (N, C, H, W) with w (C, 1, kh, kw); add bias, residual; apply relu."""
    at = dict(stride=stride, padding=padding, dilation=dilation)
    y = empty((*x.shape[:2], *output_size(x.shape[2:], kernel=w.shape[2:], **at)), x.dtype)
    convolve(images(x), _weights(w), images(y), _window(w.shape, **at), _parts(y))
    return finished(y, *added, relu=relu)


def conv2d_input_grad(
    g: Array, w: Array, *, x_shape: Shape, plus: Array = None, **at: Any
) -> Array:
    """Gradient with respect to x, and `plus` if given: g (N, C, H', W') -> (N, C, H, W)."""
    dx = empty(x_shape, g.dtype)
    convolve_back(images(g), _weights(w), images(dx), _window(w.shape, **at), _parts(dx))
    return dx if plus is None else add(dx, plus, out=dx)


def conv2d_weight_grad(g: Array, x: Array, *, w_shape: Shape, **at: Any) -> Array:
    """Gradient of conv2d with respect to w: g (N, C, H', W'), x (N, C, H, W) -> w's shape."""
    C, _, kh, kw = w_shape
    u = numpy.zeros((_parts(g), kh * kw, C), numpy.float32)
    correlate(images(x), images(g), u, _window(w_shape, **at))
    return numpy.ascontiguousarray(u.sum(axis=0).T).reshape(w_shape)


def _weights(w: Array) -> Array:
    """Arrange w (C, 1, kh, kw) as [tap][C]."""
    return flat(w.transpose(2, 3, 1, 0).reshape(-1))


def _window(
    w: Shape, *, stride: Pair, padding: Padding, dilation: Pair, **at: Any
) -> tuple[int, ...]:
    (top, _), (left, _) = padding
    return (*w[2:], *stride, *dilation, top, left)


def _parts(a: Array) -> int:
    N, _, H, _ = a.shape
    return number_of_parts(a.size, N * H)
