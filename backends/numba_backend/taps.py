"""Which pixels meet which taps: the geometry of `direct.py`, worked out before its kernels run.

    y[n, oy, ox] = sum over taps t of  x[n, sh * oy + row(t), sw * ox + column(t)] @ w[t]

A tap is one element of the kernel. With its row and column left open, one loop computes

* the convolution: tap (i, j) reads at row i * dh - top, column j * dw - left;
* its gradient with respect to x: stride 2, say, cuts an image into 2 x 2 phases, the even and the
  odd rows and columns. All pixels of a phase meet the same taps, and read dy with stride 1:

      3x3, stride 2, padding 1        even row, even column   tap (1, 1)
                                      even row, odd column    taps (1, 0), (1, 2)
                                      odd row,  even column   taps (0, 1), (2, 1)
                                      odd row,  odd column    the four corners

Rows and columns go by themselves: a phase of an image is one of its rows and one of its columns.

Taps that are neighbours in a row read one *run* of floats, channels and pixels alike. Three taps of
three channels are then a product of depth 9: so the first layer of a network is quick, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy

from ..base import Array
from ..geometry import Padding, Pair, output_size
from .host import ROWS

BAND = 8  # rows of y that share a copy of the rows of x which they read

Tap = tuple[int, int]  # row, column
# The phases of rows, or of columns: how many pixels each has, which taps these meet, and where the
# first pixel reads.
Axis = list[tuple[int, dict[int, int]]]


def forward_phases(size: int, taps: int, before: int, dilation: int) -> Axis:
    """Give the one phase of an axis of y, `size` pixels long: all meet all taps."""
    return [(size, {t: t * dilation - before for t in range(taps)})]


def backward_phases(size: int, taps: int, before: int, dilation: int, stride: int) -> Axis:
    """Give the phases of an axis of dx, `size` pixels long, whose taps read dy.

    >>> backward_phases(7, taps=3, before=1, dilation=1, stride=2)
    [(4, {1: 0}), (3, {2: 0, 0: 1})]
    """
    phases = []
    for first in range(min(stride, size)):
        # from the last tap on, what they read rises, so that they join to runs
        reads = {t: first + before - t * dilation for t in reversed(range(taps))}
        met = {t: place // stride for t, place in reads.items() if place % stride == 0}
        phases.append((-(-(size - first) // stride), met))
    return phases


def run_list(taps: Iterable[Tap], C: int) -> list[list[int]]:
    """Join the taps that are neighbours in a row: (row, first float, length) of each run.

    >>> run_list([(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)], C=3)
    [[0, 0, 9], [1, 0, 3], [1, 6, 3]]
    """
    runs: list[list[int]] = []
    for row, column in taps:
        if runs and runs[-1][0] == row and sum(runs[-1][1:]) == column * C:
            runs[-1][2] += C
        else:
            runs.append([row, column * C, C])
    return runs


class Sums(NamedTuple):
    """What is summed where, as the kernels take it."""

    taps: Array  # their numbers in a filter, phase by phase
    runs: Array  # of `run_list`, phase by phase
    phases: Array  # and `steps`: see `convolve`
    window: tuple[int, ...]  # stride; the first row and column that taps read, and how many
    out: Pair  # rows and columns of y
    steps: tuple[int, int, int]
    share: int  # floats of scratch memory that a thread needs


def sums_of(
    rows: Axis, columns: Axis, C: int, out: Pair, O: int, *, stride: Pair, kernel_width: int
) -> Sums:
    """Arrange the sums over taps that read C channels, for a y of `out` pixels, O channels."""
    tops, lefts = ([n for _, met in axis for n in met.values()] or [0] for axis in (rows, columns))
    top, left = min(tops), min(lefts)
    height, width = max(tops) - top + 1, max(lefts) - left + 1
    taps: list[int] = []
    runs: list[list[int]] = []
    phases = []
    for (i, (high, below)), (j, (wide, aside)) in product(enumerate(rows), enumerate(columns)):
        met = {
            t * kernel_width + s: (row - top, column - left)
            for (t, row), (s, column) in product(below.items(), aside.items())
        }
        mine, place = run_list(met.values(), C), (i * out[1] + j) * O
        phases.append((high, wide, place, len(runs), len(runs) + len(mine), len(taps)))
        runs += mine
        taps += met
    # a band with what it reads beside it; a tile reads ROWS pixels, though y has less
    copied = ((BAND - 1) * stride[0] + height) * ((columns[0][0] - 1) * stride[1] + width)
    return Sums(
        numpy.array(taps, numpy.intp), numpy.array(runs, numpy.intp).reshape(-1, 3),
        numpy.array(phases, numpy.intp), (*stride, top, left, height, width), out,
        (out[0] * out[1] * O, len(rows) * out[1] * O, len(columns) * O),
        (copied + ROWS * stride[1]) * C,
    )  # fmt: skip


# Kept, for the time to find them counts where there is but one small image.


@lru_cache(maxsize=1024)
def forward_sums(
    size: Pair, C: int, O: int, *, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair
) -> Sums:
    """Give what a convolution of images (C, *size) sums; y has O channels, a multiple of WIDTH."""
    out = output_size(size, kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    before = [first for first, _ in padding]
    rows, columns = map(forward_phases, out, kernel, before, dilation)
    return sums_of(rows, columns, C, out, O, stride=stride, kernel_width=kernel[1])


@lru_cache(maxsize=1024)
def backward_sums(
    size: Pair, C: int, O: int, *, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair
) -> Sums:
    """Give what the gradient with respect to images (C, *size) sums over the O channels of dy.

    C is a multiple of WIDTH.
    """
    before = [first for first, _ in padding]
    rows, columns = map(backward_phases, size, kernel, before, dilation, stride)
    return sums_of(rows, columns, O, size, C, stride=(1, 1), kernel_width=kernel[1])
