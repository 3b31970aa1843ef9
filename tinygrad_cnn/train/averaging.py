"""A running average of the weights, which often does better than the last of them.

Polyak & Juditsky 1992; with exponential weights as in Tarvainen & Valpola, arXiv 1703.01780.
"""

from __future__ import annotations

import copy
from typing import Any

from ..models import Classifier


class WeightAverage:
    """Hold, in a model of its own, a running average of another's parameters and buffers.

    Step t counts with 1 - min(decay, (1 + t) / (10 + t)): a short memory at first, so that the
    random weights of the beginning are soon forgotten. Batch norm's statistics are averaged too.
    """

    def __init__(self, model: Classifier, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"WeightAverage: decay is {decay}; expected a number between 0 and 1")
        self.model, self.decay = copy.deepcopy(model), decay
        self.model.eval()
        for p in self.model.parameters():
            p.requires_grad = False

    def update(self, model: Classifier, step: int) -> None:
        """Take in the model's values after its update number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, new in zip(_tensors(self.model), _tensors(model), strict=True):
            average.data = average.data + (1 - decay) * (new.data - average.data)


def _tensors(model: Classifier) -> list[Any]:
    return [*model.parameters(), *(buffer for _, buffer in model.named_buffers())]
