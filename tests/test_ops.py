"""Every op, every case of the table, on every backend that can run here."""

import operator
import sys

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import functional as F
from tinygrad_cnn import selftest, testing
from tinygrad_cnn.autograd import OPS, op
from tinygrad_cnn.selftest import CASES, CHECKS, Case
from tinygrad_cnn.testing import assert_adjoint, assert_multilinear_adjoint, ladder_values

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.kernelwise]
OURS = {name for name, op in OPS.items() if op.__module__.startswith("tinygrad_cnn.")}


def test_the_table_is_complete():
    assert {case.op for case in CASES} == OURS
    assert selftest.LINEAR | selftest.MULTILINEAR | selftest.NO_ACTIVATIONS <= OURS


CHECKED = [
    pytest.param(check, case, id=f"{check.__name__} {row} {case}")
    for row, case in enumerate(CASES)
    for check in CHECKS
    if selftest.applies(check, case)
]


@pytest.mark.parametrize(("check", "case"), CHECKED)
def test_op(check, case):
    check(case)


@pytest.mark.parametrize("case", CASES, ids=[f"{row} {case}" for row, case in enumerate(CASES)])
def test_a_case_records_its_op(case):
    seen = []
    with tg.forward_hook(lambda name, inputs, output: seen.append(name)):
        y = case(*case.inputs())
    assert seen == [case.op]
    assert y.node.op == case.op


# ---- the tools that the checks are made of ----


def test_adjoints_notice_one_percent_in_float32():
    x, y = (tg.randn(3, 4, 5, rng=np.random.default_rng(0), requires_grad=True) for _ in "xy")
    assert_adjoint(lambda x, y: x - 2.0 * y, x, y)
    assert_multilinear_adjoint(lambda x, y: x * y * 3.0, x, y)
    wrong = lambda x: x.relu() * 1.01 - (x.detach().relu() * 0.01)  # noqa: E731
    for check in assert_adjoint, assert_multilinear_adjoint:
        with pytest.raises(AssertionError, match="adjoint: <fn"):
            check(wrong, x)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3, 4)])
def test_a_ladder_has_no_ties_and_no_zero(shape):
    rungs = np.sort(ladder_values(shape, np.random.default_rng(0), step=0.5), axis=None)
    assert rungs.size == np.prod(shape)
    assert np.abs(rungs).min() == 0.25
    np.testing.assert_allclose(np.diff(rungs), 0.5)


def test_strategies_without_hypothesis_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"pip install 'tinygrad_cnn\[test\]'"):
        testing.shapes()


# ---- the self-test itself ----


def negated(x):
    return x.backend.map(operator.neg, x.data)


def minus(g):
    return -g


WRONG_NEGATIONS = [
    ("check_gradients", lambda x: (negated(x), (lambda g: g * -1.01,))),
    ("check_gradients", lambda x: (negated(x), (lambda g: g.constant(negated(g)),))),
    ("check_adjoint", lambda x: (negated(x), (lambda g: g * -1.01,))),
    ("check_dtype", lambda x: (negated(x).astype("float64"), (minus,))),
    ("check_dtype", lambda x: (negated(x), (lambda g: -g.astype("float64"),))),
    ("check_layout", lambda x: (negated(x).copy("C"), (minus,))),
    ("check_layout", lambda x: (negated(x), (lambda g: g.constant(negated(g).copy("C")),))),
    ("check_purity", lambda x: (operator.imul(x.data, -1), (minus,))),
    ("check_purity", lambda x: (x.data.view(), (minus,))),
    ("check_agreement", lambda x: (negated(x) * (1.01 if x.dtype == "float32" else 1), (minus,))),
]


@pytest.fixture
def engine(monkeypatch):
    """Put the right `neg` back after a test that has replaced it."""
    monkeypatch.setitem(OPS, "neg", OPS["neg"])


@pytest.mark.parametrize(("check", "wrong"), WRONG_NEGATIONS, ids=range(len(WRONG_NEGATIONS)))
@pytest.mark.usefixtures("engine")
def test_every_check_can_fail(check, wrong, backend):
    wrong.__name__ = "neg"
    op(wrong)
    with pytest.raises(AssertionError):
        getattr(selftest, check)(Case("neg", (2, 3, 4, 5)))
    result = next(result for result in selftest.run(backend) if result.op == "neg")
    assert not result.passed
    assert result.message.startswith("check_")


def test_every_check_is_seen_to_fail():
    assert {check for check, _ in WRONG_NEGATIONS} == {check.__name__ for check in CHECKS}


def test_run_gives_a_line_per_op(backend):
    results = list(selftest.run(backend))
    assert [result.op for result in results] == list(dict.fromkeys(case.op for case in CASES))
    assert not [result for result in results if not result.passed or result.message]
    assert all(result.checks >= 4 and result.seconds > 0 for result in results)


def test_a_masked_class_costs_nothing(backend):
    logits = tg.tensor([[0.0, -np.inf, 1.0]], requires_grad=True)
    loss = F.cross_entropy(logits, [2])
    loss.backward()
    assert loss.item() == pytest.approx(np.log1p(np.exp(-1)))
    assert logits.grad.numpy()[0, 1] == 0


def test_sigmoid_is_precise_where_it_is_small(backend):
    x, expected = tg.tensor([-20.0, 0.0, 200.0]), [np.exp(-20) / (1 + np.exp(-20)), 0.5, 1]
    np.testing.assert_allclose(F.sigmoid(x).numpy(), expected, rtol=3e-7)  # a few ulps


def test_the_gradient_of_a_quotient_of_small_numbers_does_not_overflow(backend):
    y = tg.tensor([1e-25], requires_grad=True)
    (tg.tensor([1e-25]) / y).sum().backward()
    np.testing.assert_allclose(y.grad.numpy(), [-1e25], rtol=1e-5)


def test_extremes_of_unsigned_integers(backend):
    x = tg.Tensor(np.array([0, 3], np.uint8))
    assert (x.min().item(), x.max().item()) == (0, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 13])
def test_local_response_norm_by_its_definition(backend, size):
    """Of an even number of neighbours, one more stands before than after, as in PyTorch."""
    x = np.random.default_rng(0).standard_normal((1, 7, 1, 1)).astype("f")
    squares = [(x[:, max(0, c - size // 2) : c + (size + 1) // 2] ** 2).sum() for c in range(7)]
    expected = x.reshape(7) / (1.5 + 0.7 / size * np.array(squares)) ** 0.6
    received = F.local_response_norm(tg.tensor(x), size, 0.7, 0.6, 1.5)
    np.testing.assert_allclose(received.numpy().reshape(7), expected, rtol=1e-5)
