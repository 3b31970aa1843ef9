"""Residual networks for CIFAR-10 and their plain twins. He et al., arXiv 1512.03385, section 4.2.

>>> [build_resnet(depth=d).num_parameters() for d in (20, 32, 44, 56, 110)]
[269722, 464154, 658586, 853018, 1727962]
>>> build_resnet(depth=20, residual=False).num_parameters()  # shortcuts have none
269722
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy

from .. import functional as F
from .. import nn
from ..ops.shape import pad
from ..tensor import Tensor
from .registry import Classifier, register

Rng = numpy.random.Generator | None


def conv3x3(in_channels: int, out_channels: int, stride: int, rng: Rng) -> nn.Conv2d:
    """Make a 3x3 convolution without bias (batch norm follows), He-initialised by fan-out."""
    return nn.Conv2d(
        in_channels, out_channels, 3, stride=stride, padding=1, bias=False,
        weight_init=partial(nn.init.kaiming_normal, mode="fan_out"), rng=rng,
    )  # fmt: skip


def shortcut_a(x: Tensor, *, channels: int, stride: int) -> Tensor:
    """Keep x; where the shape changes, take every other pixel and zeros for new channels."""
    if stride == 1 and x.shape[1] == channels:
        return x
    new = ((0, 0), (0, channels - x.shape[1]), (0, 0), (0, 0))
    every_other = F.avg_pool2d(x, 1, stride)  # windows of one pixel
    return pad(every_other, pad_width=new)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, and (unless plain) the input added before the last ReLU. Figure 2."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, residual: bool, rng: Rng
    ) -> None:
        self.conv1 = conv3x3(in_channels, out_channels, stride, rng)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels, 1, rng)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.channels, self.stride, self.residual = out_channels, stride, residual

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, O, H/stride, W/stride)."""
        h = self.bn1(self.conv1(x), relu=True)
        kept = shortcut_a(x, channels=self.channels, stride=self.stride) if self.residual else None
        return self.bn2(self.conv2(h), residual=kept, relu=True)


def stage(
    n: int, in_channels: int, out_channels: int, stride: int, *, residual: bool, rng: Rng
) -> nn.Sequential:
    """Stack n blocks; the first changes the shape."""
    shapes = [(in_channels, stride)] + [(out_channels, 1)] * (n - 1)
    return nn.Sequential(
        *[BasicBlock(c, out_channels, s, residual=residual, rng=rng) for c, s in shapes]
    )


class CifarResNet(Classifier):
    """6n + 2 layers: a convolution, 2n layers each on maps of 32, 16, 8 pixels, a classifier."""

    def __init__(
        self, n: int, classes: int = 10, *, residual: bool = True, rng: Rng = None
    ) -> None:
        at: dict[str, Any] = dict(residual=residual, rng=rng)
        self.conv1, self.bn1 = conv3x3(3, 16, 1, rng), nn.BatchNorm2d(16)
        self.layer1 = stage(n, 16, 16, 1, **at)  # (N, 16, 32, 32)
        self.layer2 = stage(n, 16, 32, 2, **at)  # (N, 32, 16, 16)
        self.layer3 = stage(n, 32, 64, 2, **at)  # (N, 64, 8, 8)
        self.pool, self.fc = nn.GlobalAvgPool2d(), nn.Linear(64, classes, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 3, H, W) -> (N, classes)."""
        x = self.bn1(self.conv1(x), relu=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.pool(x))


def build_resnet(
    classes: int = 10, *, depth: int, residual: bool = True, rng: Rng = None
) -> CifarResNet:
    """Build the network of 6n + 2 layers."""
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"resnet: depth is {depth}; expected 6n + 2: 8, 14, 20, 26, 32, ...")
    return CifarResNet((depth - 2) // 6, classes, residual=residual, rng=rng)


for _depth in (8, 20, 32, 44, 56, 110, 1202):
    register(f"resnet{_depth}", partial(build_resnet, depth=_depth))
for _depth in (20, 32, 44, 56, 110):
    register(f"plain{_depth}", partial(build_resnet, depth=_depth, residual=False))
