"""The learning-rate range test. Smith, arXiv 1506.01186, section 3.3.

Train for a few steps while the learning rate rises from far too small to far too large, and look at
the loss: where it falls the rate is useful, where it turns up again it is too large.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy

from ..models import Classifier
from ..nn import rehearsal
from ..optim import Optimizer
from ..train import train_step

GONE = 3.0  # a smoothed loss of so many times the best is divergence
FALL = 0.05  # less of a fall than this share of the first loss is none


@dataclass(frozen=True)
class LrRange:
    """Learning rates, the loss before each one's step, and the losses smoothed."""

    lrs: list[float]
    losses: list[float]
    smooth: list[float]

    @property
    def best(self) -> int:
        """The step with the smallest smoothed loss."""
        return int(numpy.argmin(self.smooth))

    @property
    def suggestion(self) -> float | None:
        """A tenth of the rate at which the loss was smallest, as fastai; None if it never fell."""
        if self.smooth[self.best] > (1 - FALL) * self.smooth[0]:
            return None
        return self.lrs[self.best] / 10

    @property
    def verdict(self) -> str:
        """Say what rate to begin with, or why there is none."""
        low, high = self.lrs[0], self.lrs[-1]
        if self.suggestion is None:
            return (
                f"the loss never fell between lr {low:.2g} and {high:.2g}: test smaller rates, "
                "and see whether 20 images can be learned by heart"
            )
        return (
            f"the loss was smallest at lr {self.lrs[self.best]:.2g} and the test ended at "
            f"{high:.2g}; begin with a tenth: {self.suggestion:.2g}"
        )


def lr_range(
    model: Classifier, optimizer: Optimizer, batches: Iterable[tuple[Any, Any]], *,
    low: float = 1e-5, high: float = 10.0, steps: int = 100,
) -> LrRange:  # fmt: skip
    """Train on up to `steps` batches, one each, while the rate rises evenly in its logarithm.

    The test ends early where the loss has tripled or is no number. The optimiser's own state is
    used up; make a new one for the training.
    """
    if not 0 < low < high:
        raise ValueError(f"lr_range: low is {low}, high is {high}; expected 0 < low < high")
    rates = numpy.geomspace(low, high, steps).tolist()
    losses, smooth = list[float](), list[float]()
    with rehearsal(model), numpy.errstate(over="ignore", invalid="ignore"):
        model.train()
        for lr, (x, targets) in zip(rates, islice(batches, steps), strict=False):
            optimizer.lr = lr
            loss, _ = train_step(model, optimizer, x, targets)
            if not math.isfinite(loss) or loss > GONE * min(smooth, default=loss):
                break
            losses.append(loss)
            smooth.append(_average(losses))
    return LrRange(rates[: len(losses)], losses, smooth)


def _average(losses: list[float], decay: float = 0.8) -> float:
    """Weigh the losses so far, the latest the most."""
    weights = decay ** numpy.arange(len(losses))[::-1]
    return float(weights @ losses / weights.sum())
