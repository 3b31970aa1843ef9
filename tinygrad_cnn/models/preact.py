"""Residual units of every kind, pre-activated by default. He et al., arXiv 1603.05027.

A unit maps x to f(h(x) + F(x)), equations 1 and 2. The paper varies the shortcut h (section 3.1,
figure 2, table 1), and where batch norm and ReLU act (section 4.1, figure 4, table 2). Every row of
both tables is a setting of the one Unit below:

>>> dropout = build_preact(depth=110, unit="original", **TABLE_1["dropout 0.5"])
>>> {build_preact(depth=110, unit=unit).num_parameters() for unit in UNITS}
{1727962}
>>> [build_preact(depth=depth, bottleneck=True).num_parameters() for depth in (164, 1001)]
[1703258, 10327706]
>>> build_preact(100, depth=164, bottleneck=True).num_parameters()  # CIFAR-100
1726388
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy

from .. import functional as F
from .. import nn
from ..tensor import Tensor
from .registry import Classifier, register
from .resnet import Function, Rng, conv1x1, conv3x3, he, projection, shortcut_a

Shape = tuple[int, int, int]  # in_channels, out_channels, stride

# One batch norm and one ReLU of a unit move: they act on x, before the branch, on F(x) or on the
# sum. The others stay between F's convolutions.
UNITS = {
    "original": ("F", "sum"),  # figure 4 (a)
    "BN after addition": ("sum", "sum"),  # (b)
    "ReLU before addition": ("F", "F"),  # (c)
    "ReLU-only pre-activation": ("F", "x"),  # (d)
    "full pre-activation": ("x", "x"),  # (e)
}


# ---- F: the branch ----


class Basic(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, shape: Shape, rng: Rng) -> None:
        channels = shape[1]
        self.conv1, self.bn1 = conv3x3(*shape, rng), nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, 1, rng)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, O, H/stride, W/stride)."""
        return self.conv2(self.bn1(self.conv1(x), relu=True))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1: the 3x3 has a quarter of the channels. The first takes the stride."""

    def __init__(self, shape: Shape, rng: Rng) -> None:
        in_channels, out_channels, stride = shape
        narrow = out_channels // 4
        self.conv1, self.bn1 = conv1x1(in_channels, narrow, stride, rng), nn.BatchNorm2d(narrow)
        self.conv2, self.bn2 = conv3x3(narrow, narrow, 1, rng), nn.BatchNorm2d(narrow)
        self.conv3 = conv1x1(narrow, out_channels, 1, rng)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, O, H/stride, W/stride)."""
        h = self.bn1(self.conv1(x), relu=True)
        return self.conv3(self.bn2(self.conv2(h), relu=True))


# ---- h: the shortcut ----


class Shortcut(nn.Module):
    """h(x) = x. Figure 2 (a); with a projection to `fit` x, (e).

    `fit` gives x the shape of F(x), and `x` in these formulas is what it returns. A shortcut says,
    beside h(x), what F(x) is multiplied with; None: it isn't.
    """

    def __init__(self, fit: Function, shape: Shape, rng: Rng) -> None:
        self.fit = fit

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        """x (N, C, H, W) -> h(x) (N, O, H/stride, W/stride), and F(x)'s factor."""
        return self.fit(x), None


