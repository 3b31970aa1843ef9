"""How many CPU threads the kernels use."""

from __future__ import annotations

from .base import Backend


def set_threads(n: int, backend: Backend) -> None:
    """Let the kernels of a CPU backend use n threads from now on, or as many as there can be.

    Numba's kernels have threads of their own, beside which those of BLAS only wait in the way.
    """
    if n < 1:
        raise ValueError(f"threads is {n}; expected at least 1")
    if backend.name == "numba":
        from .numba_backend import threads

        threads.set_threads(min(n, threads.available()))
    else:
        from threadpoolctl import threadpool_limits

        threadpool_limits(n, user_api="blas")
