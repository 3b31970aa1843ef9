"""Arrays as kernels take them: contiguous, aligned, writable; images channels-last.

Shapes are (N, C, H, W) outside and (N, H, W, C) inside the kernels. What lies differently in memory
is copied.
"""

from __future__ import annotations

from ctypes import addressof, c_char
from typing import Any

import numpy
from numba import config

from ..base import Array, nchw, nhwc
from ..geometry import Shape

CACHE_LINE = 64  # bytes


def images(a: Array) -> Array:
    """View (N, C, H, W) as (N, H, W, C), contiguous."""
    return contiguous(nhwc(a))


def flat(a: Array) -> Array:
    """View an array as one row of values; of images, in the order N, H, W, C."""
    return (images(a) if a.ndim == 4 else contiguous(a)).reshape(-1)


def contiguous(a: Array) -> Array:
    """Give an array whose type a kernel knows: itself where possible, else a view or a copy."""
    if not (a.flags.c_contiguous and a.flags.aligned):
        a = numpy.array(a, order="C")
    return a if a.flags.writeable else numpy.asarray(_Writable(a))


class _Writable:
    """The memory of a read-only array, for kernels that only read it.

    To Numba a read-only array is another type, for which it would have to compile again.
    """

    def __init__(self, a: Array) -> None:
        address, _ = a.__array_interface__["data"]
        self.array = a  # what keeps the memory alive
        self.__array_interface__: dict[str, Any] = a.__array_interface__ | {
            "data": (address, False)
        }


def aligned(size: int, dtype: Any = numpy.float32) -> Array:
    """Allocate `size` values from the start of a cache line on: no vector then lies across two."""
    itemsize = numpy.dtype(dtype).itemsize
    memory: Array = numpy.empty(size + CACHE_LINE // itemsize, dtype)
    address = addressof(c_char.from_buffer(memory))  # twice as fast as asking NumPy for it
    start = -address % CACHE_LINE // itemsize
    return memory[start : start + size]


def empty(shape: Shape, dtype: Any) -> Array:
    """Allocate an array (N, C, H, W), channels-last."""
    n, c, h, w = shape
    return nchw(aligned(n * h * w * c, dtype).reshape(n, h, w, c))


def empty_like(a: Array) -> Array:
    """Allocate an array of a's shape (N, C, H, W) and dtype, channels-last."""
    return empty(a.shape, a.dtype)


def scratch(size: int) -> Array:
    """Give `size` float32 for every thread; what is in them lasts for one call of a kernel."""
    global _scratch
    space = _scratch  # another thread may replace it by a smaller one
    if size * config.NUMBA_NUM_THREADS > space.size:
        _scratch = space = aligned(size * config.NUMBA_NUM_THREADS)
    return space


_scratch = aligned(0)
