"""Every op and functional against PyTorch in float64: results and gradients."""

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes as broadcastable

import tinygrad_cnn as tg
from tinygrad_cnn import functional as F
from tinygrad_cnn.testing import arrays, conv2d_cases, image_batches, pool2d_cases, shapes

torch = pytest.importorskip("torch")
T = torch.nn.functional

pytestmark = [
    pytest.mark.kernelwise,
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),  # about PyTorch's speed
]

REAL, POSITIVE = arrays(), arrays(low=0.1)
COARSE = arrays(step=0.5)  # at kinks and ties, too, the gradient is PyTorch's
REDUCTION = st.sampled_from(["mean", "sum", "none"])


def assert_same(received, expected):
    """Compare an array or Tensor with PyTorch's, to 1e-9, and 1e-11 of the largest value.

    That value is at least 1: where softmax or sigmoid saturate, a gradient is the difference of
    numbers near 1, and all of it may be rounding.
    """
    expected = expected.detach().numpy()
    atol = 1e-11 * np.abs(expected).max(initial=1)
    np.testing.assert_allclose(received.numpy(), expected, rtol=1e-9, atol=atol)


def compare(ours, theirs, *values):
    """Run both on the same values; compare the results, then the gradients of all inputs."""
    mine = [tg.Tensor(v, requires_grad=True) for v in values]  # a copy would lose the layout
    other = [torch.tensor(v.copy(), requires_grad=True) for v in values]
    y, expected = ours(*mine), theirs(*other)
    assert_same(y, expected)
    g = np.random.default_rng(0).uniform(-1, 1, y.shape).astype(y.dtype)
    y.backward(g)
    expected.backward(torch.tensor(g))
    for x, twin in zip(mine, other, strict=True):
        assert_same(x.grad, twin.grad)


# ---- elementwise ----

ELEMENTWISE = {
    "neg": (lambda x: -x, REAL),
    "numbers": (lambda x: 1 - (2 * x - 3) / 4 + 5, REAL),
    "reciprocal": (lambda x: 2 / x, POSITIVE),
    "x ** 0": (lambda x: x**0, COARSE),
    "x ** 1": (lambda x: x**1, COARSE),
    "x ** 2": (lambda x: x**2, COARSE),
    "x ** 3": (lambda x: x**3, COARSE),
    "x ** -1.5": (lambda x: x**-1.5, POSITIVE),
    "exp": (lambda x: x.exp(), REAL),
    "log": (lambda x: x.log(), POSITIVE),
    "sqrt": (lambda x: x.sqrt(), POSITIVE),
    "abs": (lambda x: x.abs(), COARSE),
    "abs()": (abs, COARSE),
    "clip": (lambda x: x.clip(-0.5, 1.0), COARSE),
    "clip below": (lambda x: x.clip(0.5), COARSE),
    "clip above": (lambda x: x.clip(None, 0.5), COARSE),
    "tanh": (lambda x: x.tanh(), REAL),
    "relu": (lambda x: x.relu(), COARSE),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(data=st.data())
def test_elementwise(name, data):
    fn, values = ELEMENTWISE[name]
    compare(fn, fn, data.draw(values))


ACTIVATIONS = [
    (F.relu, T.relu, COARSE),
    (F.leaky_relu, T.leaky_relu, COARSE),
    (lambda x: F.leaky_relu(x, 0.3), lambda x: T.leaky_relu(x, 0.3), COARSE),
    (F.sigmoid, T.sigmoid, arrays(low=-1000, high=1000)),
    (F.tanh, T.tanh, REAL),
    (F.gelu, T.gelu, REAL),
    (F.erf, torch.erf, REAL),
]


@pytest.mark.parametrize(("ours", "theirs", "values"), ACTIVATIONS, ids=range(len(ACTIVATIONS)))
@given(data=st.data())
def test_activations(ours, theirs, values, data):
    compare(ours, theirs, data.draw(values))


BINARY = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "all": lambda x, y: (x + y) * (x - y) / y - y,
}


@pytest.mark.parametrize("name", BINARY)
@given(st.data(), broadcastable(num_shapes=2, max_dims=4, max_side=4))
def test_broadcasting(name, data, broadcast):
    x, y = (data.draw(arrays(shape, low=0.5)) for shape in broadcast.input_shapes)
    compare(BINARY[name], BINARY[name], x, y)


