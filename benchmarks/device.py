"""Where both sides compute: on this machine's processor or, beside the backend cupy, on its GPU.

A GPU is timed by its own clock, from the first of several calls to the last. What a kernel takes is
asked for while the GPU is busy with something else, so that it has all the calls before it begins
one, and Python's time is no part of the figure; of a training step it is.

PyTorch then multiplies in float32 and nothing less (no TF32), and tries which of cuDNN's algorithms
is the fastest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import harness
from harness import Call, stopwatch

from tinygrad_cnn.backends.base import Backend

BUSY = 5e-3  # seconds: ten calls of three launches each are asked for in less
# A kernel that does nothing for so many nanoseconds.
WAIT = r"""
extern "C" __global__ void wait_for(long long nanoseconds) {
    long long begin, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
    do {
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    } while (now - begin < nanoseconds);
}
"""


class Ceilings(NamedTuple):
    """What the device can do at most: float32 operations, and bytes of memory, a second."""

    operations: float
    bytes: float

    def __str__(self) -> str:
        return (
            f"measured here: sgemm {self.operations / 1e12:.1f} TFLOP/s, "
            f"copy {self.bytes / 1e12:.2f} TB/s"
        )


def on_gpu(backend: Backend) -> bool:
    """Tell whether a backend computes on a GPU."""
    return backend.name == "cupy"


def torch_device(backend: Backend) -> str:
    """Name PyTorch's device for a backend's peer; a GPU is told to keep to float32."""
    if not on_gpu(backend):
        return "cpu"
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    return "cuda"


def clock(backend: Backend, *, calls: int = 10, queued: bool = True) -> Callable[[Call], float]:
    """Give what times a call in seconds: on a GPU the mean of `calls` in a row.

    `queued` ones are all asked for before the first begins.
    """
    if not on_gpu(backend):
        return stopwatch
    cupy = backend.xp

    def measure(call: Call) -> float:
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        if queued:
            waiting(cupy)((1,), (1,), (int(BUSY * 1e9),))
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return cupy.cuda.get_elapsed_time(begin, end) / 1e3 / calls

    return measure


@cache
def waiting(cupy: Any) -> Any:
    """Compile the kernel that waits."""
    return cupy.RawKernel(WAIT, "wait_for")


@cache
def ceilings(backend: Backend, *, n: int = 8192, megabytes: int = 1024) -> Ceilings:
    """Time a GPU's large product of float32 matrices by cuBLAS, and a large copy."""
    xp, seconds = backend.xp, clock(backend, calls=3)
    a, b, c = (xp.ones((n, n), "float32") for _ in range(3))
    source = xp.ones(megabytes << 18, "float32")
    target = xp.empty_like(source)
    product, copy = (
        min(seconds(call) for _ in range(4))
        for call in (lambda: xp.matmul(a, b, out=c), lambda: xp.copyto(target, source))
    )
    return Ceilings(2 * n**3 / product, 2 * source.nbytes / copy)


def limits(backend: Backend) -> str:
    """Describe the device and what it can do at most."""
    return f"{card(backend)}; {ceilings(backend)}" if on_gpu(backend) else harness.ceilings()


def card(backend: Backend) -> str:
    """Name the GPU, its memory, and the CUDA of its driver and of CuPy."""
    runtime = backend.xp.cuda.runtime
    properties = runtime.getDeviceProperties(backend.xp.cuda.Device().id)
    driver, library = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    return (
        f"{properties['name'].decode()}, {properties['totalGlobalMem'] / 2**30:.0f} GiB, "
        f"{properties['multiProcessorCount']} multiprocessors, driver for CUDA {dotted(driver)}, "
        f"CuPy for CUDA {dotted(library)}"
    )


def dotted(version: int) -> str:
    """Write CUDA's 13000 as 13.0."""
    return f"{version // 1000}.{version % 1000 // 10}"
