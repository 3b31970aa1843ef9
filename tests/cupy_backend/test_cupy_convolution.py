"""The GPU's convolutions, emulated: every tile, both dtypes, `plus`, the same bits every time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_cnn.backends import get
from tinygrad_cnn.backends.base import nhwc
from tinygrad_cnn.backends.cupy_backend import MOST_VALUES, CupyBackend, convolution
from tinygrad_cnn.backends.geometry import conv2d_settings
from tinygrad_cnn.testing import channels_last, conv2d_cases

NUMPY = get("numpy")
ONE = dict(stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1)
LIMIT = {"float32": 3e-6, "float64": 1e-14}


def drawn(*shapes, dtype="float32"):
    rng = np.random.default_rng(0)
    return [channels_last(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


def four(backend, x, w, g, plus, at):
    """Run a convolution and its gradients, the input's also on top of another."""
    return (
        backend.conv2d(x, w, **at),
        backend.conv2d_input_grad(g, w, x_shape=x.shape, **at),
        backend.conv2d_input_grad(g, w, x_shape=x.shape, plus=plus, **at),
        backend.conv2d_weight_grad(g, x, w_shape=w.shape, **at),
    )


def added(backend, x, w, bias, residual, at):
    """Run a convolution with what it may add."""
    return (
        backend.conv2d(x, w, bias, **at),
        backend.conv2d(x, w, relu=True, **at),
        backend.conv2d(x, w, bias, residual, relu=True, **at),
    )


def assert_exact(emulated, x, w, at):
    """Compare with the reference in float64."""
    y_shape = NUMPY.conv2d(x, w, **at).shape
    g, plus, bias = drawn(y_shape, x.shape, w.shape[:1], dtype=x.dtype)
    own = added(emulated, x, w, bias, g, at) + four(emulated, x, w, g, plus, at)
    x, w, g, plus, bias = (a.astype("float64") for a in (x, w, g, plus, bias))
    exact = added(NUMPY, x, w, bias, g, at) + four(NUMPY, x, w, g, plus, at)
    for received, expected in zip(own, exact, strict=True):
        assert (received.shape, received.dtype) == (expected.shape, own[0].dtype)
        error = np.abs(received - expected).max(initial=0)
        assert error <= LIMIT[own[0].dtype.name] * np.abs(expected).max(initial=1)
    assert all(nhwc(a).flags.c_contiguous for a in own[:6])


# ---- values ----


@pytest.mark.emulated
@settings(max_examples=30)
@given(
    conv2d_cases("float32", st.sampled_from([1, 3, 4, 17, 36])),
    st.sampled_from(["float32", "float64"]),
)
def test_any_geometry(emulated, case, dtype):
    x, w, at = case
    at = conv2d_settings(x.shape, w.shape, **at)
    assert_exact(emulated, x.astype(dtype), w.astype(dtype), at)


@pytest.mark.emulated
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("o", [15, 16, 24, 33, 72])
@pytest.mark.parametrize("c", [16, 40, 70])
def test_every_tile(emulated, c, o, dtype):
    """More than a tile of rows and, with 72 channels, of columns; with and without whole fours."""
    x, w = drawn((3, c, 7, 9), (o, c, 3, 3), dtype=dtype)
    assert_exact(emulated, x, w, ONE)


