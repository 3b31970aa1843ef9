"""The oracle: the reference kernels of `base.py` on NumPy arrays."""

from __future__ import annotations

import numpy

from .base import Array, Backend


class NumpyBackend(Backend):
    """Run every kernel as `base.py` has it, on the CPU."""

    name = "numpy"
    xp = numpy

    def asarray(self, a: Array, dtype: Array = None) -> Array:
        """Give `a` as a NumPy array, without a copy where it is one."""
        return numpy.asarray(a, dtype)

    def to_numpy(self, a: Array) -> Array:
        """Give `a` itself."""
        return a

    def synchronize(self) -> None:
        """Return at once: NumPy has finished when it returns."""
