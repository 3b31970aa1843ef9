"""The commands of `diagnose`: checks before and during a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

import tinygrad_cnn as tg

from ..data import Loader, channel_statistics, open_data
from ..models import Classifier, build
from .options import BackendOption, DataDirOption, chosen, complete_model
from .table import print_table
from .training import DataOption, SeedOption

HELP = """Find out why a network does not learn, or whether it will.

The checks are those of CS231n, "Learning and Evaluation". MODEL is the name of a network, taken
with fresh weights, or the folder or checkpoint of a run.
"""

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="A network's name, or a run's folder or .safetensors file.", show_default=False,
        autocompletion=complete_model,
    ),
]  # fmt: skip
ModelsArgument = Annotated[
    list[str],
    typer.Argument(metavar="MODEL...", help="Networks, or runs.", show_default=False,
                   autocompletion=complete_model),
]  # fmt: skip
BatchOption = Annotated[int, typer.Option(help="Images in a step.", min=1)]
RateOption = Annotated[float, typer.Option(help="Learning rate (SGD, momentum 0.9).")]
StepsOption = Annotated[int, typer.Option(help="At most so many steps.", min=1)]
BeforeOption = Annotated[
    int, typer.Option(metavar="STEPS", help="Train a network so long first.", min=0)
]
LowOption = Annotated[float, typer.Option(help="Learning rate of the first step.")]
HighOption = Annotated[float, typer.Option(help="Learning rate of the last step.")]
PictureOption = Annotated[
    Path | None, typer.Option("--out", metavar="FILE.png", help="Draw it into this file.")
]


@dataclass
class Subject:
    """What is examined: a model and its training images."""

    model: Classifier
    loader: Loader
    fresh: bool

    def batches(self, n: int | None = None) -> Iterator[tuple[Any, Any]]:
        """Go through the first n batches, epoch after epoch, or without end."""
        return islice((batch for epoch in count() for batch in self.loader.epoch(epoch)), n)

    def first(self) -> tuple[Any, Any]:
        """Give the first batch."""
        return next(iter(self.batches(1)))

    def sgd(self, lr: float) -> tg.optim.SGD:
        """Make an optimiser."""
        optimizer: tg.optim.SGD = tg.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)
        return optimizer

    def train(self, steps: int, lr: float) -> None:
        """Train a fresh model for some steps."""
        optimizer = self.sgd(lr)
        self.model.train()
        for x, targets in self.batches(steps if self.fresh else 0):
            tg.train.train_step(self.model, optimizer, x, targets)


@contextmanager
def _subject(
    model: str, data: str | None, data_dir: Path | None, backend: str | None, batch_size: int,
    seed: int | None,
) -> Iterator[Subject]:  # fmt: skip
    import numpy

    from ..train import checkpoint
    from ..train.folder import RunFolder
    from ..train.trained import rebuild

    seed, path = seed or 0, Path(model)
    with tg.use_backend(chosen(backend)):
        images, _ = open_data(data or "shapes", data_dir)
        statistics = channel_statistics(images.images)
        if path.exists():
            arrays, facts = checkpoint.load(RunFolder(path).chosen if path.is_dir() else path)
            net = rebuild(arrays, facts)
            statistics = arrays["normalization.mean"], arrays["normalization.std"]
        else:
            net = build(model, len(images.classes), rng=numpy.random.default_rng(seed))
        dtype = net.parameters()[0].dtype
        at: dict[str, Any] = dict(seed=seed, normalize=statistics, dtype=dtype, prefetch=False)
        yield Subject(net, Loader(images, batch_size, **at), fresh=not path.exists())


def initial_loss(
    model: ModelArgument, data: DataOption = None, data_dir: DataDirOption = None,
    batch_size: BatchOption = 128, seed: SeedOption = None, backend: BackendOption = None,
) -> None:  # fmt: skip
    """Compare the first loss with that of chance: ln K, or K - 1 for the SVM."""
    from .. import diagnose

    with _subject(model, data, data_dir, backend, batch_size, seed) as subject:
        print(diagnose.initial_loss(subject.model, *subject.first()).verdict)


def overfit(
    model: ModelArgument, data: DataOption = None, data_dir: DataDirOption = None,
    images: Annotated[int, typer.Option(help="How many images.", min=1)] = 20,
    steps: StepsOption = 300,
    lr: Annotated[float, typer.Option(help="Learning rate (Adam).")] = 1e-3,
    seed: SeedOption = None, backend: BackendOption = None,
) -> None:  # fmt: skip
    """Try to learn 20 images by heart: a network that can't has a bug."""
    from .. import diagnose

    with _subject(model, data, data_dir, backend, images, seed) as subject:
        found = diagnose.overfit(subject.model, *subject.first(), steps=steps, lr=lr)
    every = max(1, len(found.losses) // 10)
    steps_ = list(enumerate(zip(found.losses, found.accuracies, strict=True), 1))
    rows = [[str(i), f"{loss:.4f}", f"{accuracy:.0%}"] for i, (loss, accuracy) in steps_[::every]]
    print_table(["step", "loss", "accuracy"], rows, words=0)
    print(found.verdict)


def lr_range(
    model: ModelArgument, data: DataOption = None, data_dir: DataDirOption = None,
    low: LowOption = 1e-5, high: HighOption = 10.0, steps: StepsOption = 100,
    batch_size: BatchOption = 128, out: PictureOption = None, seed: SeedOption = None,
    backend: BackendOption = None,
) -> None:  # fmt: skip
    """Raise the learning rate step by step and see where the loss falls (Smith, 2015)."""
    from .. import diagnose, report

    with _subject(model, data, data_dir, backend, batch_size, seed) as subject:
        found = diagnose.lr_range(
            subject.model, subject.sgd(low), subject.batches(), low=low, high=high, steps=steps
        )
    every = max(1, len(found.lrs) // 15)
    table = zip(found.lrs, found.losses, found.smooth, strict=True)
    rows = [[f"{lr:.2e}", f"{loss:.3f}", f"{smooth:.3f}"] for lr, loss, smooth in table]
    print_table(["lr", "loss", "smoothed"], rows[::every], words=0)
    print(found.verdict)
    if out is not None:
        report.plot_lr_range(found.lrs, found.losses, found.smooth, found.suggestion, out)


def dead_relus(
    model: ModelArgument, data: DataOption = None, data_dir: DataDirOption = None,
    train: BeforeOption = 0, lr: RateOption = 0.01, batch_size: BatchOption = 128,
    batches: Annotated[int, typer.Option(help="Look at so many batches.", min=1)] = 4,
    seed: SeedOption = None, backend: BackendOption = None,
) -> None:  # fmt: skip
    """Find ReLUs that never fire, layer by layer."""
    from .. import diagnose

    with _subject(model, data, data_dir, backend, batch_size, seed) as subject:
        subject.train(train, lr)
        found = diagnose.dead_relus(subject.model, (x for x, _ in subject.batches(batches)))
    rows = [
        [relu.path or "(model)", f"{relu.silent.sum()} of {relu.silent.size}", f"{relu.zeros:.0%}"]
        for relu in found
    ]
    print_table(["ReLU in", "dead channels", "zeros"], rows)
    dead, total = sum(r.silent.sum() for r in found), sum(r.silent.size for r in found)
    print(f"{dead} of {total} channels are 0 for all {batches * batch_size} images")


def update_ratios(
    model: ModelArgument, data: DataOption = None, data_dir: DataDirOption = None,
    lr: RateOption = 0.05, steps: StepsOption = 10, batch_size: BatchOption = 128,
    seed: SeedOption = None, backend: BackendOption = None,
) -> None:  # fmt: skip
    """Compare each weight's update with the weight: about 1e-3 is healthy."""
    from .. import diagnose

    with _subject(model, data, data_dir, backend, batch_size, seed) as subject:
        batches = subject.batches(steps)
        found = diagnose.update_ratios(subject.model, subject.sgd(lr), batches)
    medians = {name: median(step[name] for step in found) for name in found[0]}
    rows = [[name, f"{ratio:.1e}", diagnose.verdict(ratio)] for name, ratio in medians.items()]
    print_table(["weight", "update/weight", "verdict"], rows)


def responses(
    models: ModelsArgument, data: DataOption = None, data_dir: DataDirOption = None,
    train: BeforeOption = 50, lr: RateOption = 0.05, batch_size: BatchOption = 128,
    out: PictureOption = None, seed: SeedOption = None, backend: BackendOption = None,
) -> None:  # fmt: skip
    """Measure how strongly each layer responds (ResNet paper, figure 7).

    Residual nets respond less than plain ones: `responses resnet20 plain20 --out responses.png`.
    """
    from .. import diagnose, report

    found = dict[str, list[diagnose.Response]]()
    for model in models:
        with _subject(model, data, data_dir, backend, batch_size, seed) as subject:
            subject.train(train, lr)
            found[model] = diagnose.layer_responses(subject.model, subject.first()[0])
    for model, measured in found.items():
        print_table([model, "std"], [[r.path, f"{r.std:.3f}"] for r in measured])
        print(f"mean {sum(r.std for r in measured) / max(len(measured), 1):.3f}\n")
    if out is not None:
        report.plot_responses({m: [r.std for r in rs] for m, rs in found.items()}, out)
