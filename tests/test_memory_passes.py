"""Pools, norms, sums and updates of the fast backends: what the reference computes, any layout."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tinygrad_cnn as tg
from tinygrad_cnn.backends import get
from tinygrad_cnn.backends.base import nhwc

NUMPY = get("numpy")
FAST = [
    name for name, why_not in tg.available_backends().items() if not why_not and name != "numpy"
]
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}  # of the largest value


@pytest.fixture(
    scope="module", params=[*FAST, pytest.param("emulated", marks=pytest.mark.emulated)]
)
def fast(request):
    """Give a backend with kernels of its own."""
    emulated = request.param == "emulated"
    return request.getfixturevalue("emulated") if emulated else get(request.param)


dtypes = st.sampled_from(["float32", "float64"])
shapes = st.tuples(
    st.integers(0, 3), st.sampled_from([1, 2, 3, 16, 33, 48]), st.integers(1, 9), st.integers(1, 9)
)
seeds = st.integers(0, 2**32 - 1)


def lay(a, layout):
    """Lay an array (N, C, H, W) out in memory in one of several ways."""
    if layout == "channels-first":
        return np.ascontiguousarray(a)
    if layout == "every other":
        wide = np.repeat(a, 2, axis=3)
        return wide[..., ::2]
    last = np.ascontiguousarray(nhwc(a)).transpose(0, 3, 1, 2)
    last.flags.writeable = layout != "read-only"
    return last


layouts = st.sampled_from(["channels-last", "channels-first", "every other", "read-only"])


class Images:
    """A source of random activations."""

    def __init__(self, seed, shape, dtype, layout="channels-last"):
        self.rng, self.shape, self.dtype, self.layout = (
            np.random.default_rng(seed), shape, dtype, layout,
        )  # fmt: skip

    def __call__(self, shape=None, *, mean=0.0, std=1.0):
        a = self.rng.standard_normal(shape or self.shape) * std + mean
        return lay(a.astype(self.dtype), self.layout)

    def row(self, *, positive=False):
        """Draw a value for each channel."""
        a = self.rng.standard_normal(self.shape[1]).astype(self.dtype)
        return abs(a) + self.dtype.type(0.1) if positive else a


sources = st.builds(Images, seeds, shapes, dtypes.map(np.dtype), layouts)


def assert_close(a, b, dtype):
    """Compare a result of the kernel with the reference's."""
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    limit = TOLERANCE[str(dtype)] * max(1, np.abs(b).max(initial=0, where=np.isfinite(b)))
    np.testing.assert_allclose(a, b, rtol=0, atol=limit)


def assert_layout(y, x):
    """See that what was channels-last stays so."""
    assert nhwc(y).flags.c_contiguous or not nhwc(x).flags.c_contiguous


def on(backend, a):
    """Give an array of NumPy as one of the backend; other settings as they are."""
    return backend.asarray(a) if isinstance(a, np.ndarray) else a


def both(fast, kernel, *arrays, **settings):
    """Run a kernel on both backends."""
    moved = {name: on(fast, a) for name, a in settings.items()}
    ours = getattr(fast, kernel)(*(on(fast, a) for a in arrays), **moved)
    theirs = getattr(NUMPY, kernel)(*arrays, **settings)
    if not isinstance(ours, tuple):
        return fast.to_numpy(ours), theirs
    return [a if a is None else fast.to_numpy(a) for a in ours], theirs


# ---- additions and ReLUs ----


@given(sources)
def test_additions_and_relus(fast, draw):
    x, y = draw(), draw()
    for kernel, arrays in ("add", (x, y)), ("relu", (x,)), ("relu_grad", (x, y)):
        here, there = both(fast, kernel, *arrays)
        np.testing.assert_array_equal(here, there, strict=True)
        assert nhwc(here).flags.c_contiguous


@given(sources)
def test_additions_into_an_array(fast, draw):
    x, y = draw(), draw()
    for out in np.empty_like(x), np.empty(x.shape, x.dtype):
        out = on(fast, out)
        assert fast.add(on(fast, x), on(fast, y), out=out) is out
        np.testing.assert_array_equal(fast.to_numpy(out), x + y)


