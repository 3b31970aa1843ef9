"""The gradient with respect to images of few channels, such as colours: pixels side by side.

A tile is WIDTH floats across; of three channels 13 of 16 would be empty. But neighbouring pixels
are neighbouring floats: a group of five pixels of three channels fills 15. What it meets in a row
of dy (kernel 3, stride 1, padding 1), by the number of the tap:

                dy's column   -1  0  1  2  3  4  5
      pixel 0                  2  1  0
      pixel 1                     2  1  0              the group's weights, zeros elsewhere,
      pixel 2                        2  1  0           (5 C, O, kh, 7) instead of (C, O, kh, 3)
      pixel 3                           2  1  0
      pixel 4                              2  1  0

The next group meets the same, five columns of dy further. So along a row it is a convolution that
`direct.py` can do; from row to row it remains the gradient. (Zeros are multiplied, too: an infinity
or a NaN in dy spoils all groups that meet it.)
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


def conv2d_input_grad(
    g: Array, w: Array, *, x_shape: Shape, stride: Pair, padding: Padding, dilation: Pair,
    plus: Array = None, **at: Any,
) -> Array:  # fmt: skip
    """Gradient with respect to x, and `plus` if given: g (N, O, H', W') -> (N, C, H, W)."""
    (N, C, H, W), (O, _, kh, kw) = x_shape, w.shape
    at = dict(kernel=(kh, kw), stride=stride, padding=padding, dilation=dilation)
    sums, (pixels, taps, columns), group, count = narrow_sums((H, W), C, O, **at)
    weights = numpy.zeros((group, C, O, kh, count), w.dtype)
    weights[pixels, ..., columns] = w[..., taps].transpose(3, 1, 0, 2)  # (meetings, C, O, kh)
    filters = group * C, O * kh * count, kh * count
    groups = nhwc(sum_taps(g, weights, filters, sums))  # (N, H, groups, group * C)
    dx = nchw(numpy.ascontiguousarray(groups.reshape(N, H, -1, C)[:, :, :W]))
    return dx if plus is None else add(dx, plus, out=dx)


@lru_cache(maxsize=1024)
def narrow_sums(
    size: Pair, C: int, O: int, *, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair
) -> tuple[Sums, Array, int, int]:
    """Give what groups sum, their `meetings`, and how many pixels and columns of dy one has."""
    (H, W), (sh, sw), ((top, _), (left, _)) = size, stride, padding
    group = WIDTH // (C * sw) * sw  # a multiple of the stride, so that every group meets the same
    met = meetings(group, kernel[1], left, dilation[1], sw)
    first, last, across = int(met[2].min()), int(met[2].max()), -(-W // group)
    met[2] -= first
    rows = backward_phases(H, kernel[0], top, dilation[0], sh)
    columns = [(across, {c - first: c for c in range(first, last + 1)})]
    out, stride, count = (H, across), (1, group // sw), last - first + 1
    sums = sums_of(rows, columns, O, out, WIDTH, stride=stride, kernel_width=count)
    return sums, met, group, count


def meetings(group: int, taps: int, left: int, dilation: int, stride: int) -> Array:
    """List which pixel of a group meets which column of the kernel in which one of dy.

    >>> meetings(2, taps=3, left=1, dilation=1, stride=2).tolist()  # pixels; taps; columns of dy
    [[0, 1, 1], [1, 0, 2], [0, 1, 0]]
    """
    pixels, columns = numpy.indices((group, taps)).reshape(2, -1)
    places = pixels + left - columns * dilation
    meets = places % stride == 0
    return numpy.stack([pixels, columns, places // stride])[:, meets]
