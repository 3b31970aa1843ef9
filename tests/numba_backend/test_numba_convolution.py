"""Convolutions: what float64 says, for every geometry, on every path."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import tinygrad_cnn as tg
from tinygrad_cnn import models, train
from tinygrad_cnn.backends import get, paths
from tinygrad_cnn.backends.base import nhwc
from tinygrad_cnn.backends.geometry import conv2d_settings, output_size
from tinygrad_cnn.backends.numba_backend import (
    arrays,
    depthwise,
    direct,
    grouped,
    host,
    narrow,
    pixelwise,
    simd,
    transforms,
    winograd,
)  # fmt: skip
from tinygrad_cnn.testing import channels_last, conv2d_cases

NUMBA, NUMPY = get("numba"), get("numpy")
ONE = dict(stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1)
NONE = ((0, 0), (0, 0))


def images(rng, *shape):
    return channels_last(rng.standard_normal(shape).astype(np.float32))


def results(module, x, w, g, **at):
    """Run a convolution, its gradients, and itself with what it may add: g as the residual."""
    bias = np.linspace(-1, 1, len(w), dtype=w.dtype)
    return (
        module.conv2d(x, w, **at),
        module.conv2d_input_grad(g, w, x_shape=x.shape, **at),
        module.conv2d_weight_grad(g, x, w_shape=w.shape, **at),
        module.conv2d(x, w, bias, **at),
        module.conv2d(x, w, None, g, **at),
        module.conv2d(x, w, relu=True, **at),
        module.conv2d(x, w, bias, g, relu=True, **at),
    )


def exact(x, w, g, **at):
    return results(NUMPY, *(np.float64(a) for a in (x, w, g)), **at)


def errors(ours, expected):
    """Give each result's largest error, as a part of the largest value."""
    assert [a.shape for a in ours] == [b.shape for b in expected]
    assert {a.dtype.name for a in ours} == {"float32"}
    return [
        np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30)
        for a, b in zip(ours, expected, strict=True)
    ]


# ---- what runs when ----


@pytest.mark.parametrize(
    ("path", "x", "w", "changes"),
    [
        ("winograd", (2, 16, 8, 8), (32, 16, 3, 3), {}),
        ("winograd", (1, 48, 1, 7), (16, 48, 3, 3), dict(padding=((2, 0), (1, 1)))),
        (("direct", "narrow"), (2, 3, 8, 8), (16, 3, 3, 3), {}),
        (("direct", "narrow"), (2, 8, 8, 8), (16, 8, 3, 3), dict(stride=(1, 2))),
        ("direct", (2, 3, 8, 8), (16, 3, 3, 3), dict(dilation=(1, 2))),
        ("direct", (2, 8, 8, 8), (16, 8, 3, 3), dict(stride=(1, 3))),
        ("direct", (2, 16, 8, 8), (24, 16, 3, 3), {}),
        ("direct", (2, 16, 8, 8), (16, 16, 3, 3), dict(stride=(2, 2))),
        ("direct", (2, 16, 8, 8), (16, 16, 3, 3), dict(dilation=(2, 2))),
        ("direct", (2, 16, 8, 8), (16, 16, 1, 1), {}),  # padded
        ("pixelwise", (2, 16, 8, 8), (16, 16, 1, 1), dict(padding=NONE)),
        ("pixelwise", (1, 3, 4, 4), (5, 3, 1, 1), dict(padding=NONE)),
        ("direct", (1, 3, 5, 5), (5, 3, 1, 1), dict(padding=NONE)),
        ("direct", (2, 16, 8, 8), (16, 16, 1, 1), dict(padding=NONE, stride=(2, 2))),
        ("direct", (2, 16, 8, 8), (16, 16, 5, 5), {}),
        ("grouped", (2, 16, 8, 8), (16, 8, 3, 3), dict(groups=2)),
        ("depthwise", (2, 32, 8, 8), (32, 1, 3, 3), dict(groups=32)),
        ("reference", (2, 24, 8, 8), (24, 1, 3, 3), dict(groups=24)),
        ("reference", (2, 16, 8, 8), (32, 1, 3, 3), dict(groups=16)),
        ("reference", (2, 16, 8, 8), (16, 2, 3, 3), dict(groups=8)),
        ("reference", (0, 16, 8, 8), (16, 16, 3, 3), {}),
    ],
)
def test_the_table_of_paths(path, x, w, changes):
    at, (path, path_of_dx) = ONE | changes, path if isinstance(path, tuple) else (path, path)
    sizes = {name: at[name] for name in ("stride", "padding", "dilation")}
    g = (x[0], w[0], *output_size(x[2:], kernel=w[2:], **sizes))
    assert NUMBA.choose("conv2d", shapes=(x, w), dtype="float32", **at) == path
    assert NUMBA.choose("conv2d", shapes=(x, w), dtype="float64", **at) == "reference"
    for kernel, shapes, told, expected in (
        ("conv2d_input_grad", (g, w), dict(x_shape=x), path_of_dx),
        ("conv2d_weight_grad", (g, x), dict(w_shape=w), path),
    ):
        assert NUMBA.choose(kernel, shapes=shapes, dtype="float32", **told, **at) == expected


