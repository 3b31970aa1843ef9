"""Kernels: functions that Numba compiles for this CPU when they are first called, once a machine.

    @kernel("void(T[::1], T[::1], intp)")
    def relu(x, y, parts): ...

A kernel takes flat contiguous arrays and numbers, and its signature says so. Left to itself, Numba
compiles anew for every layout or read-only flag that it meets, in mid-training, a second each. `T`
stands for float32 or float64: one body, two compiled versions, each made when it is first needed
and picked by the dtype of the first argument. `disk_cache.py` keeps the machine code on disk.

Modules with kernels import Numba at their top (for `prange`), so they are imported where they are
used; this module isn't heavy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import update_wrapper
from typing import Any

import numpy

from . import threads

FLOATS = ("float32", "float64")

_kernels: list[Kernel] = []


class Kernel:
    """A function with the signatures that it is compiled for."""

    def __init__(
        self, body: Callable[..., None], signature: str, dtypes: tuple[str, ...], options: Any
    ) -> None:
        update_wrapper(self, body)
        self.body, self.signature, self.options = body, signature, options
        self.dtypes = [numpy.dtype(dtype) for dtype in dtypes]
        self._compiled: dict[Any, Callable[..., None]] = {}
        _kernels.append(self)

    def __call__(self, first: Any, *args: Any) -> None:
        """Run the version for the dtype of the first array."""
        version = first.dtype if self.dtypes else None  # not its name: that takes NumPy 4 us
        run = self._compiled.get(version) or self.compile(version)
        with threads.exclusive():
            run(first, *args)

    def compile(self, dtype: Any = None) -> Callable[..., None]:
        """Compile the version for a dtype, or load it from the disk cache."""
        from .disk_cache import compiled

        if self.dtypes and dtype not in self.dtypes:
            wanted = " or ".join(map(str, self.dtypes))
            raise TypeError(f"{self.body.__name__}: got an array of {dtype}; expected {wanted}")
        signature = re.sub(r"\bT\b", str(dtype), self.signature)
        threads.start()  # before a number of threads is set, which starts them
        with threads.exclusive():
            self._compiled[dtype] = compiled(self.body, signature, **self.options)
        return self._compiled[dtype]


def kernel(
    signature: str, *, dtypes: tuple[str, ...] = FLOATS, **options: Any
) -> Callable[[Callable[..., None]], Kernel]:
    """Make a kernel of a function: `T` in the signature stands for each of `dtypes`.

    `options` are numba.njit's. By default loops over `prange` run in parallel and nothing is
    reordered: sums are the same for any number of threads, and a NaN stays one (no fastmath).
    References to arrays aren't counted, for each count is a call around which vectors leave their
    registers; the caller holds the arrays. A kernel that allocates some says `_nrt=True`. (A helper
    is compiled as its first caller is: one that gives an array is for one kind of kernel only.)
    """
    options = dict(parallel=True, nogil=True, error_model="numpy", _nrt=False) | options
    named = dtypes if re.search(r"\bT\b", signature) else ()
    return lambda body: Kernel(body, signature, named, options)


def versions() -> Iterator[tuple[Kernel, Any]]:
    """Yield every kernel of the modules imported so far with each dtype it is compiled for."""
    for each in _kernels:
        yield from ((each, dtype) for dtype in each.dtypes or (None,))
