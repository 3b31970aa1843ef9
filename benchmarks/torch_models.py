"""The peers: the same networks in PyTorch, their parameters in the same order, and a step of each.

>>> {name: sum(p.numel() for p in build(name).parameters()) for name in ("resnet20", "resnet9")}
{'resnet20': 269722, 'resnet9': 6573120}
>>> sum(p.numel() for p in build("preact_resnet164").parameters())
1703258
>>> sum(p.numel() for p in build("resnet9", width=32).parameters())
1646112
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

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


class Bottleneck(nn.Module):
    """Full pre-activation, 1x1, 3x3, 1x1. He et al., arXiv 1603.05027, figure 1b and section 5."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn = nn.BatchNorm2d(in_channels)  # the first to act; here for the parameters' order
        same = in_channels == 4 * width and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_channels, 4 * width, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, C, H, W) -> (N, 4 * width, H/stride, W/stride)."""
        h = F.relu(self.bn(x))
        kept = self.shortcut(h) if self.shortcut else x
        h = F.relu(self.bn1(self.conv1(h)))
        return kept + self.conv3(F.relu(self.bn2(self.conv2(h))))


class PreactResNet(nn.Module):
    """9n + 2 layers of bottlenecks on maps of 32, 16, 8 pixels."""

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        c = 16
        for i, width in enumerate((16, 32, 64)):
            blocks = []
            for j in range((depth - 2) // 9):
                blocks.append(Bottleneck(c, width, 2 if i and not j else 1))
                c = 4 * width
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.bn, self.fc = nn.BatchNorm2d(256), nn.Linear(256, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, 3, H, W) -> (N, classes)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


class ConvNormReLU(nn.Module):
    """A 3x3 convolution, batch norm and ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, C, H, W) -> (N, O, H, W)."""
        return F.relu(self.bn(self.conv(x)))


class ResNet9(nn.Module):
    """The network of cifar10-fast (D. Page, How to train your ResNet, 2018)."""

    def __init__(self, classes: int = 10, *, width: int = 64) -> None:
        super().__init__()
        w = width
        self.prep = ConvNormReLU(3, w)
        self.layer1 = ConvNormReLU(w, 2 * w)
        self.residual1 = nn.Sequential(ConvNormReLU(2 * w, 2 * w), ConvNormReLU(2 * w, 2 * w))
        self.layer2 = ConvNormReLU(2 * w, 4 * w)
        self.layer3 = ConvNormReLU(4 * w, 8 * w)
        self.residual3 = nn.Sequential(ConvNormReLU(8 * w, 8 * w), ConvNormReLU(8 * w, 8 * w))
        self.fc = nn.Linear(8 * w, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, 3, 32, 32) -> (N, classes)."""
        x = F.max_pool2d(self.layer1(self.prep(x)), 2)
        x = F.max_pool2d(self.layer2(x + self.residual1(x)), 2)
        x = F.max_pool2d(self.layer3(x), 2)
        x = F.max_pool2d(x + self.residual3(x), 4)
        return 0.125 * self.fc(x.flatten(1))


class AlexNetCifar(nn.Sequential):
    """As tinygrad_cnn.models.alexnet.AlexNetCifar."""

    def __init__(self, classes: int = 10, *, lrn: bool = True, activation: str = "relu") -> None:
        act = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]
        norm = [nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)] if lrn else []
        super().__init__(
            *(nn.Conv2d(3, 32, 5, padding=2), act(), nn.MaxPool2d(3, 2), *norm),
            *(nn.Conv2d(32, 32, 5, padding=2), act(), nn.AvgPool2d(3, 2), *norm),
            *(nn.Conv2d(32, 64, 5, padding=2), act(), nn.AvgPool2d(3, 2)),
            *(nn.Flatten(), nn.Linear(64 * 3 * 3, classes)),
        )


def build(name: str, classes: int = 10, **settings: Any) -> nn.Module:
    """Build "resnet20", "plain20" and their deeper relatives, or one of OTHERS."""
    family = name.rstrip("0123456789")
    if name in OTHERS:
        return OTHERS[name](classes, **settings)
    if settings:
        raise ValueError(f"the PyTorch peer of {name} has no settings, but was given {settings}")
    depth = int(name.removeprefix(family) or 0)
    if family not in ("resnet", "plain") or depth < 8 or depth % 6 != 2:
        others = ", ".join(OTHERS)
        raise ValueError(f"no PyTorch peer of {name!r}; there are resnet20, plain20, ..., {others}")
    return CifarResNet(depth, family == "resnet", classes)


