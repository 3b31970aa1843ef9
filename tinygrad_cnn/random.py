"""The default random generator: every random function takes `rng`, and None means this one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy

from .state import uses

_generator: numpy.random.Generator | None = None


def manual_seed(seed: int) -> numpy.random.Generator:
    """Restart the default generator from a seed; returns it."""
    global _generator
    _generator = numpy.random.default_rng(seed)
    return _generator


@contextmanager
def use_generator(rng: numpy.random.Generator) -> Iterator[None]:
    """Make `rng` the default generator inside a `with` block."""
    global _generator
    before, _generator = _generator, rng
    try:
        yield
    finally:
        _generator = before


def generator(rng: numpy.random.Generator | None = None) -> numpy.random.Generator:
    """Give `rng`, or the default generator (unpredictable until `manual_seed` is called)."""
    global _generator
    if rng is None:
        rng = _generator = _generator or numpy.random.default_rng()
    uses(rng)
    return rng
