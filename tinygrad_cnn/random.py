"""The default random generator: every random function takes `rng`, and None means this one."""

from __future__ import annotations

import numpy

_generator: numpy.random.Generator | None = None


def manual_seed(seed: int) -> numpy.random.Generator:
    """Restart the default generator from a seed; returns it."""
    return set_generator(numpy.random.default_rng(seed))


def set_generator(rng: numpy.random.Generator) -> numpy.random.Generator:
    """Make `rng` the default generator; returns it."""
    global _generator
    _generator = rng
    return rng


def generator(rng: numpy.random.Generator | None = None) -> numpy.random.Generator:
    """Give `rng`, or the default generator (unpredictable until `manual_seed` is called)."""
    global _generator
    if rng is not None:
        return rng
    if _generator is None:
        _generator = numpy.random.default_rng()
    return _generator
