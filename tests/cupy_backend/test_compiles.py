"""Every kernel compiles without a warning and fits; for all GPUs of the list: `make check-cuda`."""

import re

import pytest
from cupy_backend import nvrtc

from tinygrad_cnn.backends.cupy_backend.launch import MOST_SHARED, Program

pytestmark = pytest.mark.skipif(
    nvrtc.library() is None, reason="no NVRTC: pip install 'tinygrad_cnn[cuda-check]'"
)

MOST_SPILLED = 32  # bytes: conv2d_input_grad's widest tile gives 20 for a third block at once


@pytest.mark.parametrize(
    ("program", "dtype"),
    [(p, dtype) for p in nvrtc.programs() for dtype in p.dtypes],
    ids=lambda value: value.kernels[0] if isinstance(value, Program) else value,
)
def test_every_kernel_compiles_and_fits(program, dtype):
    oldest = next(gpu for gpu in nvrtc.GPUS if nvrtc.serves(gpu, program))
    found, said = nvrtc.compile_for(oldest, program, dtype)
    assert not said
    assert {use.kernel for use in found} == {*program.expressions(dtype)}
    for use in found:
        assert use.shared <= MOST_SHARED, use
        assert use.spilled <= MOST_SPILLED or dtype == "float64", use
        print(use)


def test_what_does_not_compile_is_told(monkeypatch):
    monkeypatch.setattr(nvrtc, "source", lambda file: "__global__ void broken() { return 1; }")
    monkeypatch.setattr(Program, "all", [])
    found, said = nvrtc.compile_for(nvrtc.GPUS[0], Program("broken.cu", "broken"), "float32")
    assert not found
    assert re.search("return value", " ".join(said))
