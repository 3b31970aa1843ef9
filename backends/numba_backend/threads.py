"""Threads: how many, from which pool, and who may start them.

A parallel region costs 2 us on an OpenMP pool and 100 us on Numba's own workqueue, and a training
step has hundreds, so OpenMP is tried first.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from functools import cache

LAYERS = "omp tbb workqueue"

_running = threading.RLock()
_forked_from: list[int] = []  # the process whose threads did not survive a fork


def exclusive() -> AbstractContextManager[bool]:
    """Let one thread at a time run kernels: each uses all cores, and workqueue bears no two."""
    if _forked_from:
        raise RuntimeError(
            f"this process was forked from process {_forked_from[0]}, whose kernels had threads, "
            "and threads don't survive a fork; start it with multiprocessing's 'spawn' method"
        )
    return _running


@cache
def start() -> None:
    """Choose the threading layer and the number of threads, before the first kernel is compiled."""
    import numba

    if "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
        numba.config.THREADING_LAYER_PRIORITY = LAYERS.split()
    parent = os.getpid()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _forked_from.append(parent))
