"""Before the first epoch: the first loss should be that of chance, 20 images be learned by heart.

CS231n, "Learning and Evaluation", section "Before learning: sanity checks".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy

from ..autograd import no_grad
from ..models import Classifier
from ..nn import Dropout, rehearsal
from ..optim import Adam
from ..tensor import Tensor
from ..train import train_step


@dataclass(frozen=True)
class InitialLoss:
    """The loss of a new model, and what it is at chance: with all scores equal."""

    loss: float
    chance: float

    @property
    def verdict(self) -> str:
        """Say how far the two are apart and what that means."""
        came = f"the loss is {self.loss:.3f}; with all scores equal it is {self.chance:.3f}"
        if not math.isfinite(self.loss):
            return f"{came}: not a number. Look for infinite inputs or weights that are too large"
        ratio = self.loss / self.chance
        if ratio < 0.9:
            return f"{came}: too good to be new. Is the model trained, or the label in the image?"
        if ratio < 1.5:  # He-initialised classifiers spread their scores a little
            return f"{came}: as it should be"
        return (
            f"{came}: {ratio:.1f} times that. The scores differ too much before anything is "
            "learned: normalise the images, or make the last layer's initial weights smaller"
        )


def initial_loss(model: Classifier, x: Any, targets: Any) -> InitialLoss:
    """Compare the loss on images x (N, C, H, W) with that of chance.

    Chance is ln K for cross-entropy and K - 1 for the SVM's hinge loss: 2.303 and 9 for 10 classes.
    Batch norm uses the batch's statistics, as in the first step.
    """
    with rehearsal(model), no_grad():
        scores = model.train()(Tensor(x))
        return InitialLoss(
            model.loss(scores, targets).item(), model.loss(scores * 0.0, targets).item()
        )


@dataclass(frozen=True)
class Overfit:
    """Loss and accuracy of each step on the same few images; `learned` is the last one's word."""

    losses: list[float]
    accuracies: list[float]
    learned: bool

    @property
    def verdict(self) -> str:
        """Say whether they were learned by heart, and what to look at if not."""
        steps, loss, accuracy = len(self.losses), self.losses[-1], self.accuracies[-1]
        if self.learned:
            return f"learned by heart in {steps} steps (loss {loss:.3f})"
        return (
            f"not learned in {steps} steps (loss {loss:.3f}, accuracy {accuracy:.0%}): check the "
            "labels, the loss and the gradients, another learning rate, a larger model"
        )


def overfit(
    model: Classifier, x: Any, targets: Any, *, steps: int = 300, lr: float = 1e-3,
    enough: float = 0.05,
) -> Overfit:  # fmt: skip
    """Train with Adam on the same few images x until all are right and the loss is below `enough`.

    Dropout is off and there is no weight decay: regularisation must not stand in the way.
    """
    losses, accuracies = list[float](), list[float]()
    with rehearsal(model), numpy.errstate(over="ignore", invalid="ignore"):
        _without_dropout(model)
        optimizer = Adam(model.parameters(), lr=lr)
        while len(losses) < steps:
            loss, scores = train_step(model, optimizer, x, targets)
            losses.append(loss)
            accuracies.append(float((scores.argmax(axis=1) == numpy.asarray(targets)).mean()))
            learned = accuracies[-1] == 1 and loss < enough
            if learned or not math.isfinite(loss):
                break
    return Overfit(losses, accuracies, learned)


def _without_dropout(model: Classifier) -> None:
    for module in model.train().modules():
        if isinstance(module, Dropout):
            module.eval()
