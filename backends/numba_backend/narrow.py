"""The gradient with respect to images of few channels, such as colours: pixels side by side.

A tile is WIDTH floats across, and of three channels 13 of them would be empty. But pixels that are
neighbours are floats that are: four of three channels are one of twelve. Where such a group meets
the taps of a filter's row (kernel 3, stride 1, padding 1):

                dy's column   -1  0  1  2  3  4
      pixel 0                  2  1  0
      pixel 1                     2  1  0              a group's weights, half of them zeros,
      pixel 2                        2  1  0           (4 C, O, kh, 6) instead of (C, O, kh, 3)
      pixel 3                           2  1  0

The next group meets the same as many columns of dy further. So along a row it is a convolution that
`direct.py` can do; from row to row it remains the gradient. (Zeros are multiplied, too: an infinity
or a NaN in dy spoils all of a group.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy

from ..base import Array, nchw, nhwc
from ..geometry import Padding, Pair, Shape
from .direct import sum_taps
from .host import WIDTH
from .pointwise import add
from .taps import Sums, backward_phases, sums_of

Meeting = tuple[int, int, int]  # pixel of a group, column of the kernel, column of dy


def conv2d_input_grad(
    g: Array, w: Array, *, x_shape: Shape, stride: Pair, padding: Padding, dilation: Pair,
    plus: Array = None, **at: Any,
) -> Array:  # fmt: skip
    """Gradient with respect to x, and `plus` if given: g (N, O, H', W') -> (N, C, H, W)."""
    (N, C, H, W), (O, _, kh, kw) = x_shape, w.shape
    sums, meetings, group, columns = narrow_sums((H, W), C, O, (kh, kw), stride, padding, dilation)
    weights = numpy.zeros((group, C, O, kh, columns), w.dtype)
    for pixel, tap, column in meetings:
        weights[pixel, ..., column] = w[..., tap].swapaxes(0, 1)
    filters = group * C, O * kh * columns, kh * columns
    groups = nhwc(sum_taps(g, weights, filters, sums))  # (N, H, W / group, group * C)
    dx = nchw(numpy.ascontiguousarray(groups.reshape(N, H, -1, C)[:, :, :W]))
    return dx if plus is None else add(dx, plus, out=dx)


@lru_cache(maxsize=1024)
def narrow_sums(
    size: Pair, C: int, O: int, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair
) -> tuple[Sums, tuple[Meeting, ...], int, int]:
    """Give what a group sums, what it meets, and how many pixels and columns of dy these are."""
    (H, W), (sh, sw), ((top, _), (left, _)) = size, stride, padding
    group = WIDTH // (C * sw) * sw  # a multiple of the stride, so that every group meets the same
    met = [
        (pixel, tap, (pixel + left - tap * dilation[1]) // sw)
        for pixel in range(group)
        for tap in range(kernel[1])
        if (pixel + left - tap * dilation[1]) % sw == 0
    ]
    first, last = (choose((c for *_, c in met), default=0) for choose in (min, max))
    count, across = last - first + 1, -(-W // group)
    rows = backward_phases(H, kernel[0], top, dilation[0], sh)
    columns = [(across, {c: first + c for c in range(count)})]
    stride = 1, group // sw
    sums = sums_of(rows, columns, O, (H, across), WIDTH, stride=stride, kernel_width=count)
    return sums, tuple((pixel, tap, c - first) for pixel, tap, c in met), group, count
