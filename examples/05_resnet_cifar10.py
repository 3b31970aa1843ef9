r"""A residual network, trained from scratch. He et al., arXiv 1512.03385, section 4.2.

    python examples/05_resnet_cifar10.py                                   # a glance, on shapes
    python examples/05_resnet_cifar10.py --images 4000 --epochs 5          # minutes: 83 %
    python examples/05_resnet_cifar10.py --data-dir DIR --images 50000 --epochs 30 \
        --batch-size 128 --learning-rate 0.1                               # on CIFAR-10

Network, initial weights, pad-crop-flip, momentum 0.9 and weight decay 1e-4 are the paper's. Made
for short runs are the small batch, Nesterov's momentum and a learning rate that warms up and falls
as a cosine; the paper trains for 64,000 steps of 128 images and divides 0.1 by 10 twice.
"""

from pathlib import Path
from typing import Annotated

import typer

import tinygrad_cnn as tg
from tinygrad_cnn import data, models, optim, train
from tinygrad_cnn.cli import run


def main(
    data_dir: Annotated[Path | None, typer.Option(help="Folder with CIFAR-10.")] = None,
    model: str = "resnet20",
    images: int = 1600,
    epochs: int = 2,
    batch_size: int = 32,
    learning_rate: float = 0.05,
    backend: str | None = None,
    seed: int = 0,
) -> None:
    if backend:
        tg.set_backend(backend)
    train_set, test_set = data.load(data_dir, images=images, seed=seed)
    statistics = data.channel_statistics(train_set.images)
    augment = data.random_crop_and_flip
    loader = data.Loader(train_set, batch_size, seed=seed, normalize=statistics, augment=augment)
    held_out = data.Loader(test_set, batch_size, seed=seed, normalize=statistics, shuffle=False)

    net = models.build(model, rng=tg.manual_seed(seed))
    optimizer = optim.SGD(
        net.parameters(), lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    steps = epochs * len(loader)
    schedule = optim.warm_up(optim.cosine(learning_rate, steps), max(1, steps // 10))
    print(f"{model}: {net.num_parameters():,} parameters, {steps} steps")
    history = train.fit(
        net, optimizer, loader, epochs=epochs, schedule=schedule, validation=held_out
    )
    print(f"accuracy on {len(test_set)} held-out images: {history[-1]['validation_accuracy']:.1%}")


if __name__ == "__main__":
    run(main)
