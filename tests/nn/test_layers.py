"""Every layer against the function of its name and against PyTorch's layer on the same weights."""

from __future__ import annotations

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import functional as F
from tinygrad_cnn import nn

pytestmark = [
    pytest.mark.kernelwise,
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),  # about PyTorch's speed
]

IMAGES, ROWS = (3, 4, 7, 6), (5, 4)

# Layer, arguments (PyTorch's too), the same as a function, shape of x
CASES = [
    ("Linear", (4, 3), lambda m, x: F.linear(x, m.weight, m.bias), ROWS),
    ("Linear", (4, 3, False), lambda m, x: F.linear(x, m.weight), ROWS),
    ("Conv2d", (4, 6, 3), lambda m, x: F.conv2d(x, m.weight, m.bias), IMAGES),
    (
        "Conv2d",
        (4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, False),
        lambda m, x: F.conv2d(x, m.weight, None, (2, 1), (1, 0), (1, 2), 2),
        IMAGES,
    ),
    (
        "Conv2d",
        (4, 4, 2, 1, "same", 1, 4),
        lambda m, x: F.conv2d(x, m.weight, m.bias, padding="same", groups=4),
        IMAGES,
    ),
    ("LocalResponseNorm", (3, 0.5, 0.6, 2.0), lambda m, x: lrn(x, 3, 0.5, 0.6, 2.0), IMAGES),
    ("LocalResponseNorm", (2,), lambda m, x: lrn(x, 2), IMAGES),
    ("MaxPool2d", (2,), lambda m, x: F.max_pool2d(x, 2), IMAGES),
    ("MaxPool2d", (3, 2, 1), lambda m, x: F.max_pool2d(x, 3, 2, 1), IMAGES),
    ("AvgPool2d", ((3, 2),), lambda m, x: F.avg_pool2d(x, (3, 2)), IMAGES),
    ("AvgPool2d", (3, 1, 1), lambda m, x: F.avg_pool2d(x, 3, 1, 1), IMAGES),
    ("ReLU", (), lambda m, x: F.relu(x), IMAGES),
    ("Identity", (), lambda m, x: x, IMAGES),
    ("Tanh", (), lambda m, x: F.tanh(x), IMAGES),
    ("Flatten", (), lambda m, x: x.reshape(3, 168), IMAGES),
]
lrn = F.local_response_norm
every_layer = pytest.mark.parametrize(
    ("name", "args", "function", "shape"), CASES, ids=[f"{c[0]}{c[1]}" for c in CASES]
)


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def double(layer):
    """Convert a layer to float64, with biases that aren't zero."""
    layer.astype("float64")
    for i, p in enumerate(layer.parameters()):
        p.data = draw(p.shape, seed=i + 1)
    return layer


def twin(torch, layer, name, args):
    """Make PyTorch's layer with the same weights."""
    theirs = getattr(torch.nn, name)(*args).double()
    state = {name: torch.tensor(a) for name, a in layer.state_dict().items()}
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    return theirs


def assert_close(received, expected):
    atol = 1e-11 * np.abs(expected.detach().numpy()).max(initial=1)
    np.testing.assert_allclose(received.numpy(), expected.detach().numpy(), rtol=1e-9, atol=atol)


def assert_same_pass(torch, ours, theirs, *values, **settings):
    """Compare results, the inputs' gradients and the parameters'."""
    mine = [tg.Tensor(v, requires_grad=True) for v in values]
    other = [torch.tensor(v, requires_grad=True) for v in values]
    y, expected = ours(*mine, **settings), theirs(*other)
    assert_close(y, expected)
    g = draw(y.shape, seed=9)
    y.backward(g)
    expected.backward(torch.tensor(g))
    gradients = [x.grad for x in mine] + [p.grad for p in ours.parameters()]
    wanted = [x.grad for x in other] + [p.grad for p in theirs.parameters()]
    for grad, want in zip(gradients, wanted, strict=True):
        assert_close(grad, want)


@every_layer
def test_layer_is_its_function(name, args, function, shape):
    layer, x = double(getattr(nn, name)(*args)), tg.Tensor(draw(shape))
    np.testing.assert_array_equal(layer(x).numpy(), function(layer, x).numpy())


@every_layer
def test_layer_is_pytorchs(name, args, function, shape):
    torch = pytest.importorskip("torch")
    layer = double(getattr(nn, name)(*args))
    assert_same_pass(torch, layer, twin(torch, layer, name, args), draw(shape))


