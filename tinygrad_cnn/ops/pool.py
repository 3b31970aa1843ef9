"""Pooling. Its gradients scatter what its forward passes gather."""

from __future__ import annotations

from ..autograd import op


@op
def max_pool2d(x, *, kernel_size, stride, padding):
    """Take the largest pixel of each window: (N, C, H, W) -> (N, C, H', W')."""
    at, x_shape = dict(kernel_size=kernel_size, stride=stride, padding=padding), x.shape
    y, argmax = x.backend.max_pool2d(x.data, **at)
    return y, (lambda g: max_pool2d_grad(g, argmax=argmax, x_shape=x_shape, **at),)


@op
def max_pool2d_grad(g, *, argmax, x_shape, **at):
    """Send each gradient to the pixel that won: (N, C, H', W') -> (N, C, H, W)."""
    return g.backend.max_pool2d_grad(g.data, argmax, x_shape=x_shape, **at), (
        lambda h: max_pool2d_gather(h, argmax=argmax, **at),
    )


@op
def max_pool2d_gather(x, *, argmax, **at):
    """Read x at the pixels that won: (N, C, H, W) -> (N, C, H', W')."""
    x_shape = x.shape
    return x.backend.max_pool2d_gather(x.data, argmax, **at), (
        lambda g: max_pool2d_grad(g, argmax=argmax, x_shape=x_shape, **at),
    )


@op
def avg_pool2d(x, *, kernel_size, stride, padding):
    """Average each window, zeros of the padding included: (N, C, H, W) -> (N, C, H', W')."""
    at, x_shape = dict(kernel_size=kernel_size, stride=stride, padding=padding), x.shape
    return x.backend.avg_pool2d(x.data, **at), (
        lambda g: avg_pool2d_grad(g, x_shape=x_shape, **at),
    )


@op
def avg_pool2d_grad(g, *, x_shape, **at):
    """Spread each gradient evenly over its window: (N, C, H', W') -> (N, C, H, W)."""
    return g.backend.avg_pool2d_grad(g.data, x_shape=x_shape, **at), (
        lambda h: avg_pool2d(h, **at),
    )
