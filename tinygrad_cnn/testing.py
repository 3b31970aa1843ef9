"""Tools to test ops with, the engine's and your own: adjoint identities and hypothesis strategies.

>>> import tinygrad_cnn as tg
>>> x = tg.randn(2, 3, 4, 5, rng=numpy.random.default_rng(0), requires_grad=True)
>>> assert_adjoint(tg.functional.global_avg_pool2d, x)

The strategies need `pip install 'tinygrad_cnn[test]'`, the rest doesn't. Hypothesis draws shapes
and settings, where the bugs are; a generator seeded with a drawn number gives the values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy

from .backends.geometry import Pair, Shape, conv_padding
from .tensor import Tensor, grad

Array = numpy.ndarray[Any, Any]
Function = Callable[..., Tensor]


# ---- adjoint identities ----


def assert_adjoint(fn: Function, *inputs: Tensor, rtol: float = 1e-5) -> None:
    """Demand <fn(*x), g> = <x, vjp(g)> for a function that is linear in all its inputs jointly.

    It holds to rounding and needs no epsilon, so float32 and a GPU's kernels can be checked as they
    are. Raises AssertionError if the two differ by more than rtol times the terms' sizes.
    """
    y = fn(*inputs)
    g = _leaning(y)
    terms: list[Any] = list(zip(inputs, grad([y], inputs, [g]), strict=True))
    forward, backward = _inner(y, g), sum(_inner(x, dx) for x, dx in terms)
    size = sum(_inner(abs(a.detach()), abs(b)) for a, b in [(y, g), *terms])
    if not abs(forward - backward) <= rtol * size:
        raise AssertionError(
            f"adjoint: <fn(x), g> is {forward:.9g}, but <x, vjp(g)> is {backward:.9g}"
        )


def assert_multilinear_adjoint(fn: Function, *inputs: Tensor, rtol: float = 1e-5) -> None:
    """Demand assert_adjoint's identity of each input by itself, the others held fixed."""
    for i, x in enumerate(inputs):
        assert_adjoint(lambda x, i=i: fn(*inputs[:i], x, *inputs[i + 1 :]), x, rtol=rtol)


def _leaning(y: Tensor) -> Tensor:
    """Draw random numbers that lean towards y, so that no error hides in a small <y, g>."""
    values = y.numpy()
    noise = numpy.random.default_rng(0).standard_normal(y.shape)
    size = numpy.sqrt(numpy.square(values, dtype=numpy.float64).mean()) if y.size else 0.0
    return y.constant(y.backend.asarray((values + size * noise).astype(y.dtype)))


def _inner(a: Tensor, b: Tensor) -> float:
    return float(numpy.vdot(a.numpy().astype(numpy.float64), b.numpy()))


# ---- values ----


def channels_last(a: Array) -> Array:
    """Copy `a` so that its second axis varies fastest in memory."""
    if a.ndim < 3:
        return a.copy()
    return numpy.moveaxis(numpy.ascontiguousarray(numpy.moveaxis(a, 1, -1)), -1, 1)


