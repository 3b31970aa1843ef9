"""Small matrix products, as convolutions of images of one pixel.

With rows as images (N, K, 1, 1), a convolution by 1x1 filters (M, K) is x @ filters.T; its
gradients are the two other arrangements. So each kind of view is read as it lies:

    x @ w.T    conv2d                 rows (N, K), filters (M, K)
    g @ w      conv2d_input_grad      rows (N, M), filters (M, K)
    g.T @ x    conv2d_weight_grad     rows (N, M) and (N, K)

cuBLAS is quicker at large products, but can't be recorded in a CUDA graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..base import Array

if TYPE_CHECKING:
    from . import CupyBackend

POINT: dict[str, Any] = dict(stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1)


def matmul(backend: CupyBackend, x: Array, y: Array) -> Array:
    """x (N, K) @ y (K, M) -> (N, M)."""
    n, m = x.shape[0], y.shape[1]
    if not x.flags.c_contiguous and x.T.flags.c_contiguous:
        w_shape = (n, m, 1, 1)
        z = backend.conv2d_weight_grad(_images(x.T), _images(y), w_shape=w_shape, **POINT)
    elif y.flags.c_contiguous:
        z = backend.conv2d_input_grad(_images(x), _images(y), x_shape=(n, m, 1, 1), **POINT)
    else:
        z = backend.conv2d(_images(x), _images(y.T), **POINT)
    return z.reshape(n, m)


def _images(a: Array) -> Array:
    return a[:, :, None, None]
