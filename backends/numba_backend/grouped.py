"""Convolution in groups: each group by itself, on the path that serves it without groups.

Two groups are the two GPUs of Krizhevsky et al., NIPS 2012, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy

from ..base import Array, nhwc
from ..geometry import Shape
from . import NumbaBackend
from .arrays import empty
from .pointwise import add

UNGROUPED = NumbaBackend()


def conv2d(
    x: Array, w: Array, bias: Array = None, residual: Array = None, *, groups: int, **at: Any
) -> Array:
    """Cross-correlate x (N, C, H, W) with w (O, C/groups, kh, kw); add the rest; apply relu."""
    biases = [None] * groups if bias is None else numpy.split(bias, groups)
    residuals = [None] * groups if residual is None else _split(residual, groups)
    shares = zip(_split(x, groups), numpy.split(w, groups), biases, residuals, strict=True)
    return _joined(UNGROUPED.conv2d(*share, groups=1, **at) for share in shares)


def conv2d_input_grad(
    g: Array, w: Array, *, x_shape: Shape, groups: int, plus: Array = None, **at: Any
) -> Array:
    """Gradient with respect to x, and `plus` if given: g (N, O, H', W') -> (N, C, H, W)."""
    N, C, H, W = x_shape
    at |= dict(x_shape=(N, C // groups, H, W), groups=1)
    pairs = zip(_split(g, groups), numpy.split(w, groups), strict=True)
    dx = _joined(UNGROUPED.conv2d_input_grad(*pair, **at) for pair in pairs)
    return dx if plus is None else add(dx, plus, out=dx)


def conv2d_weight_grad(g: Array, x: Array, *, w_shape: Shape, groups: int, **at: Any) -> Array:
    """Gradient of conv2d with respect to w: g (N, O, H', W'), x (N, C, H, W) -> w's shape."""
    O, *of_a_filter = w_shape
    at |= dict(w_shape=(O // groups, *of_a_filter), groups=1)
    pairs = zip(_split(g, groups), _split(x, groups), strict=True)
    return numpy.concatenate([UNGROUPED.conv2d_weight_grad(*pair, **at) for pair in pairs])


def _split(a: Array, groups: int) -> list[Array]:
    """View the groups of channels of images (N, C, H, W)."""
    return numpy.split(a, groups, axis=1)


def _joined(parts: Iterable[Array]) -> Array:
    """Put groups of channels side by side."""
    parts = list(parts)
    N, _, H, W = parts[0].shape
    y = empty((N, sum(part.shape[1] for part in parts), H, W), parts[0].dtype)
    numpy.concatenate([nhwc(part) for part in parts], axis=3, out=nhwc(y))
    return y
