"""Convolution and pooling against their definitions, written as loops, over random geometry."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_cnn import backends
from tinygrad_cnn import functional as F
from tinygrad_cnn.backends import geometry
from tinygrad_cnn.tensor import Tensor
from tinygrad_cnn.testing import arrays, conv2d_cases, layouts, pairs, pool2d_cases

pytestmark = pytest.mark.kernelwise
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
EITHER = st.sampled_from(sorted(TOLERANCE))


@pytest.fixture(scope="module")
def kernels(backend):
    """Give the kernels of one backend."""
    return backends.get(backend)


def assert_same(received, expected, tolerance=1e-12):
    """Compare by the largest value, or by 1, the size of the terms that may have cancelled."""
    assert received.shape == expected.shape
    difference = np.abs(received - expected).max(initial=0)
    assert difference <= tolerance * np.abs(expected).max(initial=1)


def inner(a, b):
    return np.vdot(a.astype("float64"), b)


def places(size, kernel, *, stride, padding, dilation=(1, 1), **others):
    """Count along each axis where a kernel fits."""
    axes = zip(size, kernel, stride, padding, dilation, strict=True)
    return tuple(len(range(0, n + sum(p) - d * (k - 1), s)) for n, k, s, p, d in axes)


# ---- convolution ----


def products(x_shape, w_shape, *, stride, padding, dilation, groups):
    """Yield where in y, x and w each product lies that a convolution adds up."""
    (N, _, H, W), (O, C, kh, kw) = x_shape, w_shape
    at = dict(stride=stride, padding=padding, dilation=dilation)
    Ho, Wo = places((H, W), (kh, kw), **at)
    for n, o, i, j, c, u, v in np.ndindex(N, O, Ho, Wo, C, kh, kw):
        row = i * stride[0] + u * dilation[0] - padding[0][0]
        column = j * stride[1] + v * dilation[1] - padding[1][0]
        if 0 <= row < H and 0 <= column < W:
            group = o // (O // groups)
            yield (n, o, i, j), (n, group * C + c, row, column), (o, c, u, v)


@st.composite
def convolutions(draw, dtypes=EITHER, channels=None):
    """Draw x, w, a gradient g of the output, all in any layout, and resolved settings."""
    dtype = draw(dtypes)
    x, w, at = draw(conv2d_cases(dtype, channels))
    at = geometry.conv2d_settings(x.shape, w.shape, **at)
    y_shape = (len(x), len(w), *places(x.shape[2:], w.shape[2:], **at))
    return x, w, draw(layouts(draw(arrays(y_shape, dtype)))), at


def three(kernels, x, w, g, at):
    """Run a convolution and its two gradients."""
    own = [kernels.asarray(a) for a in (x, w, g)]
    y = kernels.conv2d(own[0], own[1], **at)
    dx = kernels.conv2d_input_grad(own[2], own[1], x_shape=x.shape, **at)
    dw = kernels.conv2d_weight_grad(own[2], own[0], w_shape=w.shape, **at)
    return [kernels.to_numpy(a) for a in (y, dx, dw)]


@given(convolutions(st.just("float64")))
def test_convolution_is_its_definition(kernels, case):
    x, w, g, at = case
    y, dx, dw = (np.zeros(a.shape) for a in (g, x, w))
    for a, b, c in products(x.shape, w.shape, **at):
        y[a] += x[b] * w[c]
        dx[b] += g[a] * w[c]
        dw[c] += g[a] * x[b]
    for received, expected in zip(three(kernels, *case), (y, dx, dw), strict=True):
        assert_same(received, expected)


@given(convolutions(channels=st.sampled_from([1, 2, 16])))
def test_convolution_and_its_gradients_are_adjoint(kernels, case):
    x, w, g, _ = case
    y, dx, dw = three(kernels, *case)
    tolerance = TOLERANCE[x.dtype.name] * (1 + inner(np.abs(y), np.abs(g)))
    assert abs(inner(y, g) - inner(x, dx)) <= tolerance
    assert abs(inner(y, g) - inner(w, dw)) <= tolerance


@given(convolutions(channels=st.sampled_from([1, 3, 8, 16, 24])))
def test_backends_agree_on_convolution(kernels, case):
    """Compare with NumPy in float64, so that float32 on NumPy, too, is compared with something."""
    *operands, at = case
    exact = three(backends.get("numpy"), *(a.astype("float64") for a in operands), at)
    for received, expected in zip(three(kernels, *case), exact, strict=True):
        assert received.dtype == operands[0].dtype
        assert_same(received, expected, 5 * TOLERANCE[received.dtype.name])


KINDS = {
    "empty": lambda x, w, at: len(x) == 0,
    "not square": lambda x, w, at: x.shape[2] != x.shape[3] and w.shape[2] != w.shape[3],
    "a pixel": lambda x, w, at: x.shape[2:] == (1, 1) and w.size > 1,
    "asymmetric": lambda x, w, at: at["padding"] == "same" and w.shape[2] % 2 == 0,
    "gaps": lambda x, w, at: at["stride"][0] > w.shape[2] and x.shape[2] > w.shape[2] + 1,
    "dilated": lambda x, w, at: at["dilation"][0] > 1 < w.shape[2],
    "depthwise": lambda x, w, at: at["groups"] == x.shape[1] > 1,
    "grouped": lambda x, w, at: at["groups"] > 1 < w.shape[1],
    "not dense": lambda x, w, at: x.size > 1 and sum(x.strides) > sum(x.copy("K").strides),
    "backwards": lambda x, w, at: min(x.strides) < 0,
    "channels-last": lambda x, w, at: x.size > x.shape[1] > 1 and x.strides[1] == x.itemsize,
}


def test_every_kind_of_convolution_is_drawn():
    seen = set()

    @settings(max_examples=300, derandomize=True, database=None)
    @given(conv2d_cases())
    def collect(case):
        seen.update(kind for kind, holds in KINDS.items() if holds(*case))

    collect()
    assert seen == KINDS.keys()


# ---- pooling ----


def windows(x_shape, *, kernel_size, stride, padding):
    """Yield where in y each window ends up, and where in x its pixels lie."""
    (N, C, H, W), (kh, kw) = x_shape, kernel_size
    for n, c, i, j in np.ndindex(N, C, *places((H, W), (kh, kw), stride=stride, padding=padding)):
        top, left = i * stride[0] - padding[0][0], j * stride[1] - padding[1][0]
        rows = range(max(top, 0), min(top + kh, H))
        columns = range(max(left, 0), min(left + kw, W))
        yield (n, c, i, j), [(n, c, row, column) for row in rows for column in columns]


@st.composite
def poolings(draw, tie_free):
    """Draw x, a gradient g of the output, both in any layout, and resolved settings."""
    x, at = draw(pool2d_cases(tie_free=tie_free))
    at = geometry.pool2d_settings(x.shape, **at, op="pooling")
    y_shape = (*x.shape[:2], *places(x.shape[2:], at["kernel_size"], **at))
    return x, draw(layouts(draw(arrays(y_shape)))), at


@given(st.one_of(poolings(tie_free=True), poolings(tie_free=False)))
def test_max_pooling_is_its_definition(kernels, case):
    x, g, at = case
    y, dx, gathered = np.zeros(g.shape), np.zeros(x.shape), np.zeros(g.shape)
    for a, window in windows(x.shape, **at):
        winner = max(window, key=x.__getitem__)  # of equal pixels the first
        y[a], gathered[a] = x[winner], x[winner] ** 2
        dx[winner] += g[a]
    own_y, argmax = kernels.max_pool2d(kernels.asarray(x), **at)
    own_dx = kernels.max_pool2d_grad(kernels.asarray(g), argmax, x_shape=x.shape, **at)
    own_gathered = kernels.max_pool2d_gather(kernels.asarray(x) ** 2, argmax, **at)
    for own, expected in (own_y, y), (own_dx, dx), (own_gathered, gathered):
        assert_same(kernels.to_numpy(own), expected)


@given(poolings(tie_free=True))
def test_average_pooling_is_its_definition(kernels, case):
    x, g, at = case
    y, dx = np.zeros(g.shape), np.zeros(x.shape)
    for a, window in windows(x.shape, **at):
        for b in window:
            y[a] += x[b] / np.prod(at["kernel_size"])
            dx[b] += g[a] / np.prod(at["kernel_size"])
    own_dx = kernels.avg_pool2d_grad(kernels.asarray(g), x_shape=x.shape, **at)
    assert_same(kernels.to_numpy(kernels.avg_pool2d(kernels.asarray(x), **at)), y)
    assert_same(kernels.to_numpy(own_dx), dx)


def test_nan_wins_and_gets_the_gradient(backend):
    values = np.zeros((1, 1, 2, 4))
    values[0, 0, 1, 1] = np.nan
    x = Tensor(values, requires_grad=True, backend=backend)
    y = F.max_pool2d(x, 2)
    y.backward(np.array([[[[3.0, 5.0]]]]))
    np.testing.assert_array_equal(y.numpy(), [[[[np.nan, 0]]]])
    np.testing.assert_array_equal(x.grad.numpy(), [[[[0, 0, 5, 0], [0, 3, 0, 0]]]])


# ---- geometry ----


@given(pairs(1, 30), pairs(1, 5), pairs(1, 5), pairs(1, 3), st.tuples(pairs(0, 3), pairs(0, 3)))
def test_output_size_counts_the_places_of_a_kernel(size, kernel, stride, dilation, padding):
    at = dict(stride=stride, dilation=dilation, padding=padding)
    h, w = geometry.output_size(size, kernel=kernel, **at)
    assert (max(h, 0), max(w, 0)) == places(size, kernel, **at)


@given(pairs(1, 9), pairs(1, 5), pairs(1, 3))
def test_same_keeps_the_size(size, kernel, dilation):
    at = dict(kernel=kernel, stride=(1, 1), dilation=dilation)
    padding = geometry.conv_padding("same", **at)
    assert geometry.output_size(size, padding=padding, **at) == size
    assert all(after - before in (0, 1) for before, after in padding)


IMAGES, FILTERS = np.zeros((2, 4, 6, 5)), np.zeros((6, 4, 3, 3))
WRONG = [
    (IMAGES[0], FILTERS, {}, "x is (4, 6, 5); expected (N, C, H, W). One grey channel? "
     "x.reshape(4, 1, 6, 5). One image? x.reshape(1, 4, 6, 5)"),
    (IMAGES[0, 0], FILTERS, {}, "x is (6, 5); expected (N, C, H, W)"),
    (IMAGES, FILTERS[0], {}, "w is (4, 3, 3); expected (O, C/groups, kh, kw), none of them 0"),
    (IMAGES, FILTERS[:0], {}, "w is (0, 4, 3, 3); expected (O, C/groups, kh, kw), none of them 0"),
    (IMAGES, FILTERS, dict(groups=4), "groups=4 must divide the 4 channels of x (2, 4, 6, 5) and "
     "the 6 filters of w (6, 4, 3, 3)"),
    (IMAGES, FILTERS, dict(groups=0), "groups=0 must divide"),
    (IMAGES, FILTERS, dict(groups=2), "x (2, 4, 6, 5) has 4 channels, but w (6, 4, 3, 3) with "
     "groups=2 wants 8"),
    (IMAGES, FILTERS, dict(stride=0), "stride is 0; expected at least 1"),
    (IMAGES, FILTERS, dict(stride=(2, 0)), "stride is (2, 0); expected at least 1"),
    (IMAGES, FILTERS, dict(stride=(1, 2, 3)), "stride is (1, 2, 3); expected an integer or a pair"),
    (IMAGES, FILTERS, dict(dilation=1.5), "dilation is 1.5; expected an integer or a pair"),
    (IMAGES, FILTERS, dict(padding=-1), "padding is -1; expected at least 0"),
    (IMAGES, FILTERS, dict(padding="full"), "padding is 'full'; expected a number, 'same' or "
     "'valid'"),
    (IMAGES, FILTERS, dict(padding="same", stride=2), "padding 'same' needs stride 1, got (2, 2); "
     "use a number"),
    (IMAGES, FILTERS, dict(dilation=3), "the kernel covers 7x7 pixels, but x (2, 4, 6, 5) with its "
     "padding has only 6x5; use a smaller kernel, more padding or larger images"),
]  # fmt: skip


@pytest.mark.parametrize(("x", "w", "settings", "message"), WRONG, ids=range(len(WRONG)))
def test_messages_of_conv2d(x, w, settings, message):
    with pytest.raises((TypeError, ValueError), match="^conv2d: " + re.escape(message)):
        F.conv2d(Tensor(x), Tensor(w), **settings)


def test_the_largest_kernel_that_fits():
    y = F.conv2d(Tensor(IMAGES), Tensor(FILTERS), dilation=(2, 3), padding=(0, 1))
    assert y.shape == (2, 6, 2, 1)


@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(kernel_size=0), "kernel_size is 0; expected at least 1"),
        (dict(kernel_size=2, stride="2"), "stride is '2'; expected an integer or a pair"),
        (dict(kernel_size=(3, 2), padding=2), "padding (2, 2) is more than half of the kernel"),
        (dict(kernel_size=7), "the kernel covers 7x7 pixels, but x (2, 4, 6, 5)"),
        (dict(kernel_size=(1, 6)), "the kernel covers 1x6 pixels"),
    ],
)
def test_messages_of_pooling(pool, settings, message):
    with pytest.raises((TypeError, ValueError), match=f"^{pool.__name__}: " + re.escape(message)):
        pool(Tensor(IMAGES), **settings)
