"""What goes through the layers: ReLUs that never fire, and how strongly each layer responds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from ..autograd import no_grad
from ..functional import unfused
from ..models import Classifier
from ..nn import BatchNorm2d, Call, rehearsal, trace
from ..tensor import Tensor


@dataclass
class DeadReLU:
    """One ReLU: `silent` (C,) tells which channels (or features) were 0 for every image."""

    path: str
    silent: Any
    zeros: float  # share of all its outputs that were 0

    @property
    def dead(self) -> float:
        """Share of the channels that never fired."""
        return float(self.silent.mean())


def dead_relus(model: Classifier, images: Iterable[Any]) -> list[DeadReLU]:
    """Find, for each ReLU in its order, the channels that are 0 on all batches (N, C, H, W).

    Such a unit passes no gradient and stays dead: CS231n, "Neural Networks Part 1", ReLU. A
    fused ReLU is seen too; the model is in evaluation mode.
    """
    batches = list[list[DeadReLU]]()

    def see(call: Call, op: str, inputs: Sequence[Any], y: Tensor) -> None:
        if op == "relu":
            zero = y.numpy() == 0
            silent = zero.all(axis=tuple(i for i in range(y.ndim) if i != 1))
            batches[-1].append(DeadReLU(call.path, silent, float(zero.mean())))

    with rehearsal(model), no_grad(), unfused(), trace(model, see):
        model.eval()
        for x in images:
            batches.append([])
            model(Tensor(x))
    return [_together(relu) for relu in zip(*batches, strict=True)]


def _together(batches: Sequence[DeadReLU]) -> DeadReLU:
    silent = numpy.logical_and.reduce([one.silent for one in batches])
    return DeadReLU(batches[0].path, silent, float(numpy.mean([one.zeros for one in batches])))


@dataclass(frozen=True)
class Response:
    """The standard deviation of one layer's outputs."""

    path: str
    std: float


def layer_responses(model: Classifier, x: Any) -> list[Response]:
    """Measure the standard deviation of each convolution's response to images x (N, C, H, W).

    The response is taken after batch norm and before the nonlinearity and the addition: He et al.,
    arXiv 1512.03385, section 4.2, "Analysis of layer responses", figure 7. In a model without batch
    norm it is the convolution's output. Running statistics are used: train the model first.
    """
    normed = any(isinstance(module, BatchNorm2d) for module in model.modules())
    found = dict[Call, float]()

    def see(call: Call, op: str, inputs: Sequence[Any], y: Tensor) -> None:
        if op == "batch_norm" or (not normed and op == "conv2d"):
            found[call] = float(y.numpy().std())

    with rehearsal(model), no_grad(), unfused(), trace(model, see):
        model.eval()(Tensor(x))
    return [Response(call.path, std) for call, std in found.items()]
