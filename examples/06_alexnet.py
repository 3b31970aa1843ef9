"""A network slides over a scene: AlexNet's small net, trained on single images, then converted.

    python examples/06_alexnet.py                  # on the built-in shapes; learns little
    python examples/06_alexnet.py --images 20000 --epochs 10 --out scores.png   # minutes, a picture
    python examples/06_alexnet.py --data-dir DIR   # on CIFAR-10

The scene is 4x4 held-out images. With its fully connected layer turned into a convolution the
network scores every 8th place in one pass, and computes once what neighbouring crops share. It
pads, and a crop has zeros where the scene goes on, so the scores are not quite those of crops.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import tinygrad_cnn as tg
from tinygrad_cnn import data, models, optim, train
from tinygrad_cnn.cli import run
from tinygrad_cnn.report.figure import figure
from tinygrad_cnn.summary import summarize

SIZE, STRIDE = 32, 8  # of an image, of the network's scores


def crops(scene: np.ndarray) -> np.ndarray:
    """Cut the scene (1, C, H, W) at every place that gets a score: (n, C, SIZE, SIZE)."""
    windows = np.lib.stride_tricks.sliding_window_view(scene[0], (SIZE, SIZE), axis=(1, 2))
    return windows[:, ::STRIDE, ::STRIDE].transpose(1, 2, 0, 3, 4).reshape(-1, 3, SIZE, SIZE)


def draw(pixels: np.ndarray, classes: np.ndarray, names: tuple[str, ...], path: Path) -> None:
    """Mark each place's class in the middle of its crop."""
    with figure(path, 6, 4.5) as drawing:
        axes = drawing.subplots()
        axes.imshow(pixels.transpose(1, 2, 0))
        for k in np.unique(classes):
            y, x = STRIDE * np.argwhere(classes == k).T + SIZE // 2
            axes.scatter(x, y, 70, color=f"C{k}", edgecolor="white", label=names[k])
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        axes.axis("off")


def main(
    data_dir: Annotated[Path | None, typer.Option(help="Folder with CIFAR-10.")] = None,
    images: int = 3000,
    epochs: int = 3,
    out: Annotated[Path | None, typer.Option(help="Picture of scene and classes.")] = None,
    seed: int = 0,
) -> None:
    train_set, test_set = data.load(data_dir, images=images, seed=seed)
    statistics = data.channel_statistics(train_set.images)
    loader = data.Loader(train_set, 50, seed=seed, normalize=statistics)
    held_out = data.Loader(test_set, 100, seed=seed, normalize=statistics, shuffle=False)
    model = models.build("alexnet_cifar", rng=tg.manual_seed(seed))
    optimizer = optim.Adam(model.parameters())
    schedule = optim.cosine(2e-3, epochs * len(loader))
    train.fit(model, optimizer, loader, epochs=epochs, schedule=schedule, validation=held_out)

    tiles = test_set.images[:16].reshape(4, 4, 3, SIZE, SIZE).transpose(2, 0, 3, 1, 4)
    pixels = tiles.reshape(1, 3, 4 * SIZE, 4 * SIZE)
    scene = data.normalize(pixels, *statistics)
    sliding = models.to_convolutional(model.eval())
    with tg.no_grad():
        classes = sliding(tg.Tensor(scene)).numpy()[0].argmax(0)  # (H', W')
        of_crops = model(tg.Tensor(crops(scene))).numpy().argmax(1).reshape(classes.shape)
    for row in classes:
        print(" ".join(f"{test_set.classes[k]:5.5}" for k in row))
    right = (classes[::4, ::4].flatten() == test_set.labels[:16]).sum()  # at the images' own places
    saved = classes.size * summarize(model).macs / summarize(sliding, scene.shape[1:]).macs
    print(f"the scene's images: {right} of 16 right")
    print(f"one pass multiplies {saved:.1f} times less than {classes.size} crops")
    print(f"and finds another class at {(classes != of_crops).mean():.0%} of the places")
    if out:
        draw(pixels[0], classes, test_set.classes, out)


if __name__ == "__main__":
    run(main)
