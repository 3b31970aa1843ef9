"""Initial weights: their distribution, the fans it is made from, and what is refused."""

from __future__ import annotations

import math
import re
from functools import partial

import numpy as np
import pytest

from tinygrad_cnn.nn import init

LINEAR, CONV, GROUPED = (300, 200), (64, 32, 5, 3), (96, 8, 3, 3)


# By hand: a unit of CONV sees 32 * 15 values; 64 * 15 units see one value.
@pytest.mark.parametrize(
    ("shape", "fans"), [(LINEAR, (200, 300)), (CONV, (480, 960)), (GROUPED, (72, 864))]
)
def test_fans(shape, fans):
    assert init.fans(shape) == fans


NORMAL = [
    (init.kaiming_normal, LINEAR, math.sqrt(2 / 200)),
    (init.kaiming_normal, CONV, math.sqrt(2 / 480)),
    (partial(init.kaiming_normal, mode="fan_out"), CONV, math.sqrt(2 / 960)),
    (init.normal, LINEAR, 0.01),
    (partial(init.normal, std=0.3), CONV, 0.3),
]


@pytest.mark.parametrize(("initializer", "shape", "std"), NORMAL)
def test_normal(initializer, shape, std):
    w = initializer(shape, np.random.default_rng(0)).astype(np.float64)
    error = std / math.sqrt(w.size)  # of the mean; 4 of them happen once in 16,000
    assert abs(w.mean()) < 4 * error
    assert abs(w.std() - std) < 4 * error
    inside = (np.abs(w) < std).mean()
    assert inside == pytest.approx(0.6827, abs=0.01)  # of a normal distribution, not of another


UNIFORM = [
    (init.kaiming_uniform, LINEAR, 1 / math.sqrt(200)),  # a = sqrt(5): PyTorch's default
    (init.kaiming_uniform, CONV, 1 / math.sqrt(480)),
    (partial(init.kaiming_uniform, mode="fan_out"), CONV, 1 / math.sqrt(960)),
    (partial(init.kaiming_uniform, a=0), LINEAR, math.sqrt(6 / 200)),
    (init.xavier_uniform, LINEAR, math.sqrt(6 / 500)),
    (init.xavier_uniform, CONV, math.sqrt(6 / 1440)),
    (partial(init.uniform, bound=0.5), (50_000,), 0.5),
]


@pytest.mark.parametrize(("initializer", "shape", "bound"), UNIFORM)
def test_uniform(initializer, shape, bound):
    w = initializer(shape, np.random.default_rng(0)).astype(np.float64)
    assert 0.999 * bound < w.max() <= bound * (1 + 1e-6)
    assert -bound * (1 + 1e-6) <= w.min() < -0.999 * bound
    assert w.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert abs(w.mean()) < 0.02 * bound


def test_bounds_are_pytorchs():
    torch = pytest.importorskip("torch")
    for shape in (LINEAR, CONV):
        theirs = torch.empty(shape)
        torch.nn.init.kaiming_uniform_(theirs, a=math.sqrt(5))
        ours = init.kaiming_uniform(shape, np.random.default_rng(0))
        assert np.abs(ours).max() == pytest.approx(float(theirs.abs().max()), rel=1e-3)


@pytest.mark.parametrize(
    "initializer",
    [init.kaiming_normal, init.kaiming_uniform, init.xavier_uniform, init.normal],
)
def test_weights_belong_to_the_generator(initializer):
    a, b, c = (initializer(GROUPED, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


@pytest.mark.parametrize("initializer", [init.kaiming_normal, init.xavier_uniform])
def test_skipped_weights_are_zero_and_draw_nothing(initializer):
    rng, untouched = np.random.default_rng(0), np.random.default_rng(0)
    with init.skipped():
        w = initializer(CONV, rng)
        with pytest.raises(ValueError, match="has no fan-in"), init.skipped():
            initializer((3,), rng)
        assert not initializer(CONV, rng).any()  # an inner block's end, by an error too, is its own
    assert (w.shape, w.dtype, w.any()) == (CONV, np.float32, False)
    np.testing.assert_array_equal(initializer(CONV, rng), initializer(CONV, untouched))


def test_variance_is_kept_through_relu_layers():
    """Ten layers deep the scale is that of the start; with half the variance it is 1/32."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 300))
    for _ in range(10):
        x = np.maximum(x, 0) @ init.kaiming_normal((300, 300), rng).T
    assert 0.5 < x.std() < 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda rng: init.kaiming_normal((3,), rng),
            "init: shape (3,) has no fan-in; expected (out, in) or (O, C, kh, kw)",
        ),
        (lambda rng: init.xavier_uniform((), rng), "init: shape () has no fan-in"),
        (
            lambda rng: init.kaiming_normal(CONV, rng, mode="out"),
            "init: mode is 'out'; expected 'fan_in' or 'fan_out'",
        ),
        (
            lambda rng: init.kaiming_uniform((3, 0), rng),
            "init: shape (3, 0) is empty; expected every size to be at least 1",
        ),
        (lambda rng: init.kaiming_normal((3, -2), rng), "init: shape (3, -2) is empty"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        wrong(np.random.default_rng(0))
