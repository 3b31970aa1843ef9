"""The memory passes of the Numba backend: what the reference computes, whatever the layout."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinygrad_cnn.backends import get
from tinygrad_cnn.backends.base import nhwc

NUMBA, NUMPY = get("numba"), get("numpy")
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}  # of the largest value

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


def both(kernel, *arrays, **settings):
    """Run a kernel on both backends."""
    return [getattr(backend, kernel)(*arrays, **settings) for backend in (NUMBA, NUMPY)]


def paths(kernel, *shapes, dtype=np.float32, **settings):
    return NUMBA.choose(kernel, shapes=shapes, dtype=dtype, **settings)


# ---- what runs when ----

X = (2, 16, 8, 8)
POOL = dict(stride=(1, 1), padding=((0, 0), (0, 0)))


@pytest.mark.parametrize(
    ("path", "kernel", "shapes", "settings"),
    [
        ("compiled", "add", (X, X), {}),
        ("compiled", "add", (X, (1, 16, 1, 1)), {}),
        ("reference", "add", (X, (1, 16, 1, 1)), dict(out=X)),
        ("reference", "add", (X, (16, 1, 1)), {}),
        ("reference", "add", ((2, 3), (2, 3)), {}),
        ("compiled", "relu", (X,), {}),
        ("reference", "relu", ((2, 3),), {}),
        ("compiled", "relu_grad", (X, X), {}),
        ("compiled", "batch_norm", (X, (16,), (16,)), {}),
        ("compiled", "batch_norm_grad", (X, X, (16,), (16,)), {}),
        ("reference", "batch_norm", ((0, 16, 8, 8), (16,), (16,)), {}),
        ("compiled", "max_pool2d", ((2, 20, 8, 8),), dict(kernel_size=(15, 17), **POOL)),
        ("reference", "max_pool2d", (X,), dict(kernel_size=(16, 16), **POOL)),
        ("compiled", "avg_pool2d", ((2, 20, 8, 8),), dict(kernel_size=(16, 16), **POOL)),
        ("compiled", "sgd_update", ((64, 64, 3, 3),) * 3, {}),
        ("reference", "sgd_update", ((16, 16, 3, 3),) * 3, {}),
        ("reference", "erf", (X,), {}),
    ],
)
def test_the_table_of_paths(path, kernel, shapes, settings):
    assert paths(kernel, *shapes, **settings) == path
    assert paths(kernel, *shapes, dtype="float64", **settings) == path
    assert paths(kernel, *shapes, dtype="float16", **settings) == "reference"
    assert paths(kernel, *shapes, dtype=">f4", **settings) == "reference"


@pytest.mark.parametrize("kernel", ["max_pool2d", "max_pool2d_grad", "avg_pool2d_grad"])
def test_pooling_of_whole_vectors_is_simd_in_float32(kernel):
    settings = dict(kernel_size=(15, 17), **POOL)
    assert paths(kernel, X, **settings) == "simd"
    assert paths(kernel, X, dtype="float64", **settings) == "compiled"


def test_the_chosen_path_runs(monkeypatch):
    """A compiled kernel that no one calls can't hide behind the reference's right answers."""
    from tinygrad_cnn.backends import numba_backend

    called = []
    monkeypatch.setattr(
        numba_backend, "_function", lambda module, name: lambda *a, **k: called.append(module)
    )
    x = np.zeros(X, np.float32)
    NUMBA.relu(x)
    NUMBA.batch_norm(x, x[0, :, 0, 0], x[0, :, 0, 0], eps=1e-5)
    NUMBA.relu(x[0])
    assert called == ["pointwise", "norm"]


# ---- additions and ReLUs ----


@given(sources)
def test_additions_and_relus(draw):
    x, y = draw(), draw()
    for kernel, arrays in ("add", (x, y)), ("relu", (x,)), ("relu_grad", (x, y)):
        here, there = both(kernel, *arrays)
        np.testing.assert_array_equal(here, there, strict=True)
        assert nhwc(here).flags.c_contiguous


@given(sources)
def test_additions_into_an_array(draw):
    x, y = draw(), draw()
    for out in np.empty_like(x), np.empty(x.shape, x.dtype):
        assert NUMBA.add(x, y, out=out) is out
        np.testing.assert_array_equal(out, x + y)


def unaligned(a):
    """Copy an array to a place between two floats, as a file's bytes may lie."""
    memory = np.frombuffer(bytearray(a.nbytes + 1), np.uint8)[1:]
    copy = memory.view(a.dtype).reshape(a.shape)
    copy[...] = a
    assert not copy.flags.aligned
    return copy


