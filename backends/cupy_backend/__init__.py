"""The GPU backend: CUDA kernels launched through CuPy, the rest inherited from the reference.

`PATHS` is the table of what runs when. A Python module here allocates and launches, the `.cu` file
of the same name is what runs on the device; `launch.py` tells how to add a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy

from .. import paths
from ..base import Array, Backend, nchw, nhwc
from ..geometry import Shape, output_size
from ..paths import Path, Shapes, always, positions_fit_a_byte
from .graph import NotRecordable, record
from .launch import MOST_BLOCKS, Launcher

MOST_VALUES = 2**31 - 2**16  # kernels count in 32 bits, up to a tile beyond the end


def _same_shape(shapes: Shapes, *, out: Any = None, **settings: Any) -> bool:
    return all(shape == shapes[0] for shape in shapes) and (out is None or _dense(out))


def _dense(a: Array) -> bool:
    return (nhwc(a) if a.ndim == 4 else a).flags.c_contiguous


def _one_a_channel(shapes: Shapes, *, out: Any = None, **settings: Any) -> bool:
    x, values = shapes
    fit = {4: ((1, *x[1:2], 1, 1),), 2: (x[1:], (1, *x[1:]))}.get(len(x), ())
    return values in fit and (out is None or _dense(out))


def _channels_fit(shapes: Shapes, **settings: Any) -> bool:
    return shapes[0][1] <= 2**14  # four of a thread's steps are within what is left of 32 bits


def _window_fits_a_block(shapes: Shapes, *, size: int, **settings: Any) -> bool:
    return size <= 4096


def _small_matrices(shapes: Shapes, **settings: Any) -> bool:
    x, y = shapes
    return len(x) == len(y) == 2 and math.prod(x) * y[1] <= 2**27  # beyond, cuBLAS is quicker


def _result_fits(
    shapes: Shapes, *, groups: int, x_shape: Shape = (), w_shape: Shape = (), relu: bool = False,
    **at: Any,
) -> bool:  # fmt: skip
    """Tell whether a convolution's result can be counted, and its phases and groups be a grid."""
    (n, _, h, w), (o, _, kh, kw), *_ = shapes
    result = x_shape or w_shape or (n, o, *output_size((h, w), kernel=(kh, kw), **at))
    return math.prod(result) <= MOST_VALUES and groups * math.prod(at["stride"]) <= MOST_BLOCKS[2]


# For each kernel the paths, best first; where none serves, the reference does.
PATHS: dict[str, tuple[Path, ...]] = {
    "conv2d": (Path("implicit_gemm", "convolution", _result_fits),),
    "conv2d_input_grad": (Path("implicit_gemm", "convolution", _result_fits),),
    "conv2d_weight_grad": (Path("implicit_gemm", "convolution", _result_fits),),
    "matmul": (Path("implicit_gemm", "product", _small_matrices),),
    "add": (
        Path("pointwise", "pointwise", _same_shape),
        Path("pointwise", "pointwise", _one_a_channel),
    ),
    "relu": (Path("pointwise", "pointwise", always),),
    "relu_grad": (Path("pointwise", "pointwise", _same_shape),),
    "sgd_update": (Path("pointwise", "pointwise", _same_shape),),
    "max_pool2d": (Path("gather", "pool", positions_fit_a_byte),),
    "max_pool2d_grad": (Path("gather", "pool", positions_fit_a_byte),),
    "max_pool2d_gather": (Path("gather", "pool", positions_fit_a_byte),),
    "avg_pool2d": (Path("gather", "pool", always),),
    "avg_pool2d_grad": (Path("gather", "pool", always),),
    "batch_norm": (Path("two_pass", "norm", _channels_fit),),
    "batch_norm_grad": (Path("two_pass", "norm", _channels_fit),),
    "running_average": (Path("pointwise", "norm", always),),
    "local_response_norm": (Path("tiled", "response_norm", _window_fits_a_block),),
    "local_response_norm_grad": (Path("tiled", "response_norm", _window_fits_a_block),),
    "softmax_cross_entropy": (Path("warp_a_row", "loss", always),),
    "crop_and_flip": (Path("gather", "augment", always),),
}


