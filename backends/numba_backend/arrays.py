"""Arrays as kernels take them: flat, contiguous, aligned and writable.

Shapes are (N, C, H, W), memory is channels-last: the flat array runs over images, rows, columns
and, fastest, channels.
"""

from __future__ import annotations

from typing import Any

import numpy

from ..base import Array, nchw, nhwc
from ..geometry import Shape


def flat(a: Array) -> Array:
    """View an array as flat, a 4-D one in the order N, H, W, C; copy what isn't contiguous so."""
    rows = nhwc(a) if a.ndim == 4 else a
    if not (rows.flags.c_contiguous and rows.flags.aligned):
        rows = numpy.array(rows, order="C")
    if not rows.flags.writeable:
        rows = numpy.asarray(_Writable(rows))
    return rows.reshape(-1)


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


def empty_like(a: Array) -> Array:
    """Allocate an array (N, C, H, W) of a's shape and dtype, channels-last."""
    return empty(a.shape, a.dtype)


def empty(shape: Shape, dtype: Any) -> Array:
    """Allocate an array (N, C, H, W), channels-last."""
    n, c, h, w = shape
    return nchw(numpy.empty((n, h, w, c), dtype))