def test_arrays_from_any_address():
    rng = np.random.default_rng(0)
    x, y, out = (rng.standard_normal((9, 8, 8, 16)).astype("f") for _ in range(3))
    last = [unaligned(a).transpose(0, 3, 1, 2) for a in (x, y, out)]
    assert NUMBA.add(*last[:2], out=last[2]) is last[2]
    np.testing.assert_array_equal(nhwc(last[2]), x + y)
    p, g, v = map(unaligned, (x, y, out))
    at = dict(lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True)
    NUMBA.sgd_update(p, g, v, **at)
    NUMPY.sgd_update(x, y, out, **at)
    np.testing.assert_allclose(p, x, atol=1e-6)
    np.testing.assert_allclose(v, out, atol=1e-6)


@given(sources)
def test_a_value_is_added_to_each_channel(draw):
    x, row = draw(), draw.row()[None, :, None, None]
    here, there = both("add", x, row)
    np.testing.assert_array_equal(here, there, strict=True)
    assert nhwc(here).flags.c_contiguous
    out = np.empty_like(x)
    assert NUMBA.add(x, row, out=out) is out
    np.testing.assert_array_equal(out, there)


SPECIAL = [0.0, -0.0, 1.5, -1.5, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_values_pass_as_in_the_reference(dtype):
    x, y = (a.reshape(7, 7, 1, 1).astype(dtype) for a in np.meshgrid(SPECIAL, SPECIAL))
    for kernel, arrays in ("add", (x, y)), ("relu", (x,)), ("relu_grad", (x, y)):
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(*both(kernel, *arrays), strict=True)


# ---- batch norm ----


@given(sources, st.booleans(), st.booleans(), st.booleans())
def test_batch_norm_and_its_gradient(draw, training, residual, relu):
    x, added = draw(), draw() if residual else None
    weight, bias = draw.row(), draw.row()
    statistics = {} if training else dict(mean=draw.row(), var=draw.row(positive=True))
    ours, theirs = both(
        "batch_norm", x, weight, bias, added, eps=1e-2, relu=relu, **statistics
    )  # fmt: skip
    for here, there in zip(ours, theirs, strict=True):
        assert_close(here, there, x.dtype)
    assert nhwc(ours[0]).flags.c_contiguous
    y, mean, var = ours  # of one of them: on which side of 0 a value lies, rounding may decide
    at = dict(mean=mean, var=var, y=y if relu else None, eps=1e-2)
    at |= dict(training=training, residual=residual)
    ours, theirs = both("batch_norm_grad", draw(), x, weight, bias, **at)
    for here, there in list(zip(ours, theirs, strict=True))[: 3 + residual]:
        assert_close(here, there, x.dtype)
    assert residual or ours[3] is theirs[3] is None
    assert nhwc(ours[0]).flags.c_contiguous


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (30, 1e-2), (-1e4, 1), (0, 1e-12)])
@pytest.mark.parametrize("outlier", [False, True])
@pytest.mark.parametrize("shape", [(16, 3, 32, 32), (64, 16, 8, 8), (8, 600, 3, 3)])
def test_float32_statistics_are_those_of_float64(shape, mean, std, outlier):
    x = Images(0, shape, np.dtype("float32"))(mean=mean, std=std)
    if outlier:  # the sums are of the differences from the first value of a block: let it be far
        x[0, :, 0, 0] = 1 + 2 * mean
    exact = x.astype(np.float64)
    ones, zeros = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
    y, m, v = NUMBA.batch_norm(x, ones, zeros, eps=0)
    np.testing.assert_allclose(v, exact.var(axis=(0, 2, 3)), rtol=2e-5)
    deviation = np.sqrt(v)
    np.testing.assert_allclose((m - exact.mean(axis=(0, 2, 3))) / deviation, 0, atol=2e-6)
    x_hat = (exact - m[:, None, None]) / deviation[:, None, None]
    rounding = 1e-6 * (1 + abs(mean) / std)  # the mean itself is rounded to float32
    np.testing.assert_allclose(y, x_hat, atol=rounding * (1 + np.abs(x_hat).max()))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("place", [0, 37])