OTHERS: dict[str, Callable[..., nn.Module]] = {
    "preact_resnet164": partial(PreactResNet, 164),
    "preact_resnet1001": partial(PreactResNet, 1001),
    "resnet9": ResNet9,
    "alexnet_cifar": AlexNetCifar,
}


# ---- what is timed ----

# How PyTorch is run: float32 in its usual memory layout, in that of its faster kernels, compiled,
# and with products in bfloat16, compiled or not; and in float64, to compare with.
VARIANTS: dict[str, dict[str, bool]] = {
    "NCHW": dict(channels_last=False),
    "channels_last": dict(channels_last=True),
    "compile": dict(channels_last=True, compiled=True),
    "bf16": dict(channels_last=True, bf16=True),
    "bf16 compile": dict(channels_last=True, bf16=True, compiled=True),
    "float64": dict(channels_last=False, double=True),
}


def with_weights(name: str, weights: Sequence[Any], **settings: Any) -> nn.Module:
    """Build a network with these parameters, NumPy arrays in the order of the network's.

    The settings, `classes` among them, are build's.
    """
    model = build(name, **settings)
    with torch.no_grad():
        for (key, p), w in zip(model.named_parameters(), weights, strict=True):
            if p.shape != w.shape:
                raise ValueError(f"{name}: {key} is {tuple(p.shape)} in PyTorch, here {w.shape}")
            p.copy_(torch.from_numpy(w))
    return model


class Training(NamedTuple):
    """A step on images and targets, which gives the loss; the parameters as they are then.

    `place` moves a batch of NumPy's to where the step wants it.
    """

    step: Callable[[Any, Any], torch.Tensor]
    parameters: Callable[[], list[Any]]
    place: Callable[[Any, Any], tuple[torch.Tensor, torch.Tensor]]


def training(
    name: str, weights: Sequence[Any], *, channels_last: bool, compiled: bool = False,
    bf16: bool = False, double: bool = False, device: str = "cpu",
) -> Training:  # fmt: skip
    """Prepare a network's training on "cpu" or "cuda"."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    dtype = torch.float64 if double else torch.float32
    model = with_weights(name, weights).to(device, dtype, memory_format=layout)
    fused = True if device == "cuda" else None  # the quickest there
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, fused=fused
    )
    forward = compile_for(device, model) if compiled else model

    def step(x: Any, targets: Any) -> torch.Tensor:
        images, labels = place(x, targets)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(forward(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def place(x: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.as_tensor(x, dtype=dtype, device=device)
        return images.contiguous(memory_format=layout), torch.as_tensor(targets, device=device)

    return Training(step, lambda: [p.detach().cpu().numpy() for p in model.parameters()], place)


def compile_for(device: str, model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Compile a network; for a GPU with every kernel tried, and recorded as CUDA graphs."""
    if device == "cpu":
        return torch.compile(model)
    graphs = torch.compile(model, mode="max-autotune", dynamic=False)

    def forward(x: torch.Tensor) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # what the graphs gave before may go
        return graphs(x)

    return forward


def inference(
    name: str, weights: Sequence[Any], *, channels_last: bool, compiled: bool = False
) -> Callable[[Any], Any]:
    """Make a function from images to scores (both NumPy), in evaluation mode, nothing recorded."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = with_weights(name, weights).to(memory_format=layout).eval()
    forward = torch.compile(model) if compiled else model

    def scores(x: Any) -> Any:
        with torch.inference_mode():
            return forward(torch.from_numpy(x).contiguous(memory_format=layout)).numpy()

    return scores


def export(name: str, weights: Sequence[Any], x: Any, path: str) -> None:
    """Write a network to an ONNX file, for images of x's shape."""
    model = with_weights(name, weights).eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision, it says, isn't here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own use of what it has deprecated
        torch.onnx.export(model, (torch.tensor(x),), path, dynamo=True, verbose=False)
