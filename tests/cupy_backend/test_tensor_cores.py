"""Tensor cores, emulated: who holds what, what is rounded, and convolutions of any geometry."""

import numpy as np
import pytest
from cupy_backend.emulation import EmulationError, HostModule
from cupy_backend.rounding import rounded
from cupy_backend.test_cupy_convolution import ONE, drawn, four
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_cnn.backends import get
from tinygrad_cnn.backends.base import nhwc
from tinygrad_cnn.backends.cupy_backend import MOST_VALUES
from tinygrad_cnn.backends.cupy_backend.launch import OPTIONS, source
from tinygrad_cnn.backends.geometry import conv2d_settings
from tinygrad_cnn.backends.precision import use_precision
from tinygrad_cnn.testing import conv2d_cases

pytestmark = pytest.mark.emulated

NUMPY = get("numpy")
ROUNDING = ("tf32", "bf16", "fp16")
SUMS_ERROR = 1e-5  # of the largest value: a tensor core may cut off what it adds, not round it

# ---- the instructions ----

# The tables of the PTX ISA, "Matrix Fragments for mma.m16n8k8" and "... for mma.m16n8k16", as they
# stand there: element i of a lane, with g = lane / 4 ("groupID") and q = lane % 4
# ("threadID_in_group") -> row and column.
FRAGMENTS = {
    "m16n8k8.row.col.f32.tf32.tf32.f32": dict(
        a=lambda g, q, i: (g if i in (0, 2) else g + 8, q if i in (0, 1) else q + 4),
        b=lambda g, q, i: (q if i == 0 else q + 4, g),
    ),
    "m16n8k8.row.col.f32.f16.f16.f32": dict(
        a=lambda g, q, i: (g if i < 2 else g + 8, q * 2 + (i & 1)),
        b=lambda g, q, i: (q * 2 + i, g),
    ),
    "m16n8k16.row.col.f32.bf16.bf16.f32": dict(
        a=lambda g, q, i: (
            g if 0 <= i < 2 or 4 <= i < 6 else g + 8,
            q * 2 + (i & 1) if i < 4 else q * 2 + (i & 1) + 8,
        ),
        b=lambda g, q, i: (q * 2 + (i & 1) if i < 2 else q * 2 + (i & 1) + 8, g),
    ),
}
SUMS = lambda g, q, i: (g if i < 2 else g + 8, q * 2 + (i & 1))  # noqa: E731


KERNELS = """
#line 1 "fragments.cu"
__global__ void k8_tf32(const unsigned* a, const unsigned* b, float* d) {
    a += 4 * threadIdx.x, b += 2 * threadIdx.x, d += 4 * threadIdx.x;
    MMA("m16n8k8.row.col.f32.tf32.tf32.f32", d[0], d[1], d[2], d[3], a[0], a[1], a[2], a[3], b[0],
        b[1]);
}
__global__ void k8_f16(const unsigned* a, const unsigned* b, float* d) {
    a += 2 * threadIdx.x, b += threadIdx.x, d += 4 * threadIdx.x;
    MMA_HALF("m16n8k8.row.col.f32.f16.f16.f32", d[0], d[1], d[2], d[3], a[0], a[1], b[0]);
}
__global__ void k16_bf16(const unsigned* a, const unsigned* b, float* d) {
    a += 4 * threadIdx.x, b += 2 * threadIdx.x, d += 4 * threadIdx.x;
    MMA("m16n8k16.row.col.f32.bf16.bf16.f32", d[0], d[1], d[2], d[3], a[0], a[1], a[2], a[3], b[0],
        b[1]);
}

__global__ void round_all(const float* x, unsigned* tf32, unsigned* bf16, unsigned* fp16) {
    int i = threadIdx.x;
    tf32[i] = Tf32::rounded(x[i]), bf16[i] = Bf16::rounded(x[i]), fp16[i] = Fp16::rounded(x[i]);
}
"""
MISTAKES = """
#line 1 "mistakes.cu"
__global__ void unknown(float* d) {
    MMA("m16n8k16.row.col.f32.tf32.tf32.f32", d[0], d[1], d[2], d[3], 0, 0, 0, 0, 0, 0);
}
__global__ void half_a_warp(float* d) {
    if (threadIdx.x < 16)
        MMA("m16n8k8.row.col.f32.tf32.tf32.f32", d[0], d[1], d[2], d[3], 0, 0, 0, 0, 0, 0);
}
__global__ void too_few_registers(float* d) {
    MMA_HALF("m16n8k16.row.col.f32.f16.f16.f32", d[0], d[1], d[2], d[3], 0, 0, 0);
}
"""


def launcher(module, code, names, **settings):
    """Give a function that launches one of some kernels, with a warp."""
    code = source("tensor_cores.cuh") + code
    compiled = module(code=code, options=OPTIONS, name_expressions=names, **settings)
    return lambda name, *args, threads=32: compiled.get_function(name)((1,), (threads,), args)


