"""Threads: how many, from which pool, and who may start them.

A parallel region costs 2 us on an OpenMP pool and 100 us on Numba's own workqueue, and a training
step has hundreds, so OpenMP is tried first. Where kernels run, BLAS is given one thread: the
threads of OpenBLAS spin for milliseconds after a product, on the cores that the next kernel needs.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from functools import cache

PRIORITY = ("omp", "tbb", "workqueue")

_running = threading.RLock()
_wanted: int | None = None
_of_this_thread = threading.local()  # Numba remembers the number for each calling thread
_forked_from: list[int] = []


def set_threads(n: int) -> None:
    """Run kernels on n threads; the default is all cores that this process may use.

    NUMBA_NUM_THREADS, read when Numba is imported, is the most that can be asked for.
    """
    global _wanted
    most = available()
    if not 1 <= n <= most:
        raise ValueError(
            f"set_threads: got {n}; expected 1 to {most}, the cores of this process "
            "(or what NUMBA_NUM_THREADS says before the program starts)"
        )
    _wanted = n


def available() -> int:
    """Count the threads that there can be."""
    from numba import config

    return int(config.NUMBA_NUM_THREADS)


def number() -> int:
    """Give the number of threads that kernels run on."""
    return _wanted or available()


def exclusive() -> AbstractContextManager[bool]:
    """Let one thread at a time run kernels: each uses all cores, and workqueue bears no two.

    Refuses a forked process, and tells Numba the number of threads, which may start them.
    """
    if _forked_from:
        raise RuntimeError(
            f"this process was forked from process {_forked_from[0]}, which had run kernels, and "
            "their threads don't survive a fork; use multiprocessing's 'spawn' method"
        )
    if getattr(_of_this_thread, "number", None) != _wanted:
        import numba

        numba.set_num_threads(_wanted)
        _of_this_thread.number = _wanted
    return _running


@cache
def start() -> None:
    """Set up the threads before the first kernel is compiled."""
    import numba
    from threadpoolctl import threadpool_limits

    if "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
        numba.config.THREADING_LAYER_PRIORITY = [*PRIORITY]
    threadpool_limits(1, user_api="blas")
    parent = os.getpid()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _forked_from.append(parent))
