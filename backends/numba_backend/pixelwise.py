"""1x1 convolutions of stride 1: no pixel meets another, so all images are one row of pixels.

Tiles are ROWS pixels of a row. Of an image 28 pixels wide every fourth tile would be half empty;
cut into rows of 64 pixels, whatever image they are from, all tiles are full. The products are
`direct.py`'s.
"""

from __future__ import annotations

import math
from typing import Any

from ..base import Array, nchw
from ..geometry import Shape
from . import direct
from .arrays import images

ROW = 64  # pixels


def conv2d(x: Array, w: Array, bias: Array = None, residual: Array = None, **at: Any) -> Array:
    """Cross-correlate x (N, C, H, W) with w (O, C, 1, 1); add bias, residual; apply relu."""
    residual = None if residual is None else _as_rows(residual)
    return _as_images(direct.conv2d(_as_rows(x), w, bias, residual, **at), x.shape)


def conv2d_input_grad(
    g: Array, w: Array, *, x_shape: Shape, plus: Array = None, **at: Any
) -> Array:
    """Gradient with respect to x, and `plus` if given: g (N, O, H, W) -> (N, C, H, W)."""
    rows = _as_rows(g)
    shape = (len(rows), x_shape[1], *rows.shape[2:])
    plus = None if plus is None else _as_rows(plus)
    return _as_images(direct.conv2d_input_grad(rows, w, x_shape=shape, plus=plus, **at), x_shape)


def conv2d_weight_grad(g: Array, x: Array, **at: Any) -> Array:
    """Gradient of conv2d with respect to w: g (N, O, H, W), x (N, C, H, W) -> (O, C, 1, 1)."""
    return direct.conv2d_weight_grad(_as_rows(g), _as_rows(x), **at)


def row_length(shape: Shape) -> int:
    """Choose the length of the rows that images (N, C, H, W) are cut into: a power of two.

    >>> row_length((128, 3, 32, 32)), row_length((8, 3, 7, 7)), row_length((1, 3, 7, 7))
    (64, 8, 1)
    """
    N, _, H, W = shape
    return math.gcd(N * H * W, ROW)


def _as_rows(a: Array) -> Array:
    """View images (N, C, H, W) as rows (N', C, 1, W')."""
    return nchw(images(a).reshape(-1, 1, row_length(a.shape), a.shape[1]))  # (N', 1, W', C)


def _as_images(rows: Array, shape: Shape) -> Array:
    """View rows (N', O, 1, W') as images (N, O, H, W)."""
    N, _, H, W = shape
    return nchw(images(rows).reshape(N, H, W, -1))
