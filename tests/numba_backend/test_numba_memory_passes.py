"""The memory passes of the Numba backend: what runs when, on which arrays, with which threads.

What they compute is tested in test_memory_passes.py.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import tinygrad_cnn as tg
from tinygrad_cnn.backends import get
from tinygrad_cnn.backends.base import nchw, nhwc

NUMBA, NUMPY = get("numba"), get("numpy")


def paths(kernel, *shapes, dtype=np.float32, **settings):
    return NUMBA.choose(kernel, shapes=shapes, dtype=dtype, **settings)


# ---- what runs when ----

X = (2, 16, 8, 8)
POOL = dict(stride=(1, 1), padding=((0, 0), (0, 0)))


@pytest.mark.parametrize(
    ("path", "kernel", "shapes", "settings"),
    [
        ("compiled", "add", (X, X), {}),
        ("reference", "add", (X, (1, 16, 1, 1)), dict(out=X)),
        ("reference", "add", (X, (16, 1, 1)), {}),
        ("reference", "add", ((2, 3), (2, 3)), {}),
        ("compiled", "relu", (X,), {}),
        ("reference", "relu", ((2, 3),), {}),
        ("compiled", "relu_grad", (X, X), {}),
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


@pytest.mark.parametrize(
    ("kernel", "others"),
    [("batch_norm", [(16,)] * 2), ("batch_norm_grad", [X, (16,), (16,)]), ("add", [(1, 16, 1, 1)])],
)
def test_what_has_values_for_channels_is_simd_for_whole_rows_in_float32(kernel, others):
    assert paths(kernel, X, *others) == "simd"
    assert paths(kernel, X, *others, dtype="float64") == "reference"
    odd = (3, 16, 5, 5)  # of 4 pixels each
    assert paths(kernel, odd, *(odd if other == X else other for other in others)) == "reference"


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
        numba_backend.paths,
        "function",
        lambda package, module, name: lambda *a, **k: called.append(module),
    )
    x = np.zeros(X, np.float32)
    NUMBA.relu(x)
    NUMBA.batch_norm(x, x[0, :, 0, 0], x[0, :, 0, 0], eps=1e-5)
    NUMBA.relu(x[0])
    assert called == ["pointwise", "norm"]


# ---- all of them ----


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


def test_a_parameter_that_must_not_change_is_refused():
    p, g, v = np.ones((3, 2, 33, 127), np.float32)
    p.flags.writeable = False
    with pytest.raises(ValueError, match="sgd_update: the parameter or its velocity is read-only"):
        NUMBA.sgd_update(p, g, v, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=False)
    assert (p == 1).all()
    assert (v == 1).all()


def test_a_sum_is_not_written_to_where_it_must_not():
    x, out = (nchw(np.ones((2, 4, 4, 16), np.float32)) for _ in range(2))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        NUMBA.add(x, x, out=out)
    assert (out == 1).all()


@pytest.mark.parametrize(
    ("relu", "residual", "over_g"),
    [(True, True, 3), (True, False, 0), (False, False, 0), (False, True, 3)],
)
def test_a_gradient_takes_the_memory_of_g(relu, residual, over_g):
    x, g, y = (nchw(np.ones((2, 4, 4, 16), np.float32)) for _ in range(3))
    row = np.ones(16, np.float32)
    at = dict(mean=row, var=row, eps=1e-5, training=True, y=y if relu else None, residual=residual)
    found = NUMBA.batch_norm_grad(g, x, row, row, overwrite_g=True, **at)
    assert [a is not None and np.shares_memory(a, g) for a in found].index(True) == over_g


def test_a_residual_network_s_norms_write_over_what_they_are_given(monkeypatch):
    asked, run = [], type(NUMBA).batch_norm_grad
    monkeypatch.setattr(
        type(NUMBA), "batch_norm_grad",
        lambda *a, **at: asked.append(at["overwrite_g"]) or run(*a, **at),
    )  # fmt: skip
    with tg.use_backend("numba"):
        net = tg.models.build("resnet20", rng=np.random.default_rng(0))
        net(tg.zeros(2, 3, 32, 32)).sum().backward()
    assert asked == [True] * 19


def test_the_norms_of_a_pre_activation_network_add_what_waits_at_the_trunk(monkeypatch):
    waits, run = [], type(NUMBA).batch_norm_grad
    monkeypatch.setattr(
        type(NUMBA), "batch_norm_grad",
        lambda *a, **at: waits.append(at["plus"] is not None) or run(*a, **at),
    )  # fmt: skip
    with tg.use_backend("numba"):
        net = tg.models.build("preact_resnet20", rng=np.random.default_rng(0))
        net(tg.zeros(2, 3, 32, 32)).sum().backward()
    assert sum(waits) == 8  # of nine blocks; the first one's shortcut follows its norm


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
        use(np.ones((64, 3, 4, 5), dtype), dtype)
    before = compiled()
    for dtype in "float32", "float64":
        x = np.ones((16, 4, 8, 8), dtype)
        still = x.copy()
        still.flags.writeable = False
        raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(dtype).reshape(x.shape)  # unaligned
        for odd in (
            x[:1], x[:, :1], x[..., :2], x[:, ::-1], np.broadcast_to(x[:1], x.shape), raw,
            np.asfortranarray(x), still,
        ):  # fmt: skip
            use(odd, dtype)
    assert compiled() == before
    assert all(len(s) == 1 for versions in before.values() for s in versions)


@given(
    size=st.tuples(*2 * [st.integers(1, 9)]),
    kernel=st.tuples(*2 * [st.integers(1, 4)]),
    stride=st.tuples(*2 * [st.integers(1, 4)]),
    channels=st.sampled_from([16, 48]),
    seed=st.integers(0, 99),
)
def test_max_pooling_in_registers_of_any_window(size, kernel, stride, channels, seed):
    """Cut windows, gaps between windows and NaN give what the reference gives, bit for bit."""
    padding = tuple((k // 2, k // 2) for k in kernel)
    assume(all(n + 2 * (k // 2) >= k for n, k in zip(size, kernel, strict=True)))
    at = dict(kernel_size=kernel, stride=stride, padding=padding)
    rng = np.random.default_rng(seed)
    x = nchw(rng.integers(-3, 4, (2, *size, channels)).astype(np.float32))
    x[rng.random(x.shape) < 0.02] = np.nan
    (y, argmax), (expected, positions) = (b.max_pool2d(x, **at) for b in (NUMBA, NUMPY))
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(argmax, positions)
    g = nchw(rng.integers(-3, 4, nhwc(y).shape).astype(np.float32))
    dx, expected = (b.max_pool2d_grad(g, argmax, x_shape=x.shape, **at) for b in (NUMBA, NUMPY))
    np.testing.assert_array_equal(dx, expected)


def test_a_gradient_larger_than_the_caches():
    g = nchw(np.random.default_rng(0).integers(-3, 4, (1, 257, 1024, 16)).astype(np.float32))
    at = dict(kernel_size=(1, 1), stride=(1, 1), padding=((0, 0), (0, 0)))
    won = np.zeros_like(g, np.uint8)
    np.testing.assert_array_equal(NUMBA.max_pool2d_grad(g, won, x_shape=g.shape, **at), g)
    np.testing.assert_array_equal(NUMBA.avg_pool2d_grad(g, x_shape=g.shape, **at), g)
