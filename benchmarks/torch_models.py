"""The peers: the same networks in PyTorch, with the same parameter names."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """As tinygrad_cnn.models.resnet.BasicBlock."""

    def __init__(self, in_channels: int, channels: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.residual = stride, residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, C, H, W) -> (N, O, H/stride, W/stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if not self.residual:
            return F.relu(y)
        x = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1])))


class CifarResNet(nn.Module):
    """As tinygrad_cnn.models.resnet.CifarResNet."""

    def __init__(self, depth: int, residual: bool, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        c = 16
        for i, width in enumerate((16, 32, 64)):
            blocks = []
            for j in range((depth - 2) // 6):
                blocks.append(BasicBlock(c, width, 2 if i and not j else 1, residual))
                c = width
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, 3, H, W) -> (N, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def build(name: str) -> CifarResNet:
    """Build "resnet20" or "plain20" and their deeper relatives."""
    family = name.rstrip("0123456789")
    if family not in ("resnet", "plain"):
        raise ValueError(f"no PyTorch peer for {name!r}; there are resnet20, plain20, ...")
    return CifarResNet(int(name.removeprefix(family)), family == "resnet")
