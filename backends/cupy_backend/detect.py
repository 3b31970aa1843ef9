"""Whether CuPy can run here, and if not, the one command that mends it."""

from __future__ import annotations

from typing import Any

from ..base import BackendUnavailable


def usable_cupy() -> Any:
    """Import CuPy and find a GPU, or raise BackendUnavailable."""
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
    return cupy
