"""What each layer makes and costs: output volume, parameters, multiplications, memory.

>>> from tinygrad_cnn import models
>>> found = summarize(models.build("resnet20"))
>>> found.parameters, round(found.macs / 1e6, 2)
(269722, 40.55)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import numpy

from .models import Classifier
from .nn import Call, Parameter, rehearsal, trace
from .tensor import Tensor

BATCH = 2  # one image would leave batch norm on a 1x1 map without a variance


@dataclass
class Row:
    """One layer, or one op that a model runs outside of its layers; figures are for one image.

    `output` is (channels, height, width) or (features,). `macs` counts the multiply-accumulates of
    convolutions and matrix products, as the papers do. `made` is the memory of the output, 0 for a
    view of the input; `kept` is measured: the arrays that the recorded graph holds on to until
    backward, each counted where it is first kept, parameters left out. Both are bytes.
    """

    path: str
    kind: str
    output: tuple[int, ...] = ()
    parameters: int = 0
    macs: int = 0
    made: int = 0
    kept: int = 0


@dataclass
class Summary:
    """The rows of a model, and their sums."""

    rows: list[Row] = field(default_factory=list)

    parameters = property(lambda self: sum(row.parameters for row in self.rows))
    macs = property(lambda self: sum(row.macs for row in self.rows))
    made = property(lambda self: sum(row.made for row in self.rows))
    kept = property(lambda self: sum(row.kept for row in self.rows))


def summarize(model: Classifier, image_shape: Sequence[int] | None = None) -> Summary:
    """Run a model once in training mode, on two images of noise, and count what each layer does.

    Every parameter is counted with the layer that uses it first. The model is left as it was.
    """
    shape = (BATCH, *(image_shape or model.image_shape))
    images = numpy.random.default_rng(0).standard_normal(shape, numpy.float32)
    first = next(iter(model.parameters()), None)
    x = Tensor(images) if first is None else first.constant(first.backend.asarray(images))
    x = x if first is None else x.astype(first.dtype)
    counter = _Counter()
    with rehearsal(model), trace(model, counter.see):
        model.train()
        model(x)
    return Summary(counter.rows)


class _Counter:
    """Turn the ops of a forward pass into rows."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.call: Call | None = None  # the layer that the last row is about
        self.made, self.kept, self.parameters = _Once(), _Once(), _Once()

    def see(self, call: Call, op: str, inputs: Sequence[Tensor], y: Tensor) -> None:
        """Count an op, in its layer's row or, outside of the layers, in a row of its own."""
        if not (call.is_layer and call is self.call):
            self.rows.append(Row(call.path, type(call.module).__name__ if call.is_layer else op))
            self.call = call
        row = self.rows[-1]
        weights = [x.data for x in inputs if isinstance(x, Parameter)]
        row.parameters += sum(a.size for a in self.parameters.new(weights))
        self.made.new(x.data for x in inputs)  # so that a view of an input is nothing new
        made = sum(a.nbytes for a in self.made.new([y.data]))
        row.made = made // BATCH if y.shape[0] == BATCH else row.made  # else it is no activation
        row.output = y.shape[1:] if y.shape[0] == BATCH else row.output
        row.macs += multiplications(op, inputs, y) // BATCH
        kept = self.kept.new(a for a in held(y.node) if not self.parameters.has(a))
        row.kept += sum(_owner(a).nbytes for a in kept) // BATCH


class _Once:
    """The blocks of memory met so far; holding the arrays keeps their addresses from reuse."""

    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}

    def has(self, array: Any) -> bool:
        """Tell whether an array's memory was met before."""
        return id(_owner(array)) in self.seen

    def new(self, arrays: Any) -> list[Any]:
        """Select the arrays whose memory was not met before."""
        found = []
        for array in arrays:
            if not self.has(array):
                self.seen[id(_owner(array))] = _owner(array)
                found.append(array)
        return found


def _owner(array: Any) -> Any:
    """Follow views to the array that owns the memory."""
    while hasattr(array.base, "nbytes"):
        array = array.base
    return array


def multiplications(op: str, inputs: Sequence[Tensor], y: Tensor) -> int:
    """Count the multiply-accumulates of an op on a whole batch."""
    if op == "conv2d":
        return y.size * math.prod(inputs[1].shape[1:])  # each output: C/groups * kh * kw
    return y.size * inputs[0].shape[-1] if op == "matmul" else 0


def held(node: Any) -> Iterator[Any]:
    """Yield the arrays that a recorded op keeps for its gradients."""
    if node is None:
        return
    if node.output is not None:
        yield node.output.data
    vjps = [node.vjps] if callable(node.vjps) else [vjp for vjp in node.vjps if vjp]
    for vjp in vjps:
        yield from _captured(vjp)


def _captured(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        settings = cell.cell_contents
        for value in settings.values() if isinstance(settings, dict) else [settings]:
            if isinstance(value, Tensor):
                yield value.data
            elif isinstance(value, FunctionType):
                yield from _captured(value)
            elif hasattr(value, "nbytes"):
                yield value