@given(st.data(), broadcastable(num_shapes=3, max_dims=4, max_side=4))
def test_where(data, broadcast):
    x, y, noise = (data.draw(arrays(shape)) for shape in broadcast.input_shapes)
    assume(noise.ndim <= max(x.ndim, y.ndim))
    compare(
        lambda x, y: tg.where(noise > 0, x, y),
        lambda x, y: torch.where(torch.tensor(noise > 0), x, y),
        *(x, y),
    )


# ---- reductions ----

REDUCE = {
    "sum": (lambda x, **at: x.sum(**at), torch.sum),
    "mean": (lambda x, **at: x.mean(**at), torch.mean),
    "var": (lambda x, **at: x.var(**at), lambda x, **at: torch.var(x, correction=0, **at)),
    "max": (lambda x, **at: x.max(**at), torch.amax),
    "min": (lambda x, **at: x.min(**at), torch.amin),
    "logsumexp": (lambda x, **at: x.logsumexp(**at), torch.logsumexp),
}


@st.composite
def arrays_and_axes(draw):
    """Draw an array, and some of its axes: None, one, or several, counted from either end."""
    x = draw(st.one_of(arrays(shapes(1, 4)), arrays(shapes(1, 4), step=0.5)))
    one = st.integers(-x.ndim, x.ndim - 1)
    several = st.lists(one, min_size=1, unique_by=lambda axis: axis % x.ndim).map(tuple)
    return x, draw(st.one_of(st.none(), one, several))


@pytest.mark.parametrize("name", REDUCE)
@given(case=arrays_and_axes(), keepdims=st.booleans())
def test_reductions(name, case, keepdims):
    (ours, theirs), (x, axis) = REDUCE[name], case
    dim = tuple(range(x.ndim)) if axis is None else axis
    compare(
        lambda x: ours(x, axis=axis, keepdims=keepdims),
        lambda x: theirs(x, dim=dim, keepdim=keepdims),
        x,
    )


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@given(st.data(), arrays(shapes(1, 4), low=-500, high=500))
def test_softmax(name, data, x):
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    compare(lambda x: getattr(F, name)(x, axis), lambda x: getattr(T, name)(x, axis), x)


# ---- shape ----

MOVES = {
    "reshape": (lambda x: x.reshape(4, -1), lambda x: x.reshape(4, -1)),
    "flatten": (lambda x: x.flatten(1), lambda x: x.flatten(1)),
    "flatten all": (lambda x: x.flatten(), lambda x: x.flatten()),
    "transpose": (lambda x: x.transpose(-1, 0), lambda x: x.transpose(-1, 0)),
    "permute": (lambda x: x.permute(2, -4, 3, 1), lambda x: x.permute(2, -4, 3, 1)),
    "astype": (lambda x: x.astype("float32") * 3, lambda x: x.float() * 3),
    "T": (lambda x: x.T, lambda x: x.permute(3, 2, 1, 0)),
    "pad": (lambda x: F.pad(x, (1, 0, 2, 3)), lambda x: T.pad(x, (1, 0, 2, 3))),
    "concatenate": (lambda x: tg.concatenate([x, x * x], -2), lambda x: torch.cat([x, x * x], -2)),
    "stack": (lambda x: tg.stack([x, x * x], -1), lambda x: torch.stack([x, x * x], -1)),
    "stack first": (lambda x: tg.stack([x, x * x]), lambda x: torch.stack([x, x * x])),
    "iterate": (sum, sum),
}


@pytest.mark.parametrize("name", MOVES)
@given(x=arrays((2, 3, 4, 5)))
def test_moves(name, x):
    compare(*MOVES[name], x)


INDICES = [
    0, -1, slice(1, 3), slice(None, None, 2), None, ..., (), True,
    (0, 1, 2), (slice(None), 2), (..., -1), (None, 1, ..., None), (slice(2, 0),), np.int64(1),
    [0, 2, 0, 0], np.array([[1, 2], [1, 1]]), (slice(None), [1, 1, -1]), (1, [0, 1, 1]),
    ([0, 2, 0], [1, 3, 1]), ([0, 1], slice(1, 3), [4, 4]), (..., [0, 0]), (None, [0, 0]),
    np.indices((3, 4, 5)).sum(0) % 2 == 0, (np.array([True, False, True]), 1),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=repr)
@given(x=arrays((3, 4, 5)))
def test_indexing(index, x):
    compare(lambda x: x[index], lambda x: x[index], x)


