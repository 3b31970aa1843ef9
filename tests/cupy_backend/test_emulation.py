"""The emulation itself: kernels run as they do on a GPU, and what is wrong is noticed."""

import re

import numpy as np
import pytest
from cupy_backend.emulation import EmulationError, HostModule

from tinygrad_cnn.backends.cupy_backend.launch import OPTIONS, source
from tinygrad_cnn.backends.cupy_backend.pointwise import POINTWISE

pytestmark = pytest.mark.emulated


def add(emulated, *args, grid=(1,), dtype="float32", **settings):
    emulated.launch(POINTWISE, "add<T>", dtype, grid, 256, args, **settings)


def values(size, dtype="float32"):
    return np.arange(size, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000])
def test_a_kernel_runs_on_arrays_of_numpy(emulated, size, dtype):
    x, y, out = (np.random.default_rng(i).standard_normal(size).astype(dtype) for i in range(3))
    add(emulated, x, y, out, size, grid=(4,), dtype=dtype)
    np.testing.assert_array_equal(out, x + y, strict=True)
    add(emulated, x, y, x, size, grid=(4,), dtype=dtype)  # in place
    np.testing.assert_array_equal(x, out)


WRONG = {
    "beyond the end": ([100, 100, 101, 101], "access to argument 0 at byte 400 of its 400"),
    "too few": ([100, 100, 100], "3 arguments for a kernel of 4"),
    "no integer": ([100, 100, 100, 100.0], "argument 3 is a value of kind f and 8 bytes an item"),
    "no array": ([100, 100, np.float32(1), 100], "argument 2 is a value of kind f"),
}


@pytest.mark.parametrize(("args", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_noticed(emulated, args, message):
    arrays = [values(a) if i < 3 and isinstance(a, int) else a for i, a in enumerate(args)]
    with pytest.raises(EmulationError, match=re.escape(message)):
        add(emulated, *arrays)
    add(emulated, *(values(9) for _ in range(3)), 9)  # and the next launch is none the worse


# ---- what the project's kernels may use, each in a kernel of its own ----

KERNELS = """
#line 1 "mistakes.cu"
__global__ void turned(const float* x, float* y, int count) {
    DYNAMIC_SHARED(float, window);
    window[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = window[count - 1 - (int)threadIdx.x];
}

__global__ void warp_sums(const float* x, float* y) {
    float sum = x[threadIdx.x];
    for (int bits = 16; bits; bits /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, bits);
    y[threadIdx.x] = sum;
}

__global__ void from_the_next(const float* x, float* y) {
    y[threadIdx.x] = __shfl_down_sync(0xFFFFFFFF, x[threadIdx.x], 1);
}

__global__ void half_a_warp(float* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFF, 1.0f, 1);
}

__global__ void chain(float* y) { y[blockIdx.x] = blockIdx.x ? y[blockIdx.x - 1] + 1 : 1; }

__global__ void divided(float* y, int by) { y[0] = 1 / by; }
"""


@pytest.fixture(scope="module")
def run(emulated, tmp_path_factory):
    """Give a function that launches one of KERNELS."""
    names = re.findall(r"void (\w+)\(", KERNELS)
    module = HostModule(
        code=source("device.cuh") + KERNELS,
        options=OPTIONS,
        name_expressions=names,
        folder=tmp_path_factory.mktemp("kernels"),
    )

    def run(name, *args, grid=1, block=32, shared=0):
        module.get_function(name)((grid,), (block,), args, shared_mem=shared)

    return run


def test_dynamic_shared_memory(run):
    y = np.zeros(32, np.float32)
    run("turned", values(32), y, np.int32(32), shared=128)
    np.testing.assert_array_equal(y, values(32)[::-1])
    with pytest.raises(EmulationError, match="dynamic shared memory at byte 124 of its 124"):
        run("turned", values(32), y, np.int32(32), shared=124)
    with pytest.raises(EmulationError, match="differs with the threads in reverse order"):
        run("turned", values(32), y, np.int32(33), shared=256)  # reads what nobody wrote


def test_shuffles(run):
    x, y = values(64), np.zeros(64, np.float32)
    run("warp_sums", x, y, block=64)
    np.testing.assert_array_equal(y, np.repeat([x[:32].sum(), x[32:].sum()], 32))
    run("from_the_next", x, y, block=64)
    np.testing.assert_array_equal(y, np.where(x % 32 == 31, x, x + 1))


MISTAKES = {
    "a shuffle that half of the lanes reach": (
        "half_a_warp", (np.zeros(16, np.float32),), "but thread 16 has ended",
    ),
    "a block that reads another's result": (
        "chain", (np.zeros(3, np.float32),), "argument 0 differs with the threads in reverse order",
    ),
    "a division by zero": (
        "divided", (np.zeros(1, np.float32), np.int32(0)), "a division by zero at line",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(run, mistake):
    kernel, args, said = MISTAKES[mistake]
    with pytest.raises(EmulationError, match=said):
        run(kernel, *args, grid=3 if kernel == "chain" else 1)


def test_arrays_that_overlap_are_refused(run):
    both = values(48)
    with pytest.raises(EmulationError, match="arguments 0 and 1 overlap"):
        run("from_the_next", both[:32], both[16:])