@pytest.mark.parametrize("module", [winograd, direct])
def test_the_chosen_path_runs(module, monkeypatch):
    used = []
    for kernel in ("conv2d", "conv2d_input_grad", "conv2d_weight_grad"):
        monkeypatch.setattr(module, kernel, lambda *a, kernel=kernel, **s: used.append(kernel))
    for cached in _caches():
        cached.cache_clear()
    at = ONE | (dict(stride=(2, 2)) if module is direct else {})
    x, w = np.zeros((1, 16, 4, 4), np.float32), np.zeros((16, 16, 3, 3), np.float32)
    results(NUMBA, x, w, x, **at)
    for cached in _caches():
        cached.cache_clear()
    assert used == ["conv2d", "conv2d_input_grad", "conv2d_weight_grad", *["conv2d"] * 4]


def _caches():
    return [paths.function]


# ---- against the reference in float64 ----


@given(conv2d_cases(dtype="float32", channels=st.sampled_from([1, 3, 16, 17, 18, 32, 33, 64])))
def test_direct_convolution_of_any_geometry(case):
    x, w, settings = case
    at = conv2d_settings(x.shape, w.shape, **settings)
    g = images(np.random.default_rng(0), *NUMPY.conv2d(x, w, **at).shape)
    module = NUMBA if at["groups"] > 1 or not x.size else direct
    limit = 3e-6 if at["groups"] == 1 else 2e-5  # a group may be one for Winograd
    assert max(errors(results(module, x, w, g, **at), exact(x, w, g, **at))) < limit


@given(
    conv2d_cases(dtype="float32", channels=st.sampled_from([1, 3, 18, 32, 33]), groups=st.just(1)),
    st.integers(1, 3000), st.integers(1, 4),
)  # fmt: skip
def test_the_blocks_of_any_weight_gradient(case, block, parts):
    """Some rows of an image, or several images, as small as they are never cut otherwise.

    The 18 channels are whole tiles of 9, 6 or 2 rows, the 32 of 8 or 2: then x is read in place.
    """
    x, w, settings = case
    assume(x.size)
    at = conv2d_settings(x.shape, w.shape, **settings)
    g = images(np.random.default_rng(0), *NUMPY.conv2d(x, w, **at).shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "BLOCK", block)
        patch.setattr(direct, "parts_of_batch", lambda depth, O: parts)
        ours = direct.conv2d_weight_grad(g, x, w_shape=w.shape, **at)
    expected = NUMPY.conv2d_weight_grad(np.float64(g), np.float64(x), w_shape=w.shape, **at)
    assert max(errors([ours], [expected])) < 3e-6


