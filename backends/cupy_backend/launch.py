"""Compiling and launching CUDA kernels: the only place that knows how CuPy does it.

To add a kernel:

1. Write it in a `.cu` file of this folder, a template over its type T and over what the compiler
   should know (tile sizes). Arrays come as pointers to contiguous values, images channels-last.
   Shared memory is declared with SHARED or DYNAMIC_SHARED of `device.cuh`, never with the bare
   keyword: tests compile the same text for the CPU, where those macros watch over the memory.
2. In the Python module beside it name the file and its kernels, `SUMS = Program("sums.cu",
   "channel_sums<T>")`, and write a function that allocates the outputs and calls
   `backend.launch(SUMS, "channel_sums<T>", dtype, grid, block, (x, y, x.size))`.
3. Name the function in PATHS of `__init__.py`, under the kernel of `base.py` that it computes.

The tests then run it on the CPU against the reference, and compile it for every GPU of the list.

A Python integer reaches the kernel as `int`, a float as `double`, None as a null pointer; a
structured NumPy scalar as a struct of the same fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy

from ..base import Array

FOLDER = Path(__file__).parent
OPTIONS = ("--std=c++17",)
TYPES = {"float32": "float", "float64": "double"}
# What the kernels multiply in, and the least compute capability whose tensor cores have it.
CAPABILITY = {"fp32": 0, "tf32": 80, "bf16": 80, "fp16": 75}
MOST_SHARED = 48 * 1024  # bytes a block may have without asking for more
MOST_BLOCKS = (2**31 - 1, 65535, 65535)


class Program:
    """A .cu file and what is instantiated of its templates: `name<T, ...>` for every dtype.

    `capability` is the least compute capability of a GPU that has its instructions.
    """

    all: list[Program] = []  # noqa: RUF012  (what the compile check goes through)

    def __init__(
        self, file: str, *kernels: str, dtypes: tuple[str, ...] = tuple(TYPES), capability: int = 0
    ) -> None:
        self.file, self.kernels, self.dtypes, self.capability = file, kernels, dtypes, capability
        self.all.append(self)

    def expression(self, kernel: str, dtype: str) -> str:
        """Write a kernel's name with the type that stands for T."""
        return re.sub(r"\bT\b", TYPES[dtype], kernel)

    def expressions(self, dtype: str) -> tuple[str, ...]:
        """Write all kernels' names with the type that stands for T."""
        return tuple(self.expression(kernel, dtype) for kernel in self.kernels)


def source(file: str) -> str:
    """Read a .cu file with the headers of this folder put in where it includes them.

    CuPy's cache of compiled kernels knows the text that it is given, not the files named in it.
    """
    return "\n".join(_lines(file, set())) + "\n"


def _lines(file: str, seen: set[str]) -> Iterator[str]:
    """Yield lines, and #line where the compiler's count must change; a header comes in once."""
    yield f'#line 1 "{file}"'
    for number, line in enumerate((FOLDER / file).read_text(encoding="utf-8").splitlines(), 1):
        included = re.match(r'#include "(.+)"', line)
        if included is None:
            yield line
        elif included[1] not in seen:
            seen.add(included[1])
            yield from _lines(included[1], seen)
            yield f'#line {number + 1} "{file}"'
        else:
            yield ""


class Launcher:
    """Launch kernels of the modules that `raw_module` compiles, each program and dtype once.

    `raw_module` is cupy.RawModule, or what looks like it to those who call it.
    """

    def __init__(self, raw_module: Callable[..., Any]) -> None:
        self._raw_module = raw_module
        self._modules: dict[tuple[Program, str], Any] = {}
        self._functions: dict[tuple[Program, str, str], Any] = {}

    def __call__(
        self, program: Program, kernel: str, dtype: Any, grid: tuple[int, ...], block: int,
        args: tuple[Any, ...], *, shared: int = 0,
    ) -> None:  # fmt: skip
        """Run `grid` blocks of `block` threads, each with `shared` bytes of dynamic memory."""
        within = all(0 < n <= most for n, most in zip(grid, MOST_BLOCKS, strict=False))
        if not (within and block <= 1024 and shared <= MOST_SHARED):
            raise ValueError(
                f"{kernel}: no GPU runs a grid of {grid} blocks of {block} threads with {shared} "
                f"bytes each; at most {MOST_BLOCKS}, 1024 and {MOST_SHARED}"
            )
        name = numpy.dtype(dtype).name
        key = program, kernel, name
        function = self._functions.get(key) or self._function(program, kernel, name)
        function(grid, (block,), tuple(map(_argument, args)), shared_mem=shared)

    def _function(self, program: Program, kernel: str, dtype: str) -> Any:
        if (program, dtype) not in self._modules:
            self._modules[program, dtype] = self._raw_module(
                code=source(program.file),
                options=OPTIONS,
                name_expressions=program.expressions(dtype),
            )
        function = self._modules[program, dtype].get_function(program.expression(kernel, dtype))
        return self._functions.setdefault((program, kernel, dtype), function)


def _argument(a: Array) -> Any:
    """Give a number the type that kernels declare: int, or double."""
    if isinstance(a, int):
        return numpy.int32(a)  # too large a one is an OverflowError
    if isinstance(a, float):
        return numpy.float64(a)
    if getattr(a, "ndim", 0) and not a.flags.c_contiguous:
        raise ValueError(f"a kernel was given an array {a.shape} of strides {a.strides}; copy it")
    return a


def blocks(size: int, each: int) -> int:
    """Count the blocks of `each` that cover `size`."""
    return -(-size // each)
