"""The networks whose weights are converted, written in PyTorch under the names of their authors."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
t, F = torch.nn, torch.nn.functional


def conv(c, o, k, stride=1):
    return t.Conv2d(c, o, k, stride, k // 2, bias=False)


def stages(block, counts, c, widths):
    """Stack blocks; the first of each stage but the first halves the map."""
    for i, (n, width) in enumerate(zip(counts, widths, strict=True)):
        out = width * block.expansion
        shapes = [(c, width, 2 if i else 1), *[(out, width, 1)] * (n - 1)]
        yield t.Sequential(*[block(*shape) for shape in shapes])
        c = out


# ---- torchvision ----


class TorchvisionBlock(t.Module):
    def __init__(self, c, width, stride, *kernels):
        super().__init__()
        strided = kernels.index(3)  # the 3x3 convolution, the first if there are two
        out = width * self.expansion
        outs = [width] * (len(kernels) - 1) + [out]
        for i, (k, o) in enumerate(zip(kernels, outs, strict=True), start=1):
            setattr(
                self,
                f"conv{i}",
                conv(c if i == 1 else width, o, k, stride if i - 1 == strided else 1),
            )
            setattr(self, f"bn{i}", t.BatchNorm2d(o))
        self.n, self.downsample = len(kernels), None
        if stride != 1 or c != out:
            self.downsample = t.Sequential(conv(c, out, 1, stride), t.BatchNorm2d(out))

    def forward(self, x):
        h = x
        for i in range(1, self.n + 1):
            h = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(h))
            h = h if i == self.n else F.relu(h)
        return F.relu(h + (self.downsample(x) if self.downsample else x))


class Basic(TorchvisionBlock):
    expansion = 1

    def __init__(self, c, width, stride):
        super().__init__(c, width, stride, 3, 3)


class Bottleneck(TorchvisionBlock):
    expansion = 4

    def __init__(self, c, width, stride):
        super().__init__(c, width, stride, 1, 3, 1)


class TorchvisionResNet(t.Module):
    """torchvision.models.resnet, IMAGENET1K_V1 and V2: names, shapes and sums as there."""

    def __init__(self, block, counts, classes):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 7, 2), t.BatchNorm2d(64)
        made = stages(block, counts, 64, (64, 128, 256, 512))
        self.layer1, self.layer2, self.layer3, self.layer4 = made
        self.fc = t.Linear(512 * block.expansion, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def torchvision_resnet(depth, classes=1000):
    counts = {18: (2, 2, 2, 2), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}.get(depth, (3, 4, 6, 3))
    return TorchvisionResNet(Basic if depth < 50 else Bottleneck, counts, classes)


# ---- akamaster/pytorch_resnet_cifar10, resnet.py ----


class AkamasterBlock(t.Module):
    expansion = 1

    option = "A"

    def __init__(self, c, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(c, planes, 3, stride), t.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3), t.BatchNorm2d(planes)
        self.grows, self.planes = stride != 1 or c != planes, planes
        if self.grows and self.option == "B":
            self.shortcut = t.Sequential(conv(c, planes, 1, stride), t.BatchNorm2d(planes))

    def forward(self, x):
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grows and self.option == "B":
            x = self.shortcut(x)
        elif self.grows:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.planes // 4, self.planes // 4))
        return F.relu(h + x)


class AkamasterBlockB(AkamasterBlock):
    option = "B"


class AkamasterResNet(t.Module):
    """Option A with the zero channels on both sides, or B."""

    def __init__(self, n, classes, block=AkamasterBlock):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 16, 3), t.BatchNorm2d(16)
        made = stages(block, (n, n, n), 16, (16, 32, 64))
        self.layer1, self.layer2, self.layer3 = made
        self.linear = t.Linear(64, classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


def akamaster_resnet(depth, classes=10, option="A"):
    block = AkamasterBlock if option == "A" else AkamasterBlockB
    return AkamasterResNet((depth - 2) // 6, classes, block)


# ---- as if trained ----


def shaken(model, seed=0):
    """Give a model's batch norms random scales and statistics; returns it, in evaluation mode."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():  # PyTorch's default is too small to tell networks apart
            p.copy_(torch.randn_like(p) * (2 / max(1, p[0].numel())) ** 0.5)
        for bn in model.modules():
            if isinstance(bn, t.BatchNorm2d):
                bn.weight.uniform_(0.5, 1.0)
                bn.bias.uniform_(-0.3, 0.3)
                bn.running_mean.uniform_(-0.3, 0.3)
                bn.running_var.uniform_(0.5, 2.0)
    return model.eval()
