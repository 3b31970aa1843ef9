"""A value added to each channel, such as a convolution's bias: one pass, shared by all threads.

As in `norm.py`, several pixels side by side are looked at as one row, so that the inner loop is
long whatever the number of channels.
"""

from __future__ import annotations

import numpy
from numba import prange

from ..base import Array
from .arrays import empty_like, flat
from .compiler import kernel
from .norm import rows_of
from .parts import bounds, number_of_parts


@kernel("void(T[:, ::1], T[::1], T[:, ::1], intp)")
def add_row(x, row, y, parts):
    """y = x + row, in each row of x."""
    rows, L = x.shape
    for part in prange(parts):
        start, stop = bounds(rows, parts, part)
        for i in range(start, stop):
            for l in range(L):
                y[i, l] = x[i, l] + row[l]


def add(x: Array, b: Array) -> Array:
    """x (N, C, H, W) + b (1, C, 1, 1)."""
    y, rows = empty_like(x), rows_of(x)
    row = numpy.tile(flat(b), rows.shape[1] // b.size)
    add_row(rows, row, rows_of(y), number_of_parts(x.size, len(rows)))
    return y