@given(
    st.integers(1, 5), st.sampled_from([1, 3, 16, 40, 64]), st.sampled_from([1, 16, 33, 64]),
    st.integers(1, 12), st.integers(1, 12),
)  # fmt: skip
def test_pixelwise_convolution_of_any_size(N, C, O, H, W):
    rng, at = np.random.default_rng(0), ONE | dict(padding=NONE)
    x, g = images(rng, N, C, H, W), images(rng, N, O, H, W)
    w = rng.standard_normal((O, C, 1, 1)).astype(np.float32)
    assert max(errors(results(pixelwise, x, w, g, **at), exact(x, w, g, **at))) < 3e-6


@given(conv2d_cases(dtype="float32", channels=st.integers(1, 8), groups=st.just(1)))
def test_the_gradient_of_few_channels_of_any_geometry(case):
    x, w, settings = case
    at = conv2d_settings(x.shape, w.shape, **settings)
    assume(x.size and x.shape[1] * at["stride"][1] <= host.WIDTH)
    rng = np.random.default_rng(0)
    g, plus = images(rng, *NUMPY.conv2d(x, w, **at).shape), images(rng, *x.shape)
    for added in None, plus:
        ours = narrow.conv2d_input_grad(g, w, x_shape=x.shape, plus=added, **at)
        doubles = np.float64(g), np.float64(w)
        expected = NUMPY.conv2d_input_grad(*doubles, x_shape=x.shape, plus=added, **at)
        assert max(errors([ours], [expected])) < 3e-6


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_gradient_of_few_channels_of_a_wide_image(stride):
    """More groups than a tile has rows; what waits is only read."""
    rng, at = np.random.default_rng(0), ONE | dict(stride=(1, stride))
    x, w = images(rng, 2, 3, 5, 203), rng.standard_normal((24, 3, 3, 3)).astype(np.float32)
    g, plus = images(rng, *NUMPY.conv2d(x, w, **at).shape), images(rng, *x.shape)
    kept = plus.copy()
    ours = narrow.conv2d_input_grad(g, w, x_shape=x.shape, plus=plus, **at)
    doubles = np.float64(g), np.float64(w)
    expected = NUMPY.conv2d_input_grad(*doubles, x_shape=x.shape, plus=plus, **at)
    assert max(errors([ours], [expected])) < 3e-6
    np.testing.assert_array_equal(plus, kept)


@pytest.mark.parametrize("C", [3, 16])
@pytest.mark.parametrize("size", [(0, 4), (4, 0)])
def test_an_image_that_is_all_padding(C, size):
    x, w = np.zeros((1, C, *size), np.float32), np.ones((16, C, 3, 3), np.float32)
    at = ONE | dict(stride=(2, 2), padding=((2, 2), (2, 2)))
    assert [a.shape for a in results(NUMBA, x, w, NUMPY.conv2d(x, w, **at), **at)][1] == x.shape


@given(conv2d_cases(dtype="float32", channels=st.just(1), groups=st.sampled_from([16, 48])))
def test_depthwise_convolution_of_any_geometry(case):
    x, w, settings = case
    at = conv2d_settings(x.shape, w.shape, **settings)
    g = images(np.random.default_rng(0), *NUMPY.conv2d(x, w, **at).shape)
    assert max(errors(results(NUMBA, x, w, g, **at), exact(x, w, g, **at))) < 3e-6


sides, pads = st.integers(1, 14), st.tuples(st.integers(0, 3), st.integers(0, 3))
sixteens = st.sampled_from([16, 32, 48])


@given(st.integers(1, 5), sixteens, sixteens, sides, sides, pads, pads, st.integers(0, 99))
def test_winograd_of_any_size_and_padding(N, C, O, H, W, rows, columns, seed):
    rng = np.random.default_rng(seed)
    H, W = max(H, 3 - sum(rows)), max(W, 3 - sum(columns))
    at = ONE | dict(padding=(rows, columns))
    x, w = images(rng, N, C, H, W), rng.standard_normal((O, C, 3, 3)).astype(np.float32)
    g = images(rng, N, O, H + sum(rows) - 2, W + sum(columns) - 2)
    assert max(errors(results(winograd, x, w, g, **at), exact(x, w, g, **at))) < 2e-5


