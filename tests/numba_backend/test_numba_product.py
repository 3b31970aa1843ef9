"""Products of large matrices: NumPy's values, on all threads, the same for any number of them."""

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn.backends import get
from tinygrad_cnn.backends.numba_backend import product, threads

NUMBA = get("numba")
LARGE = (300, 700), (700, 1024)


def matrix(shape, dtype="float32"):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(
    ("path", "shapes"),
    [
        ("threaded", LARGE),
        ("threaded", ((128, 9216), (9216, 4096))),
        ("reference", ((128, 256), (256, 256))),
        ("reference", ((1, 9216), (9216, 4096))),
        ("reference", ((0, 9216), (9216, 4096))),
        ("reference", ((4, 300, 700), (700, 1024))),
    ],
)
def test_the_table_of_paths(path, shapes):
    assert NUMBA.choose("matmul", shapes=shapes, dtype="float32") == path
    assert NUMBA.choose("matmul", shapes=shapes, dtype="int64") == "reference"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_product_in_bands_is_the_product(dtype, turned):
    x, y = (matrix(shape, dtype) for shape in LARGE)
    x, y = (y.T, x.T) if turned else (x, y)  # more rows than columns, and not contiguous
    z = NUMBA.matmul(x, y)
    assert z.dtype == dtype
    assert z.flags.c_contiguous
    np.testing.assert_allclose(z, x @ y, rtol=0, atol=1e-3 if dtype == "float32" else 1e-11)


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    x, y = map(matrix, LARGE)
    results = []
    for n in 1, 2, 5:
        monkeypatch.setattr(threads, "number", lambda n=n: n)
        results.append(product.matmul(x, y).tobytes())
    assert len(set(results)) == 1


def test_a_large_linear_layer_is_one(monkeypatch):
    """Forward and backward run in bands, and agree with the reference."""
    from tinygrad_cnn.backends import numba_backend

    used, paths = [], numba_backend.paths
    found = paths.function
    monkeypatch.setattr(paths, "function", lambda *key: used.append(key[1:]) or found(*key))
    gradients = []
    for backend in "numba", "numpy":
        x, w = (
            tg.Tensor(matrix(shape), requires_grad=True, backend=backend)
            for shape in ((128, 1100), (1050, 1100))
        )
        (tg.functional.linear(x, w) ** 2).sum().backward()
        gradients.append((x.grad.numpy(), w.grad.numpy()))
    assert used.count(("product", "matmul")) == 3
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
