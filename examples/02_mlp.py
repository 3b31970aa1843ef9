"""A network written out by hand: two layers, a loss, backward, and a step downhill.

    python examples/02_mlp.py                  # on the built-in shapes
    python examples/02_mlp.py --data-dir DIR   # on CIFAR-10

Nothing is hidden here: the parameters are tensors, the forward pass is arithmetic, and the update
is one line. `tinygrad_cnn.nn`, `optim` and `train` only tidy this up.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import track

import tinygrad_cnn as tg
from tinygrad_cnn import data
from tinygrad_cnn import functional as F
from tinygrad_cnn.cli import run


def main(
    data_dir: Annotated[Path | None, typer.Option(help="Folder with CIFAR-10.")] = None,
    images: int = 5000,
    epochs: int = 4,
    hidden: int = 100,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> None:
    train_set, test_set = data.load(data_dir, images=images, seed=seed)
    statistics = data.channel_statistics(train_set.images)
    loader = data.Loader(train_set, 100, seed=seed, normalize=statistics)
    held_out = data.Loader(test_set, 100, seed=seed, normalize=statistics, shuffle=False)

    rng = np.random.default_rng(seed)
    pixels = train_set.images[0].size
    w1 = tg.Tensor(rng.normal(0, (2 / pixels) ** 0.5, (pixels, hidden)), True, dtype="float32")
    w2 = tg.Tensor(rng.normal(0, (2 / hidden) ** 0.5, (hidden, 10)), True, dtype="float32")
    b1, b2 = tg.zeros(hidden, requires_grad=True), tg.zeros(10, requires_grad=True)

    def scores(x: np.ndarray) -> tg.Tensor:
        h = (tg.Tensor(x).flatten(1) @ w1 + b1).relu()  # (N, hidden)
        return h @ w2 + b2  # (N, 10)

    for epoch in range(epochs):
        losses = []
        batches = track(loader.epoch(epoch), f"epoch {epoch + 1}/{epochs}", total=len(loader))
        for x, targets in batches:
            loss = F.cross_entropy(scores(x), targets)
            loss.backward()
            losses.append(loss.item())
            for p in (w1, b1, w2, b2):
                p.data = p.data - learning_rate * p.grad.data
                p.grad = None
        with tg.no_grad():
            right = [(scores(x).numpy().argmax(1) == y).mean() for x, y in held_out.epoch(0)]
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}, held out {np.mean(right):.1%} right")


if __name__ == "__main__":
    run(main)
