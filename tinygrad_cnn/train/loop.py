"""The training loop: forward, backward, step, batch after batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy

from ..autograd import no_grad
from ..data import Loader, rng_at
from ..models import Classifier
from ..optim import Optimizer
from ..random import use_generator
from ..tensor import Tensor
from .progress import Progress

Batch = tuple[numpy.ndarray[Any, Any], numpy.ndarray[Any, Any]]


@dataclass
class Metrics:
    """Loss and accuracy over the images seen so far."""

    images: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def add(self, loss: float, scores: numpy.ndarray[Any, Any], targets: Any) -> None:
        """Count a batch: its mean loss, its scores (N, K) and its targets (N,)."""
        self.images += len(targets)
        self.loss_sum += loss * len(targets)
        self.correct += int((scores.argmax(axis=1) == targets).sum())
        self.seconds = time.perf_counter() - self.started

    loss = property(lambda self: self.loss_sum / max(self.images, 1))
    accuracy = property(lambda self: self.correct / max(self.images, 1))
    images_per_second = property(lambda self: self.images / max(self.seconds, 1e-9))

    def __str__(self) -> str:
        return f"loss {self.loss:.3f}, accuracy {self.accuracy:.1%}"


@dataclass(frozen=True)
class EpochResult:
    """What one epoch of `fit` measured."""

    epoch: int
    train: Metrics
    validation: Metrics | None


def train_step(model: Classifier, optimizer: Optimizer, x: Any, targets: Any) -> tuple[float, Any]:
    """Do one step on images x (N, C, H, W); gives the loss and the scores (N, K) before it."""
    scores = model(Tensor(x))
    loss = model.loss(scores, targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), scores.numpy()


def fit(
    model: Classifier,
    optimizer: Optimizer,
    loader: Loader,
    *,
    epochs: int,
    schedule: Callable[[int], float] | None = None,
    validation: Loader | None = None,
) -> list[EpochResult]:
    """Train for some epochs, showing live progress; `schedule` maps a step to its learning rate.

    Shuffling, augmentation and dropout depend on the loader's seed, the epoch and the batch only.
    """
    results = []
    with Progress(epochs, len(loader)) as progress:
        for epoch in range(epochs):
            metrics = Metrics()
            model.train()
            for batch, (x, targets) in enumerate(loader.epoch(epoch)):
                if schedule is not None:
                    optimizer.lr = schedule(epoch * len(loader) + batch)
                with use_generator(rng_at(loader.seed, "dropout", epoch, batch)):
                    metrics.add(*train_step(model, optimizer, x, targets), targets)
                progress.update(epoch, batch, metrics)
            held_out = None if validation is None else evaluate(model, validation.epoch(0))
            results.append(EpochResult(epoch, metrics, held_out))
            progress.finish(results[-1])
    return results


def evaluate(model: Classifier, batches: Iterable[Batch]) -> Metrics:
    """Measure a model in evaluation mode; every module's mode is restored."""
    metrics, modes = Metrics(), [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with no_grad():
            for x, targets in batches:
                scores = model(Tensor(x))
                metrics.add(model.loss(scores, targets).item(), scores.numpy(), targets)
    finally:
        for module, training in modes:
            module.training = training
    return metrics
