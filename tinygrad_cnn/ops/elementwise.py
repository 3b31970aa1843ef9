"""Elementwise ops. Every gradient is a product with the local derivative."""

from __future__ import annotations

import math
import operator
from contextvars import ContextVar

from ..autograd import op

rule_in_force: ContextVar[str] = ContextVar("relu_rule", default="gradient")


@op(broadcasts=True)
def add(x, y):
    """x + y."""
    return x.backend.add(x.data, y.data), (lambda g: g, lambda g: g)


@op(broadcasts=True)
def sub(x, y):
    """x - y."""
    return x.backend.map(operator.sub, x.data, y.data), (lambda g: g, lambda g: -g)


@op(broadcasts=True)
def mul(x, y):
    """x * y."""
    return x.backend.map(operator.mul, x.data, y.data), (lambda g: g * y, lambda g: g * x)


@op(broadcasts=True)
def div(x, y):
    """x / y."""
    return x.backend.map(operator.truediv, x.data, y.data), (
        lambda g: g / y,
        lambda g: -g * (x / y) / y,
    )


@op
def neg(x):
    """-x."""
    return x.backend.map(operator.neg, x.data), (lambda g: -g,)


@op
def power(x, *, exponent):
    """x ** exponent, for a number."""
    p = exponent
    return x.backend.map(lambda a: a**p, x.data), (
        lambda g: g * (p * x ** (p - 1)) if p else g * 0.0,  # x**0 is flat, even at 0
    )


@op
def exp(x):
    """e ** x."""
    return x.backend.map(x.backend.xp.exp, x.data), (lambda g, y: g * y,)


@op
def log(x):
    """Natural logarithm."""
    return x.backend.map(x.backend.xp.log, x.data), (lambda g: g / x,)


@op
def sqrt(x):
    """Square root."""
    return x.backend.map(x.backend.xp.sqrt, x.data), (lambda g, y: g / (2.0 * y),)


@op
def abs(x):
    """|x|; the subgradient at 0 is 0."""
    sign = x.constant(x.backend.map(x.backend.xp.sign, x.data))
    return x.backend.map(operator.abs, x.data), (lambda g: g * sign,)


@op
def clip(x, *, low, high):
    """Limit x to [low, high]; a value on the limit still passes its gradient, as in PyTorch."""
    clipped = x.backend.map(lambda a: x.backend.xp.clip(a, low, high), x.data)
    inside = x.constant(x.backend.map(operator.eq, x.data, clipped).astype(x.dtype))
    return clipped, (lambda g: g * inside,)


@op
def erf(x):
    """2 / sqrt(pi) * integral of exp(-t^2) from 0 to x."""
    return x.backend.erf(x.data), (lambda g: g * ((-x * x).exp() * (2 / math.sqrt(math.pi))),)


# ---- activations ----


@op
def tanh(x):
    """Hyperbolic tangent."""
    return x.backend.map(x.backend.xp.tanh, x.data), (lambda g, y: g * (1.0 - y * y),)


@op
def sigmoid(x):
    """1 / (1 + e**-x), precise where it is close to 0, and without overflow."""
    xp = x.backend.xp
    return x.backend.map(lambda a: xp.exp(-xp.logaddexp(0, -a)), x.data), (
        lambda g, y: g * (y * (1.0 - y)),
    )


@op
def relu(x):
    """max(x, 0); its vjp follows the `relu_rule` in force."""
    return x.backend.relu(x.data), (RELU_RULES[rule_in_force.get()],)


@op
def relu_grad(g, *, y):
    """Pass g where the array y = relu(x) is positive. The mask is constant almost everywhere."""
    return g.backend.relu_grad(g.data, y), (lambda h: relu_grad(h, y=y),)


@op(broadcasts=True)
def where(x, y, *, condition):
    """x where the boolean array `condition` holds, else y."""
    condition = x.backend.asarray(condition)
    return x.backend.map(x.backend.xp.where, condition, x.data, y.data), (
        lambda g: where(g, 0.0, condition=condition),
        lambda g: where(0.0, g, condition=condition),
    )


@op
def astype(x, *, dtype):
    """Convert to another dtype; the gradient is converted back."""
    before = x.dtype
    return x.data.astype(dtype), (lambda g: astype(g, dtype=before),)


RELU_RULES = {
    "gradient": lambda g, y: relu_grad(g, y=y.data),
    "deconv": lambda g, y: relu(g),
    "guided": lambda g, y: relu_grad(relu(g), y=y.data),
}
