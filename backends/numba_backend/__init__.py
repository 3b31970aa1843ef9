"""The CPU backend: kernels compiled by Numba, the rest inherited from the reference.

No kernel is here yet: every body is the reference's, so this backend is right before it is fast.
"""

from __future__ import annotations

from importlib.util import find_spec

from ..base import BackendUnavailable
from ..numpy_backend import NumpyBackend


class NumbaBackend(NumpyBackend):
    """Run on NumPy arrays, with compiled kernels where they are faster."""

    name = "numba"


def load() -> NumbaBackend:
    """Make the backend, or say why it can't be."""
    if find_spec("numba") is None:
        raise BackendUnavailable("numba", "Numba is not installed", "pip install numba")
    return NumbaBackend()
