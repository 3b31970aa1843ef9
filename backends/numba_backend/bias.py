"""What follows a convolution where its own kernel doesn't do it: bias, residual and ReLU.

In whole rows (`norm.py`) that is batch norm's second pass, of mean 0, variance 1 and weight 1.
"""

from __future__ import annotations

import numpy

from ..base import Array
from . import NumbaBackend
from .arrays import empty_like, flat
from .norm import normalise, row_length, rows_of
from .parts import number_of_parts

PASSES = NumbaBackend()


def finished(x: Array, bias: Array = None, residual: Array = None, *, relu: bool = False) -> Array:
    """Add bias, a value for each channel of x (N, C, H, W), and residual if given; apply relu."""
    if x.size % row_length(x.shape[1]) or (bias is None and residual is None and not relu):
        return PASSES._finished(x, bias, residual, relu=relu)
    C, rows, y = x.shape[1], rows_of(x), empty_like(x)
    b = numpy.zeros(C, x.dtype) if bias is None else flat(bias)
    added = rows[:0] if residual is None else rows_of(residual)
    at = numpy.zeros(C), numpy.ones(C), numpy.ones(C, x.dtype), b
    normalise(rows, added, *at, 0.0, relu, number_of_parts(x.size, len(rows)), rows_of(y))
    return y


add = finished  # of x (N, C, H, W) and b (1, C, 1, 1): a bias alone