@pytest.fixture(scope="module")
def run(emulated):
    """Launch one of KERNELS, emulated or on the GPU."""
    return launcher(emulated.module, KERNELS, ("k8_tf32", "k8_f16", "k16_bf16", "round_all"))


@pytest.fixture(scope="module")
def run_emulated(emulated, tmp_path_factory):
    """Launch one of MISTAKES, which no compiler for a GPU would accept."""
    if emulated.name != "emulated":
        pytest.skip("it is the emulation that is tested")
    folder = tmp_path_factory.mktemp("kernels")
    names = ("unknown", "half_a_warp", "too_few_registers")
    return launcher(HostModule, MISTAKES, names, folder=folder)


def bits(values, kind):
    """Give float32 values as the words of a fragment: the last axis is a lane's elements."""
    if kind == "tf32":
        return values.view(np.uint32).copy()
    if kind == "bf16":
        halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        halves = values.astype(np.float16).view(np.uint16)
    return halves.view(np.uint32)


@pytest.mark.parametrize(
    ("kernel", "instruction"), [*zip(("k8_tf32", "k8_f16", "k16_bf16"), FRAGMENTS, strict=True)]
)
def test_fragments_are_dealt_out_as_the_isa_says(run, kernel, instruction):
    depth, kind = int(kernel[1:].split("_")[0]), kernel.split("_")[1]
    rng, position = np.random.default_rng(0), FRAGMENTS[instruction]
    a, b, d = (
        rng.integers(-99, 99, size).astype("f") for size in ((16, depth), (depth, 8), (16, 8))
    )

    def fragments(matrix, at, count):
        lanes = [[at(lane // 4, lane % 4, i) for i in range(count)] for lane in range(32)]
        assert len({place for lane in lanes for place in lane}) == matrix.size  # all are held, once
        return np.array([[matrix[place] for place in lane] for lane in lanes])

    sums = fragments(d, SUMS, 4)
    words = [
        bits(fragments(m, position[name], m.size // 32), kind) for m, name in ((a, "a"), (b, "b"))
    ]
    run(kernel, *words, sums)
    np.testing.assert_array_equal(sums, fragments(d + a @ b, SUMS, 4))


FLOATS = st.floats(width=32, allow_nan=False)


@given(st.lists(st.one_of(FLOATS, st.floats(-8, 8, width=32)), min_size=1, max_size=32))
def test_values_are_rounded_as_the_isa_says(run, values):
    """Also halves, which are what many short decimal numbers are."""
    x = np.array([*values, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 65519, 65520, 2**-25], "f")
    tf32, bf16, fp16 = words = [np.empty(x.size, np.uint32) for _ in range(3)]
    run("round_all", x, *words, threads=x.size)
    given_as = dict(
        tf32=(tf32 & 0xFFFFE000).view("f"),  # the rest of the register is not read
        bf16=(bf16 << 16).view("f"),
        fp16=fp16.astype(np.uint16).view(np.float16).astype("f"),
    )
    for precision, received in given_as.items():
        np.testing.assert_array_equal(received, rounded(x, precision), precision)


def test_what_is_no_number_stays_none(run):
    words = [np.empty(1, np.uint32) for _ in range(3)]
    run("round_all", np.array([np.nan], "f"), *words, threads=1)
    tf32, bf16, fp16 = (int(word[0]) for word in words)
    assert np.isnan(np.array([tf32, bf16 << 16], np.uint32).view("f")).all()
    assert np.isnan(np.array([fp16], np.uint16).view(np.float16)).all()


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("unknown", "no instruction mma.sync.aligned.m16n8k16.row.col.f32.tf32.tf32.f32"),
        ("half_a_warp", "but thread 16 has ended"),
        ("too_few_registers", "2 and 1 registers for mma.sync.aligned.m16n8k16"),
    ],
)
def test_a_wrong_instruction_is_noticed(run_emulated, kernel, said):
    with pytest.raises(EmulationError, match=said):
        run_emulated(kernel, np.zeros(4, "f"))


# ---- convolutions ----


def assert_rounded_products(emulated, x, w, at, precision):
    """Compare with the reference, in float64, on rounded operands; `plus` is not rounded."""
    g, plus = drawn(NUMPY.conv2d(x, w, **at).shape, x.shape)
    with use_precision(precision, emulated):
        own = four(emulated, x, w, g, plus, at)
    low = (rounded(a, precision).astype("float64") for a in (x, w, g))
    exact = four(NUMPY, *low, plus.astype("float64"), at)
    for received, expected in zip(own, exact, strict=True):
        assert (received.shape, received.dtype) == (expected.shape, np.float32)
        error = np.abs(received - expected).max(initial=0)
        assert error <= SUMS_ERROR * np.abs(expected).max(initial=1)
    assert all(nhwc(a).flags.c_contiguous for a in own[:3])


@settings(max_examples=10)
@given(conv2d_cases("float32", st.sampled_from([1, 3, 4, 17, 36])), st.sampled_from(ROUNDING))
def test_any_geometry(emulated, case, precision):
    """Any stride, padding, dilation, groups."""
    x, w, at = case
    at = conv2d_settings(x.shape, w.shape, **at)
    assert_rounded_products(emulated, x, w, at, precision)


@pytest.mark.parametrize(("c", "o", "precision"), [
    (16, 16, "tf32"), (40, 33, "tf32"), (70, 24, "bf16"), (16, 72, "bf16"), (40, 15, "fp16"),
    (16, 40, "fp16"),
])  # fmt: skip
def test_every_tile(emulated, c, o, precision):
    """More than a tile of rows and, with 72 channels, of columns; with and without whole fours."""
    x, w = drawn((3, c, 7, 9), (o, c, 3, 3))
    assert_rounded_products(emulated, x, w, ONE, precision)


@pytest.mark.parametrize("precision", ROUNDING)
def test_what_needs_no_rounding_is_exact(emulated, precision):
    """Small integers, as fp32 has them to the last bit."""
    rng = np.random.default_rng(0)
    x, w, g, plus = (
        rng.integers(-9, 9, shape).astype("f")
        for shape in ((2, 5, 6, 6), (7, 5, 3, 3), (2, 7, 6, 6), (2, 5, 6, 6))
    )
    exact = four(emulated, x, w, g, plus, ONE)
    with use_precision(precision, emulated):
        for a, b in zip(four(emulated, x, w, g, plus, ONE), exact, strict=True):
            np.testing.assert_array_equal(a, b, strict=True)


def test_float64_is_never_rounded(emulated):
    x, w = drawn((1, 4, 5, 5), (4, 4, 3, 3), dtype="float64")
    with use_precision("bf16", emulated):
        np.testing.assert_allclose(emulated.conv2d(x, w, **ONE), NUMPY.conv2d(x, w, **ONE))


def test_small_products_are_rounded_too(emulated):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape).astype("f") for shape in ((5, 7), (7, 9)))
    with use_precision("bf16", emulated):
        received = emulated.matmul(x, y)
    np.testing.assert_allclose(received, rounded(x, "bf16") @ rounded(y, "bf16"), rtol=1e-4)


def test_products_are_not_rounded_to_fp16(emulated):
    """A linear layer's activations may be large while its gradients are small."""
    x, g = np.full((5, 7), 100, "f"), np.full((5, 9), 1e-7, "f")
    with use_precision("fp16", emulated):
        assert emulated.choose("matmul", shapes=((7, 5), g.shape), dtype="float32") == "reference"
        np.testing.assert_allclose(emulated.matmul(x.T, g), x.T @ g)


# ---- gradients in fp16 ----


def test_small_gradients_survive_fp16(emulated):
    """At 2e-7, where fp16 itself has hardly two bits left; and from 64 on they are infinite."""
    x, w, g = drawn((2, 4, 5, 5), (4, 4, 3, 3), (2, 4, 5, 5))
    w_shape = dict(w_shape=w.shape)
    exact = NUMPY.conv2d_weight_grad(g, x, **w_shape, **ONE)
    with use_precision("fp16", emulated):
        small = emulated.conv2d_weight_grad(g * np.float32(2e-7), x, **w_shape, **ONE) / 2e-7
        large = emulated.conv2d_weight_grad(g * np.float32(100), x, **w_shape, **ONE)
    assert np.abs(small - exact).max() < 1e-3 * np.abs(exact).max()
    assert not np.isfinite(large).all()


# ---- what runs when ----


@pytest.mark.parametrize("kernel", ["conv2d", "matmul"])
def test_the_path_tells_the_precision(emulated, kernel):
    settings = ONE if kernel == "conv2d" else {}
    shapes = dict(conv2d=((1, 4, 5, 5), (4, 4, 3, 3)), matmul=((3, 4), (4, 5)))[kernel]
    large = dict(conv2d=((1, 1, MOST_VALUES + 1, 1), (1, 1, 3, 3)), matmul=((2**13,) * 2,) * 2)
    choose = lambda shapes, dtype: emulated.choose(  # noqa: E731
        kernel, shapes=shapes, dtype=dtype, **settings
    )
    assert choose(shapes, "float32") == "implicit_gemm"
    with use_precision("tf32", emulated):
        assert choose(shapes, "float32") == "implicit_gemm_tf32"
        assert choose(shapes, "float64") == "implicit_gemm"
        assert choose(large[kernel], "float32") == "reference"
    assert choose(shapes, "float32") == "implicit_gemm"