def test_what_is_not_finite_spoils_its_channel_alone(value, place):
    x = Images(0, (2, 3, 6, 6), np.dtype("float32"))()
    x[0, 1, place // 6 % 6, place % 6] = value
    row = np.ones(3, np.float32)
    with np.errstate(all="ignore"):
        (ours, *_), (theirs, *_) = both("batch_norm", x, row, row, x, eps=1e-5, relu=True)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    assert np.isnan(ours[:, 1]).all() or value == 1e30
    assert np.isfinite(ours[:, ::2]).all()


# ---- pooling ----

pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(sources, pairs, pairs, st.data())
@example(Images(0, (1, 2, 3, 3), np.dtype("float32")), (3, 3), (1, 1), None)
def test_pooling_and_its_gradients(draw, kernel, stride, data):
    pads = tuple((k // 2, k // 2) for k in kernel)
    if data:
        pads = tuple((p, p) for p in (data.draw(st.integers(0, k // 2)) for k in kernel))
    _, _, h, w = draw.shape
    if h + 2 * pads[0][0] < kernel[0] or w + 2 * pads[1][0] < kernel[1]:
        return
    at, x = dict(kernel_size=kernel, stride=stride, padding=pads), draw()
    (y, argmax), (y_there, argmax_there) = both("max_pool2d", x, **at)
    np.testing.assert_array_equal(y, y_there, strict=True)
    np.testing.assert_array_equal(argmax, argmax_there, strict=True)
    g = draw(y.shape)
    assert_close(*both("max_pool2d_grad", g, argmax, x_shape=x.shape, **at), x.dtype)
    assert_close(*both("avg_pool2d", x, **at), x.dtype)
    assert_close(*both("avg_pool2d_grad", g, x_shape=x.shape, **at), x.dtype)


@pytest.mark.parametrize("channels", [3, 32])
def test_pooling_of_special_values(channels):
    rng = np.random.default_rng(0)
    values = rng.choice([*SPECIAL, 2.0], (4, channels, 9, 9)).astype(np.float32)
    at = dict(kernel_size=(3, 2), stride=(2, 1), padding=((1, 1), (1, 1)))
    (y, argmax), (y_there, argmax_there) = both("max_pool2d", values, **at)
    np.testing.assert_array_equal(y, y_there)
    np.testing.assert_array_equal(argmax, argmax_there)
    g = rng.choice(SPECIAL, y.shape).astype(np.float32)
    with np.errstate(invalid="ignore"):
        grads = both("max_pool2d_grad", g, argmax, x_shape=values.shape, **at)
        averages = both("avg_pool2d", values, **at)
    np.testing.assert_array_equal(*grads)
    np.testing.assert_allclose(*averages, rtol=1e-6)


# ---- the optimiser's step ----


@given(seeds, dtypes, st.booleans(), st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 0.9]))
def test_sgd_update(seed, dtype, nesterov, weight_decay, momentum):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((2, 33, 1, 127)).astype(dtype) for _ in range(3)]
    settings = dict(lr=0.1, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
    for layout in "channels-last", "channels-first", "every other":
        (p, g, v), (p_there, _, v_there) = ([lay(a, layout) for a in arrays] for _ in range(2))
        NUMBA.sgd_update(p, g, v, **settings)
        NUMPY.sgd_update(p_there, g, v_there, **settings)
        np.testing.assert_allclose(p, p_there, atol=4 * np.finfo(dtype).eps)
        np.testing.assert_allclose(v, v_there, atol=4 * np.finfo(dtype).eps)
    with pytest.raises((ValueError, TypeError)):
        NUMBA.sgd_update(lay(arrays[0], "read-only"), g, v, **settings)


# ---- all of them ----

DIGESTS = """
import hashlib, numpy as np
from tinygrad_cnn.backends import get
from tinygrad_cnn.backends.numba_backend import threads

numba, rng = get("numba"), np.random.default_rng(0)
x, g, r = rng.standard_normal((3, 24, 20, 20, 32)).astype("f").transpose(0, 1, 4, 2, 3)
w, b = rng.standard_normal((2, 32)).astype("f")
pool = dict(kernel_size=(3, 3), stride=(2, 2), padding=((1, 1), (1, 1)))

def everything():
    yield numba.add(x, r)
    yield numba.relu(x)
    yield numba.relu_grad(g, x)
    for residual in None, r:
        y, mean, var = numba.batch_norm(x, w, b, residual, eps=1e-5, relu=True)
        yield from (y, mean, var)
        at = dict(mean=mean, var=var, y=y, eps=1e-5, training=True, residual=residual is not None)
        yield from (a for a in numba.batch_norm_grad(g, x, w, b, **at) if a is not None)
    y, argmax = numba.max_pool2d(x, **pool)
    yield from (y, argmax, numba.max_pool2d_grad(y, argmax, x_shape=x.shape, **pool))
    yield numba.avg_pool2d(x, **pool)
    yield numba.avg_pool2d_grad(y, x_shape=x.shape, **pool)
    p, v = x.copy(), r.copy()
    numba.sgd_update(p, g, v, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True)
    yield from (p, v)

for n in 1, 2, 3:
    threads.set_threads(n)
    digest = hashlib.sha256()
    for a in everything():
        digest.update(np.ascontiguousarray(a))
    print(digest.hexdigest())
"""


def test_any_number_of_threads_gives_the_same_bits():
    environment = {**os.environ, "NUMBA_NUM_THREADS": "3", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-c", DIGESTS]
    digests = subprocess.check_output(command, env=environment, text=True).split()
    assert len(digests) == 3
    assert len({*digests}) == 1


def test_no_input_makes_numba_compile_again():
    from tinygrad_cnn.backends.numba_backend.compiler import _kernels

    def compiled():
        return {k.body.__name__: [f.signatures for f in k._compiled.values()] for k in _kernels}

    def use(x, dtype):
        row = np.broadcast_to(np.ones(1, dtype), x.shape[1])  # read-only, stride 0
        at = dict(kernel_size=(2, 2), stride=(1, 1), padding=((0, 0), (0, 0)))
        NUMBA.add(x, x)
        NUMBA.relu_grad(x, NUMBA.relu(x))
        y, mean, var = NUMBA.batch_norm(x, row, row, x, eps=1e-5, relu=True)
        NUMBA.batch_norm(x, row, row, mean=row, var=row, eps=1e-5)
        at_grad = dict(mean=mean, var=var, eps=1e-5, training=True)
        NUMBA.batch_norm_grad(x, x, row, row, y=y, residual=True, **at_grad)
        NUMBA.batch_norm_grad(x, x, row, row, **at_grad)
        y, argmax = NUMBA.max_pool2d(x, **at)
        NUMBA.max_pool2d_grad(y, argmax, x_shape=x.shape, **at)
        NUMBA.avg_pool2d_grad(NUMBA.avg_pool2d(x, **at), x_shape=x.shape, **at)

    for dtype in "float32", "float64":
        use(np.ones((2, 3, 4, 5), dtype), dtype)
    before = compiled()
    for dtype in "float32", "float64":
        x = np.ones((3, 4, 6, 6), dtype)
        raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(dtype).reshape(x.shape)  # unaligned
        for odd in (
            x[:1], x[:, :1], x[..., :2], x[:, ::-1], np.broadcast_to(x[:1], x.shape), raw,
            np.asfortranarray(x), lay(x, "read-only"),
        ):  # fmt: skip
            use(odd, dtype)
    assert compiled() == before
    assert all(len(s) == 1 for versions in before.values() for s in versions)
