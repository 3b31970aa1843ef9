"""Check gradients against finite differences.

>>> import tinygrad_cnn as tg
>>> rng = numpy.random.default_rng(0)
>>> x = tg.randn(3, 4, rng=rng, dtype="float64", requires_grad=True)
>>> tg.gradcheck(lambda x: x.tanh() * x, [x], order=2)
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy

from .tensor import Tensor, grad

Function = Callable[..., Any]


class GradcheckError(AssertionError):
    """A gradient differs from its finite difference."""


def gradcheck(
    fn: Function,
    inputs: Sequence[Tensor],
    order: int = 1,
    *,
    rtol: float = 1e-6,
    step: float = 1e-3,
    directions: int = 3,
    rng: numpy.random.Generator | None = None,
) -> bool:
    """Compare fn's gradients with finite differences; True, or raise GradcheckError.

    fn(*inputs) gives a tensor or several, float64. Each is projected on random weights, and the
    derivative along `directions` random directions of each input that requires a gradient is
    compared with the five-point formula, whose error is of the order step**4. Inputs must keep
    more than 2*step from kinks. Order 2 checks the gradients, then the gradients of the
    gradients, with respect to the weights too. rng=None draws the same directions every time.
    """
    rng = numpy.random.default_rng(0) if rng is None else rng
    if order < 1:
        raise ValueError(f"gradcheck: order is {order}; expected 1 or more")
    if not any(x.requires_grad for x in inputs):
        raise ValueError("gradcheck: no input requires a gradient; expected at least one")
    if any(x.dtype.kind == "f" and x.dtype.itemsize < 8 for x in inputs):
        raise TypeError(
            "gradcheck: got float32 inputs, too coarse to check; use .astype('float64')"
        )
    inputs, names = list(inputs), [f"input {i}" for i in range(len(inputs))]
    for level in range(1, order + 1):
        weights = [_random_like(y, rng) for y in _several(fn(*inputs))]
        for i, k in product(range(len(inputs)), range(directions)):
            if inputs[i].requires_grad and inputs[i].size:
                v = _random_like(inputs[i], rng)
                expected = _finite_difference(fn, inputs, weights, i, v, step)
                what = f"gradcheck of order {level}: {names[i]} of shape {v.shape}, direction {k}"
                for recorded in {False, level < order}:  # a kernel may serve one, a formula another
                    g = _gradients(fn(*inputs), [inputs[i]], weights, create_graph=recorded)[0]
                    _compare(expected, g, v, what, recorded=recorded, rtol=rtol)
        fn = _gradient_of(fn, len(inputs))
        inputs += [Tensor(w.data, requires_grad=True, backend=w.backend) for w in weights]
        names += [f"weight {i} of the gradients of order {level}" for i in range(len(weights))]
    return True


def _finite_difference(
    fn: Function, inputs: Sequence[Tensor], weights: list[Tensor], i: int, v: Tensor, step: float
) -> float:
    """Estimate the derivative of the projected fn along v in input i by five points."""
    x = inputs[i]

    def along(t: float) -> float:
        moved = Tensor(x.data + t * v.data, requires_grad=True, backend=x.backend)
        return _project(fn(*inputs[:i], moved, *inputs[i + 1 :]), weights)

    near, far = along(step) - along(-step), along(2 * step) - along(-2 * step)
    return (8 * near - far) / (12 * step)


def _compare(
    expected: float, g: Tensor, v: Tensor, what: str, *, recorded: bool, rtol: float
) -> None:
    received = _project(g, [v])
    size = abs(expected) + _project(abs(g), [abs(v)])  # cancellation must not hide in a small sum
    if not abs(expected - received) <= rtol * size + 1e-11:
        raise GradcheckError(
            f"{what}: expected {expected:.10g} (finite differences), received {received:.10g} "
            f"({'recorded ' if recorded else ''}backward)"
        )


def _gradient_of(fn: Function, n_inputs: int) -> Function:
    """Give the function (*inputs, *weights) -> gradients of the projected fn."""

    def gradient(*args: Tensor) -> list[Tensor]:
        inputs, weights = args[:n_inputs], args[n_inputs:]
        wanted = [x for x in inputs if x.requires_grad]
        return _gradients(fn(*inputs), wanted, weights, create_graph=True)

    return gradient


def _gradients(
    outputs: Any, inputs: Sequence[Tensor], weights: Sequence[Tensor], *, create_graph: bool
) -> list[Tensor]:
    """Give the gradients of the projected outputs; zeros where they don't depend on an input."""
    pairs = [(y, w) for y, w in zip(_several(outputs), weights, strict=True) if y.requires_grad]
    if not pairs:
        return [x * 0.0 for x in inputs]
    found = grad([y for y, _ in pairs], inputs, [w for _, w in pairs], create_graph,
                 allow_unused=True)  # fmt: skip
    return [x * 0.0 if g is None else g for g, x in zip(found, inputs, strict=True)]


def _several(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _project(outputs: Any, weights: Sequence[Tensor]) -> float:
    pairs = zip(_several(outputs), weights, strict=True)
    return sum(float((y.numpy() * w.numpy()).sum()) for y, w in pairs)


def _random_like(x: Tensor, rng: numpy.random.Generator) -> Tensor:
    """Draw from [-1, 1], so that a step moves no value further than the step."""
    return x.constant(x.backend.asarray(rng.uniform(-1, 1, x.shape)))
