"""The GPU's kernels besides convolution: which run when, and what only they can get wrong.

test_memory_passes.py compares pools, norms, sums and updates with the reference.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_cnn.backends import cupy_backend, get
from tinygrad_cnn.backends.base import nchw, nhwc
from tinygrad_cnn.backends.cupy_backend import augment
from tinygrad_cnn.data.augment import normalized_crop_and_flip

pytestmark = pytest.mark.emulated

NUMPY = get("numpy")
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}  # of the largest value
dtypes = st.sampled_from(sorted(TOLERANCE))
seeds = st.integers(0, 2**32 - 1)


def images(shape, dtype="float32", seed=0):
    n, c, h, w = shape
    return nchw(np.random.default_rng(seed).standard_normal((n, h, w, c)).astype(dtype))


def assert_same(emulated, kernel, *arrays, **settings):
    """Compare a kernel's results with the reference's, and demand that it is no reference."""
    floats = [a for a in arrays if a is not None]
    shapes, dtype = tuple(a.shape for a in floats), arrays[0].dtype
    assert emulated.choose(kernel, shapes=shapes, dtype=dtype, **settings) != "reference"
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        ours, theirs = (getattr(b, kernel)(*arrays, **settings) for b in (emulated, NUMPY))
    together = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
    for a, b in together:
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        largest = np.abs(b).max(initial=0, where=np.isfinite(b))
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[str(dtype)] * max(1, largest))
        assert a.ndim != 4 or nhwc(a).flags.c_contiguous


# ---- what runs when ----

X = (2, 16, 8, 8)
POOL = dict(stride=(1, 1), padding=((0, 0), (0, 0)))
HUGE = (2**15, 64, 32, 32)  # 2**31 values
WINDOW = dict(alpha=1e-4, beta=0.75)


@pytest.mark.parametrize(
    ("path", "kernel", "shapes", "settings"),
    [
        ("pointwise", "add", (X, X), {}),
        ("pointwise", "add", ((3,), (3,)), {}),
        ("pointwise", "add", (X, (1, 16, 1, 1)), {}),
        ("pointwise", "add", ((2, 3), (3,)), {}),
        ("pointwise", "add", ((2, 3), (1, 3)), {}),
        ("reference", "add", ((2, 3), (2, 1)), {}),
        ("reference", "add", ((3,), ()), {}),
        ("reference", "add", (X, (16, 1, 1)), {}),
        ("reference", "add", (HUGE, HUGE), {}),
        ("pointwise", "relu", ((),), {}),
        ("pointwise", "relu_grad", (X, X), {}),
        ("reference", "relu_grad", (X, (1, 16, 1, 1)), {}),
        ("pointwise", "sgd_update", ((3,),) * 3, {}),
        ("gather", "max_pool2d", (X,), dict(kernel_size=(15, 17), **POOL)),
        ("reference", "max_pool2d", (X,), dict(kernel_size=(16, 16), **POOL)),
        ("gather", "max_pool2d_gather", (X, X), dict(kernel_size=(2, 2), **POOL)),
        ("gather", "avg_pool2d", (X,), dict(kernel_size=(16, 16), **POOL)),
        ("gather", "avg_pool2d_grad", (X,), dict(kernel_size=(2, 2), x_shape=X, **POOL)),
        ("reference", "avg_pool2d_grad", (X,), dict(kernel_size=(2, 2), x_shape=HUGE, **POOL)),
        ("pointwise", "running_average", ((16,),), dict(momentum=0.1, scale=1.0)),
        ("two_pass", "batch_norm", (X, (16,), (16,)), {}),
        ("two_pass", "batch_norm_grad", (X, X, (16,), (16,)), {}),
        ("reference", "batch_norm", ((0, 16, 8, 8), (16,), (16,)), {}),
        ("reference", "batch_norm", ((1, 2**15, 1, 1), (2**15,), (2**15,)), {}),
        ("tiled", "local_response_norm", (X,), dict(size=4096, k=2, **WINDOW)),
        ("reference", "local_response_norm_grad", (X, X, X), dict(size=4097, **WINDOW)),
        ("warp_a_row", "softmax_cross_entropy", ((2, 3), (2,)), dict(label_smoothing=0)),
        ("gather", "crop_and_flip", (X, (2, 2), (2,)), dict(padding=4)),
        ("implicit_gemm", "matmul", ((512, 64), (64, 10)), {}),
        ("reference", "matmul", ((128, 9216), (9216, 4096)), {}),
        ("reference", "matmul", ((2, 3, 4), (2, 4, 3)), {}),
        ("reference", "erf", (X,), {}),
    ],
)  # fmt: skip
def test_the_table_of_paths(emulated, path, kernel, shapes, settings):
    for dtype in "float32", "float64":
        assert emulated.choose(kernel, shapes=shapes, dtype=dtype, **settings) == path
    for dtype in "float16", ">f4", "int32":
        assert emulated.choose(kernel, shapes=shapes, dtype=dtype, **settings) == "reference"


def test_the_chosen_path_runs(emulated, monkeypatch):
    """A kernel that no one calls can't hide behind the reference's right answers."""
    called = []
    monkeypatch.setattr(
        cupy_backend.paths,
        "function",
        lambda package, module, name: lambda *a, **k: called.append((module, name)),
    )
    x, row = images(X), np.ones(16, np.float32)
    emulated.batch_norm(x, row, row, eps=1e-5)
    emulated.avg_pool2d(x, kernel_size=(2, 2), **POOL)
    emulated.crop_and_flip(x, np.zeros((2, 2), int), np.zeros(2, bool), padding=1)
    emulated.relu(x.astype(np.float16))
    assert called == [("norm", "batch_norm"), ("pool", "avg_pool2d"), ("augment", "crop_and_flip")]


def test_a_mix_of_types_takes_the_reference(emulated):
    x = images(X)
    y = emulated.batch_norm(x, *np.ones((2, 16)), eps=1e-5)[0]
    np.testing.assert_array_equal(y, NUMPY.batch_norm(x, *np.ones((2, 16)), eps=1e-5)[0])


def test_images_are_moved_as_they_lie():
    """CuPy's own asarray and asnumpy give every array in the order of its axes."""
    copies = SimpleNamespace(
        asarray=lambda a, dtype: np.array(a, dtype, order="C"),
        asnumpy=lambda a: np.array(a, order="C"),
        RawModule=None,
    )
    backend, x = cupy_backend.CupyBackend(copies), images((2, 3, 4, 5))
    for a in x, x[:, :, 1:], np.ascontiguousarray(x), x[0], np.float32(1):
        np.testing.assert_array_equal(backend.asarray(a), a, strict=True)
        np.testing.assert_array_equal(backend.to_numpy(a), a, strict=True)
    assert nhwc(backend.asarray(x)).flags.c_contiguous
    assert nhwc(backend.to_numpy(x)).flags.c_contiguous
    assert backend.asarray(x, np.float64).dtype == np.float64
    assert backend.asarray(np.ascontiguousarray(x)).flags.c_contiguous