def ladder_values(shape: Shape, rng: numpy.random.Generator, *, step: float = 0.1) -> Array:
    """Shuffle the odd multiples of step/2 nearest to 0: no ties, none at 0, all `step` apart.

    relu, max and max-pooling have kinks, at which finite differences mean nothing.
    """
    size = int(numpy.prod(shape))
    return rng.permutation(step * (numpy.arange(size) - size // 2 + 0.5)).reshape(shape)


# ---- strategies ----


class _Strategies:
    """hypothesis.strategies, imported at the first use: the rest of this file works without."""

    def __getattr__(self, name: str) -> Any:
        try:
            from hypothesis import strategies
        except ImportError:
            raise ImportError(
                "tinygrad_cnn.testing: its strategies need hypothesis; "
                "pip install 'tinygrad_cnn[test]'"
            ) from None
        return getattr(strategies, name)


st = _Strategies()


def strategy(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make fn(draw, ...) a strategy: hypothesis's `composite`, not imported before it is called."""

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return st.composite(fn)(*args, **kwargs)

    return call


def pairs(least: int, most: int) -> Any:
    """Draw (height, width)."""
    return st.tuples(*[st.integers(least, most)] * 2)


def shapes(min_axes: int = 0, max_axes: int = 4, min_side: int = 1, max_side: int = 5) -> Any:
    """Draw a shape; min_side=0 draws empty ones too."""
    sides = st.integers(min_side, max_side)
    return st.lists(sides, min_size=min_axes, max_size=max_axes).map(tuple)


@strategy
def arrays(
    draw: Any, shape: Any = None, dtype: Any = "float64", low: float = -2.0, high: float = 2.0,
    step: float | None = None,
) -> Array:  # fmt: skip
    """Draw evenly from [low, high], for a shape or a strategy of shapes (None: `shapes()`).

    With `step` the values are its multiples, so that ties and kinks come up often.
    """
    rng = numpy.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.uniform(low, high, _shape(draw, shape))
    return (numpy.round(values / step) * step if step else values).astype(dtype)


@strategy
def ladder(draw: Any, shape: Any = None, dtype: Any = "float64", step: float = 0.1) -> Array:
    """Draw tie-free values, none nearer than step/2 to 0; see `ladder_values`."""
    rng = numpy.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return ladder_values(_shape(draw, shape), rng, step=step).astype(dtype)


def _shape(draw: Any, shape: Any) -> Shape:
    if isinstance(shape, tuple):
        return shape
    return draw(shapes() if shape is None else shape)


@strategy
def layouts(draw: Any, a: Array) -> Array:
    """Draw the same values in C order, channels-last, with gaps or backwards."""
    kind = draw(st.sampled_from(["C", "channels-last", "gaps", "backwards"]))
    if kind == "channels-last":
        return channels_last(a)
    if kind == "C" or not a.ndim:
        return a.copy()
    if kind == "backwards":
        return a[..., ::-1].copy()[..., ::-1]
    return numpy.repeat(a, 2, axis=-1)[..., ::2]


@strategy
def image_batches(
    draw: Any, size: Any = None, channels: Any = None, dtype: Any = "float64", max_batch: int = 3
) -> Array:
    """Draw images (N, C, H, W) in any layout; N may be 0, H and W differ, any side may be 1."""
    c = draw(st.integers(1, 4) if channels is None else channels)
    h, w = draw(pairs(1, 7) if size is None else size)
    shape = (draw(st.integers(0, max_batch)), c, h, w)
    return draw(layouts(draw(arrays(shape, dtype))))


@strategy
def conv2d_cases(
    draw: Any, dtype: Any = "float64", channels: Any = None, groups: Any = None
) -> Any:
    """Draw (x, w, settings), as functional.conv2d takes them, of any legal convolution.

    Strided, dilated, grouped, depthwise, "same", over empty batches. `groups` draws how many groups
    there are, `channels` how many channels, and how many filters, one group has.
    """
    groups = draw(st.integers(1, 3) if groups is None else groups)
    channels = st.integers(1, 3) if channels is None else channels
    kernel, dilation = draw(pairs(1, 4)), draw(pairs(1, 3))
    stride = draw(st.one_of(st.just((1, 1)), pairs(1, 5)))
    named = ["valid", "same"] if stride == (1, 1) else ["valid"]  # "same": asymmetric if even
    padding = draw(st.one_of(pairs(0, 3), st.sampled_from(named)))
    c, o = draw(channels), draw(channels)
    pads = conv_padding(padding, kernel=kernel, stride=stride, dilation=dilation)
    reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    size = _sizes(reach, tuple(map(sum, pads)))
    x = draw(image_batches(size, st.just(c * groups), dtype, max_batch=2))
    w = draw(layouts(draw(arrays((o * groups, c, *kernel), dtype))))
    return x, w, dict(stride=stride, padding=padding, dilation=dilation, groups=groups)


@strategy
def pool2d_cases(draw: Any, dtype: Any = "float64", tie_free: bool = True) -> Any:
    """Draw (x, settings), as functional.max_pool2d takes them, of any legal pooling.

    Overlapping, with gaps, padded, over empty batches.
    """
    kernel = draw(pairs(1, 4))
    stride = draw(st.one_of(st.none(), pairs(1, 5)))
    padding = draw(st.tuples(*(st.integers(0, k // 2) for k in kernel)))
    h, w = draw(_sizes(kernel, tuple(2 * p for p in padding)))
    shape = (draw(st.integers(0, 2)), draw(st.integers(1, 4)), h, w)
    values = draw(ladder(shape, dtype) if tie_free else arrays(shape, dtype, step=1.0))
    return draw(layouts(values)), dict(kernel_size=kernel, stride=stride, padding=padding)


def _sizes(reach: Sequence[int], pads: Sequence[int]) -> Any:
    """Draw image sizes from the smallest that a kernel fits to 5 pixels more."""
    least: Pair = (max(1, reach[0] - pads[0]), max(1, reach[1] - pads[1]))
    return st.tuples(*(st.integers(n, n + 5) for n in least))
