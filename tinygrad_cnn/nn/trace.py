"""See every op of a forward pass together with the layer that runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..autograd import forward_hook
from .module import Module


@dataclass(frozen=True, eq=False)
class Call:
    """One forward of one module: its path in the model ("" at the root) and the module."""

    path: str
    module: Module

    @property
    def is_layer(self) -> bool:
        """Whether the module is a leaf of the tree."""
        return not any(self.module.named_children())


@contextmanager
def trace(model: Module, see: Callable[[Call, str, Sequence[Any], Any], None]) -> Iterator[None]:
    """Call see(call, op name, inputs, output) after every op that the model runs in the block."""
    paths, running = {module: path for path, module in model.named_modules()}, list[Call]()

    def enter(module: Module, args: Any) -> None:
        running.append(Call(paths[module], module))

    def leave(module: Module, args: Any, y: Any) -> None:
        running.pop()

    def after(op: str, inputs: Sequence[Any], y: Any) -> None:
        if running:  # else it is no part of the model: its loss, for example
            see(running[-1], op, inputs, y)

    removals = [m.register_forward_pre_hook(enter) for m in paths]
    removals += [m.register_forward_hook(leave) for m in paths]
    try:
        with forward_hook(after):
            yield
    finally:
        for remove in removals:
            remove()
