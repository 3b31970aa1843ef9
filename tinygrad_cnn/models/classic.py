"""The first networks of the course: linear classifiers, an MLP, a small ConvNet, LeNet-5."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy

from .. import functional as F
from .. import nn
from ..tensor import Tensor
from .registry import Classifier, register

Rng = numpy.random.Generator | None


class SoftmaxClassifier(Classifier):
    """Scores linear in the pixels, trained with cross-entropy. CS231n, "Linear Classification"."""

    def __init__(
        self, classes: int = 10, *, channels: int = 3, size: int = 32, rng: Rng = None
    ) -> None:
        self.image_shape = (channels, size, size)
        self.fc = nn.Linear(channels * size * size, classes, weight_init=nn.init.normal, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, size, size) -> (N, classes)."""
        return self.fc(x.flatten(1))


class SVM(SoftmaxClassifier):
    """The same scores, trained with the multiclass hinge loss."""

    loss = staticmethod(F.hinge_loss)


class MLP(Classifier):
    """Fully connected layers with ReLU between them."""

    def __init__(
        self,
        classes: int = 10,
        *,
        channels: int = 3,
        size: int = 32,
        hidden: tuple[int, ...] = (256, 128),
        rng: Rng = None,
    ) -> None:
        self.image_shape = (channels, size, size)
        _check_sizes("mlp", "hidden", hidden)
        widths = (channels * size * size, *hidden, classes)
        he = nn.init.kaiming_normal
        self.layers = nn.ModuleList(
            [nn.Linear(a, b, weight_init=he, rng=rng) for a, b in pairwise(widths)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, size, size) -> (N, classes)."""
        *hidden, last = self.layers
        x = x.flatten(1)
        for layer in hidden:
            x = layer(x).relu()
        return last(x)


class ConvNet(Classifier):
    """CS231n's pattern [conv - relu - pool] three times, then a linear classifier.

    With `batch_norm`, there is one before each ReLU.

    >>> [ConvNet(batch_norm=on).num_parameters() for on in (False, True)]
    [33834, 34058]
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        channels: int = 3,
        size: int = 32,
        widths: tuple[int, ...] = (16, 32, 64),
        batch_norm: bool = False,
        rng: Rng = None,
    ) -> None:
        _check_sizes("convnet", "widths", widths, least=1)
        if size < 2 ** len(widths):
            raise ValueError(
                f"convnet: size is {size}, and {len(widths)} pools leave nothing of it; expected "
                f"at least {2 ** len(widths)}"
            )
        self.image_shape, he = (channels, size, size), nn.init.kaiming_normal
        blocks: list[nn.Module] = []
        for c, o in zip((channels, *widths), widths, strict=False):
            blocks += [nn.Conv2d(c, o, 3, padding=1, weight_init=he, rng=rng)]
            blocks += [nn.BatchNorm2d(o)] if batch_norm else []
            blocks += [nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*blocks)
        side = size // 2 ** len(widths)
        self.fc = nn.Linear(widths[-1] * side * side, classes, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, size, size) -> (N, classes)."""
        return self.fc(self.features(x).flatten(1))


class LeNet5(Classifier):
    """LeCun et al., Proc. IEEE 1998, figure 2, with max pooling and ReLU as it is taught today.

    >>> LeNet5().num_parameters()
    61706
    """

    def __init__(self, classes: int = 10, *, channels: int = 1, rng: Rng = None) -> None:
        self.image_shape = (channels, 32, 32)
        self.features = nn.Sequential(
            *(nn.Conv2d(channels, 6, 5, rng=rng), nn.ReLU(), nn.MaxPool2d(2)),  # (N, 6, 14, 14)
            *(nn.Conv2d(6, 16, 5, rng=rng), nn.ReLU(), nn.MaxPool2d(2)),  # (N, 16, 5, 5)
        )
        self.classifier = nn.Sequential(
            *(nn.Linear(400, 120, rng=rng), nn.ReLU()),
            *(nn.Linear(120, 84, rng=rng), nn.ReLU()),
            nn.Linear(84, classes, rng=rng),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, 32, 32) -> (N, classes)."""
        return self.classifier(self.features(x).flatten(1))


def _check_sizes(model: str, setting: str, sizes: Sequence[int], *, least: int = 0) -> None:
    if not isinstance(sizes, Sequence) or len(sizes) < least:
        raise ValueError(
            f"{model}: {setting} is {sizes!r}; expected the sizes of its layers, such as (64, 32)"
        )


for _name, _model in dict(
    softmax=SoftmaxClassifier, svm=SVM, mlp=MLP, convnet=ConvNet, lenet5=LeNet5
).items():
    register(_name, _model)
