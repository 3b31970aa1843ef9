"""Time a training step of a residual network here and in PyTorch, on the same images.

    python benchmarks/resnet_step.py                          # 200 steps on the built-in shapes
    python benchmarks/resnet_step.py --data-dir DIR --backend numpy --batch-size 128

First both sides compute the first loss from the same weights and must agree; then blocks of ten
steps alternate in one process, with a pause for the other's threads to settle. Machines are noisy:
what counts is the ratio of the medians.
"""

from __future__ import annotations

import itertools
import platform
import statistics as stats
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

import tinygrad_cnn as tg
from tinygrad_cnn import data, models, optim, train
from tinygrad_cnn.cli import run

BLOCK, PAUSE = 10, 0.02
Step = Callable[[Any, Any], float]


def our_step(model: models.Classifier) -> Step:
    """Make a function that does one step and gives its loss."""
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    return lambda x, targets: train.train_step(model, optimizer, x, targets)[0]


def torch_step(name: str, state: dict[str, Any]) -> Step:
    """Make the same of PyTorch, channels_last, which is its faster layout here."""
    import torch
    from torch_models import build

    model = build(name).to(memory_format=torch.channels_last)
    model.load_state_dict({k: torch.tensor(v) for k, v in state.items()}, strict=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)

    def step(x: Any, targets: Any) -> float:
        loss = torch.nn.functional.cross_entropy(model(torch.tensor(x)), torch.tensor(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def batches(data_dir: Path | None, batch_size: int) -> Iterator[Any]:
    """Yield augmented training batches for ever."""
    train_set, _ = data.load(data_dir, images=10_000)
    loader = data.Loader(
        train_set, batch_size, seed=0, normalize=data.channel_statistics(train_set.images),
        augment=data.random_crop_and_flip, drop_last=True,
    )  # fmt: skip
    return itertools.chain.from_iterable(loader.epoch(e) for e in itertools.count())


def main(
    model: str = "resnet20",
    data_dir: Annotated[Path | None, typer.Option(help="Folder with CIFAR-10.")] = None,
    backend: str = "numpy",
    batch_size: int = 128,
    steps: int = 200,
) -> None:
    tg.set_backend(backend)
    net = models.build(model, rng=tg.manual_seed(0))
    sides = {f"tinygrad_cnn {backend}": our_step(net)}
    try:
        sides["PyTorch"] = torch_step(model, net.state_dict())
    except ImportError:
        print("PyTorch is not installed (pip install torch); timing this side alone")
    stream = batches(data_dir, batch_size)
    x, targets = next(stream)
    losses = {side: [step(x, targets)] for side, step in sides.items()}
    ours, *theirs = losses.values()
    for other in theirs:
        np.testing.assert_allclose(ours, other, rtol=1e-4)

    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in track(range(steps // BLOCK), "blocks of ten steps"):
        block = [next(stream) for _ in range(BLOCK)]
        for side, step in sides.items():
            time.sleep(PAUSE)
            for x, targets in block:
                start = time.perf_counter()
                losses[side].append(step(x, targets))
                seconds[side].append(time.perf_counter() - start)
    report(seconds, losses, batch_size)


def report(
    seconds: dict[str, list[float]], losses: dict[str, list[float]], batch_size: int
) -> None:
    """Print each side's median step, images per second and losses, then the ratio."""
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    median = {side: stats.median(s) for side, s in seconds.items()}
    for side, values in losses.items():
        first, last = np.mean(values[:10]), np.mean(values[-10:])
        print(
            f"{side:20} {1e3 * median[side]:7.0f} ms a step (n = {len(seconds[side])}), "
            f"{batch_size / median[side]:5.0f} images/s, loss {first:.3f} -> {last:.3f}"
        )
    if len(median) == 2:
        ours, theirs = median.values()
        print(f"ratio PyTorch / ours: {theirs / ours:.2f}")


if __name__ == "__main__":
    run(main)
