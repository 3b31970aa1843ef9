"""AlexNet, and the small network on which its paper tries ideas. Krizhevsky et al., NIPS 2012.

>>> AlexNet(classes=1000).num_parameters()  # abstract and section 4: "60 million"
60965224
>>> [AlexNetCifar(lrn=lrn).num_parameters() for lrn in (True, False)]  # normalisation has none
[85098, 85098]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import nn
from ..creation import ones
from ..tensor import Tensor
from .classic import Rng
from .registry import Classifier, register


def response_norm() -> nn.LocalResponseNorm:
    """Make section 3.3's normalisation: k = 2, n = 5, alpha = 1e-4, beta = 0.75.

    All four were chosen on a validation set. The paper's alpha multiplies the sum over n channels,
    ours their mean, as PyTorch's does: it is n times as large.
    """
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


def pool() -> nn.MaxPool2d:
    """Make section 3.4's overlapping pool: windows of 3 pixels, 2 apart."""
    return nn.MaxPool2d(3, 2)


def biased(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """Begin with biases of 1, which give the ReLUs positive inputs to learn from. Section 5."""
    layer.bias = nn.Parameter(ones(layer.weight.shape[0]))
    return layer


class AlexNet(Classifier):
    """Five convolutions and three fully connected layers. Sections 3.5 and 4.2, figure 2.

    Two groups are what the paper's two GPUs leave of a layer: each sees the channels of its own
    (section 3.2). The paper says that images are 224x224; its 55x55 maps want 227x227.
    """

    image_shape = (3, 227, 227)

    def __init__(
        self, classes: int = 1000,
        *, widths: Sequence[int] = (96, 256, 384, 384, 256), hidden: int = 4096, rng: Rng = None,
    ) -> None:  # fmt: skip
        if len(widths) != 5:
            raise ValueError(f"alexnet: widths is {widths}; expected 5, one for each convolution")
        a, b, c, d, e = widths
        at: dict[str, Any] = dict(weight_init=nn.init.normal, rng=rng)  # N(0, 0.01^2): section 5
        self.features = nn.Sequential(
            *(nn.Conv2d(3, a, 11, stride=4, **at), nn.ReLU()),  # (N, 96, 55, 55)
            *(response_norm(), pool()),  # (N, 96, 27, 27)
            *(biased(nn.Conv2d(a, b, 5, padding=2, groups=2, **at)), nn.ReLU()),
            *(response_norm(), pool()),  # (N, 256, 13, 13)
            *(nn.Conv2d(b, c, 3, padding=1, **at), nn.ReLU()),  # (N, 384, 13, 13)
            *(biased(nn.Conv2d(c, d, 3, padding=1, groups=2, **at)), nn.ReLU()),
            *(biased(nn.Conv2d(d, e, 3, padding=1, groups=2, **at)), nn.ReLU()),
            pool(),  # (N, 256, 6, 6)
        )
        self.classifier = nn.Sequential(
            *(biased(nn.Linear(e * 6 * 6, hidden, **at)), nn.ReLU(), nn.Dropout(0.5)),
            *(biased(nn.Linear(hidden, hidden, **at)), nn.ReLU(), nn.Dropout(0.5)),
            nn.Linear(hidden, classes, **at),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 3, 227, 227) -> (N, classes)."""
        return self.classifier(self.features(x).flatten(1))


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class AlexNetCifar(Classifier):
    """Four layers for CIFAR-10: ReLU against tanh (figure 1), with and without LRN (section 3.3).

    The paper leaves their description to cuda-convnet. Its 13 % and 11 % are those of nets with
    locally connected layers, which are not built here; this is the one without, layers-18pct.cfg:
    its filters, its overlapping pools, norms after them. From the paper is LRN across channels with
    its four constants (layers-18pct normalises within a map). Chosen here are pools that leave an
    incomplete last window out, and He's initial weights: those of layers-18pct, N(0, 0.0001^2) and
    N(0, 0.01^2), are made for pixels of 0 to 255.
    """

    def __init__(
        self, classes: int = 10, *, lrn: bool = True, activation: str = "relu", rng: Rng = None
    ) -> None:
        if activation not in ACTIVATIONS:
            known = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"alexnet_cifar: activation is {activation!r}; expected {known}")
        act, he = ACTIVATIONS[activation], nn.init.kaiming_normal
        at: dict[str, Any] = dict(padding=2, weight_init=he, rng=rng)
        norm: Callable[[], nn.Module] = response_norm if lrn else nn.Sequential  # empty: none
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 32, 5, **at), act(), nn.MaxPool2d(3, 2), norm()),  # (N, 32, 15, 15)
            *(nn.Conv2d(32, 32, 5, **at), act(), nn.AvgPool2d(3, 2), norm()),  # (N, 32, 7, 7)
            *(nn.Conv2d(32, 64, 5, **at), act(), nn.AvgPool2d(3, 2)),  # (N, 64, 3, 3)
        )
        self.fc = nn.Linear(64 * 3 * 3, classes, weight_init=he, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 3, 32, 32) -> (N, classes)."""
        return self.fc(self.features(x).flatten(1))


register("alexnet", AlexNet)
register("alexnet_cifar", AlexNetCifar)
