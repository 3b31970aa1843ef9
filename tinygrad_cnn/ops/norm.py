"""Normalisation. One kernel gives all gradients; when the walk is recorded, its formula does.

The kernels can't be differentiated again, the formulas, written in tensors, can.
"""

from __future__ import annotations

from ..autograd import op, recording
from .elementwise import relu_grad
from .shape import pad


@op
def batch_norm(x, weight, bias, *residual, mean, var, eps, relu, on_statistics):
    """Normalise x (N, C, H, W) per channel, add the residual, apply relu.

    With `mean` and `var` None they are the batch's, and on_statistics(mean, var) is told them.
    Ioffe & Szegedy, arXiv 1502.03167, algorithm 1.
    """
    training, n_residual = mean is None, len(residual)  # the count: capturing them would hold them
    arrays = [t.data for t in (x, weight, bias, *residual)]
    y, mean, var = x.backend.batch_norm(*arrays, mean=mean, var=var, eps=eps, relu=relu)
    if training:
        on_statistics(mean, var)
    at = dict(mean=mean, var=var, eps=eps, training=training)

    def vjp(g, needs, relu_of=None, plus=None):  # relu_of: the result, where it is a ReLU's
        if any(needs[:3]) and not recording.get():
            waiting = None if plus is None else plus.data
            how = dict(y=relu_of, residual=n_residual > 0, overwrite_g=g.spare, plus=waiting)
            grads = g.backend.batch_norm_grad(g.data, x.data, weight.data, bias.data, **how, **at)
            return [g.constant(dx) for dx in grads[: 3 + n_residual]]
        g = g if relu_of is None else relu_grad(g, y=relu_of)
        dx_dw_db = _formula(g, x, weight, **at) if any(needs[:3]) else (None, None, None)
        return (*dx_dw_db, *[g] * n_residual)

    return y, (lambda g, needs, y, plus=None: vjp(g, needs, y.data, plus)) if relu else vjp


def _formula(g, x, weight, *, mean, var, eps, training):
    shape, axes = (1, -1, 1, 1), (0, 2, 3)
    if training:
        centred = x - x.mean(axes, keepdims=True)
        inv_std = ((centred * centred).mean(axes, keepdims=True) + eps) ** -0.5
    else:
        centred = x - x.constant(mean.astype(x.dtype).reshape(shape))
        inv_std = x.constant(((var + eps) ** -0.5).astype(x.dtype).reshape(shape))
    x_hat = centred * inv_std
    dx = g
    if training:  # mean and var depend on x too: remove g's components along 1 and x_hat
        dx = g - g.mean(axes, keepdims=True) - x_hat * (g * x_hat).mean(axes, keepdims=True)
    return dx * (weight.reshape(shape) * inv_std), (g * x_hat).sum(axes), g.sum(axes)


@op
def local_response_norm(x, *, size, alpha, beta, k):
    """Divide x by (k + alpha/size * sum of squares over `size` neighbouring channels) ** beta.

    Krizhevsky et al., NIPS 2012, section 3.3; alpha is divided by size, as in PyTorch.
    """
    at = dict(size=size, alpha=alpha, beta=beta)
    y, scale = x.backend.local_response_norm(x.data, k=k, **at)

    def vjp(g):
        if recording.get():
            return _lrn_formula(g, x, k=k, **at)
        return g.constant(x.backend.local_response_norm_grad(g.data, x.data, scale, **at))

    return y, (vjp,)


def _lrn_formula(g, x, *, size, alpha, beta, k):
    before, after = size // 2, (size - 1) // 2
    scale = k + alpha / size * _window_sum(x * x, before=before, after=after)
    spread = _window_sum(g * x * scale ** (-beta - 1), before=after, after=before)
    return g * scale**-beta - 2 * alpha * beta / size * x * spread


def _window_sum(x, *, before, after):
    """Sum (N, C, H, W) over the channels c - before ... c + after."""
    padded = pad(x, pad_width=((0, 0), (before, after), (0, 0), (0, 0)))
    c = x.shape[1]
    return sum((padded[:, i : i + c] for i in range(1, before + after + 1)), padded[:, :c])