@given(sources)
def test_a_value_is_added_to_each_channel(fast, draw):
    x, row = draw(), draw.row()[None, :, None, None]
    here, there = both(fast, "add", x, row)
    np.testing.assert_array_equal(here, there, strict=True)
    assert_layout(here, x)
    out = on(fast, np.empty_like(x))
    assert fast.add(on(fast, x), on(fast, row), out=out) is out
    np.testing.assert_array_equal(fast.to_numpy(out), there)


SPECIAL = [0.0, -0.0, 1.5, -1.5, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_values_pass_as_in_the_reference(fast, dtype):
    x, y = (a.reshape(7, 7, 1, 1).astype(dtype) for a in np.meshgrid(SPECIAL, SPECIAL))
    for kernel, arrays in ("add", (x, y)), ("relu", (x,)), ("relu_grad", (x, y)):
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(*both(fast, kernel, *arrays), strict=True)


# ---- batch norm ----


@given(sources, st.booleans(), st.booleans(), st.booleans())
def test_batch_norm_and_its_gradient(fast, draw, training, residual, relu):
    check_batch_norm(fast, draw, training, residual, relu)


# Whole rows, of few and of many pixels; several parts of the batch; a block that ends early.
@pytest.mark.parametrize("shape", [(64, 33, 3, 3), (64, 3, 5, 7), (16, 16, 16, 16), (4, 48, 37, 4)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_batch_norm_of_whole_rows(fast, shape, training, residual, relu):
    check_batch_norm(fast, Images(0, shape, np.dtype("float32")), training, residual, relu)


def check_batch_norm(fast, draw, training, residual, relu):
    """Compare batch norm and its gradient with the reference's."""
    x, added = draw(), draw() if residual else None
    weight, bias = draw.row(), draw.row()
    statistics = {} if training else dict(mean=draw.row(), var=draw.row(positive=True))
    ours, theirs = both(
        fast, "batch_norm", x, weight, bias, added, eps=1e-2, relu=relu, **statistics
    )  # fmt: skip
    for here, there in zip(ours, theirs, strict=True):
        assert_close(here, there, x.dtype)
    assert_layout(ours[0], x)
    y, mean, var = ours  # of one of them: on which side of 0 a value lies, rounding may decide
    at = dict(mean=mean, var=var, y=y if relu else None, eps=1e-2)
    at |= dict(training=training, residual=residual)
    for waiting in None, draw():
        ours, theirs = both(fast, "batch_norm_grad", draw(), x, weight, bias, plus=waiting, **at)
        for here, there in list(zip(ours, theirs, strict=True))[: 3 + residual]:
            assert_close(here, there, x.dtype)
    assert residual or ours[3] is theirs[3] is None
    assert_layout(ours[0], x)
    for waiting in None, draw():
        check_overwriting(fast, draw(), x, weight, bias, at | dict(plus=waiting))


def check_overwriting(fast, g, x, weight, bias, at):
    """Compare the gradients where g may be written over with those where it may not."""
    kept = g.copy(order="K")
    others = [a for a in (x, weight, bias, at["y"], at["plus"]) if a is not None]
    expected = fast.batch_norm_grad(g, x, weight, bias, **at)
    assert np.array_equal(g, kept, equal_nan=True)
    before = [a.copy() for a in others]
    received = fast.batch_norm_grad(kept, x, weight, bias, overwrite_g=True, **at)
    for here, there in zip(received, expected, strict=True):
        np.testing.assert_array_equal(here, there)
    assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(others, before, strict=True))


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (30, 1e-2), (-1e4, 1), (0, 1e-12)])
@pytest.mark.parametrize("outlier", [False, True])
@pytest.mark.parametrize("shape", [(16, 3, 32, 32), (64, 16, 8, 8), (8, 600, 3, 3)])
def test_float32_statistics_are_those_of_float64(fast, shape, mean, std, outlier):
    x = Images(0, shape, np.dtype("float32"))(mean=mean, std=std)
    if outlier:  # the sums are of the differences from the first value of a block: let it be far
        x[0, :, 0, 0] = 1 + 2 * mean
    exact = x.astype(np.float64)
    ones, zeros = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
    (y, m, v), _ = both(fast, "batch_norm", x, ones, zeros, eps=0)
    np.testing.assert_allclose(v, exact.var(axis=(0, 2, 3)), rtol=2e-5)
    deviation = np.sqrt(v)
    np.testing.assert_allclose((m - exact.mean(axis=(0, 2, 3))) / deviation, 0, atol=2e-6)
    x_hat = (exact - m[:, None, None]) / deviation[:, None, None]
    rounding = 1e-6 * (1 + abs(mean) / std)  # the mean itself is rounded to float32
    np.testing.assert_allclose(y, x_hat, atol=rounding * (1 + np.abs(x_hat).max()))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("place", [0, 1, 20])
