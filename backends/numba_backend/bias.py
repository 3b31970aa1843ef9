"""What follows a convolution where its own kernel doesn't do it: bias, residual and ReLU.

That is batch norm's second pass, of mean 0, variance 1 and weight 1.
"""

from __future__ import annotations

import math

import numpy

from ..base import Array
from .arrays import empty_like, flat
from .norm import normalise, rows_of
from .parts import number_of_parts


def add(x: Array, b: Array) -> Array:
    """x (N, C, H, W) + b (1, C, 1, 1)."""
    return finished(x, b)


def finished(x: Array, bias: Array = None, residual: Array = None, *, relu: bool = False) -> Array:
    """Add bias, a value for each channel of x (N, C, H, W), and residual if given; apply relu."""
    if bias is None and residual is None and not relu:
        return x
    C, y = x.shape[1], empty_like(x)
    b = numpy.zeros(C, x.dtype) if bias is None else flat(bias)
    if x.dtype != numpy.float32 or x.size % math.lcm(C, 64):  # no whole rows
        numpy.add(x, b[:, None, None], out=y)
        if residual is not None:
            numpy.add(y, residual, out=y)
        return numpy.maximum(y, 0, out=y) if relu else y
    rows, added = rows_of(x), rows_of(x)[:0] if residual is None else rows_of(residual)
    at = numpy.zeros(C), numpy.ones(C), numpy.ones(C, x.dtype), b
    normalise(rows, added, *at, 0.0, relu, number_of_parts(x.size, len(rows)), rows_of(y))
    return y