def test_indexing_backwards_and_by_tensors():
    """PyTorch has no negative steps, so flip is the oracle."""
    x = np.random.default_rng(0).standard_normal((3, 4, 5))
    compare(lambda x: x[::-1, 3:0:-1], lambda x: x.flip(0, 1)[:, :3], x)
    compare(lambda x: x[x > 0], lambda x: x[x > 0], x)
    compare(lambda x: x[tg.tensor(np.array([1, 1]))], lambda x: x[[1, 1]], x)


# ---- matrix products ----


@given(st.data(), broadcastable(signature="(n,k),(k,m)->(n,m)", max_dims=2, max_side=4))
def test_matmul(data, broadcast):
    x, y = (data.draw(arrays(shape)) for shape in broadcast.input_shapes)
    compare(lambda x, y: x @ y, lambda x, y: x @ y, x, y)


@given(st.data(), st.tuples(*[st.integers(1, 5)] * 3), st.booleans())
def test_linear(data, sizes, bias):
    n, i, o = sizes
    operands = [data.draw(arrays(shape)) for shape in ((n, i), (o, i), (o,))[: 2 + bias]]
    compare(F.linear, T.linear, *operands)


# ---- images ----


@given(case=conv2d_cases(), bias=st.booleans())
def test_conv2d(case, bias):
    x, w, settings = case
    operands = [x, w, np.linspace(-1, 1, len(w))][: 2 + bias]
    compare(lambda *t: F.conv2d(*t, **settings), lambda *t: T.conv2d(*t, **settings), *operands)


@pytest.mark.parametrize("context", [nullcontext, tg.unfused], ids=["fused", "unfused"])
@given(case=conv2d_cases(), bias=st.booleans(), residual=st.booleans(), relu=st.booleans())
def test_conv2d_with_residual_and_relu(context, case, bias, residual, relu):
    x, w, settings = case
    like_y = np.indices(F.conv2d(tg.Tensor(x), tg.Tensor(w), **settings).shape).sum(axis=0) % 7
    operands = [x, w, *[np.linspace(-1, 1, len(w))] * bias, *[like_y - 3.3] * residual]

    def ours(x, w, *rest):
        at = dict(residual=rest[-1] if residual else None, relu=relu)
        return F.conv2d(x, w, rest[0] if bias else None, **settings, **at)

    def theirs(x, w, *rest):
        y = T.conv2d(x, w, rest[0] if bias else None, **settings)
        y = y + rest[-1] if residual else y
        return T.relu(y) if relu else y

    with context():
        compare(ours, theirs, *operands)


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
@given(case=st.one_of(pool2d_cases(tie_free=True), pool2d_cases(tie_free=False)))
def test_pooling(name, case):
    x, at = case
    compare(lambda x: getattr(F, name)(x, **at), lambda x: getattr(T, name)(x, **at), x)


@given(image_batches())
def test_global_average(x):
    compare(F.global_avg_pool2d, lambda x: T.adaptive_avg_pool2d(x, 1).flatten(1), x)


@given(
    image_batches(channels=st.integers(1, 7)),
    st.integers(1, 5),
    st.fixed_dictionaries(
        {}, optional=dict(alpha=st.floats(0, 2), beta=st.floats(0, 2), k=st.floats(0.5, 2))
    ),
)
def test_local_response_norm(x, size, at):
    compare(
        lambda x: F.local_response_norm(x, size, **at),
        lambda x: T.local_response_norm(x, size, **at),
        x,
    )


# ---- batch norm ----


