"""The optimiser's step, in one pass over parameter, gradient and velocity."""

from __future__ import annotations

from numba import prange

from ..base import Array
from .arrays import contiguous
from .compiler import kernel
from .parts import bounds, number_of_parts


@kernel("void(T[::1], T[::1], T[::1], T, T, T, boolean, intp)")
def sgd(p, g, velocity, lr, momentum, weight_decay, nesterov, parts):
    """Do v <- momentum*v + d and p <- p - lr*v, with d = g + weight_decay*p."""
    for part in prange(parts):
        start, stop = bounds(len(p), parts, part)
        p_part, g_part, v_part = p[start:stop], g[start:stop], velocity[start:stop]
        for i in range(stop - start):
            d = g_part[i] + weight_decay * p_part[i]
            v = momentum * v_part[i] + d
            v_part[i] = v
            p_part[i] -= lr * (d + momentum * v if nesterov else v)


def sgd_update(
    p: Array, g: Array, velocity: Array, *, lr: float, momentum: float, weight_decay: float,
    nesterov: bool,
) -> None:  # fmt: skip
    """Update p and velocity in place: v <- momentum*v + d, p <- p - lr*v, d = g + decay*p."""
    if not (p.flags.writeable and velocity.flags.writeable):
        raise ValueError("sgd_update: the parameter or its velocity is read-only")
    own_p, own_v = contiguous(p), contiguous(velocity)
    parts = number_of_parts(p.size, p.size)
    rows = (a.reshape(-1) for a in (own_p, contiguous(g), own_v))
    sgd(*rows, lr, momentum, weight_decay, nesterov, parts)
    for a, own in (p, own_p), (velocity, own_v):
        if own is not a:
            a[...] = own
