"""Modules in a row, whose activations may be forgotten and computed again in the backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..tensor import Tensor
from .checkpoint import checkpoint
from .module import Module, ModuleList


class Sequential(ModuleList):
    """Modules that run one after another, `segment` at a time checkpointed; 0: none is."""

    segment = 0

    def __init__(self, *modules: Module) -> None:
        super().__init__(list(modules))

    def forward(self, x: Tensor) -> Tensor:
        """Pass x through every module in turn."""
        modules = [module for _, module in self.named_children()]  # list(self) counts them first
        if not self.segment:
            return _run(x, *modules)
        for start in range(0, len(modules), self.segment):
            x = checkpoint(_run, x, *modules[start : start + self.segment])
        return x

    def extra_repr(self) -> str:
        """Name the segment, if there is one."""
        return f"segment={self.segment}" if self.segment else ""


def _run(x: Tensor, *modules: Module) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def checkpoint_activations(model: Module, *, segment: int | None = None) -> Module:
    """Let a model's chains keep few activations and compute the others again; returns the model.

    Chains are its Sequentials, those inside of others left out. `segment` is how many modules are
    run again at a time, None the square root of the chain's length, which needs about the least
    memory if they are alike; 0 keeps all again. Gradients are the same: see `checkpoint`.
    """
    if segment is not None and segment < 0:
        raise ValueError(f"checkpoint_activations: segment is {segment}; expected 0 or more")
    chains = list(_chains(model))
    if not chains:
        raise ValueError(
            f"checkpoint_activations: {type(model).__name__} has no Sequential, whose modules "
            "could be run again; call nn.checkpoint in its forward method"
        )
    for chain in chains:
        chain.segment = round(math.sqrt(len(chain))) if segment is None else segment
    return model


def _chains(module: Module) -> Iterator[Sequential]:
    if isinstance(module, Sequential):
        yield module
    else:
        for _, child in module.named_children():
            yield from _chains(child)
