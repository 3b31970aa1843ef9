"""Fold batch normalisation into the convolutions before it, for inference.

In evaluation batch norm is y * scale + shift with constant scale = weight / sqrt(var + eps) and
shift = bias - mean * scale, so scale and shift can move into the convolution: one pass less each.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy

from ..tensor import Tensor
from .layers import BatchNorm2d, Conv2d
from .module import Module, Parameter


class FoldedBatchNorm2d(Module):
    """What is left of a folded batch norm: the residual and the ReLU."""

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Add the residual, apply relu."""
        y = x if residual is None else x + residual
        return y.relu() if relu else y


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
                _fold(conv, bn)
                setattr(module, name, FoldedBatchNorm2d().eval())
    for p in folded.parameters():
        p.requires_grad = False
    return folded


def _fold(conv: Conv2d, bn: BatchNorm2d) -> None:
    backend = conv.weight.backend
    variance = bn.running_var.numpy().astype(numpy.float64)
    scale = bn.weight.numpy() / numpy.sqrt(variance + bn.eps)
    before = 0.0 if conv.bias is None else conv.bias.numpy()
    shift = bn.bias.numpy() + (before - bn.running_mean.numpy()) * scale
    dtype = conv.weight.dtype
    weight = (conv.weight.numpy() * scale[:, None, None, None]).astype(dtype)
    conv.weight = Parameter(weight, backend=backend)
    conv.bias = Parameter(shift.astype(dtype), backend=backend)
