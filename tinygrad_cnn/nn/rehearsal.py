"""Run or train a model for a while, then have it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy

from ..random import use_generator
from .module import Module


@contextmanager
def rehearsal(model: Module) -> Iterator[None]:
    """Take back what happens to a model inside a `with` block.

    Weights, running statistics, gradients and modes come back, and the default generator's place:
    dropout inside draws from a generator of its own, the same one every time.
    """
    state, modes = model.state_dict(), [(module, module.training) for module in model.modules()]
    gradients = [(p, p.grad) for p in model.parameters()]
    try:
        with use_generator(numpy.random.default_rng(0)):
            yield
    finally:
        model.load_state_dict(state)
        for module, training in modes:
            module.training = training
        for p, g in gradients:
            p.grad = g
