"""The emulation itself: kernels run as they do on a GPU, and what is wrong is noticed."""

import re

import numpy as np
import pytest
from cupy_backend.emulation import EmulationError

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
