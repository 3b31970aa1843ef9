"""Weights that others trained: out of PyTorch's files and safetensors, for the networks here.

A network of ten classes that has learned to see on a thousand:

    net = models.build("resnet18", classes=10)
    models.load_pretrained(net, "resnet18.pth", head=False)

PyTorch is imported for its own files only, and takes nothing but tensors out of them: a checkpoint
is a pickle, and a pickle may be a program.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy

from .. import nn
from .registry import Classifier, build, names

State = dict[str, Any]

SAVE_IT = "save the weights alone: torch.save(model.state_dict(), path)"


class WeightsError(ValueError):
    """Say why a file's weights can't be had, or to which network they don't belong."""


def load_pretrained(
    model: Classifier, weights: str | Path | Mapping[str, Any], *, head: bool = True
) -> None:
    """Give a model the weights in a file or a state dict; names and shapes must match.

    With head=False its last layer stays as it is: that for classes which the weights don't know.
    """
    state = our_names(weights) if isinstance(weights, Mapping) else read_weights(weights)
    if not head:
        own, last = model.state_dict(), f"{head_of(model)}."
        state = {name: a for name, a in state.items() if not name.startswith(last)}
        state |= {name: a for name, a in own.items() if name.startswith(last)}
    model.load_state_dict(state)


@contextmanager
def blaming(source: object, model: str) -> Iterator[None]:
    """Name the file and the network in an error of loading."""
    try:
        yield
    except ValueError as error:
        raise WeightsError(f"{source} as {model}: {error}") from None


def read_weights(path: str | Path) -> State:
    """Read a safetensors file or a PyTorch checkpoint; gives arrays by our networks' names."""
    path = Path(path)
    if not path.is_file():
        expected = "expected a PyTorch checkpoint (.pt, .pth, .th, .tar) or a .safetensors file"
        raise WeightsError(f"{path}: there is no such file; {expected}")
    read = _read_safetensors if path.suffix == ".safetensors" else _read_checkpoint
    return our_names(read(path))


def head_of(model: Classifier) -> str:
    """Name the last layer: the one that gives each class its score."""
    *_, (name, _) = model.named_parameters()
    return name.rpartition(".")[0]


def recognize(state: Mapping[str, Any]) -> str:
    """Find the network that has these entries, whatever the number of classes.

    A nearly right one is taken for it: loading then says what is amiss. Of twins with the same
    entries (resnet20 and plain20, softmax and svm) it is the first.
    """
    shapes = {(name, numpy.shape(a)[1:]) for name, a in state.items()}

    def likeness(name: str) -> float:
        with nn.init.skipped():
            model = build(name)
        own = {(n, t.shape[1:]) for n, t in [*model.named_parameters(), *model.named_buffers()]}
        return len(own & shapes) / len(own | shapes)

    scores = {name: likeness(name) for name in names()}
    nearest = max(scores, key=lambda name: scores[name])
    if scores[nearest] < 0.5:
        some = ", ".join(f"{name} {tuple(numpy.shape(a))}" for name, a in list(state.items())[:2])
        unlike = f"no network here has entries like {some}; the nearest is {nearest}"
        raise WeightsError(f"{unlike}. Name the one that is meant, to see what differs")
    return nearest


# ---- files ----


def _read_safetensors(path: Path) -> State:
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except TypeError as error:  # NumPy's, of bfloat16
        raise WeightsError(f"{path}: {error}; save the weights as float32") from None
    except Exception as error:  # the library's own
        raise WeightsError(f"{path} is damaged or no safetensors file: {error}") from None


def _read_checkpoint(path: Path) -> State:
    try:
        import torch
    except ImportError:
        way_out = "pip install torch, or save the weights as safetensors where it is"
        raise WeightsError(f"{path} is read by PyTorch, which isn't installed; {way_out}") from None
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage makes nearly every kind of error
        raise WeightsError(f"{path} {_why(error)}") from None
    state = _unwrapped(content)
    tensors = {n: a.detach() for n, a in state.items() if isinstance(a, torch.Tensor)}
    if not tensors:
        found = ", ".join(map(str, state)) or type(content).__name__
        raise WeightsError(f"{path} holds no state dict, only {found}; {SAVE_IT}")
    return {n: (a.float() if a.is_floating_point() else a).numpy() for n, a in tensors.items()}


def _why(error: Exception) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if not named:
        return "is damaged or no PyTorch checkpoint"
    refused = f"it names {named[1]}, which could run a program and is refused"
    return f"holds more than tensors: {refused}; {SAVE_IT}"


def _unwrapped(content: Any) -> State:
    """Take the state dict out of what was saved beside it: epoch, optimiser, accuracy."""
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    return dict(content) if isinstance(content, Mapping) else {}


# ---- names ----


def our_names(state: Mapping[str, Any]) -> State:
    """Translate the names of a state dict; those that are ours stay."""
    if "normalization.mean" in state:  # a run's checkpoint
        part = "average." if any(n.startswith("average.") for n in state) else "model."
        state = {n.removeprefix(part): a for n, a in state.items() if n.startswith(part)}
    state = {n.removeprefix("module."): a for n, a in state.items()}  # DataParallel's
    state = {n: a for n, a in state.items() if not n.endswith("num_batches_tracked")}
    return _from_akamaster(state) if _is_akamasters(state) else state


def _is_akamasters(state: Mapping[str, Any]) -> bool:
    classifier, stem = (numpy.shape(state.get(f"{n}.weight", ())) for n in ("linear", "conv1"))
    return classifier[1:] == (64,) and stem == (16, 3, 3, 3)


def _from_akamaster(state: State) -> State:
    """Reorder the channels of github.com/akamaster/pytorch_resnet_cifar10, and name its `fc`.

    Where a stage has twice the channels of the one before, option A puts zeros on both sides there
    and after here: channels 8 to 23 there are our first 16. So all that writes to a stage's sum
    (conv2 and its batch norm) or reads from it (conv1, the classifier) is put into our order; what
    is between conv1 and conv2 stays. The function is the same. With option B, projections, nothing
    is out of order.
    """
    if any(".shortcut." in name for name in state):
        return {name.replace("linear.", "fc."): a for name, a in state.items()}
    first = numpy.arange(16)
    second = _doubled(first)
    third = _doubled(second)
    order = {"layer1": (first, first), "layer2": (first, second), "layer3": (second, third)}

    def reordered(name: str, a: Any) -> Any:
        match name.split("."):
            case ["layer1" | "layer2" | "layer3" as stage, block, "conv1", _]:
                return _taken(a, order[stage][block != "0"], axis=1)
            case ["layer1" | "layer2" | "layer3" as stage, _, "conv2" | "bn2", _]:
                return _taken(a, order[stage][1], axis=0)
            case ["linear", "weight"]:
                return _taken(a, third, axis=1)
        return a

    return {name.replace("linear.", "fc."): reordered(name, a) for name, a in state.items()}


def _doubled(before: Any) -> Any:
    """Say which channel there is our first, second, ...; `before` says so of the stage before."""
    kept = before + len(before) // 2
    return numpy.concatenate([kept, numpy.setdiff1d(numpy.arange(2 * len(before)), kept)])


def _taken(a: Any, order: Any, *, axis: int) -> Any:
    """Reorder an axis, unless its size is wrong: loading will say so."""
    a = numpy.asarray(a)
    fits = a.ndim > axis and a.shape[axis] == len(order)
    return a.take(order, axis) if fits else a