@pytest.mark.emulated
@pytest.mark.parametrize("at", [
    dict(stride=(5, 4), padding=((0, 0), (0, 0))),  # phases without taps: their gradient is 0
    dict(stride=(2, 3), dilation=(2, 3)),  # a filter that only ever meets one phase
    dict(stride=(4, 6), dilation=(6, 4), padding=((7, 7), (7, 7))),
    dict(stride=(2, 2), dilation=(1, 3), groups=2),
    dict(stride=(9, 9)),  # more phases than pixels
])  # fmt: skip
def test_strides_and_dilations(emulated, at):
    at = ONE | at
    x, w = drawn((2, 8, 10, 6), (6, 8 // at["groups"], 3, 2))
    assert_exact(emulated, x, w, at)


@pytest.mark.emulated
def test_arrays_that_begin_anywhere(emulated):
    """In the middle of four values, where no instruction reads four."""
    size = 2 * 5 * 5 * 8
    x = np.arange(size + 1, dtype=np.float32)[1:].reshape(2, 5, 5, 8).transpose(0, 3, 1, 2)
    assert_exact(emulated, x / size, *drawn((8, 8, 3, 3)), ONE)


# ---- the parts of a weight gradient ----


@given(st.integers(1, 10**7), st.integers(1, 5000), st.integers(1, 600), st.integers(1, 40))
def test_parts_cover_the_pixels_once(pixels, rows, columns, groups):
    parts, length = convolution._parts(pixels, rows, columns, groups)
    assert length % convolution.DEPTH == 0
    assert (parts - 1) * length < pixels <= parts * length
    assert parts == 1 or length >= convolution.LEAST_PIXELS
    assert groups * parts <= 65535


@pytest.mark.emulated
def test_the_parts_are_added_in_order(emulated):
    """Not in one that a GPU chooses: the same bits every time, and as many parts as there are."""
    x, w, g = drawn((5, 3, 16, 16), (4, 3, 3, 3), (5, 4, 16, 16))
    assert convolution._parts(5 * 16 * 16, 27, 4, 1) == (5, 256)
    settings = dict(w_shape=w.shape, **ONE)
    first, second = (emulated.conv2d_weight_grad(g, x, **settings) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    images = [emulated.conv2d_weight_grad(g[i : i + 1], x[i : i + 1], **settings) for i in range(5)]
    total = np.zeros_like(first)
    for image in images:
        total += image
    np.testing.assert_array_equal(first, total)


# ---- what runs when ----


@pytest.mark.parametrize(
    ("path", "x", "w", "at", "dtype"),
    [
        ("implicit_gemm", (2, 3, 8, 8), (5, 3, 3, 3), {}, "float32"),
        ("implicit_gemm", (2, 3, 8, 8), (5, 3, 3, 3), dict(stride=(3, 2)), "float64"),
        ("implicit_gemm", (2, 64, 8, 8), (64, 1, 3, 3), dict(groups=64), "float32"),
        ("reference", (0, 3, 8, 8), (5, 3, 3, 3), {}, "float32"),
        ("reference", (2, 3, 8, 8), (5, 3, 3, 3), {}, "int32"),
        ("reference", (1, 1, MOST_VALUES + 1, 1), (1, 1, 1, 1), {}, "float32"),
        ("reference", (1024, 3, 226, 226), (64, 3, 7, 7), {}, "float32"),  # y is too large
        ("reference", (1, 2**16, 1, 1), (2**16, 1, 1, 1), dict(groups=2**16), "float32"),
    ],
)
def test_the_table_of_paths(path, x, w, at, dtype):
    backend, at = CupyBackend.__new__(CupyBackend), ONE | at
    assert backend.choose("conv2d", shapes=(x, w), dtype=dtype, **at) == path


def test_a_large_input_has_no_gradient_by_a_kernel():
    backend, g, w = CupyBackend.__new__(CupyBackend), (1, 1, 1000, 1000), (1, 64, 1, 1)
    at = ONE | dict(stride=(7, 7), dtype="float32")
    for sides, path in (5000, "implicit_gemm"), (7000, "reference"):
        told = dict(shapes=(g, w), x_shape=(1, 64, sides, sides), **at)
        assert backend.choose("conv2d_input_grad", **told) == path


@pytest.mark.emulated
@pytest.mark.parametrize("kernel", ["conv2d", "conv2d_input_grad", "conv2d_weight_grad"])
def test_the_chosen_path_runs(emulated, kernel, monkeypatch):
    """A kernel, not the reference; and the reference where dtypes are mixed."""
    launched = []
    monkeypatch.setattr(emulated, "launch", lambda *args, **kwargs: launched.append(args))
    x, w = drawn((1, 4, 5, 5), (4, 4, 3, 3))
    operands = dict(conv2d=(x, w), conv2d_input_grad=(x, w), conv2d_weight_grad=(x, x))[kernel]
    told = dict(conv2d_input_grad=dict(x_shape=x.shape), conv2d_weight_grad=dict(w_shape=w.shape))
    getattr(emulated, kernel)(*operands, **told.get(kernel, {}), **ONE)
    assert launched
    launched.clear()
    mixed = operands[0], operands[1].astype("float64")
    getattr(emulated, kernel)(*mixed, **told.get(kernel, {}), **ONE)
    assert not launched