# ---- sums over channels ----


@pytest.mark.parametrize("channels", [1, 3, 255, 256, 257, 600])
@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
def test_batch_norm_with_any_number_of_channels(emulated, channels, dtype):
    """More than a block has threads, fewer, and numbers that leave threads idle."""
    x, r, g = (images((3, channels, 5, 4), dtype, seed) for seed in range(3))
    weight, bias = np.random.default_rng(3).standard_normal((2, channels)).astype(dtype)
    assert_same(emulated, "batch_norm", x, weight, bias, r, eps=1e-3, relu=True)
    y, mean, var = NUMPY.batch_norm(x, weight, bias, r, eps=1e-3, relu=True)
    at = dict(mean=mean, var=var, eps=1e-3, training=True)
    for plus in None, r:
        more = dict(y=y, residual=True, plus=plus)
        assert_same(emulated, "batch_norm_grad", g, x, weight, bias, **more, **at)


def test_batch_norm_of_many_blocks_far_from_zero(emulated):
    """So many that each thread of the second launch joins several; the mean itself is rounded."""
    x, weight, bias = images((300, 1, 64, 64)) * np.float32(0.01) + 30, *np.float32([[2], [1]])
    y, mean, var = emulated.batch_norm(x, weight, bias, eps=1e-5)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(), rtol=1e-9)
    np.testing.assert_allclose(var, exact.var(), rtol=1e-6)
    x_hat = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    np.testing.assert_allclose(y, 2 * x_hat + 1, atol=1e-5)
    at = dict(mean=mean, var=var, eps=1e-5, training=True)
    dx, dweight, dbias, _ = emulated.batch_norm_grad(
        x, x, weight, bias, **at
    )  # g is far from 0 too
    np.testing.assert_allclose(dbias, exact.sum(), rtol=1e-6)
    np.testing.assert_allclose(dweight, (x_hat * exact).sum(), rtol=1e-5)
    expected = exact - exact.mean() - x_hat * (x_hat * exact).mean()
    np.testing.assert_allclose(dx, expected * 2 / np.sqrt(exact.var() + 1e-5), atol=1e-3)


@given(st.data(), dtypes, seeds)
def test_local_response_norm(emulated, data, dtype, seed):
    """Windows odd and even, wider than there are channels, across the ends of blocks."""
    shape = data.draw(st.tuples(*(st.integers(1, n) for n in (2, 40, 6, 6))))
    at = dict(size=data.draw(st.integers(1, 50)), alpha=data.draw(st.floats(0, 1)), beta=0.75)
    x, g = (images(shape, dtype, seed + i) for i in range(2))
    assert_same(emulated, "local_response_norm", x, k=2.0, **at)
    scale = NUMPY.local_response_norm(x, k=2.0, **at)[1]
    assert_same(emulated, "local_response_norm_grad", g, x, scale, **at)


# ---- matrices ----


