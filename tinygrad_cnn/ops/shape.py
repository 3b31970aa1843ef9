"""Ops that move values without changing them. Every gradient moves them back."""

from __future__ import annotations

from itertools import pairwise
from math import prod

from ..autograd import op, unbroadcast


@op(view=True)
def reshape(x, *, shape):
    """Arrange the values in another shape."""
    before = x.shape
    try:
        return x.data.reshape(shape), (lambda g: g.reshape(before),)
    except ValueError:
        raise ValueError(
            f"reshape: {before} has {prod(before)} values, which don't fill {shape}"
        ) from None


@op(view=True)
def permute(x, *, axes):
    """Reorder the axes."""
    if sorted(a % x.ndim if x.ndim else a for a in axes) != list(range(x.ndim)):
        raise ValueError(f"permute: axes {axes} don't name each axis of {x.shape} once")
    inverse = sorted(range(x.ndim), key=lambda i: axes[i] % x.ndim)
    return x.data.transpose(axes), (lambda g: g.permute(*inverse),)


@op
def broadcast_to(x, *, shape):
    """Repeat the values along axes of length 1 and new leading axes, as a new array."""
    before = x.shape
    y = x.backend.empty(shape, x.dtype)
    y[...] = x.data
    return y, (lambda g: unbroadcast(g, before),)


@op(view=True)
def getitem(x, *, index):
    """x[index], for every kind of index that NumPy knows, given as a tuple."""
    shape = x.shape
    return x.data[index], (lambda g: index_add(g, index=index, shape=shape),)


@op
def index_add(g, *, index, shape):
    """Add g into zeros of `shape` at `index`: the adjoint of getitem."""
    x = g.backend.zeros(shape, g.dtype)
    if all(part is None or part is ... or isinstance(part, int | slice) for part in index):
        x[index] = g.data
    else:  # an index array may name a place twice
        g.backend.xp.add.at(x, index, g.data)
    return x, (lambda h: h[index],)


@op
def concatenate(*xs, axis):
    """Join along an existing axis."""
    xp, axis = xs[0].backend.xp, axis % xs[0].ndim
    stops = [0]
    for x in xs:
        stops.append(stops[-1] + x.shape[axis])
    parts = [(slice(None),) * axis + (slice(a, b),) for a, b in pairwise(stops)]
    y = xs[0].backend.empty((*xs[0].shape[:axis], stops[-1], *xs[0].shape[axis + 1 :]), xs[0].dtype)
    xp.concatenate([x.data for x in xs], axis, out=y)
    return y, tuple(lambda g, part=part: g[part] for part in parts)


@op
def pad(x, *, pad_width):
    """Surround x with zeros: pad_width is ((before, after), ...) for each axis, as numpy.pad."""
    inside = tuple(slice(a, a + n) for (a, _), n in zip(pad_width, x.shape, strict=True))
    sizes = (n + a + b for (a, b), n in zip(pad_width, x.shape, strict=True))
    y = x.backend.zeros(tuple(sizes), x.dtype)
    y[inside] = x.data
    return y, (lambda g: g[inside],)
