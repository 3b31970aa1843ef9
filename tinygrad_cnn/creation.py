"""Ways to make a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from .backends import Backend
from .random import generator
from .tensor import Tensor, unpack


def tensor(
    data: Any, requires_grad: bool = False, dtype: Any = None, backend: str | Backend | None = None
) -> Tensor:
    """Copy data into a new tensor; lists become float32, arrays keep their dtype."""
    made = Tensor(data, dtype=dtype, backend=backend)
    return Tensor(made.data.copy(order="K"), requires_grad, backend=made.backend)


def full(
    shape: int | Sequence[int],
    value: float,
    requires_grad: bool = False,
    dtype: Any = numpy.float32,
    backend: str | Backend | None = None,
) -> Tensor:
    """Make a tensor of one repeated value."""
    return Tensor(numpy.full(shape, value, dtype), requires_grad, backend=backend)


def zeros(
    *shape: Any, requires_grad: bool = False, dtype: Any = numpy.float32, backend: Any = None
) -> Tensor:
    """Make a tensor of zeros: zeros(2, 3) or zeros((2, 3))."""
    return full(unpack(shape), 0, requires_grad, dtype, backend)


def ones(
    *shape: Any, requires_grad: bool = False, dtype: Any = numpy.float32, backend: Any = None
) -> Tensor:
    """Make a tensor of ones."""
    return full(unpack(shape), 1, requires_grad, dtype, backend)


def randn(
    *shape: Any,
    rng: numpy.random.Generator | None = None,
    requires_grad: bool = False,
    dtype: Any = numpy.float32,
    backend: Any = None,
) -> Tensor:
    """Draw from the standard normal distribution; rng=None is the generator of `manual_seed`."""
    values = generator(rng).standard_normal(unpack(shape)).astype(dtype)
    return Tensor(values, requires_grad, backend=backend)
