"""The CPU backend: kernels compiled by Numba, the rest inherited from the reference.

`PATHS` is the table of what runs when. Each module begins with its idea; `compiler.py` tells how a
kernel is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from time import perf_counter
from typing import Any

import numpy

from .. import paths
from ..base import BackendUnavailable
from ..geometry import Pair, Shape
from ..numpy_backend import NumpyBackend
from ..paths import Path, Shapes, always, positions_fit_a_byte
from .allocator import keep_freed_memory
from .product import number_of_bands

SINGLE = frozenset([numpy.dtype("float32")])


def _same_images(shapes: Shapes, **settings: Any) -> bool:
    return len(shapes[0]) == 4 and all(shape == shapes[0] for shape in shapes)


def _whole_rows(shapes: Shapes, **settings: Any) -> bool:
    return math.prod(shapes[0]) % math.lcm(shapes[0][1], 64) == 0  # of norm.py's row_length


def _one_a_channel(shapes: Shapes, *, out: Any = None, **settings: Any) -> bool:
    x, b = shapes
    return len(x) == 4 and b == (1, x[1], 1, 1) and out is None and _whole_rows(shapes)


def _large(shapes: Shapes, **settings: Any) -> bool:
    return math.prod(shapes[0]) >= 8192  # below, NumPy is done before a kernel is called


def _whole_vectors(shapes: Shapes, **settings: Any) -> bool:
    return shapes[0][1] % 16 == 0  # a multiple of any CPU's LANES


def _whole_vectors_and_bytes(shapes: Shapes, **settings: Any) -> bool:
    return _whole_vectors(shapes) and positions_fit_a_byte(shapes, **settings)


def _filters(shapes: Shapes, settings: dict[str, Any]) -> Shape:
    """Give the shape of a convolution's or a gradient's filters."""
    return settings.get("w_shape", shapes[1])


def _winograd(shapes: Shapes, **settings: Any) -> bool:
    o, c, *kernel = _filters(shapes, settings)
    one = settings["stride"] == settings["dilation"] == (1, 1) and settings["groups"] == 1
    return one and kernel == [3, 3] and c % 16 == o % 16 == 0


def _pixelwise(shapes: Shapes, **settings: Any) -> bool:
    N, _, H, W = shapes[0]
    one = settings["stride"] == (1, 1) and settings["groups"] == 1
    alone = _filters(shapes, settings)[2:] == (1, 1) and settings["padding"] == ((0, 0), (0, 0))
    return one and alone and N * H * W % 16 == 0  # rows of at least 16 pixels


def _narrow(shapes: Shapes, *, stride: Pair, dilation: Pair, groups: int, **settings: Any) -> bool:
    _, c, _, width = _filters(shapes, settings)
    fit = c * max(stride[1], 2) <= 16  # a group has two pixels at least, and whole strides
    return fit and groups == 1 and width > 1 and dilation[1] == 1  # else there is nothing to gain


def _ungrouped(shapes: Shapes, *, groups: int, **settings: Any) -> bool:
    return groups == 1


def _depthwise(shapes: Shapes, **settings: Any) -> bool:
    o, c, *_ = _filters(shapes, settings)
    return c == 1 and o == settings["groups"] and o % 16 == 0


def _wide_groups(shapes: Shapes, **settings: Any) -> bool:
    return _filters(shapes, settings)[1] >= 4


def _large_matrices(shapes: Shapes, **settings: Any) -> bool:
    return all(len(shape) == 2 for shape in shapes) and number_of_bands(*shapes) > 1


CONVOLUTIONS = (
    Path("winograd", "winograd", _winograd, SINGLE),
    Path("pixelwise", "pixelwise", _pixelwise, SINGLE),
    Path("direct", "direct", _ungrouped, SINGLE),
    Path("depthwise", "depthwise", _depthwise, SINGLE),
    Path("grouped", "grouped", _wide_groups, SINGLE),
)


# For each kernel the paths, best first; where none serves, the reference does.
PATHS: dict[str, tuple[Path, ...]] = {
    "conv2d": CONVOLUTIONS,
    "conv2d_input_grad": (Path("narrow", "narrow", _narrow, SINGLE), *CONVOLUTIONS),
    "conv2d_weight_grad": CONVOLUTIONS,
    "matmul": (Path("threaded", "product", _large_matrices),),
    "add": (
        Path("compiled", "pointwise", _same_images),
        Path("simd", "bias", _one_a_channel, SINGLE),
    ),
    "relu": (Path("compiled", "pointwise", _same_images),),
    "relu_grad": (Path("compiled", "pointwise", _same_images),),
    "max_pool2d": (
        Path("simd", "pool_simd", _whole_vectors_and_bytes, SINGLE),
        Path("compiled", "pool", positions_fit_a_byte),
    ),
    "max_pool2d_grad": (
        Path("simd", "pool_simd", _whole_vectors_and_bytes, SINGLE),
        Path("compiled", "pool", positions_fit_a_byte),
    ),
    "avg_pool2d": (
        Path("simd", "pool_simd", _whole_vectors, SINGLE),
        Path("compiled", "pool", always),
    ),
    "avg_pool2d_grad": (
        Path("simd", "pool_simd", _whole_vectors, SINGLE),
        Path("compiled", "pool", always),
    ),
    "batch_norm": (Path("simd", "norm", _whole_rows, SINGLE),),
    "batch_norm_grad": (Path("simd", "norm", _whole_rows, SINGLE),),
    "sgd_update": (Path("compiled", "update", _large),),
}


class NumbaBackend(NumpyBackend):
    """Run on NumPy arrays, with compiled kernels where they are faster."""

    name = "numba"

    def choose(self, kernel: str, *, shapes: Shapes, dtype: Any, **settings: Any) -> str:
        """Name the path that serves a kernel: a pure function of geometry and dtype."""
        path = _best(kernel, shapes, numpy.dtype(dtype), settings)
        return path.name if path else "reference"


def _best(kernel: str, shapes: Shapes, dtype: Any, settings: dict[str, Any]) -> Path | None:
    if 0 not in chain(*shapes, settings.get("x_shape", ())):
        return paths.best(PATHS.get(kernel, ()), shapes, dtype, settings)
    return None


def _method(kernel: str) -> Callable[..., Any]:
    """Make the method that runs a kernel on its best path."""
    reference = getattr(NumpyBackend, kernel)

    @wraps(reference)
    def run(self: NumbaBackend, *arrays: Any, **settings: Any) -> Any:
        shapes = tuple(a.shape for a in arrays if a is not None)
        path = _best(kernel, shapes, arrays[0].dtype, settings)
        if path is None:
            return reference(self, *arrays, **settings)
        return paths.function(__name__, path.module, kernel)(*arrays, **settings)

    return run


for _kernel in PATHS:
    setattr(NumbaBackend, _kernel, _method(_kernel))


def warm_up() -> Iterator[tuple[str, str, float]]:
    """Compile every kernel for every dtype; yield its name, the dtype and the seconds it took."""
    from .compiler import versions

    for module in sorted({path.module for several in PATHS.values() for path in several}):
        import_module(f".{module}", __name__)
    for kernel, dtype in versions():
        start = perf_counter()
        kernel.compile(dtype)
        yield kernel.body.__name__, str(dtype or ""), perf_counter() - start


def load() -> NumbaBackend:
    """Make the backend, or say why it can't be."""
    if find_spec("numba") is None:
        raise BackendUnavailable("numba", "Numba is not installed", "pip install numba")
    keep_freed_memory()
    return NumbaBackend()
