"""How far a step moves the weights, relative to their size: about 1e-3 is healthy.

CS231n, "Learning and Evaluation", section "Ratio of weights:updates".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy

from ..models import Classifier
from ..nn import Module, rehearsal
from ..optim import Optimizer
from ..train import train_step

Ratios = dict[str, float]


def weights(model: Module) -> dict[str, Any]:
    """Copy the weights by name, without biases and other vectors: those begin at 0."""
    return {n: p.numpy().copy() for n, p in model.named_parameters() if p.ndim > 1}


def ratios(before: dict[str, Any], after: dict[str, Any]) -> Ratios:
    """Divide each update's norm by its weight's."""
    return {n: _norm(after[n] - w) / max(_norm(w), 1e-12) for n, w in before.items()}


def _norm(a: Any) -> float:
    return float(numpy.linalg.norm(a))


class UpdateRatios:
    """A trainer's callback: `history` has (step, ratio of each weight) of every n-th step."""

    def __init__(self, every: int = 100) -> None:
        if every < 1:
            raise ValueError(f"UpdateRatios: every is {every}; expected at least 1 step")
        self.every, self.history = every, list[tuple[int, Ratios]]()
        self._before: dict[str, Any] | None = None
        self._seen = 0

    def on_before_update(self, trainer: Any) -> None:
        """Remember the weights."""
        self._before = weights(trainer.model) if self._seen % self.every == 0 else None
        self._seen += 1

    def on_step(self, trainer: Any) -> None:
        """Compare."""
        if self._before is not None:
            self.history.append((trainer.step, ratios(self._before, weights(trainer.model))))


def update_ratios(
    model: Classifier, optimizer: Optimizer, batches: Iterable[tuple[Any, Any]]
) -> list[Ratios]:
    """Train on the batches, one step each; give every step's ratios."""
    found = []
    with rehearsal(model):
        model.train()
        for x, targets in batches:
            before = weights(model)
            train_step(model, optimizer, x, targets)
            found.append(ratios(before, weights(model)))
    return found


def verdict(ratio: float) -> str:
    """Judge a ratio."""
    if not numpy.isfinite(ratio):
        return "not a number"
    if ratio < 1e-4:
        return "hardly moves: raise the learning rate"
    return "fine" if ratio < 1e-2 else "moves too far: lower the learning rate"