class CupyBackend(Backend):
    """Run on the current CUDA device."""

    name = "cupy"
    precision = "fp32"  # ../precision.py sets it
    recording = False

    def __init__(self, cupy: Any) -> None:
        self.xp = cupy
        self.launch = Launcher(cupy.RawModule)

    def asarray(self, a: Array, dtype: Array = None) -> Array:
        """Give `a` as an array on the device, channels-last if it is; CuPy alone forgets that."""
        if self.recording and not isinstance(a, self.xp.ndarray) and numpy.ndim(a):
            raise NotRecordable(
                f"an array {numpy.shape(a)} of the host came into it, of which each replay would "
                "see the values that it has now; put it on the device before"
            )
        last = isinstance(a, numpy.ndarray) and a.ndim == 4 and nhwc(a).flags.c_contiguous
        return nchw(self.xp.asarray(nhwc(a), dtype)) if last else self.xp.asarray(a, dtype)

    def to_numpy(self, a: Array) -> Array:
        """Copy `a` to the host, where it lies in the same order."""
        if self.recording:
            raise NotRecordable(
                f"the host read an array {a.shape} in the midst of it, which has no values yet; "
                "read results after the step"
            )
        last = a.ndim == 4 and nhwc(a).flags.c_contiguous
        return nchw(self.xp.asnumpy(nhwc(a))) if last else self.xp.asnumpy(a)

    def synchronize(self) -> None:
        """Wait until the device has done all that it was asked."""
        self.xp.cuda.get_current_stream().synchronize()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` asks of the device, doing none of it: see graph.py."""
        self.recording = True
        try:
            return record(self.xp, work)
        finally:
            self.recording = False

    def erf(self, x: Array) -> Array:
        """Compute the error function on the device."""
        from cupyx.scipy.special import erf

        return self.map(erf, x)

    def choose(self, kernel: str, *, shapes: Shapes, dtype: Any, **settings: Any) -> str:
        """Name the path that serves a kernel: a function of geometry, dtype and the precision."""
        path = self._path(kernel, shapes, numpy.dtype(dtype), settings)
        rounded = self.precision_of(dtype)
        if path and path.name == "implicit_gemm" and rounded != "fp32":
            return f"{path.name}_{rounded}"
        return path.name if path else "reference"

    def _path(
        self, kernel: str, shapes: Shapes, dtype: Any, settings: dict[str, Any]
    ) -> Path | None:
        """Find the path; in fp16 a product has none, not knowing which operand is a gradient."""
        if kernel == "matmul" and self.precision_of(dtype) == "fp16":
            return None
        return _best(kernel, shapes, dtype, settings)

    def compute_capability(self) -> int:
        """Tell what the device's instructions are: 75 is what NVIDIA calls 7.5."""
        return int(self.xp.cuda.Device().compute_capability)

    def precision_of(self, dtype: Any) -> str:
        """Tell in which precision arrays of a dtype are multiplied: float64 is never rounded."""
        return self.precision if numpy.dtype(dtype) == "float32" else "fp32"

    def gather_crop_and_flip(self, images: Array, *arrays: Array, padding: int) -> Array:
        """Make a training batch of a data set of bytes: see augment.py."""
        from .augment import gather_crop_and_flip

        return gather_crop_and_flip(self, images, *arrays, padding=padding)

    # ---- arrays as kernels take them ----

    def images(self, a: Array) -> Array:
        """View (N, C, H, W) as (N, H, W, C), contiguous: a copy where it lies differently."""
        return self.xp.ascontiguousarray(nhwc(a))

    def flat(self, a: Array) -> Array:
        """View an array as one row of values; of images, in the order N, H, W, C."""
        return (self.images(a) if a.ndim == 4 else self.xp.ascontiguousarray(a)).reshape(-1)


def _best(kernel: str, shapes: Shapes, dtype: Any, settings: dict[str, Any]) -> Path | None:
    every = (*shapes, settings.get("x_shape", ()))
    if all(0 < math.prod(shape) <= MOST_VALUES for shape in every):
        return paths.best(PATHS.get(kernel, ()), shapes, dtype, settings)
    return None


def _method(kernel: str) -> Callable[..., Any]:
    """Make the method that runs a kernel on its best path."""
    reference = getattr(Backend, kernel)

    @wraps(reference)
    def run(self: CupyBackend, *arrays: Any, **settings: Any) -> Any:
        shapes = tuple(a.shape for a in arrays if a is not None)
        floats = {a.dtype for a in arrays if a is not None and a.dtype.kind == "f"}
        path = self._path(kernel, shapes, arrays[0].dtype, settings) if len(floats) == 1 else None
        if path is None:
            return reference(self, *arrays, **settings)
        return paths.function(__name__, path.module, kernel)(self, *arrays, **settings)

    return run


for _kernel in PATHS:
    setattr(CupyBackend, _kernel, _method(_kernel))


def load() -> CupyBackend:
    """Make the backend, or say why it can't be."""
    from .detect import usable_cupy

    return CupyBackend(usable_cupy())
