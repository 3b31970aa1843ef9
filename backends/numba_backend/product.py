"""Products of large matrices: threads share the columns or the rows of the result.

Where kernels run, BLAS has one thread (`threads.py` says why). So the longer side of the result is
cut into bands, each one a product by itself:

                   y                    NumPy lets go of Python while BLAS multiplies, so bands run
         +-----+-----+-----+            side by side. Their number depends on the size of the
         |     |     |     |            product alone: the result is the same, to the last bit, for
     +---+-----+-----+-----+            any number of threads.
     | x |  0  |  1  |  2  |
     +---+-----+-----+-----+
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import repeat

import numpy

from ..base import Array
from ..geometry import Shape
from . import threads

MOST = 32  # bands
LEAST = 2**26  # multiplications in a band: a millisecond, beside which starting it is nothing


def number_of_bands(x: Shape, y: Shape) -> int:
    """Choose into how many bands a product (n, k) @ (k, m) is cut."""
    return min(MOST, x[0] * x[1] * y[1] // LEAST)


def matmul(x: Array, y: Array) -> Array:
    """Multiply large matrices (n, k) @ (k, m) -> (n, m)."""
    z, bands = numpy.empty((len(x), y.shape[1]), x.dtype), number_of_bands(x.shape, y.shape)
    if len(x) > y.shape[1]:
        jobs = zip(_bands(x, bands), repeat(y), _bands(z, bands))
    else:
        jobs = zip(repeat(x), _bands(y, bands, axis=1), _bands(z, bands, axis=1))
    threads.start()
    with threads.exclusive():
        list(_workers(threads.number()).map(_multiply, jobs))  # a list: to wait for all
    return z


_bands = numpy.array_split


def _multiply(job: tuple[Array, Array, Array]) -> None:
    x, y, z = job
    numpy.matmul(x, y, out=z)


@cache
def _workers(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, "tinygrad_cnn product")
