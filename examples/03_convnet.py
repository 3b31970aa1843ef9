"""A ConvNet against a fully connected net: the same data, the same optimiser, fewer parameters.

    python examples/03_convnet.py                  # on the built-in shapes
    python examples/03_convnet.py --data-dir DIR   # on CIFAR-10

A convolution looks for the same pattern at every place, which is what the shapes need: they may lie
anywhere. The fully connected net has to learn each place by itself, and only learns by heart.
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
    epochs: int = 4,
    seed: int = 0,
) -> None:
    train_set, test_set = data.load(data_dir, images=images, seed=seed)
    statistics = data.channel_statistics(train_set.images)
    loader = data.Loader(train_set, 50, seed=seed, normalize=statistics)
    held_out = data.Loader(test_set, 100, seed=seed, normalize=statistics, shuffle=False)

    for name in "mlp", "convnet":
        model = models.build(name, rng=tg.manual_seed(seed))
        print(f"\n{model}\n{model.num_parameters():,} parameters")
        optimizer = optim.Adam(model.parameters())
        schedule = optim.cosine(2e-3, epochs * len(loader))
        train.fit(model, optimizer, loader, epochs=epochs, schedule=schedule, validation=held_out)


if __name__ == "__main__":
    run(main)
