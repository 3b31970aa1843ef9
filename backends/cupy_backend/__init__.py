"""The GPU backend: CUDA kernels launched through CuPy, the rest inherited from the reference.

No kernel is here yet: every body is the reference's, written against `cupy` instead of `numpy`.
"""

from __future__ import annotations

from typing import Any

from ..base import Array, Backend, BackendUnavailable


class CupyBackend(Backend):
    """Run on the current CUDA device."""

    name = "cupy"

    def __init__(self, cupy: Any) -> None:
        self.xp = cupy

    def asarray(self, a: Array, dtype: Array = None) -> Array:
        """Give `a` as an array on the device."""
        return self.xp.asarray(a, dtype)

    def to_numpy(self, a: Array) -> Array:
        """Copy `a` to the host."""
        return self.xp.asnumpy(a)

    def synchronize(self) -> None:
        """Wait until the device has done all that it was asked."""
        self.xp.cuda.get_current_stream().synchronize()

    def erf(self, x: Array) -> Array:
        """Compute the error function on the device."""
        from cupyx.scipy.special import erf

        return self.map(erf, x)


def load() -> CupyBackend:
    """Make the backend, or say why it can't be."""
    try:
        import cupy
    except ImportError as error:
        raise BackendUnavailable(
            "cupy", f"CuPy is not installed ({error})", "pip install 'tinygrad_cnn[cuda12]'"
        ) from None
    if not cupy.cuda.is_available():
        raise BackendUnavailable(
            "cupy",
            f"CuPy {cupy.__version__} finds no usable NVIDIA GPU on this machine",
            "nvidia-smi, which shows whether the driver is there",
        )
    return CupyBackend(cupy)
