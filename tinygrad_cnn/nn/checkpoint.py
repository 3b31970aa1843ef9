"""Activation checkpointing: forget what was computed on the way, compute it again for backward.

A chain of n equal blocks keeps n blocks' activations for its backward pass. Cut into segments of
sqrt(n) blocks that are checkpointed, it keeps the sqrt(n) inputs of the segments and, while one of
them is walked, the activations of sqrt(n) blocks; each block runs forward twice. Chen et al., arXiv
1604.06174, section 4.1.

    x --[ segment ]-- y            forward: nothing inside is recorded, y gets one node
    x --[ o-o-o-o ]-- y  <- g      backward: run again, recorded, walked from y to x, dropped
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import numpy

from ..autograd import Node, forward_hook, gradients, no_grad, op_hooks, recording, setting
from ..random import generator, use_generator
from ..state import listening
from ..tensor import Tensor
from .module import Module

Place = tuple[Any, str, Any]  # an object, an attribute's name, its value


def checkpoint(fn: Callable[..., Any], *inputs: Any, **settings: Any) -> Tensor:
    """Compute fn(*inputs, **settings), keeping only the inputs; backward runs fn again.

    `fn` is a module or any function that gives one Tensor. Gradients reach all that it uses, its
    parameters and closure included, and are those of the plain call to the last bit, unless a
    tensor is used inside as well as outside: then its shares are added up in another order.

    The second run has the modes, running statistics, generators and `with` blocks of the first and
    leaves those of its day alone, so dropout repeats itself and statistics move once. Hooks of
    modules fire in both runs, hooks of ops in the first. Other things that fn does, it does twice.
    """
    if not recording.get():
        return _one_tensor(fn(*inputs, **settings), fn)
    call = _Call(fn, inputs, settings)
    y = _one_tensor(call.run_first(), fn)
    if y.node or not call.sources:
        return y  # a tensor from outside, or a constant
    y = y.detach()  # fn may have kept its own
    y.node = call.node(y.shape)
    return y


def _one_tensor(y: Any, fn: Callable[..., Any]) -> Tensor:
    if not isinstance(y, Tensor):
        raise TypeError(
            f"checkpoint: {_name(fn)} gave a {type(y).__name__}; expected one Tensor. "
            "Checkpoint the parts that give one each"
        )
    return y


def _name(fn: Any) -> str:
    return getattr(fn, "__name__", type(fn).__name__)


class _Call:
    """A function's call, which can be repeated as it was."""

    def __init__(self, fn: Callable[..., Any], inputs: Any, settings: Any) -> None:
        self.fn, self.inputs, self.settings = fn, inputs, settings
        self.context, self.generator = copy_context(), generator()
        self.state: dict[Any, Place] = {}  # what was used, with its value before the first use
        self.sources: dict[int, Any] = {}  # recorded tensors from outside that ops used
        self.trail: list[Any] = []  # what these ops were

    def run_first(self) -> Any:
        """Run unrecorded, taking notes."""
        for x in (*self.inputs, *self.settings.values()):
            self._note_state(x)
        with no_grad(), forward_hook(self._note_op), listening(self._note_state):
            return self.fn(*self.inputs, **self.settings)

    def _note_state(self, thing: Any) -> None:
        for owner, name in _places(thing):
            self.state.setdefault((id(owner), name), (owner, name, getattr(owner, name)))

    def _note_op(self, op: str, inputs: Sequence[Any], y: Any) -> None:
        self.sources |= {id(x): x for x in inputs if x.node}
        self.trail.append(self._step(op, inputs, y))

    def _step(self, op: str, inputs: Sequence[Any], y: Any) -> Any:
        return op, y.shape, [id(x) for x in inputs if id(x) in self.sources]

    def node(self, shape: tuple[int, ...]) -> Node:
        """Make the node that stands for the whole call."""
        node, sources = Node(shape, op="checkpoint"), self.sources.values()
        self.parents = node.parents = [x.node for x in sources]
        node.saved = [(x.version, x.version[0], x.shape) for x in sources]
        node.vjps = self._vjp
        return node

    def _vjp(self, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
        y, ends = self._run_again()
        wanted = [end for end, needed in zip(ends, needs, strict=True) if needed]
        found = gradients([y], [g], targets=wanted, create_graph=recording.get()) if y else {}
        if recording.get():  # the gradients are functions of the sources, too
            for end, parent in zip(ends, self.parents, strict=True):
                end.parents, end.vjps = [parent], [lambda g: g]
        return [
            (found[end] if end in found else _zeros(x)) if needed else None
            for end, x, needed in zip(ends, self.sources.values(), needs, strict=True)
        ]

    def _run_again(self) -> tuple[Node | None, list[Node]]:
        """Run recorded, from new nodes of the sources on; give the result's node, and those."""
        trail: list[Any] = []
        ends = [Node(x.shape, op="checkpoint") for x in self.sources.values()]
        nodes = [(x, "node", end) for x, end in zip(self.sources.values(), ends, strict=True)]

        def run() -> Any:
            with setting(op_hooks, (lambda *seen: trail.append(self._step(*seen)),)):
                return self.fn(*self.inputs, **self.settings)

        with use_generator(self.generator), _put((*self.state.values(), *nodes)):
            y = self.context.copy().run(run)
        if trail != self.trail:
            raise RuntimeError(
                f"checkpoint: {_name(self.fn)} did not repeat what it did in the forward pass. "
                "Does it use a variable that has another value now, such as that of a loop? Pass "
                "what it depends on as inputs"
            )
        return y.node, ends


def _places(thing: Any) -> Iterator[tuple[Any, str]]:
    """Yield where a thing keeps its state: objects, and names of their attributes."""
    if isinstance(thing, numpy.random.Generator):
        yield thing.bit_generator, "state"
    elif isinstance(thing, Tensor) and not thing.node:
        yield thing, "_data"
    elif isinstance(thing, Module):
        yield thing, "training"
        for value in vars(thing).values():
            if not isinstance(value, Module):  # it will say itself that it is used
                yield from _places(value)


@contextmanager
def _put(places: Sequence[Place]) -> Iterator[None]:
    """Give attributes other values inside a `with` block."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for place in places:
            setattr(*place)
        yield
    finally:
        for place in before:
            setattr(*place)


def _zeros(x: Tensor) -> Tensor:
    return x.constant(x.backend.xp.zeros_like(x.data))
