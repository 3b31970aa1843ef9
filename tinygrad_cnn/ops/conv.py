"""Convolution. It and its two gradients are bilinear: three ops, closed under differentiation."""

from __future__ import annotations

from ..autograd import op


@op
def conv2d(x, w, *, stride, padding, dilation, groups):
    """Cross-correlate x (N, C, H, W) with w (O, C/groups, kh, kw) -> (N, O, H', W')."""
    at = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    x_shape, w_shape = x.shape, w.shape
    return x.backend.conv2d(x.data, w.data, **at), (
        lambda g, plus=None: conv2d_input_grad(g, w, x_shape=x_shape, plus=plus, **at),
        lambda g: conv2d_weight_grad(g, x, w_shape=w_shape, **at),
    )


@op
def conv2d_input_grad(g, w, *, x_shape, plus=None, **at):
    """Gradient of conv2d with respect to x, added to `plus`: g (N, O, H', W'), w -> (N, C, H, W).

    `plus` is a constant: nothing is recorded when there is one.
    """
    w_shape, plus = w.shape, None if plus is None else plus.data
    return g.backend.conv2d_input_grad(g.data, w.data, x_shape=x_shape, plus=plus, **at), (
        lambda h: conv2d(h, w, **at),
        lambda h: conv2d_weight_grad(g, h, w_shape=w_shape, **at),
    )


@op
def conv2d_weight_grad(g, x, *, w_shape, **at):
    """Gradient of conv2d with respect to w: g (N, O, H', W'), x (N, C, H, W) -> w's shape."""
    x_shape = x.shape
    return g.backend.conv2d_weight_grad(g.data, x.data, w_shape=w_shape, **at), (
        lambda h: conv2d(x, h, **at),
        lambda h: conv2d_input_grad(g, h, x_shape=x_shape, **at),
    )