@st.composite
def batch_norms(draw):
    """Draw x, weight, bias, perhaps a residual, and the settings."""
    x = draw(image_batches())
    training = draw(st.booleans())
    assume(x.size // x.shape[1] > 1 or not training)
    c = x.shape[1:2]
    operands = [x, draw(arrays(c)), draw(arrays(c))]
    if draw(st.booleans()):
        operands.append(draw(arrays(x.shape)))
    at = dict(momentum=draw(st.floats(0, 1)), eps=draw(st.floats(1e-5, 0.1)))
    return operands, draw(arrays(c)), draw(arrays(c, low=0.5)), training, at


@pytest.mark.parametrize("context", [nullcontext, tg.unfused], ids=["fused", "unfused"])
@given(case=batch_norms(), relu=st.booleans())
def test_batch_norm(context, case, relu):
    operands, mean, var, training, at = case
    running = [tg.tensor(mean), tg.tensor(var)]
    running_twin = [torch.tensor(mean), torch.tensor(var)]

    def ours(x, w, b, *rest):
        residual = rest[0] if rest else None
        return F.batch_norm(x, *running, w, b, training, **at, residual=residual, relu=relu)

    def theirs(x, w, b, *rest):
        y = sum(rest, T.batch_norm(x, *running_twin, w, b, training, **at))
        return T.relu(y) if relu else y

    with context():
        compare(ours, theirs, *operands)
    for statistic, twin in zip(running, running_twin, strict=True):
        assert_same(statistic, twin)


def test_statistics_far_from_zero():
    """E[x^2] - E[x]^2 would have no digit left."""
    x = (1000 + np.random.default_rng(0).standard_normal((8, 3, 4, 4))).astype("float32")
    one, zero, mean, var = tg.ones(3), tg.zeros(3), tg.zeros(3), tg.zeros(3)
    y = F.batch_norm(tg.Tensor(x), mean, var, one, zero, True, momentum=1.0)
    exact = torch.tensor(x.astype("float64"))
    expected = T.batch_norm(exact, None, None, training=True)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(var.numpy(), torch.var(exact, dim=(0, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize(
    ("context", "ops"),
    [(nullcontext, ["batch_norm"]), (tg.unfused, ["batch_norm", "add", "relu"])],
)
def test_hooks_see_the_parts_of_what_is_unfused(context, ops):
    x, c = tg.ones(2, 3, 4, 5), tg.ones(3)
    seen = []
    with context(), tg.forward_hook(lambda name, inputs, output: seen.append(name)):
        F.batch_norm(x, c, c, c, c, False, residual=x, relu=True)
    assert seen == ops


# ---- losses ----


@st.composite
def scores_and_targets(draw):
    """Draw scores (N, K) and class numbers (N,)."""
    n, k = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    targets = st.lists(st.integers(0, k - 1), min_size=n, max_size=n)
    return draw(arrays((n, k), low=-500, high=500)), np.array(draw(targets), "int64")


@given(scores_and_targets(), st.floats(0, 1), REDUCTION)
def test_cross_entropy(case, smoothing, reduction):
    logits, targets = case
    at = dict(label_smoothing=smoothing, reduction=reduction)
    compare(
        lambda x: F.cross_entropy(x, targets, **at),
        lambda x: T.cross_entropy(x, torch.tensor(targets), **at),
        logits,
    )


@given(scores_and_targets(), st.floats(0.1, 5), REDUCTION)
def test_hinge_loss(case, margin, reduction):
    scores, targets = case
    at = dict(margin=margin, reduction=reduction)
    compare(
        lambda x: F.hinge_loss(x, targets, **at),
        lambda x: x.shape[1] * T.multi_margin_loss(x, torch.tensor(targets), **at),
        scores,
    )


@given(st.data(), shapes(), REDUCTION)
def test_mse_loss(data, shape, reduction):
    x, target = data.draw(arrays(shape)), data.draw(arrays(shape))
    at = dict(reduction=reduction)
    compare(lambda *t: F.mse_loss(*t, **at), lambda *t: T.mse_loss(*t, **at), x, target)


# ---- dropout, which draws its own mask: statistics instead of values ----


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout(p):
    x = tg.ones(100, 200, requires_grad=True)
    y = F.dropout(x, p, rng=np.random.default_rng(0))
    kept = y.numpy() > 0
    np.testing.assert_allclose(y.numpy()[kept], 1 / (1 - p), rtol=1e-6)
    assert abs(kept.mean() - (1 - p)) < 5 * np.sqrt(p * (1 - p) / x.size)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())  # x is 1, so y is the mask


def test_dropout_in_evaluation_does_nothing():
    x = tg.ones(2, 3)
    assert F.dropout(x, 0.5, training=False) is x
    assert F.dropout(x, 0.0) is x


@pytest.mark.parametrize("p", [-0.1, 1, 1.5])
def test_dropout_wants_a_probability(p):
    with pytest.raises(ValueError, match=f"dropout: p is {p}; expected 0 <= p < 1"):
        F.dropout(tg.ones(2), p)


def test_dropout_follows_its_generator():
    draws = [F.dropout(tg.ones(50), 0.5, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)]
    first, again, other = (y.numpy() for y in draws)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
