"""Reductions. Every gradient is a broadcast."""

from __future__ import annotations

import operator

from ..autograd import op
from .shape import broadcast_to


def dropped(y, axis, keepdims):
    """Drop the axes of length 1 that a reduction left."""
    return y if keepdims else y.squeeze(axis)


def spread(g, *, kept, shape):
    """Undo a reduction: give every element its result's gradient."""
    return broadcast_to(g.reshape(kept), shape=shape)


@op
def sum(x, *, axis, keepdims):
    """Add up along axis."""
    y = x.data.sum(axis, keepdims=True)
    at = dict(kept=y.shape, shape=x.shape)
    return dropped(y, axis, keepdims), (lambda g: spread(g, **at),)


@op
def mean(x, *, axis, keepdims):
    """Average along axis."""
    y = x.data.mean(axis, keepdims=True)
    at, count = dict(kept=y.shape, shape=x.shape), x.size / (y.size or 1)
    return dropped(y, axis, keepdims), (lambda g: spread(g / count, **at),)


@op
def max(x, *, axis, keepdims):
    """Take the largest along axis; equal largest values share the gradient evenly."""
    return _extreme(x, x.data.max(axis, keepdims=True), axis, keepdims)


@op
def min(x, *, axis, keepdims):
    """Take the smallest along axis; equal smallest values share the gradient evenly."""
    return _extreme(x, x.data.min(axis, keepdims=True), axis, keepdims)


def _extreme(x, y, axis, keepdims):
    winners = (x.data == y).astype(x.dtype)
    share, kept = x.constant(winners / winners.sum(axis, keepdims=True)), y.shape
    return dropped(y, axis, keepdims), (lambda g: spread(g, kept=kept, shape=share.shape) * share,)


@op
def logsumexp(x, *, axis, keepdims):
    """log(sum(exp(x))) along axis; the largest value is taken out, so that nothing overflows."""
    xp, top = x.backend.xp, x.data.max(axis, keepdims=True)
    top = xp.where(xp.isfinite(top), top, 0)  # where all are -inf, the answer is -inf, not NaN
    y = xp.log(xp.exp(x.data - top).sum(axis, keepdims=True)) + top
    at = dict(kept=y.shape, shape=x.shape)
    return dropped(y, axis, keepdims), (lambda g, y: spread(g, **at) * (x - spread(y, **at)).exp(),)


@op
def softmax(x, *, axis):
    """exp(x) / sum(exp(x)) along axis."""
    e = x.backend.map(x.backend.xp.exp, _below_zero(x, axis))
    return x.backend.map(operator.truediv, e, e.sum(axis, keepdims=True)), (
        lambda g, y: y * (g - (g * y).sum(axis, keepdims=True)),
    )


@op
def log_softmax(x, *, axis):
    """x - logsumexp(x) along axis."""
    z = _below_zero(x, axis)
    log_sum = x.backend.xp.log(x.backend.xp.exp(z).sum(axis, keepdims=True))
    return x.backend.map(operator.sub, z, log_sum), (
        lambda g, y: g - y.exp() * g.sum(axis, keepdims=True),
    )


def _below_zero(x, axis):
    """Shift x so that its largest value along axis is 0: exponentials then can't overflow."""
    return x.backend.map(operator.sub, x.data, x.data.max(axis, keepdims=True))