@given(seeds, dtypes, st.integers(1, 40), st.integers(1, 100), st.sampled_from([1, 31, 32, 33, 70]))
def test_cross_entropy(emulated, seed, dtype, rows, largest, classes):
    rng = np.random.default_rng(seed)
    logits = (rng.uniform(-largest, largest, (rows, classes))).astype(dtype)
    targets = rng.integers(0, classes, rows)
    for smoothing in 0.0, 0.1, 1.0:
        assert_same(emulated, "softmax_cross_entropy", logits, targets, label_smoothing=smoothing)


def test_cross_entropy_of_special_logits(emulated):
    """A masked class costs nothing; a row that has a NaN, or is masked whole, is NaN."""
    logits = np.zeros((4, 40), np.float32)
    logits[0, 3], logits[1, 39], logits[2], logits[3, 0] = -np.inf, np.nan, -np.inf, 1e30
    targets = np.array([1, 1, 1, 0], np.int32)
    assert_same(emulated, "softmax_cross_entropy", logits, targets, label_smoothing=0.0)


VIEWS = {
    "rows": lambda a: a,
    "columns": lambda a: np.asfortranarray(a),
    "every other": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
}


@pytest.mark.parametrize("right", VIEWS)
@pytest.mark.parametrize("left", VIEWS)
@given(st.tuples(*[st.integers(1, 70)] * 3), dtypes)
def test_products_of_matrices(emulated, left, right, sizes, dtype):
    n, k, m = sizes
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((n, k)).astype(dtype), rng.standard_normal((k, m)).astype(dtype)
    assert_same(emulated, "matmul", VIEWS[left](x), VIEWS[right](y))


# ---- elementwise ----


@pytest.mark.parametrize("shape", [(), (1,), (1023,), (1025,), (7, 3), (2, 3, 4), (5, 4, 3, 3)])
def test_elementwise_kernels_of_any_shape(emulated, shape):
    rng = np.random.default_rng(0)
    p, g, v = (np.asarray(rng.standard_normal(shape), np.float32) for _ in range(3))
    assert_same(emulated, "add", p, g)
    assert_same(emulated, "relu", p)
    assert_same(emulated, "relu_grad", p, g)
    settings = dict(lr=0.1, momentum=0.9, weight_decay=0.5, nesterov=True)
    p_there, v_there = p.copy(), v.copy()
    from_memory = p.copy(), v.copy()
    emulated.sgd_update(p, g, v, **settings)
    NUMPY.sgd_update(p_there, g, v_there, **settings)
    np.testing.assert_allclose(p, p_there, atol=1e-6)
    np.testing.assert_allclose(v, v_there, atol=1e-6)
    emulated.sgd_update(from_memory[0], g, from_memory[1], **settings | dict(lr=np.array([0.1])))
    np.testing.assert_array_equal(from_memory, (p, v))


@pytest.mark.parametrize("values", [(3,), (1, 3)])
def test_a_bias_is_added_to_rows(emulated, values):
    rng = np.random.default_rng(0)
    x, b = (rng.standard_normal(shape).astype("f") for shape in ((500, 3), values))
    assert_same(emulated, "add", x, b)


@pytest.mark.parametrize("channels", [1, 256, 300])
@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
def test_a_running_average(emulated, channels, dtype):
    old, new = np.random.default_rng(0).standard_normal((2, channels))
    at = dict(new=new, momentum=0.1, scale=1.25)
    assert_same(emulated, "running_average", old.astype(dtype), **at)


# ---- images ----


def crops(rng, n, padding):
    return rng.integers(0, 2 * padding + 1, (n, 2)), rng.random(n) < 0.5


@given(seeds, dtypes, st.tuples(*[st.integers(1, 6)] * 4), st.integers(0, 3))
def test_crop_and_flip(emulated, seed, dtype, shape, padding):
    at = crops(np.random.default_rng(seed), shape[0], padding)
    assert_same(emulated, "crop_and_flip", images(shape, dtype, seed), *at, padding=padding)


@given(seeds, dtypes, st.tuples(*[st.integers(1, 6)] * 4), st.integers(0, 3))
def test_a_batch_from_the_resident_data_set(emulated, seed, dtype, shape, padding):
    """The same numbers as the loader's, which does it image by image on the host."""
    rng = np.random.default_rng(seed)
    n, c, h, w = shape
    data_set = rng.integers(0, 256, (9, c, h, w), np.uint8)
    chosen, at = rng.integers(0, 9, n), crops(rng, n, padding)
    mean, std = rng.random((c, 1, 1)), rng.random((c, 1, 1)) + 0.1
    scale, shift = (
        np.broadcast_to(a, (c, h, w)).transpose(1, 2, 0).astype(dtype, order="C")
        for a in (1 / (255 * std), mean / std)
    )
    y = augment.gather_crop_and_flip(emulated, data_set, chosen, *at, scale, shift, padding=padding)
    expected = normalized_crop_and_flip(
        data_set[chosen], *at, mean, std, padding=padding, dtype=dtype
    )
    np.testing.assert_allclose(y, expected, rtol=0, atol=4 * np.finfo(dtype).eps * 10)
    assert nhwc(y).flags.c_contiguous
