"""Convolution and its two gradients: bilinear but for what the first may add, and closed."""

from __future__ import annotations

from ..autograd import op
from .elementwise import relu_grad


@op
def conv2d(x, w, *added, stride, padding, dilation, groups, relu=False):
    """Cross-correlate x (N, C, H, W) with w (O, C/groups, kh, kw) -> (N, O, H', W').

    `added` may be a bias (O,), or that and a residual (N, O, H', W'); relu is applied last.
    """
    at = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    x_shape, w_shape = x.shape, w.shape
    y = x.backend.conv2d(*(t.data for t in (x, w, *added)), relu=relu, **at)
    vjps = (
        lambda g, plus=None: conv2d_input_grad(g, w, x_shape=x_shape, plus=plus, **at),
        lambda g: conv2d_weight_grad(g, x, w_shape=w_shape, **at),
        lambda g: g.sum((0, 2, 3)),
        lambda g: g,
    )[: 2 + len(added)]
    return y, tuple(map(_masked, vjps)) if relu else vjps


def _masked(vjp):
    """Give a vjp what the ReLU let pass; each masks g anew, but a folded net has use for one."""
    return lambda g, y: vjp(relu_grad(g, y=y.data))


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
