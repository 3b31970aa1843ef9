"""Bugs of the kinds that GPU kernels have, planted in their text: the emulation notices each."""

import re

import numpy as np
import pytest
from cupy_backend.emulation import COMPILER, EmulatedBackend
from cupy_backend.rounding import rounded

from tinygrad_cnn.backends import get
from tinygrad_cnn.backends.cupy_backend import launch
from tinygrad_cnn.backends.precision import use_precision

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(COMPILER is None, reason="emulating a GPU needs Linux and a C++ compiler"),
]

# More rows and columns than a tile, no multiples of it, strides that differ, two parts of the batch
X, W, G = (15, 18, 9, 8), (20, 18, 3, 3), (15, 20, 5, 8)
AT = dict(stride=(2, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1)
RNG = np.random.default_rng(0)
x, w, g = (RNG.standard_normal(shape).astype(np.float32) for shape in (X, W, G))
row = np.ones(X[1], np.float32)
WINDOW = dict(size=5, alpha=1.0, beta=0.75, k=2.0)


def low(name):
    """Convolve in a precision; the reference, which has none, what was rounded to it."""

    def conv2d(backend):
        if backend.name == "numpy":
            return backend.conv2d(rounded(x, name), rounded(w, name), **AT)
        with use_precision(name, backend):
            return backend.conv2d(x, w, **AT)

    return conv2d


def weight_grad_in_fp16(backend):
    """Differentiate; the reference by a gradient that was rounded at 1024 times its size."""
    tiny = g * np.float32(1e-6)
    if backend.name == "numpy":
        scaled = rounded(tiny * 1024, "fp16") / 1024
        return backend.conv2d_weight_grad(scaled, rounded(x, "fp16"), w_shape=W, **AT)
    with use_precision("fp16", backend):
        return backend.conv2d_weight_grad(tiny, x, w_shape=W, **AT)


KERNELS = {
    "conv2d": lambda backend: backend.conv2d(x, w, **AT),
    "conv2d_input_grad": lambda backend: backend.conv2d_input_grad(g, w, x_shape=X, **AT),
    "conv2d_weight_grad": lambda backend: backend.conv2d_weight_grad(g, x, w_shape=W, **AT),
    **{f"conv2d in {name}": low(name) for name in ("tf32", "bf16", "fp16")},
    "conv2d_weight_grad in fp16": weight_grad_in_fp16,
    "batch_norm": lambda backend: backend.batch_norm(x, row, row, eps=1e-5)[0],
    "local_response_norm": lambda backend: backend.local_response_norm(x, **WINDOW)[0],
}
WRONG_VALUES = "the result is wrong"
ORDER = "differs with the threads in reverse order"


def check(kernel, folder):
    """Compile a kernel as it now stands, run it and compare with the reference."""
    received, expected = (KERNELS[kernel](b) for b in (EmulatedBackend(folder), get("numpy")))
    worst = np.abs(received - expected).max() / np.abs(expected).max()
    assert worst < 1e-5, WRONG_VALUES


# What is done, where, to which words, and what is said of it.
BUGS = {
    "no barrier before the tiles are read": (
        "conv2d", "product.cuh", "__syncthreads();\n        next_a", "next_a", ORDER,
    ),
    "no barrier before the tiles are overwritten": (
        "conv2d", "product.cuh", "__syncthreads();  // before", "// before", ORDER,
    ),
    "a barrier that some threads don't reach": (
        "conv2d", "product.cuh", "__syncthreads();  // before",
        "if (threadIdx.x < 40) __syncthreads();  // before",
        r"thread \(\d+, 0, 0\): waits at line \d+ of product.cuh, but thread \d+ ",
    ),
    "an index beyond shared memory": (
        "conv2d", "product.cuh", "left[i] = a_tile[k][row(i)]", "left[i] = a_tile[k][row(i) + 8]",
        r"an index beyond the array at line \d+ of product.cuh",
    ),
    "shared memory that nobody has written": (
        "conv2d", "product.cuh", "tile[k / PACKED][row]", "if (j) tile[k / PACKED][row]", ORDER,
    ),
    "a write past the end of an array": (
        "conv2d", "conv2d.cu", "if (row >= rows) continue;", "",
        "access to argument 5 at byte 48000 of its 48000",
    ),
    "a read before the beginning": (
        "conv2d", "conv2d.cu", "0 <= h &&", "", "access to argument 0 at byte -",
    ),
    "the wrong stride": (
        "conv2d", "conv2d.cu", "ho * at.stride_h", "ho * at.stride_w", WRONG_VALUES,
    ),
    "operands exchanged": (
        "conv2d", "conv2d.cu", "first_row, first_column, 0", "first_column, first_row, 0",
        WRONG_VALUES,
    ),
    "one tap too few": (
        "conv2d_input_grad", "conv2d_input_grad.cu", "(kernel - tap + step - 1) / step",
        "(kernel - tap) / step", WRONG_VALUES,
    ),
    "the edge of a tile off by one": (
        "conv2d_input_grad", "product.cuh", "if (j < left) p[j]", "if (j <= left) p[j]",
        "access to argument 3 at byte 77760 of its 77760",
    ),
    "an integer that overflows": (
        "conv2d_input_grad", "conv2d_input_grad.cu", "* at.groups + group) * at.C;",
        "* at.groups + group) * at.C * 1000000 / 1000000;", "a product overflows at line",
    ),
    "a part too few in the sum": (
        "conv2d_weight_grad", "conv2d_weight_grad.cu", "part < parts", "part < parts - 1",
        WRONG_VALUES,
    ),
    "parts that overlap": (
        "conv2d_weight_grad", "conv2d_weight_grad.cu", "min(begin + length,",
        "min(begin + length + 1,", WRONG_VALUES,
    ),
    "registers of a fragment exchanged": (
        "conv2d in bf16", "tensor_cores.cuh",
        "a[1] = near.at[1], a[2] = far.at[0]", "a[2] = near.at[1], a[1] = far.at[0]",
        WRONG_VALUES,
    ),
    "neighbouring k exchanged in one operand's words": (
        "conv2d in bf16", "tensor_cores.cuh", "a[0] = near.at[0]",
        "a[0] = near.at[0] << 16 | near.at[0] >> 16", WRONG_VALUES,
    ),
    "a row of a fragment that is another lane's": (
        "conv2d in tf32", "tensor_cores.cuh", "i / 2 * 16 + 2 * g() + i % 2",
        "i / 2 * 16 + g() + i % 2 * 8", WRONG_VALUES,
    ),
    "sums in the order of one fragment": (
        "conv2d in tf32", "tensor_cores.cuh", "j / 4 * 16 + 4 * q() + j % 4",
        "j / 4 * 16 + 2 * q() + j % 2 + j % 4 / 2 * 8", ORDER,  # two lanes write to one place
    ),
    "no rounding": (
        "conv2d in tf32", "tensor_cores.cuh", 'CONVERT("rna.tf32.f32", "r", bits, x);',
        "bits = reinterpret_cast<Element&>(x);", WRONG_VALUES,
    ),
    "rounding of the other kind": (
        "conv2d in bf16", "tensor_cores.cuh", 'CONVERT("rn.bf16.f32", "h", bits, x);',
        "bits = reinterpret_cast<unsigned&>(x) >> 16;", WRONG_VALUES,
    ),
    "the instruction for another format": (
        "conv2d in fp16", "tensor_cores.cuh",
        'MMA_HALF("m16n8k8.row.col.f32.f16.f16.f32", d0, d1, d2, d3, a[2]',
        'MMA_HALF("m16n8k8.row.col.f32.bf16.bf16.f32", d0, d1, d2, d3, a[2]', WRONG_VALUES,
    ),
    "an instruction that there is not": (
        "conv2d in tf32", "tensor_cores.cuh", "col.f32.tf32", "row.f32.tf32",
        "no instruction mma.sync.aligned.m16n8k8.row.row.f32.tf32.tf32.f32",
    ),
    "the instruction by some lanes only": (
        "conv2d in tf32", "tensor_cores.cuh",
        "for (int n = 0; n < 2; n++)", "for (int n = 0; n < 2 && g() < 4; n++)",
        r"waits at line \d+ of \w+.cuh, but thread \d+ at line",
    ),
    "half of the products": (
        "conv2d in tf32", "tensor_cores.cuh", "k < DEPTH / PACKED; k += 8", "k < 8; k += 8",
        WRONG_VALUES,
    ),
    "gradients that are not scaled": (
        "conv2d_weight_grad in fp16", "product.cuh", "Operand::GRADIENT ? x * Tile::SCALE : x", "x",
        WRONG_VALUES,
    ),
    "no barrier between the steps of a tree": (
        "batch_norm", "norm.cu", "__syncthreads();", "", ORDER,
    ),
    "threads that have nothing to do": (
        "batch_norm", "norm.cu", "min(each, (pixels - pixel - 1) / lines + 1)", "each",
        r"access to argument 0 at byte \d+ of its 77760",
    ),
    "neighbours that are not there yet": (
        "local_response_norm", "response_norm.cu", "__syncthreads();", "", ORDER,
    ),
    "neighbours of another pixel": (
        "local_response_norm", "response_norm.cu", "C - 1 - c", "C - c", WRONG_VALUES,
    ),
}  # fmt: skip


@pytest.fixture
def kernel_folder(monkeypatch, tmp_path):
    """Copy the kernels to where they can be changed; compile only the instances that run."""
    for file in [*launch.FOLDER.glob("*.cu"), *launch.FOLDER.glob("*.cuh")]:
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    used = lambda program, dtype: tuple(  # noqa: E731
        program.expression(k, dtype) for k in program.kernels if "128, 32" in k or "," not in k
    )
    monkeypatch.setattr(launch, "FOLDER", tmp_path)
    monkeypatch.setattr(launch.Program, "expressions", used)
    return tmp_path


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_a_bug_nothing_is_noticed(kernel, kernel_folder):
    check(kernel, kernel_folder)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_noticed(bug, kernel_folder):
    kernel, file, old, new, said = BUGS[bug]
    text = (kernel_folder / file).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (kernel_folder / file).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(AssertionError, match=said):
        check(kernel, kernel_folder)


def test_a_kernel_that_does_not_compile_is_told(kernel_folder):
    file = kernel_folder / "conv2d.cu"
    file.write_text(file.read_text(encoding="utf-8").replace("Pixels<T> pixels", "Pixel pixels"))
    with pytest.raises(AssertionError, match=re.escape("conv2d.cu:")):
        check("conv2d", kernel_folder)
