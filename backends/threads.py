"""How many CPU threads the kernels use."""

from __future__ import annotations

from .base import Backend


def set_threads(n: int, backend: Backend) -> None:
    """Let BLAS, and Numba where the backend is made of it, use n threads from now on."""
    from threadpoolctl import threadpool_limits

    if n < 1:
        raise ValueError(f"threads is {n}; expected at least 1")
    threadpool_limits(n)
    if backend.name == "numba":
        import numba

        most: int = vars(numba.config)["NUMBA_NUM_THREADS"]
        numba.set_num_threads(min(n, most))
