"""A residual network, trained from scratch. He et al., arXiv 1512.03385, section 4.2.

    python examples/05_resnet_cifar10.py                                    # on the built-in shapes
    python examples/05_resnet_cifar10.py --data-dir DIR --images 50000 --epochs 164   # the paper's
    python examples/05_resnet_cifar10.py --data-dir DIR --images 25600 --epochs 1  # a first look

Pad-crop-flip, SGD with momentum 0.9 and weight decay 1e-4, as in the paper; its learning rate of
0.1 is divided by 10 after half and three quarters of the way, here after a cosine from 0.1 to 0.
"""

from pathlib import Path
from typing import Annotated

import typer

import tinygrad_cnn as tg
from tinygrad_cnn import data, models, optim, train


def main(
    data_dir: Annotated[Path | None, typer.Option(help="Folder with CIFAR-10.")] = None,
    model: str = "resnet20",
    images: int = 1600,
    epochs: int = 2,
    batch_size: int = 128,
    learning_rate: float = 0.1,
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
    print(f"{model}: {sum(p.size for p in net.parameters()):,} parameters, {steps} steps")
    results = train.fit(
        net, optimizer, loader, epochs=epochs, schedule=schedule, validation=held_out
    )
    print(f"accuracy on {len(test_set)} held-out images: {results[-1].validation.accuracy:.1%}")


if __name__ == "__main__":
    typer.run(main)
