"""Test the tester: gradcheck must notice wrong gradients, and say where they are."""

import re

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn.autograd import OPS, op, recording
from tinygrad_cnn.gradcheck import GradcheckError


@pytest.fixture(autouse=True)
def toy_ops_on_numpy():
    before = dict(OPS)
    with tg.use_backend("numpy"):
        yield
    OPS.clear()
    OPS.update(before)


def leaf(*shape):
    rng = np.random.default_rng(7)
    return tg.randn(*shape, rng=rng, dtype="float64", requires_grad=True)


def cube(vjp):
    """Make the op x**3 with the vjp (g, x) -> dx."""

    @op
    def cube(x):
        return x.data**3, (lambda g: vjp(g, x),)

    return cube


def right(g, x):
    return g * 3.0 * x * x


WRONG = {
    "scaled": lambda g, x: right(g, x) * 1.01,
    "a little": lambda g, x: right(g, x) * (1 + 1e-5),
    "sign": lambda g, x: -right(g, x),
    "zero": lambda g, x: g * 0.0,
    "one element": lambda g, x: right(g, x) * np.array([[1.0, 1.0, 1.0], [1.0, 1.01, 1.0]]),
    "swapped elements": lambda g, x: right(g, x)[:, ::-1],
    "NaN": lambda g, x: right(g, x) * float("nan"),
}


@pytest.mark.parametrize("order", [1, 2, 3])
def test_right_gradients_pass(order):
    assert tg.gradcheck(cube(right), [leaf(2, 3)], order=order) is True


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_gradients_are_caught(mistake):
    with pytest.raises(GradcheckError):
        tg.gradcheck(cube(WRONG[mistake]), [leaf(2, 3)])


def test_a_captured_constant_fails_at_order_2_alone():
    x, constant = leaf(2, 3), cube(lambda g, x: g * 3.0 * (x * x).detach())
    assert tg.gradcheck(constant, [x])
    with pytest.raises(GradcheckError):
        tg.gradcheck(constant, [x], order=2)


def test_order_2_checks_the_gradient_that_is_recorded():
    def of_two_minds(g, x):  # a kernel for the ordinary pass, a formula for the recorded one
        return right(g, x) * (2.0 if recording.get() else 1.0)

    assert tg.gradcheck(cube(of_two_minds), [leaf(2)])
    with pytest.raises(GradcheckError, match=r"\(recorded backward\)$"):
        tg.gradcheck(cube(of_two_minds), [leaf(2)], order=2)


def test_order_2_checks_the_gradient_with_respect_to_the_weights():
    @op
    def scale(x):
        return x.data * 2, (lambda g: (g * 2.0).detach(),)

    assert tg.gradcheck(scale, [leaf(2)])
    with pytest.raises(
        GradcheckError,
        match=r"^gradcheck of order 2: weight 0 of the gradients of order 1 of shape",
    ):
        tg.gradcheck(scale, [leaf(2)], order=2)


def test_the_message_names_input_direction_and_both_values():
    y, x = leaf(2), leaf(3)

    def fn(y, x):
        return (y * y).sum() + cube(WRONG["scaled"])(x).sum()

    with pytest.raises(GradcheckError) as error:
        tg.gradcheck(fn, [y, x])
    found = re.fullmatch(
        r"gradcheck of order 1: input 1 of shape \(3,\), direction 0: "
        r"expected (\S+) \(finite differences\), received (\S+) \(backward\)",
        str(error.value),
    )
    expected, received = map(float, found.groups())
    assert received / expected == pytest.approx(1.01, rel=1e-6)


@pytest.mark.parametrize("seen", [0, 1, 2])
def test_every_direction_is_checked(seen):
    """A vjp that is wrong only the last time it is called."""
    calls = []

    def late(g, x):
        calls.append(1)
        return right(g, x) * (1.01 if len(calls) == seen + 1 else 1.0)

    with pytest.raises(GradcheckError, match=f"direction {seen}"):
        tg.gradcheck(cube(late), [leaf(2)], directions=seen + 1)
    assert len(calls) == seen + 1


def test_several_outputs_are_each_checked():
    wrong = cube(WRONG["scaled"])
    assert tg.gradcheck(lambda x: (x * 2.0, cube(right)(x)), [leaf(2)], order=2)
    for fn in (lambda x: (wrong(x), x * 2.0)), (lambda x: (x * 2.0, wrong(x))):
        with pytest.raises(GradcheckError):
            tg.gradcheck(fn, [leaf(2)])


def test_cancellation_does_not_hide_in_a_sum():
    """The right gradient along a direction may be near 0 though its parts are large."""
    x = tg.tensor([1e6, -1e6], dtype="float64", requires_grad=True)
    assert tg.gradcheck(lambda x: (x * x).sum(), [x], rtol=1e-6)


def test_inputs_that_need_no_gradient_are_left_alone():
    index = tg.Tensor(np.array([2, 0]))
    frozen = tg.ones(2, dtype="float64")
    assert tg.gradcheck(lambda x, i, f: x[i] * f, [leaf(3), index, frozen], order=2)
    assert frozen.grad is index.grad is None


def test_outputs_that_ignore_an_input_or_all_inputs():
    constant = tg.ones(2, dtype="float64")
    assert tg.gradcheck(lambda x, y: (x * 2.0, constant), [leaf(2), leaf(3)], order=2)
    assert tg.gradcheck(lambda x: constant, [leaf(2)], order=2)
    with pytest.raises(GradcheckError):  # recorded as constant, though it changes
        tg.gradcheck(lambda x: x.detach() * 2.0, [leaf(2)])


def test_empty_inputs_have_nothing_to_check():
    assert tg.gradcheck(cube(right), [leaf(0, 3)], order=2)


def test_the_caller_s_tensors_are_not_touched():
    x = leaf(2, 3)
    before = x.data.copy()
    tg.gradcheck(cube(right), [x], order=2)
    assert (x.data == before).all()
    assert x.grad is None


def test_the_same_directions_are_drawn_every_time_unless_told():
    drawn = []

    def fn(x):
        drawn.append(x.numpy().copy())
        return x * x

    for rng in None, None, np.random.default_rng(1):
        tg.gradcheck(fn, [leaf(2)], rng=rng)
    first, second, third = np.split(np.array(drawn), 3)
    assert (first == second).all()
    assert not (first == third).all()


def test_single_precision_is_refused():
    x = tg.ones(2, requires_grad=True)
    with pytest.raises(
        TypeError, match=r"^gradcheck: got float32 inputs, too coarse to check; use"
    ):
        tg.gradcheck(cube(right), [x])


def test_inputs_without_gradients_are_refused():
    with pytest.raises(ValueError, match=r"^gradcheck: no input requires a gradient; expected at"):
        tg.gradcheck(cube(right), [tg.ones(2, dtype="float64")])


def test_order_0_is_refused():
    with pytest.raises(ValueError, match=r"^gradcheck: order is 0; expected 1 or more"):
        tg.gradcheck(cube(right), [leaf(2)], order=0)
