"""Define an op, check its gradients, and train a network with it.

    python examples/04_own_op.py

The op is Mish, x * tanh(softplus(x)) (Misra, arXiv 1908.08681). Its gradient is written with
tensors, so it can be differentiated again. The check is done by finite differences; a wrong sign
is caught.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import tinygrad_cnn as tg
from tinygrad_cnn import data, nn, optim, train
from tinygrad_cnn import functional as F
from tinygrad_cnn.cli import run
from tinygrad_cnn.models import Classifier


@tg.op
def softplus(x):
    """log(1 + e**x), without overflow."""
    return x.backend.map(lambda a: np.logaddexp(0, a), x.data), (lambda g: g * F.sigmoid(x),)


@tg.op
def wrong_softplus(x):
    """Compute the same, and lose a sign in the gradient."""
    return x.backend.map(lambda a: np.logaddexp(0, a), x.data), (lambda g: g * F.sigmoid(-x),)


def mish(x: tg.Tensor) -> tg.Tensor:
    return x * softplus(x).tanh()


class Net(Classifier):
    """Two convolutions and a linear classifier."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.conv1 = nn.Conv2d(3, 16, 5, stride=2, padding=2, rng=rng)
        self.conv2 = nn.Conv2d(16, 32, 5, stride=2, padding=2, rng=rng)
        self.fc = nn.Linear(32 * 8 * 8, 10, rng=rng)

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        return self.fc(mish(self.conv2(mish(self.conv1(x)))).flatten(1))


def main(
    data_dir: Annotated[Path | None, typer.Option(help="Folder with CIFAR-10.")] = None,
    images: int = 4000,
    epochs: int = 3,
    seed: int = 0,
) -> None:
    x = tg.randn(3, 4, rng=np.random.default_rng(seed), dtype="float64", requires_grad=True)
    print("gradients of order 1 and 2 are right:", tg.gradcheck(mish, [x], order=2))
    try:
        tg.gradcheck(wrong_softplus, [x])
    except AssertionError as error:
        print("the wrong one is caught:", error)

    train_set, test_set = data.load(data_dir, images=images, seed=seed)
    statistics = data.channel_statistics(train_set.images)
    loader = data.Loader(train_set, 50, seed=seed, normalize=statistics)
    held_out = data.Loader(test_set, 100, seed=seed, normalize=statistics, shuffle=False)
    model = Net(tg.manual_seed(seed))
    optimizer = optim.Adam(model.parameters(), lr=2e-3)
    train.fit(model, optimizer, loader, epochs=epochs, validation=held_out)


if __name__ == "__main__":
    run(main)
