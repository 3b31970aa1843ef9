"""Losses, one value per row; the mean or sum over the batch is taken outside."""

from __future__ import annotations

from ..autograd import op, recording
from .reduce import softmax


@op
def softmax_cross_entropy(logits, *, targets, label_smoothing):
    """-log softmax(logits)[target] of each row: (N, K) -> (N,)."""
    backend = logits.backend
    losses, d = backend.softmax_cross_entropy(logits.data, targets, label_smoothing=label_smoothing)
    d, rows = logits.constant(d), len(targets)

    def vjp(g):
        if not recording.get():
            return g.reshape(rows, 1) * d
        q = softmax(logits.detach(), axis=1) - d  # the targets' distribution
        return g.reshape(rows, 1) * (softmax(logits, axis=1) - q)

    return losses, (vjp,)


@op
def multiclass_hinge(scores, *, targets, margin):
    """Sum of max(0, s_j - s_target + margin) over j != target, each row: (N, K) -> (N,).

    CS231n's multiclass SVM; Weston & Watkins, 1999.
    """
    xp, rows = scores.backend.xp, scores.backend.xp.arange(len(targets))
    margins = scores.data - scores.data[rows, targets][:, None] + margin
    margins[rows, targets] = 0
    d = (margins > 0).astype(scores.dtype)
    d[rows, targets] = -d.sum(axis=1)
    d = scores.constant(d)
    return xp.maximum(margins, 0).sum(axis=1), (lambda g: g.reshape(len(targets), 1) * d,)
