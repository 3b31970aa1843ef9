"""Residual networks for ImageNet. He et al., arXiv 1512.03385, table 1; shortcuts of option B.

Names and shapes of the parameters are torchvision's, so that its weights fit. As there, a
bottleneck's 3x3 convolution takes the stride, where the paper has it in the first 1x1: as many
parameters, a little more to compute.

>>> with nn.init.skipped():  # numbers nobody looks at
...     [ImageNetResNet(depth, classes=1000).num_parameters() for depth in DEPTHS]
[11689512, 21797672, 25557032, 44549160, 60192808]
"""

from __future__ import annotations

from functools import partial

from .. import nn
from ..tensor import Tensor
from .registry import Classifier, register
from .resnet import Rng, conv1x1, conv3x3, he, projection


class Block(nn.Module):
    """relu(F(x) + x), with x projected where F changes the shape: equations 1 and 2."""

    expansion: int  # how many times its width a block's output has

    def __init__(self, in_channels: int, width: int, stride: int, rng: Rng) -> None:
        out_channels = self.expansion * width
        changes = (in_channels, 1) != (out_channels, stride)
        self.downsample = projection(in_channels, out_channels, stride, rng) if changes else None

    def shortcut(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, O, H/stride, W/stride)."""
        return x if self.downsample is None else self.downsample(x)


class BasicBlock(Block):
    """Two 3x3 convolutions. Figure 5, left."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, rng: Rng) -> None:
        self.conv1, self.bn1 = conv3x3(in_channels, width, stride, rng), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width, 1, rng), nn.BatchNorm2d(width)
        super().__init__(in_channels, width, stride, rng)  # last: the order is torchvision's

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, width, H/stride, W/stride)."""
        h = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(h), residual=self.shortcut(x), relu=True)


class Bottleneck(Block):
    """1x1, 3x3, 1x1 to four times the width; the 3x3 takes the stride. Figure 5, right."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, rng: Rng) -> None:
        self.conv1, self.bn1 = conv1x1(in_channels, width, 1, rng), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width, stride, rng), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv1x1(width, 4 * width, 1, rng), nn.BatchNorm2d(4 * width)
        super().__init__(in_channels, width, stride, rng)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, 4 * width, H/stride, W/stride)."""
        h = self.bn1(self.conv1(x), relu=True)
        h = self.bn2(self.conv2(h), relu=True)
        return self.bn3(self.conv3(h), residual=self.shortcut(x), relu=True)


# Table 1: the block, and how many of it each stage has.
DEPTHS: dict[int, tuple[type[Block], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def stage(
    block: type[Block], n: int, in_channels: int, width: int, stride: int, rng: Rng
) -> nn.Sequential:
    """Stack n blocks; the first changes the shape."""
    first = block(in_channels, width, stride, rng)
    same = block.expansion * width, width, 1, rng
    return nn.Sequential(first, *[block(*same) for _ in range(n - 1)])


class ImageNetResNet(Classifier):
    """A 7x7 convolution, a pool, four stages of blocks, a classifier.

    It takes images of any size from 32x32 on; `size` is the one it is meant for.
    """

    def __init__(self, depth: int, classes: int = 10, *, size: int = 224, rng: Rng = None) -> None:
        if depth not in DEPTHS:
            raise ValueError(f"resnet: depth is {depth}; expected one of {[*DEPTHS]}")
        if size < 32:
            raise ValueError(f"resnet{depth}: size is {size}; expected at least 32")
        self.image_shape = (3, size, size)
        block, (n1, n2, n3, n4) = DEPTHS[depth]
        e = block.expansion
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False, weight_init=he, rng=rng)
        self.bn1, self.pool = nn.BatchNorm2d(64), nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = stage(block, n1, 64, 64, 1, rng)  # (N, 64 e, 56, 56)
        self.layer2 = stage(block, n2, 64 * e, 128, 2, rng)  # (N, 128 e, 28, 28)
        self.layer3 = stage(block, n3, 128 * e, 256, 2, rng)  # (N, 256 e, 14, 14)
        self.layer4 = stage(block, n4, 256 * e, 512, 2, rng)  # (N, 512 e, 7, 7)
        self.average, self.fc = nn.GlobalAvgPool2d(), nn.Linear(512 * e, classes, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 3, H, W) -> (N, classes)."""
        x = self.pool(self.bn1(self.conv1(x), relu=True))  # (N, 64, H/4, W/4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.average(x))


for _depth in DEPTHS:
    register(f"resnet{_depth}", partial(ImageNetResNet, _depth))
