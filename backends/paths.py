"""Which function computes a kernel: a table of paths, best first, and how a backend follows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy

from .geometry import Pair, Shape

Shapes = tuple[Shape, ...]
FLOATS = frozenset(map(numpy.dtype, ("float32", "float64")))


class Path(NamedTuple):
    """A way to compute a kernel: its name, the module that has it, and when it can be used."""

    name: str
    module: str
    serves: Callable[..., bool]
    dtypes: frozenset[Any] = FLOATS


def best(
    paths: Iterable[Path], shapes: Shapes, dtype: Any, settings: dict[str, Any]
) -> Path | None:
    """Find the first path that serves; None: the reference does."""
    for path in paths:
        if dtype in path.dtypes and path.serves(shapes, **settings):
            return path
    return None


@cache
def function(package: str, module: str, kernel: str) -> Callable[..., Any]:
    """Import a kernel's function where it is first used, for Numba's import takes half a second."""
    return getattr(import_module(f".{module}", package), kernel)


# ---- when a path serves ----


def always(shapes: Shapes, **settings: Any) -> bool:
    """Serve everything."""
    return True


def positions_fit_a_byte(shapes: Shapes, *, kernel_size: Pair, **settings: Any) -> bool:
    """Serve pools whose argmax is a byte."""
    return math.prod(kernel_size) < 256
