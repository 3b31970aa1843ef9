"""Softmax and cross-entropy, with its gradient, in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import Array
from .launch import Program, blocks

if TYPE_CHECKING:
    from . import CupyBackend

LOSS = Program("loss.cu", "softmax_cross_entropy<T>")
LANES, ROWS = 32, 8  # a warp for each row, so many rows in a block


def softmax_cross_entropy(
    backend: CupyBackend, logits: Array, targets: Array, *, label_smoothing: float
) -> tuple[Array, Array]:
    """Give each row's loss (N,) and its gradient softmax(logits) - target distribution (N, K)."""
    losses = backend.empty(logits.shape[:1], logits.dtype)
    gradient = backend.empty(logits.shape, logits.dtype)
    arrays = backend.flat(logits), backend.xp.ascontiguousarray(targets, "int64")
    args = (*arrays, *logits.shape, float(label_smoothing), losses, gradient)
    grid = (blocks(len(logits), ROWS),)
    backend.launch(LOSS, LOSS.kernels[0], logits.dtype, grid, LANES * ROWS, args)
    return losses, gradient