def test_every_layer_is_here():
    elsewhere = {"BatchNorm2d", "Dropout", "GlobalAvgPool2d"}  # below
    layers = {name for name, kind in vars(nn.layers).items() if isinstance(kind, type)}
    layers -= {"Any", "Module", "Parameter", "Tensor", "Sequence"}
    assert layers == {case[0] for case in CASES} | elsewhere


def test_global_average():
    x = draw(IMAGES)
    y = nn.GlobalAvgPool2d()(tg.Tensor(x))
    np.testing.assert_allclose(y.numpy(), x.mean((2, 3)), rtol=1e-12)


# ---- batch norm ----


def batch_norms(torch, **settings):
    ours = double(nn.BatchNorm2d(4, **settings))
    return ours, twin(torch, ours, "BatchNorm2d", (4, *settings.values()))


@pytest.mark.parametrize("settings", [{}, {"eps": 0.1, "momentum": 0.3}], ids=str)
def test_running_statistics_are_pytorchs(settings):
    torch = pytest.importorskip("torch")
    ours, theirs = batch_norms(torch, **settings)
    for batch in range(4):
        x = 3 * draw((2 + batch, 4, 3, 5), seed=batch) + 7
        assert_same_pass(torch, ours, theirs, x)
        for parameter in (*ours.parameters(), *theirs.parameters()):
            parameter.grad = None
        assert_close(ours.running_mean, theirs.running_mean)
        assert_close(ours.running_var, theirs.running_var)
    assert_same_pass(torch, ours.eval(), theirs.eval(), draw(IMAGES))


def test_evaluation_leaves_the_statistics_alone():
    layer = nn.BatchNorm2d(4).eval()
    layer(tg.Tensor(draw(IMAGES).astype("float32")))
    assert layer.running_mean.numpy().tolist() == [0] * 4
    assert layer.running_var.numpy().tolist() == [1] * 4


@pytest.mark.parametrize("training", [True, False])
def test_fused_residual_and_relu_are_pytorchs_in_parts(training):
    torch = pytest.importorskip("torch")
    ours, theirs = batch_norms(torch)
    ours.train(training)
    theirs.train(training)
    x, residual = draw(IMAGES), draw(IMAGES, seed=1)
    a, b = tg.Tensor(x, requires_grad=True), tg.Tensor(residual, requires_grad=True)
    c, d = (torch.tensor(v, requires_grad=True) for v in (x, residual))
    y, expected = ours(a, residual=b, relu=True), torch.relu(theirs(c) + d)
    assert_close(y, expected)
    (y * y).sum().backward()
    (expected * expected).sum().backward()
    pairs = [(a, c), (b, d), *zip(ours.parameters(), theirs.parameters(), strict=True)]
    for mine, other in pairs:
        assert_close(mine.grad, other.grad)


# ---- dropout ----


def test_dropout_draws_from_its_generator():
    x = tg.Tensor(draw(IMAGES))
    y = nn.Dropout(0.3, rng=np.random.default_rng(5))(x)
    same = F.dropout(x, 0.3, True, np.random.default_rng(5))
    np.testing.assert_array_equal(y.numpy(), same.numpy())
    kept = y.numpy() != 0
    assert 0.6 < kept.mean() < 0.8
    np.testing.assert_allclose(y.numpy()[kept], x.numpy()[kept] / 0.7)


def test_dropout_without_one_draws_from_the_default_generator():
    x, layer = tg.ones(100), nn.Dropout()
    first, second, again = (
        (tg.manual_seed(seed) and layer(x)).numpy().tolist() for seed in (0, 1, 0)
    )
    assert first == again != second


def test_dropout_does_nothing_in_evaluation():
    x = tg.ones(100)
    assert nn.Dropout(0.9).eval()(x) is x


# ---- mistakes ----


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "groups=2 must divide in_channels=3 and out_ch"),
        (lambda: nn.Conv2d(4, 6, 3, groups=4), "groups=4 must divide .* out_channels=6"),
        (lambda: nn.Conv2d(4, 6, 3, groups=0), "Conv2d: groups=0 must divide"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), r"Conv2d: kernel_size is \(3, 3, 3\)"),
        (lambda: nn.Conv2d(3, 4, 0), "Conv2d: kernel_size is 0"),
        (lambda: nn.Linear(0, 4), r"shape \(4, 0\) is empty; expected every size to be at least 1"),
        (lambda: nn.Conv2d(0, 4, 3), r"shape \(4, 0, 3, 3\) is empty"),
        (lambda: nn.Dropout(1.5)(tg.ones(3)), "dropout: p is 1.5; expected 0 <= p < 1"),
        (lambda: nn.Linear(4, 2)(tg.ones(1, 4, 2, 2)), r"Images\? x.flatten\(1\)"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        wrong()