def test_what_is_not_finite_spoils_its_channel_alone(fast, value, place):
    x = Images(0, (2, 16, 6, 6), np.dtype("float32"))()
    x[0, 1, place // 6, place % 6] = value
    row = np.ones(16, np.float32)
    with np.errstate(all="ignore"):
        (ours, *_), (theirs, *_) = both(fast, "batch_norm", x, row, row, x, eps=1e-5, relu=True)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    assert np.isnan(ours[:, 1]).all() or value == 1e30
    assert np.isfinite(ours[:, ::2]).all()


# ---- pooling ----

pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(sources, pairs, pairs, st.data())
@example(Images(0, (1, 2, 3, 3), np.dtype("float32")), (3, 3), (1, 1), None)
def test_pooling_and_its_gradients(fast, draw, kernel, stride, data):
    pads = tuple((k // 2, k // 2) for k in kernel)
    if data:
        pads = tuple((p, p) for p in (data.draw(st.integers(0, k // 2)) for k in kernel))
    _, _, h, w = draw.shape
    if h + 2 * pads[0][0] < kernel[0] or w + 2 * pads[1][0] < kernel[1]:
        return
    at, x = dict(kernel_size=kernel, stride=stride, padding=pads), draw()
    (y, argmax), (y_there, argmax_there) = both(fast, "max_pool2d", x, **at)
    np.testing.assert_array_equal(y, y_there, strict=True)
    np.testing.assert_array_equal(argmax, argmax_there, strict=True)
    g = draw(y.shape)
    assert_close(*both(fast, "max_pool2d_grad", g, argmax, x_shape=x.shape, **at), x.dtype)
    assert_close(*both(fast, "avg_pool2d", x, **at), x.dtype)
    assert_close(*both(fast, "avg_pool2d_grad", g, x_shape=x.shape, **at), x.dtype)


@pytest.mark.parametrize("channels", [3, 32])
def test_pooling_of_special_values(fast, channels):
    rng = np.random.default_rng(0)
    values = rng.choice([*SPECIAL, 2.0], (4, channels, 9, 9)).astype(np.float32)
    at = dict(kernel_size=(3, 2), stride=(2, 1), padding=((1, 1), (1, 1)))
    (y, argmax), (y_there, argmax_there) = both(fast, "max_pool2d", values, **at)
    np.testing.assert_array_equal(y, y_there)
    np.testing.assert_array_equal(argmax, argmax_there)
    g = rng.choice(SPECIAL, y.shape).astype(np.float32)
    with np.errstate(invalid="ignore"):
        grads = both(fast, "max_pool2d_grad", g, argmax, x_shape=values.shape, **at)
        averages = both(fast, "avg_pool2d", values, **at)
    np.testing.assert_array_equal(*grads)
    np.testing.assert_allclose(*averages, rtol=1e-6)


# ---- the optimiser's step ----


@given(seeds, dtypes, st.booleans(), st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 0.9]))
def test_sgd_update(fast, seed, dtype, nesterov, weight_decay, momentum):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((2, 33, 1, 127)).astype(dtype) for _ in range(3)]
    settings = dict(lr=0.1, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
    for layout in "channels-last", "channels-first", "every other":
        (p, g, v), (p_there, g_there, v_there) = (
            [lay(a, layout) for a in arrays] for _ in range(2)
        )
        p, g, v = (on(fast, a) for a in (p, g, v))
        fast.sgd_update(p, g, v, **settings)
        NUMPY.sgd_update(p_there, g_there, v_there, **settings)
        for a, b in (p, p_there), (g, g_there), (v, v_there):
            np.testing.assert_allclose(fast.to_numpy(a), b, atol=4 * np.finfo(dtype).eps)
