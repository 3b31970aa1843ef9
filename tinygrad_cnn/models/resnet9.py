"""ResNet-9: eight convolutions and a classifier, made to train fast. D. Page, cifar10-fast, 2018.

https://github.com/davidcpage/cifar10-fast, dawn.py: 94 % on CIFAR-10 in 24 epochs.

>>> ResNet9().num_parameters(), ResNet9(width=32).num_parameters()
(6573120, 1646112)
"""

from __future__ import annotations

from .. import nn
from ..tensor import Tensor
from .registry import Classifier, register
from .resnet import Rng


class ConvBlock(nn.Module):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, rng: Rng) -> None:
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False, rng=rng)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, O, H, W)."""
        return self.bn(self.conv(x), relu=True)


class Residual(nn.Module):
    """x plus two blocks' output: the addition comes after the last ReLU and has none."""

    def __init__(self, channels: int, rng: Rng) -> None:
        self.res1, self.res2 = (
            ConvBlock(channels, channels, rng),
            ConvBlock(channels, channels, rng),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> the same shape."""
        return x + self.res2(self.res1(x))


def halving(in_channels: int, out_channels: int, *then: nn.Module, rng: Rng) -> nn.Sequential:
    """Stack a block, a pool that halves the map, and what follows."""
    return nn.Sequential(ConvBlock(in_channels, out_channels, rng), nn.MaxPool2d(2), *then)


class ResNet9(Classifier):
    """Double the channels and halve the map three times; scores are scaled by 1/8.

    The first block has `width` channels, the last ones 8 times as many.
    """

    def __init__(
        self, classes: int = 10, *, width: int = 64, scale: float = 0.125, rng: Rng = None
    ) -> None:
        w = width
        self.prep = ConvBlock(3, w, rng)  # (N, w, 32, 32)
        self.layer1 = halving(w, 2 * w, Residual(2 * w, rng), rng=rng)  # (N, 2w, 16, 16)
        self.layer2 = halving(2 * w, 4 * w, rng=rng)  # (N, 4w, 8, 8)
        self.layer3 = halving(4 * w, 8 * w, Residual(8 * w, rng), rng=rng)  # (N, 8w, 4, 4)
        self.pool = nn.MaxPool2d(4)  # (N, 8w, 1, 1)
        self.fc, self.scale = nn.Linear(8 * w, classes, bias=False, rng=rng), scale

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 3, 32, 32) -> (N, classes)."""
        x = self.layer3(self.layer2(self.layer1(self.prep(x))))
        return self.scale * self.fc(self.pool(x).flatten(1))


register("resnet9", ResNet9)
