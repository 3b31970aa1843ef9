"""Fold batch normalisation into the convolutions before it, for inference.

In evaluation batch norm is y * scale + shift with constant scale = weight / sqrt(var + eps) and
shift = bias - mean * scale. The scale moves into the convolution's weights; the shift, the residual
and the ReLU are one pass on `numba` and `cupy`.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy

from .. import functional as F
from ..tensor import Tensor
from .layers import BatchNorm2d, Conv2d
from .module import Module, Parameter


class FoldedBatchNorm2d(Module):
    """What is left of a folded batch norm: the shift, the residual and the ReLU.

    They are a batch norm of mean 0, variance 1 and scale 1.
    """

    def __init__(self, shift: Tensor) -> None:
        self.shift = shift
        self.zeros, self.ones = (
            Tensor(fill(shift.shape, shift.dtype), backend=shift.backend)
            for fill in (numpy.zeros, numpy.ones)
        )

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Add shift and residual, apply relu."""
        return F.batch_norm(
            x, self.zeros, self.ones, self.ones, self.shift, False, eps=0.0, residual=residual,
            relu=relu,
        )  # fmt: skip


def fold_batch_norm(model: Module) -> Module:
    """Return an inference-only copy in which batch norms are folded into their convolutions.

    Folded is every BatchNorm2d whose attribute stands right after a Conv2d's with as many channels
    (conv1, bn1): the convolution's output must go to that batch norm and nowhere else.
    """
    folded = copy.deepcopy(model).eval()
    for module in list(folded.modules()):
        for (_, conv), (name, bn) in pairwise(list(module.named_children())):
            if not (isinstance(conv, Conv2d) and isinstance(bn, BatchNorm2d)):
                continue
            if conv.weight.shape[0] == bn.weight.size:
                setattr(module, name, FoldedBatchNorm2d(_fold(conv, bn)).eval())
    for p in folded.parameters():
        p.requires_grad = False
    return folded


def _fold(conv: Conv2d, bn: BatchNorm2d) -> Tensor:
    """Move the scale into the weights; give the shift, with the convolution's bias in it."""
    backend = conv.weight.backend
    variance = bn.running_var.numpy().astype(numpy.float64)
    scale = bn.weight.numpy() / numpy.sqrt(variance + bn.eps)
    before = 0.0 if conv.bias is None else conv.bias.numpy()
    shift = bn.bias.numpy() + (before - bn.running_mean.numpy()) * scale
    dtype = conv.weight.dtype
    weight = (conv.weight.numpy() * scale[:, None, None, None]).astype(dtype)
    conv.weight, conv.bias = Parameter(weight, backend=backend), None
    return Tensor(shift.astype(dtype), backend=backend)
