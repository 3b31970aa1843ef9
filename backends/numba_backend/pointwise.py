"""Additions and ReLUs of whole activations: one pass over memory, shared by all threads."""

from __future__ import annotations

import numpy
from numba import prange

from ..base import Array, nhwc
from .arrays import empty_like, flat
from .compiler import kernel
from .parts import bounds, number_of_parts

# A kernel cuts its own part out of each array: an index that counts from 0 can't be negative, which
# Python would take from the end, and LLVM vectorises the loop.


@kernel("void(T[::1], T[::1], intp, T[::1])")
def add_flat(x, y, parts, z):
    """z = x + y."""
    for part in prange(parts):
        start, stop = bounds(len(z), parts, part)
        x_part, y_part, z_part = x[start:stop], y[start:stop], z[start:stop]
        for i in range(stop - start):
            z_part[i] = x_part[i] + y_part[i]


@kernel("void(T[::1], intp, T[::1])")
def relu_flat(x, parts, y):
    """y = max(x, 0), where a NaN stays one."""
    zero = x.dtype.type(0)
    for part in prange(parts):
        start, stop = bounds(len(y), parts, part)
        x_part, y_part = x[start:stop], y[start:stop]
        for i in range(stop - start):
            y_part[i] = zero if x_part[i] <= zero else x_part[i]


@kernel("void(T[::1], T[::1], intp, T[::1])")
def relu_grad_flat(g, y, parts, dx):
    """dx = g where y is positive, else 0."""
    zero = g.dtype.type(0)
    for part in prange(parts):
        start, stop = bounds(len(g), parts, part)
        g_part, y_part, dx_part = g[start:stop], y[start:stop], dx[start:stop]
        for i in range(stop - start):
            dx_part[i] = g_part[i] if y_part[i] > zero else zero


def _parts(x: Array) -> int:
    return number_of_parts(x.size, x.size)


def add(x: Array, y: Array, *, out: Array = None) -> Array:
    """x + y, into `out` if given."""
    z = empty_like(x) if out is None else out
    if not z.flags.writeable:
        raise ValueError("add: out is read-only")
    values = flat(z)  # a copy, where `out` is not as kernels want it
    add_flat(flat(x), flat(y), _parts(x), values)
    if not numpy.may_share_memory(values, z):
        nhwc(z)[...] = values.reshape(nhwc(z).shape)
    return z


def relu(x: Array) -> Array:
    """max(x, 0)."""
    y = empty_like(x)
    relu_flat(flat(x), _parts(x), flat(y))
    return y


def relu_grad(g: Array, y: Array) -> Array:
    """g where y = relu(x) is positive, else 0."""
    dx = empty_like(g)
    relu_grad_flat(flat(g), flat(y), _parts(g), flat(dx))
    return dx
