"""Fold batch normalisation into the convolutions before it, for inference.

In evaluation batch norm is y * scale + shift with constant scale = weight / sqrt(var + eps) and
shift = bias - mean * scale. The scale moves into the convolution's weights, the shift is its bias.
Most kernels of `numba` and `cupy` do it, the residual and the ReLU where they write their output.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy

from .. import functional as F
from ..tensor import Tensor
from .layers import BatchNorm2d, Conv2d, Identity
from .module import Module, Parameter


class FoldedConv2d(Module):
    """A convolution and the batch norm after it, in that one's place."""

    extra_repr = Conv2d.extra_repr

    def __init__(self, conv: Conv2d, weight: Parameter, bias: Parameter) -> None:
        self.weight, self.bias, self.settings = weight, bias, conv.settings

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Convolve, add `residual`, apply relu."""
        return F.conv2d(x, self.weight, self.bias, **self.settings, residual=residual, relu=relu)


def fold_batch_norm(model: Module) -> Module:
    """Return an inference-only copy in which batch norms are folded into their convolutions.

    Folded is every BatchNorm2d whose attribute stands right after a Conv2d's with as many channels
    (conv1, bn1): the convolution's output must go to that batch norm and nowhere else. An Identity
    takes the convolution's place.
    """
    folded = copy.deepcopy(model).eval()
    for module in list(folded.modules()):
        for (before, conv), (name, bn) in pairwise(list(module.named_children())):
            if not (isinstance(conv, Conv2d) and isinstance(bn, BatchNorm2d)):
                continue
            if conv.weight.shape[0] == bn.weight.size:
                setattr(module, before, Identity().eval())
                setattr(module, name, _fold(conv, bn).eval())
    for p in folded.parameters():
        p.requires_grad = False
    return folded


def _fold(conv: Conv2d, bn: BatchNorm2d) -> FoldedConv2d:
    backend = conv.weight.backend
    variance = bn.running_var.numpy().astype(numpy.float64)
    scale = bn.weight.numpy() / numpy.sqrt(variance + bn.eps)
    before = 0.0 if conv.bias is None else conv.bias.numpy()
    shift = bn.bias.numpy() + (before - bn.running_mean.numpy()) * scale
    weight = conv.weight.numpy() * scale[:, None, None, None]
    dtype = conv.weight.dtype
    folded = (Parameter(a.astype(dtype), backend=backend) for a in (weight, shift))
    return FoldedConv2d(conv, *folded)
