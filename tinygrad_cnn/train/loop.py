"""The step and the evaluation: what happens to one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy

from .. import functional as F
from ..autograd import no_grad
from ..models import Classifier
from ..optim import Optimizer
from ..tensor import Tensor

Array = numpy.ndarray[Any, Any]
Batch = tuple[Array, Array]


@dataclass
class Metrics:
    """Loss and accuracy over the images seen so far."""

    images: int = 0
    loss_sum: float = 0.0
    correct: int = 0

    def add(self, loss: float, scores: Array, targets: Any) -> None:
        """Count a batch: its mean loss, its scores (N, K) and its targets (N,)."""
        self.count(len(targets), loss, int((scores.argmax(axis=1) == targets).sum()))

    def count(self, images: int, loss: float, correct: int) -> None:
        """Count so many images, their mean loss and how many of them were right."""
        self.images += images
        self.loss_sum += loss * images
        self.correct += correct

    loss = property(lambda self: self.loss_sum / max(self.images, 1))
    accuracy = property(lambda self: self.correct / max(self.images, 1))

    def __str__(self) -> str:
        return f"loss {self.loss:.3f}, accuracy {self.accuracy:.1%}"


def train_step(
    model: Classifier, optimizer: Optimizer, x: Any, targets: Any, **settings: Any
) -> tuple[float, Any]:
    """Do one step on images x (N, C, H, W); gives the loss and the scores (N, K) before it.

    The settings are those of compute_gradients.
    """
    optimizer.zero_grad()
    loss, scores = compute_gradients(model, x, targets, **settings)
    optimizer.step()
    return loss, scores


def compute_gradients(
    model: Classifier, x: Any, targets: Any, *, label_smoothing: float = 0.0, parts: int = 1
) -> tuple[float, Any]:
    """Add the gradients of the mean loss to the parameters'; gives the loss and the scores (N, K).

    With `parts` the batch goes through the model in so many pieces, which needs less memory; the
    gradients are the same, but for batch norm, which then normalises each piece by itself.
    """
    found = gradients_in_parts(model, x, targets, label_smoothing=label_smoothing, parts=parts)
    losses, scores = zip(*found, strict=True)
    return sum(loss.item() for loss in losses), numpy.concatenate([s.numpy() for s in scores])


def gradients_in_parts(
    model: Classifier, x: Any, targets: Any, *, label_smoothing: float, parts: int
) -> list[tuple[Tensor, Tensor]]:
    """Do compute_gradients; gives each part's share of the loss, and its scores, unread."""
    smoothed = {"label_smoothing": label_smoothing} if label_smoothing else {}
    parts, found = max(1, min(parts, len(targets))), []  # no empty ones
    for xs, ts in zip(numpy.array_split(x, parts), numpy.array_split(targets, parts), strict=True):
        scores = model(Tensor(xs))
        loss = model.loss(scores, ts, **smoothed)
        if parts > 1:
            loss = loss * (len(ts) / len(targets))  # the mean of all, not of this part
        loss.backward()
        found.append((loss.detach(), scores.detach()))
    return found


def check_smoothing(model: Classifier, label_smoothing: float) -> None:
    """Refuse label smoothing where the model's loss is no cross-entropy."""
    if label_smoothing and model.loss is not F.cross_entropy:
        raise ValueError(
            f"label_smoothing is {label_smoothing}, but the loss of {type(model).__name__} is no "
            "cross-entropy; set it to 0 or take another model"
        )


def judge(model: Classifier, x: Array, *, flip: bool = False) -> Tensor:
    """Score images x (N, C, H, W); with `flip`, the mean of their and their mirror images' scores.

    So AlexNet is tested (Krizhevsky et al. 2012, section 4.1), on crops besides.
    """
    scores: Tensor = model(Tensor(x))
    return (scores + model(Tensor(x[..., ::-1]))) * 0.5 if flip else scores


def evaluate(
    model: Classifier,
    batches: Iterable[Batch],
    *,
    flip: bool = False,
    watch: Callable[[Array], Any] | None = None,
) -> Metrics:
    """Measure a model in evaluation mode; every module's mode is restored.

    `flip` is judge's; `watch` is called with each batch's scores (N, K).
    """
    metrics, modes = Metrics(), [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with no_grad():
            for x, targets in batches:
                scores = judge(model, x, flip=flip)
                metrics.add(model.loss(scores, targets).item(), scores.numpy(), targets)
                if watch:
                    watch(scores.numpy())
    finally:
        for module, training in modes:
            module.training = training
    return metrics
