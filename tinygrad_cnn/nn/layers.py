"""The layers: each holds its parameters and calls the function of the same name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from .. import functional as F
from ..backends.geometry import pair
from ..creation import ones, zeros
from ..random import generator
from ..tensor import Tensor
from . import init
from .module import Module, Parameter

Pair = int | Sequence[int]


class Linear(Module):
    """x (N, in) -> (N, out)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_init: init.Initializer = init.kaiming_uniform,
        rng: numpy.random.Generator | None = None,
    ) -> None:
        self.weight = Parameter(weight_init((out_features, in_features), generator(rng)))
        self.bias = Parameter(numpy.zeros(out_features, numpy.float32)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x times the weights transposed, plus the bias."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Name inputs and outputs."""
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}{'' if self.bias is not None else ', bias=False'}"


class Conv2d(Module):
    """x (N, C, H, W) -> (N, O, H', W')."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        weight_init: init.Initializer = init.kaiming_uniform,
        rng: numpy.random.Generator | None = None,
    ) -> None:
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: groups={groups} must divide in_channels={in_channels} "
                f"and out_channels={out_channels}"
            )
        kernel = pair(kernel_size, op="Conv2d", name="kernel_size")
        shape = (out_channels, in_channels // groups, *kernel)
        self.weight = Parameter(weight_init(shape, generator(rng)))
        self.bias = Parameter(numpy.zeros(out_channels, numpy.float32)) if bias else None
        self.settings: dict[str, Any] = dict(
            stride=stride, padding=padding, dilation=dilation, groups=groups
        )

    def forward(self, x: Tensor) -> Tensor:
        """Cross-correlate x with the weights."""
        return F.conv2d(x, self.weight, self.bias, **self.settings)

    def extra_repr(self) -> str:
        """Name channels, kernel and the settings that aren't the defaults."""
        o, c, kh, kw = self.weight.shape
        usual = dict(stride=1, padding=0, dilation=1, groups=1)
        special = [f", {k}={v}" for k, v in self.settings.items() if v != usual[k]]
        bias = "" if self.bias is not None else ", bias=False"
        return f"{c * self.settings['groups']}, {o}, ({kh}, {kw}){''.join(special)}{bias}"


class BatchNorm2d(Module):
    """Normalise each channel of x (N, C, H, W); a residual and a ReLU may be fused in.

    `h = self.bn1(self.conv1(x), relu=True)`; `self.bn2(self.conv2(h), residual=x, relu=True)`.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        self.weight, self.bias = Parameter(ones(num_features)), Parameter(zeros(num_features))
        self.running_mean, self.running_var = zeros(num_features), ones(num_features)
        self.eps, self.momentum = eps, momentum

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalise, add the residual, apply relu."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
            self.momentum, self.eps, residual=residual, relu=relu,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Name the channels."""
        return f"{self.weight.size}"


class LocalResponseNorm(Module):
    """Normalise across neighbouring channels; alpha is divided by size, as in PyTorch."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> the same shape."""
        return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class MaxPool2d(Module):
    """Take the largest pixel of each window."""

    def __init__(self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, C, H', W')."""
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding)

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool2d(MaxPool2d):
    """Average each window, zeros of the padding included."""

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, C, H', W')."""
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding)


class GlobalAvgPool2d(Module):
    """Average each channel's map."""

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, C)."""
        return F.global_avg_pool2d(x)


class Identity(Module):
    """Give what comes: a place in a network where nothing is done."""

    def forward(self, x: Tensor) -> Tensor:
        """Give x."""
        return x


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply relu."""
        return x.relu()


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply tanh."""
        return x.tanh()


class Dropout(Module):
    """Zero values at random while training; the default generator draws, unless `rng` is given."""

    def __init__(self, p: float = 0.5, *, rng: numpy.random.Generator | None = None) -> None:
        self.p, self.rng = p, rng

    def forward(self, x: Tensor) -> Tensor:
        """Drop with probability p; evaluation changes nothing."""
        return F.dropout(x, self.p, self.training, self.rng)

    def extra_repr(self) -> str:
        """Name the probability."""
        return f"p={self.p}"


class Flatten(Module):
    """x (N, ...) -> (N, features)."""

    def forward(self, x: Tensor) -> Tensor:
        """Merge all axes but the first."""
        return x.flatten(1)
