"""A linear classifier with two losses: the SVM's hinge and softmax's cross-entropy.

    python examples/01_linear.py                  # on the built-in shapes
    python examples/01_linear.py --data-dir DIR   # on CIFAR-10

Every class has one weight per pixel, so its weights are a picture: a template. A template fails on
the shapes, which may lie anywhere (10 % is chance), and sees something in CIFAR-10, whose skies are
blue. Before training both losses must be what chance gives: ln 10 = 2.303, and 9 for the SVM.
"""

from pathlib import Path
from typing import Annotated

import typer

import tinygrad_cnn as tg
from tinygrad_cnn import data, models, optim, train
from tinygrad_cnn.cli import run


def main(
    data_dir: Annotated[Path | None, typer.Option(help="Folder with CIFAR-10.")] = None,
    images: int = 5000,
    epochs: int = 3,
    seed: int = 0,
) -> None:
    train_set, test_set = data.load(data_dir, images=images, seed=seed)
    statistics = data.channel_statistics(train_set.images)
    loader = data.Loader(train_set, 100, seed=seed, normalize=statistics)
    held_out = data.Loader(test_set, 100, seed=seed, normalize=statistics, shuffle=False)

    for name, learning_rate in ("svm", 2e-4), ("softmax", 2e-3):
        model = models.build(name, rng=tg.manual_seed(seed))
        before = train.evaluate(model, held_out.epoch(0))
        print(f"\n{name}: before training {before}")
        optimizer = optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9, weight_decay=1e-3)
        train.fit(model, optimizer, loader, epochs=epochs, validation=held_out)


if __name__ == "__main__":
    run(main)