class ConstantScaling(Shortcut):
    """h(x) = shortcut_scale * x, beside branch_scale * F(x). Figure 2 (b)."""

    def __init__(
        self, fit: Function, shape: Shape, rng: Rng,
        *, shortcut_scale: float = 0.5, branch_scale: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(fit, shape, rng)
        self.shortcut_scale, self.branch_scale = shortcut_scale, branch_scale

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        """x (N, C, H, W) -> h(x) (N, O, H/stride, W/stride), and F(x)'s factor."""
        kept = self.shortcut_scale * self.fit(x)
        return kept, None if self.branch_scale == 1 else self.branch_scale


class ExclusiveGating(Shortcut):
    """h(x) = (1 - g(x)) * x, beside g(x) * F(x); g is a 1x1 convolution's sigmoid. Figure 2 (c)."""

    def __init__(self, fit: Function, shape: Shape, rng: Rng, *, gate_bias: float = -6.0) -> None:
        super().__init__(fit, shape, rng)
        in_channels, out_channels, stride = shape
        self.gate = nn.Conv2d(in_channels, out_channels, 1, stride, weight_init=he, rng=rng)
        self.gate.bias = nn.Parameter(numpy.full(out_channels, gate_bias, numpy.float32))

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        """x (N, C, H, W) -> h(x) (N, O, H/stride, W/stride), and F(x)'s factor."""
        g = F.sigmoid(self.gate(x))
        return (1.0 - g) * self.fit(x), g


class ShortcutOnlyGating(ExclusiveGating):
    """h(x) = (1 - g(x)) * x. Figure 2 (d)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        """x (N, C, H, W) -> h(x) (N, O, H/stride, W/stride), and F(x)'s factor."""
        return super().forward(x)[0], None


class DropoutShortcut(Shortcut):
    """h(x) = x, of which half is dropped. Figure 2 (f)."""

    def __init__(self, fit: Function, shape: Shape, rng: Rng) -> None:
        super().__init__(fit, shape, rng)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        """x (N, C, H, W) -> h(x) (N, O, H/stride, W/stride), and F(x)'s factor."""
        return self.dropout(self.fit(x)), None


SHORTCUTS: dict[str, Callable[..., Shortcut]] = {
    "identity": Shortcut,
    "constant scaling": ConstantScaling,
    "exclusive gating": ExclusiveGating,
    "shortcut-only gating": ShortcutOnlyGating,
    "1x1 convolution": Shortcut,
    "dropout": DropoutShortcut,
}

TABLE_1: dict[str, dict[str, Any]] = {
    "original": dict(shortcut="identity"),
    "constant scaling 0, F 1": dict(shortcut="constant scaling", shortcut_scale=0.0),
    "constant scaling 0.5, F 1": dict(shortcut="constant scaling", shortcut_scale=0.5),
    "constant scaling 0.5, F 0.5": dict(
        shortcut="constant scaling", shortcut_scale=0.5, branch_scale=0.5
    ),
    **{
        f"exclusive gating, bias {b}": dict(shortcut="exclusive gating", gate_bias=b)
        for b in range(0, -8, -1)
    },
    "shortcut-only gating, bias 0": dict(shortcut="shortcut-only gating", gate_bias=0),
    "shortcut-only gating, bias -6": dict(shortcut="shortcut-only gating", gate_bias=-6),
    "1x1 convolution": dict(shortcut="1x1 convolution"),
    "dropout 0.5": dict(shortcut="dropout"),
}


# ---- the unit ----


class Unit(nn.Module):
    """x -> f(h(x) + F(x)), as `unit` of table 2 and `shortcut` of table 1 say."""

    def __init__(
        self,
        shape: Shape,
        *,
        bottleneck: bool = False,
        unit: str = "full pre-activation",
        shortcut: str = "identity",
        follows_conv1: bool = False,
        rng: Rng = None,
        **of_shortcut: float,
    ) -> None:
        in_channels, out_channels, stride = shape
        changes = (in_channels, 1) != (out_channels, stride)
        projects = shortcut == "1x1 convolution" or (bottleneck and changes)
        self.bn_at, self.relu_at = UNITS[unit]
        # What acts on x acts before both paths after conv1, and before projections. Appendix.
        self.both_paths = follows_conv1 or projects
        self.branch = Bottleneck(shape, rng) if bottleneck else Basic(shape, rng)
        self.bn = nn.BatchNorm2d(in_channels if self.bn_at == "x" else out_channels)
        fit: Function = partial(shortcut_a, channels=out_channels, stride=stride)
        if projects:  # with a batch norm if F ends in one
            fit = (projection if self.bn_at == "F" else conv1x1)(*shape, rng)
        self.shortcut = SHORTCUTS[shortcut](fit, shape, rng, **of_shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, O, H/stride, W/stride)."""
        activated = self._activate(x, at="x")
        kept, factor = self.shortcut(activated if self.both_paths else x)
        h = self.branch(activated)
        if self.bn_at == "F" and self.relu_at != "F" and factor is None:  # one pass for all
            return self.bn(h, residual=kept, relu=self.relu_at == "sum")
        h = self._activate(h, at="F")
        return self._activate(kept + (h if factor is None else factor * h), at="sum")

    def _activate(self, h: Tensor, *, at: str) -> Tensor:
        """Apply the batch norm and the ReLU that act here."""
        if self.bn_at == at:
            return self.bn(h, relu=self.relu_at == at)
        return h.relu() if self.relu_at == at else h


# ---- the network ----


def stage(n: int, shape: Shape, *, follows_conv1: bool = False, **settings: Any) -> nn.Sequential:
    """Stack n units; the first changes the shape."""
    channels = shape[1]
    first = Unit(shape, follows_conv1=follows_conv1, **settings)
    return nn.Sequential(first, *[Unit((channels, channels, 1), **settings) for _ in range(n - 1)])


class PreActResNet(Classifier):
    """A convolution, n units each on maps of 32, 16, 8 pixels, a classifier. Section 5, appendix.

    Before the first unit and after the last one there is what pre-activation has left over: a unit
    with its ReLU (and batch norm) before F needs them once more after the last addition.
    """

    def __init__(
        self, n: int, classes: int = 10,
        *, bottleneck: bool = False, unit: str = "full pre-activation", rng: Rng = None,
        **settings: Any,
    ) -> None:  # fmt: skip
        at = dict(bottleneck=bottleneck, unit=unit, rng=rng, **settings)
        bn_at, self.relu_at = UNITS[unit]
        width = 64 if bottleneck else 16
        self.conv1 = conv3x3(3, 16, 1, rng)
        self.bn1 = None if bn_at == "x" else nn.BatchNorm2d(16)
        self.layer1 = stage(n, (16, width, 1), follows_conv1=True, **at)  # (N, width, 32, 32)
        self.layer2 = stage(n, (width, 2 * width, 2), **at)  # (N, 2 width, 16, 16)
        self.layer3 = stage(n, (2 * width, 4 * width, 2), **at)  # (N, 4 width, 8, 8)
        self.bn = nn.BatchNorm2d(4 * width) if bn_at == "x" else None
        self.pool, self.fc = nn.GlobalAvgPool2d(), nn.Linear(4 * width, classes, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 3, H, W) -> (N, classes)."""
        x = self.conv1(x)
        x = x if self.bn1 is None else self.bn1(x, relu=self.relu_at != "x")
        x = self.layer3(self.layer2(self.layer1(x)))
        if self.relu_at == "x":
            x = x.relu() if self.bn is None else self.bn(x, relu=True)
        return self.fc(self.pool(x))


def build_preact(
    classes: int = 10,
    *,
    depth: int,
    bottleneck: bool = False,
    unit: str = "full pre-activation",
    shortcut: str = "identity",
    shortcut_scale: float | None = None,
    branch_scale: float | None = None,
    gate_bias: float | None = None,
    rng: Rng = None,
) -> PreActResNet:
    """Build the network of 6n + 2 layers, or 9n + 2 with bottlenecks.

    `unit` is one of UNITS; `shortcut` one of SHORTCUTS. The three settings after it are of some of
    these, as in TABLE_1; None leaves them at their defaults.
    """
    layers = 9 if bottleneck else 6
    if depth < layers + 2 or depth % layers != 2:
        few = ", ".join(str(layers * n + 2) for n in (1, 2, 3))
        raise ValueError(f"preact: depth is {depth}; expected {layers}n + 2: {few}, ...")
    for name, value, known in ("unit", unit, UNITS), ("shortcut", shortcut, SHORTCUTS):
        if value not in known:
            raise ValueError(f"preact: {name} is {value!r}; expected one of {', '.join(known)}")
    given = dict(shortcut_scale=shortcut_scale, branch_scale=branch_scale, gate_bias=gate_bias)
    of_shortcut = {name: value for name, value in given.items() if value is not None}
    for name in of_shortcut.keys() - inspect.signature(SHORTCUTS[shortcut]).parameters.keys():
        raise ValueError(f"preact: {name} is no setting of the shortcut {shortcut!r}; leave it out")
    return PreActResNet(
        (depth - 2) // layers, classes,
        bottleneck=bottleneck, unit=unit, shortcut=shortcut, rng=rng, **of_shortcut,
    )  # fmt: skip


for _depth in (20, 32, 44, 56, 110):
    register(f"preact_resnet{_depth}", partial(build_preact, depth=_depth))
register("resnet164", partial(build_preact, depth=164, bottleneck=True, unit="original"))
register("preact_resnet164", partial(build_preact, depth=164, bottleneck=True))
register("preact_resnet1001", partial(build_preact, depth=1001, bottleneck=True))
