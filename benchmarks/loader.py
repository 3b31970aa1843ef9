"""Measure what the loader costs a training step.

    python benchmarks/loader.py                                 # a small network on the shapes
    python benchmarks/loader.py --data-dir DIR --model resnet20 --backend numba

The same steps are done on batches that are already there, on batches prepared one ahead by a
thread, and on batches prepared when they are asked for. Blocks of five steps alternate; what counts
is the share of a step spent waiting, and what the thread takes from the kernels beside it.
"""

from __future__ import annotations

import itertools
import platform
import statistics as stats
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

import tinygrad_cnn as tg
from tinygrad_cnn import data, models, optim, train
from tinygrad_cnn.cli import run

BLOCK = 5


def make_loader(dataset: data.Dataset, batch_size: int, **settings: Any) -> data.Loader:
    """Make a loader as a training has it: shuffled, cropped, flipped."""
    return data.Loader(
        dataset, batch_size, seed=0, normalize=data.channel_statistics(dataset.images),
        augment=data.random_crop_and_flip, drop_last=True, **settings,
    )  # fmt: skip


def for_ever(loader: data.Loader) -> Iterator[Any]:
    """Go through epoch after epoch."""
    return itertools.chain.from_iterable(map(loader.epoch, itertools.count()))


def milliseconds_a_batch(loader: data.Loader) -> float:
    """Time how long a batch takes when nothing else is to be done."""
    waited = [loader.waited for _ in itertools.islice(for_ever(loader), 201)]
    return 1e3 * float(np.median(np.diff(waited)))


def main(
    data_dir: Annotated[Path | None, typer.Option(help="Folder with CIFAR-10.")] = None,
    model: str = "resnet8",
    backend: str = "numpy",
    batch_size: int = 128,
    steps: int = 100,
) -> None:
    tg.set_backend(backend)
    dataset, _ = data.load(data_dir, images=10_000)
    loaders = {name: make_loader(dataset, batch_size, prefetch=on)
               for name, on in (("one ahead", True), ("on demand", False))}  # fmt: skip
    alone = milliseconds_a_batch(loaders["on demand"])
    streams: dict[str, Iterator[Any]] = {
        "at hand": itertools.cycle(itertools.islice(for_ever(loaders["on demand"]), 8))
    }
    streams |= {name: for_ever(loader) for name, loader in loaders.items()}
    net = models.build(model, rng=tg.manual_seed(0))
    optimizer = optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    seconds: dict[str, list[float]] = {name: [] for name in streams}
    waits: dict[str, list[float]] = {name: [] for name in streams}
    for _ in track(range(steps // BLOCK), "blocks of five steps"):
        for name, stream in streams.items():
            for _ in range(BLOCK):
                start = time.perf_counter()
                x, targets = next(stream)
                got = time.perf_counter()
                train.train_step(net, optimizer, x, targets)
                waits[name].append(got - start)
                seconds[name].append(time.perf_counter() - start)
    report(f"{model}, {backend}, batch {batch_size}", dataset.name, alone, seconds, waits)


def report(
    title: str,
    images: str,
    alone: float,
    seconds: dict[str, list[float]],
    waits: dict[str, list[float]],
) -> None:
    """Print the cost of a batch by itself, then each way's median step and wait."""
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"{title}, {images}; a batch takes {alone:.2f} ms by itself")
    for name, values in seconds.items():
        step, wait = 1e3 * stats.median(values), 1e3 * stats.median(waits[name])
        print(
            f"{name:10} {step:7.1f} ms a step (n = {len(values)}), {wait:6.2f} ms of it waiting: "
            f"{wait / step:.2%}"
        )


if __name__ == "__main__":
    run(main)
