"""Residual networks for CIFAR-10 and their plain twins. He et al., arXiv 1512.03385, section 4.2.

>>> [build_resnet(depth=d).num_parameters() for d in (20, 32, 44, 56, 110)]
[269722, 464154, 658586, 853018, 1727962]
>>> with nn.init.skipped():  # numbers nobody looks at
...     build_resnet(depth=1202).num_parameters()
19421274
>>> build_resnet(depth=20, shortcut=None).num_parameters()  # plain: option A's shortcuts have none
269722
>>> [build_resnet(depth=20, shortcut=option).num_parameters() for option in "BC"]
[272474, 283962]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy

from .. import functional as F
from .. import nn
from ..ops.shape import pad
from ..tensor import Tensor
from .registry import Classifier, register

Rng = numpy.random.Generator | None
Function = Callable[[Tensor], Tensor]
he = partial(nn.init.kaiming_normal, mode="fan_out")


def conv3x3(in_channels: int, out_channels: int, stride: int, rng: Rng) -> nn.Conv2d:
    """Make a 3x3 convolution without bias (batch norm follows), He-initialised by fan-out."""
    return nn.Conv2d(
        in_channels, out_channels, 3, stride, padding=1, bias=False, weight_init=he, rng=rng
    )


def conv1x1(in_channels: int, out_channels: int, stride: int, rng: Rng) -> nn.Conv2d:
    """Make a 1x1 convolution of the same kind."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False, weight_init=he, rng=rng)


def shortcut_a(x: Tensor, *, channels: int, stride: int) -> Tensor:
    """Keep x; where the shape changes, take every other pixel and zeros for new channels."""
    if stride == 1 and x.shape[1] == channels:
        return x
    new = ((0, 0), (0, channels - x.shape[1]), (0, 0), (0, 0))
    every_other = F.avg_pool2d(x, 1, stride)  # windows of one pixel
    return pad(every_other, pad_width=new)


def projection(in_channels: int, out_channels: int, stride: int, rng: Rng) -> nn.Sequential:
    """Make a 1x1 convolution and its batch norm."""
    return nn.Sequential(
        conv1x1(in_channels, out_channels, stride, rng), nn.BatchNorm2d(out_channels)
    )


def make_shortcut(
    option: str | None, in_channels: int, out_channels: int, stride: int, rng: Rng
) -> Function | None:
    """Make option A, B (a projection where the shape changes) or C (always): section 4.1."""
    if option is None:
        return None
    changes = (in_channels, 1) != (out_channels, stride)
    if option == "C" or (option == "B" and changes):
        return projection(in_channels, out_channels, stride, rng)
    return partial(shortcut_a, channels=out_channels, stride=stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, and (unless plain) the input added before the last ReLU. Figure 2."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, shortcut: str | None, rng: Rng
    ) -> None:
        self.conv1 = conv3x3(in_channels, out_channels, stride, rng)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels, 1, rng)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(shortcut, in_channels, out_channels, stride, rng)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, O, H/stride, W/stride)."""
        h = self.bn1(self.conv1(x), relu=True)
        kept = None if self.shortcut is None else self.shortcut(x)
        return self.bn2(self.conv2(h), residual=kept, relu=True)


def stage(
    n: int, in_channels: int, out_channels: int, stride: int, *, shortcut: str | None, rng: Rng
) -> nn.Sequential:
    """Stack n blocks; the first changes the shape."""
    shapes = [(in_channels, stride)] + [(out_channels, 1)] * (n - 1)
    return nn.Sequential(
        *[BasicBlock(c, out_channels, s, shortcut=shortcut, rng=rng) for c, s in shapes]
    )


class CifarResNet(Classifier):
    """6n + 2 layers: a convolution, 2n layers each on maps of 32, 16, 8 pixels, a classifier."""

    def __init__(
        self, n: int, classes: int = 10, *, shortcut: str | None = "A", rng: Rng = None
    ) -> None:
        at: dict[str, Any] = dict(shortcut=shortcut, rng=rng)
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
    classes: int = 10, *, depth: int, shortcut: str | None = "A", rng: Rng = None
) -> CifarResNet:
    """Build the network of 6n + 2 layers with shortcuts "A", "B" or "C"; None: a plain network."""
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"resnet: depth is {depth}; expected 6n + 2: 8, 14, 20, 26, 32, ...")
    if shortcut not in ("A", "B", "C", None):
        raise ValueError(f"resnet: shortcut is {shortcut!r}; expected 'A', 'B', 'C' or None")
    return CifarResNet((depth - 2) // 6, classes, shortcut=shortcut, rng=rng)


for _depth in (8, 20, 32, 44, 56, 110, 1202):
    register(f"resnet{_depth}", partial(build_resnet, depth=_depth))
for _depth in (20, 32, 44, 56, 110):
    register(f"plain{_depth}", partial(build_resnet, depth=_depth, shortcut=None))