@pytest.mark.parametrize(("module", "stride"), [(winograd, 1), (direct, 1), (direct, 2)])
@pytest.mark.parametrize(("C", "side"), [(16, 90), (32, 64)])
def test_what_is_streamed_is_what_is_stored(module, stride, C, side):
    rng = np.random.default_rng(0)
    x, plus = (images(rng, 9, C, side * stride, side * stride) for _ in range(2))
    g, w = images(rng, 9, C, side, side), rng.standard_normal((C, C, 3, 3)).astype(np.float32)
    at = ONE | dict(stride=(stride, stride))

    def both(one):
        more = dict(x_shape=x[one].shape, plus=plus[one])
        return (
            module.conv2d(x[one], w, w[0, :, 0, 0], g[one], relu=True, **at),
            module.conv2d_input_grad(g[one], w, **more, **at),
        )

    for whole, *parts in zip(both(slice(None)), *(both([n]) for n in range(9)), strict=True):
        assert whole.size >= simd.LARGE > parts[0].size
        np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize(
    ("N", "side", "C", "O"),
    [(16, 32, 16, 16), (16, 16, 32, 32), (64, 8, 64, 64), (2, 14, 256, 256), (2, 7, 512, 512)],
)
def test_the_error_of_winograd(N, side, C, O):
    """As the papers' layers have it: printed with -rP, and limited."""
    rng = np.random.default_rng(0)
    x, g = images(rng, N, C, side, side), images(rng, N, O, side, side)
    w = (rng.standard_normal((O, C, 3, 3)) / np.sqrt(9 * C)).astype(np.float32)
    forward, dx, dw, *more = errors(results(winograd, x, w, g, **ONE), exact(x, w, g, **ONE))
    print(f"{C:4} channels, {side:2} pixels: forward {forward:.1e}, dx {dx:.1e}, dw {dw:.1e}")
    assert max(forward, dx, *more) < 2e-5
    assert dw < 5e-5


