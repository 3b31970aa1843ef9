"""Matrix products."""

from __future__ import annotations

from ..autograd import op


@op(broadcasts=True)
def matmul(x, y):
    """x @ y for matrices and stacks of matrices (..., n, k) @ (..., k, m) -> (..., n, m)."""
    if min(x.ndim, y.ndim) < 2 or x.shape[-1] != y.shape[-2]:
        raise ValueError(
            f"matmul: got {x.shape} @ {y.shape}; expected (..., n, k) @ (..., k, m). "
            "A vector? v.reshape(1, -1) or v.reshape(-1, 1)"
        )
    return x.backend.matmul(x.data, y.data), (
        lambda g: g @ y.transpose(-1, -2),
        lambda g: x.transpose(-1, -2) @ g,
    )