@pytest.mark.parametrize(
    ("module", "stride", "groups"),
    [
        (winograd, 1, 1),
        (direct, 1, 1),
        (direct, 2, 1),
        (pixelwise, 1, 1),
        (grouped, 2, 2),
        (depthwise, 2, 32),
    ],
)
def test_the_gradient_that_waits_is_added(module, stride, groups):
    rng, at = np.random.default_rng(0), ONE | dict(stride=(stride, stride), groups=groups)
    x, g = images(rng, 2, 32, 6, 6), images(rng, 2, 32, 6 // stride, 6 // stride)
    side, at["padding"] = (1, NONE) if module is pixelwise else (3, at["padding"])
    w = rng.standard_normal((32, 32 // groups, side, side)).astype(np.float32)
    plus = images(rng, *x.shape)
    kept = plus.copy()
    alone = module.conv2d_input_grad(g, w, x_shape=x.shape, **at)
    both = module.conv2d_input_grad(g, w, x_shape=x.shape, plus=plus, **at)
    np.testing.assert_allclose(both, alone + plus, atol=1e-5)
    np.testing.assert_array_equal(plus, kept)


@pytest.mark.parametrize(("module", "side"), [(winograd, 3), (direct, 3), (pixelwise, 1)])
def test_a_large_bias_is_added_last(module, side):
    """Were it where the sums begin, their small terms would be rounded to nothing."""
    rng, pad = np.random.default_rng(0), side // 2
    at = ONE | dict(padding=((pad, pad), (pad, pad)))
    x, w = np.abs(images(rng, 1, 64, 8, 8)), np.full((16, 64, side, side), 1e-7, np.float32)
    bias = np.ones(16, np.float32)
    exact = NUMPY.conv2d(np.float64(x), np.float64(w), np.float64(bias), **at)
    assert np.abs(module.conv2d(x, w, bias, **at) - exact).max() < 1.2e-7  # two roundings of 1


@pytest.mark.parametrize("module", [winograd, direct, grouped, depthwise])
def test_filters_may_lie_in_any_way(module):
    """Backwards, with gaps, not to be written."""
    side, groups = 3 if module is winograd else 1, {grouped: 2, depthwise: 16}.get(module, 1)
    rng, at = np.random.default_rng(0), ONE | dict(groups=groups)
    x = images(rng, 1, 16, 5, 4)
    w = rng.standard_normal((16, 16 // groups, side, 2 * side)).astype(np.float32)[::-1, ..., ::2]
    w.flags.writeable = False
    g = images(rng, *NUMPY.conv2d(x, w, **at).shape)
    assert max(errors(results(module, x, w, g, **at), exact(x, w, g, **at))) < 2e-5


def test_scratch_memory_has_no_say(monkeypatch):
    """What an earlier kernel left there, NaN at worst, must not be seen."""

    def poisoned(size, monkey=arrays.scratch):
        space = monkey(size)
        space[:] = np.nan
        return space

    rng = np.random.default_rng(0)
    for module in (winograd, direct):
        monkeypatch.setattr(module, "scratch", poisoned)
        x, w = images(rng, 3, 16, 7, 5), rng.standard_normal((16, 16, 3, 3)).astype(np.float32)
        g = images(rng, 3, 16, 7, 5)
        assert max(errors(results(module, x, w, g, **ONE), exact(x, w, g, **ONE))) < 2e-5


def test_a_nan_is_not_lost():
    rng = np.random.default_rng(0)
    x, w = images(rng, 1, 16, 9, 9), rng.standard_normal((16, 16, 3, 3)).astype(np.float32)
    x[0, 5, 4, 4] = np.nan
    for module in (winograd, direct):
        for relu in False, True:
            assert np.isnan(module.conv2d(x, w, relu=relu, **ONE)[0, :, 3:6, 3:6]).all()


# ---- the transforms ----

B = np.array([
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
])  # fmt: skip
G = np.array([
    [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
])  # fmt: skip
A = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


@pytest.mark.parametrize(
    ("line", "matrix"),
    [
        (transforms.input_line, B),
        (transforms.output_line, A),
        (transforms.gradient_line, A.T),
        (transforms.filter_line, G),
        (transforms.filter_gradient_line, G.T),
    ],
)
def test_lines_are_products_with_the_papers_matrices(line, matrix):
    from numba import njit

    from tinygrad_cnn.backends.numba_backend.simd import load_line, store_rows

    rows, columns = matrix.shape

    @njit
    def run(a, out):
        store_rows(out, 0, host.LANES, line(load_line(a, 0, host.LANES, columns)), rows)

    a = np.random.default_rng(0).standard_normal((columns, host.LANES)).astype(np.float32)
    out = np.zeros((rows, host.LANES), np.float32)
    run(a.ravel(), out.ravel())
    np.testing.assert_allclose(out, matrix @ a, atol=1e-5)


def test_the_papers_matrices_make_a_convolution():
    d, g = np.random.default_rng(0).standard_normal((2, 6, 6))
    y = A @ ((B @ d @ B.T) * (G @ g[:3, :3] @ G.T)) @ A.T
    direct = [[(d[i : i + 3, j : j + 3] * g[:3, :3]).sum() for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(y, direct)


# ---- other CPUs ----

NARROWER = pytest.mark.skipif(
    not host.ISA.startswith("AVX"), reason="the CPU has no AVX, which is to be left out"
)


@NARROWER
@pytest.mark.slow
@pytest.mark.parametrize("cpu", ["haswell", "nehalem"])
def test_the_code_for_narrower_vectors(cpu):
    """AVX2's 8 floats and SSE's 4, by the tests of the vocabulary, any geometry and batch norm."""
    here = Path(__file__)
    files = here, here.with_name("test_numba_simd.py"), here.parents[1] / "test_memory_passes.py"
    tests = [*files, "-k", "simd or any_ or batch_norm"]
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests],
        env={
            **os.environ,
            "NUMBA_CPU_NAME": cpu,
            "NUMBA_CPU_FEATURES": "",
            "HYPOTHESIS_PROFILE": "ci",
        },
        check=True,
    )


# ---- promises about whole runs ----


def test_float32_training_agrees_with_the_reference_at_the_first_step():
    rng = np.random.default_rng(0)
    x, labels = images(rng, 8, 3, 32, 32), rng.integers(0, 10, 8)
    gradients = []
    for backend in ("numba", "numpy"):
        with tg.use_backend(backend):
            net = models.build("resnet8", rng=np.random.default_rng(1))
            loss = net.loss(net(tg.Tensor(x)), labels)
            loss.backward()
            gradients.append([loss.numpy(), *(p.grad.numpy() for p in net.parameters())])
    for ours, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_float32_training_follows_the_reference():
    curves = {}
    for backend in ("numba", "numpy"):
        with tg.use_backend(backend):
            curves[backend] = losses_of_an_epoch()
    smooth = {name: np.convolve(c, np.ones(10) / 10, "valid") for name, c in curves.items()}
    np.testing.assert_allclose(curves["numba"][:3], curves["numpy"][:3], rtol=1e-4)
    np.testing.assert_allclose(smooth["numba"], smooth["numpy"], rtol=0.1)


def losses_of_an_epoch():
    train_set, _ = tg.data.load(images=1280)
    statistics = tg.data.channel_statistics(train_set.images)
    loader = tg.data.Loader(train_set, 32, seed=0, normalize=statistics)
    net = models.build("resnet8", rng=np.random.default_rng(1))
    optimizer = tg.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    return [train.train_step(net, optimizer, x, y)[0] for x, y in loader.epoch(0)]


DIGESTS = """
import hashlib, numpy as np
from tinygrad_cnn.backends import get, paths
from tinygrad_cnn.backends.numba_backend import threads

numba, rng = get("numba"), np.random.default_rng(0)

def everything():
    layers = (
        (16, 32, 3, 1, 1), (128, 128, 3, 1, 1), (3, 16, 3, 2, 1), (16, 16, 5, 1, 1),
        (32, 32, 3, 2, 1), (64, 32, 3, 1, 2), (64, 64, 3, 1, 64),
    )
    for C, O, k, stride, groups in layers:
        pads = ((k // 2, k // 2), (k // 2, k // 2))
        at = dict(stride=(stride, stride), padding=pads, dilation=(1, 1), groups=groups)
        x = rng.standard_normal((5, 11, 11, C)).astype("f").transpose(0, 3, 1, 2)
        w = rng.standard_normal((O, C // groups, k, k)).astype("f")
        y = numba.conv2d(x, w, **at)
        yield from (y, numba.conv2d_input_grad(y, w, x_shape=x.shape, **at))
        yield numba.conv2d_weight_grad(y, x, w_shape=w.shape, **at)

for n in 1, 2, 3:
    threads.set_threads(n)
    rng, digest = np.random.default_rng(0), hashlib.sha256()
    for a in everything():
        digest.update(np.ascontiguousarray(a))
    print(digest.hexdigest())
"""


def test_the_number_of_threads_does_not_change_a_bit():
    environment = {**os.environ, "NUMBA_NUM_THREADS": "3", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-c", DIGESTS]
    digests = subprocess.check_output(command, env=environment, text=True).split()
    assert len(digests) == 3
    assert len({*digests}) == 1


def test_results_are_channels_last():
    rng = np.random.default_rng(0)
    for C, O in (16, 16), (3, 24):
        x, w = images(rng, 2, C, 6, 5), rng.standard_normal((O, C, 3, 3)).astype(np.float32)
        y, dx, dw, *more = results(NUMBA, x, w, images(rng, 2, O, 6, 5), **ONE)
        assert all(nhwc(a).flags.c_contiguous for a in (y, dx, *more))
        assert dw.flags.c_contiguous
