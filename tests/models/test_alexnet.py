"""AlexNet and its small net: sizes, initial weights, the same networks written out in PyTorch."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import functional as F
from tinygrad_cnn import models, nn
from tinygrad_cnn.random import use_generator
from tinygrad_cnn.summary import summarize

on_every_backend = pytest.mark.usefixtures("backend")
NARROW = dict(widths=(6, 8, 10, 12, 8), hidden=16)


def build(name="alexnet", **settings):
    settings = (NARROW if name == "alexnet" else {}) | settings
    return models.build(name, rng=np.random.default_rng(0), **settings)


def noise(model, n=2, *, dtype="float64"):
    rng = np.random.default_rng(1)
    return tg.Tensor(rng.standard_normal((n, *model.image_shape)), dtype=dtype)


# ---- AlexNet as it is ----


@pytest.fixture(scope="module")
def whole():
    """Build AlexNet for ImageNet's classes."""
    return models.build("alexnet", classes=1000, rng=np.random.default_rng(0))


def test_neurons_and_multiplications_are_the_papers(whole):
    """Section 3.5 counts the neurons of each layer (the first has 55x55x96, not 253,440)."""
    found = summarize(whole)
    neurons = [np.prod(row.output) for row in found.rows if row.kind in ("Conv2d", "Linear")]
    assert neurons == [290_400, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]
    assert found.parameters == whole.num_parameters() == 60_965_224
    assert found.macs == 724_406_816


def test_it_begins_as_section_5_says(whole):
    assert all(p.dtype == np.float32 for p in whole.parameters())
    layers = [m for m in whole.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        w = layer.weight.numpy()
        assert w.mean() == pytest.approx(0, abs=5 * 0.01 / w.size**0.5)
        assert w.std() == pytest.approx(0.01, rel=5 / w.size**0.5)
        np.testing.assert_array_equal(np.unique(layer.bias.numpy()).size, 1)
    assert [layer.bias.numpy()[0] for layer in layers] == [0, 1, 0, 1, 1, 1, 1, 0]


# ---- the same in PyTorch ----


def alexnet_in_pytorch(t):
    """Write AlexNet out, its layers in our order."""
    a, b, c, d, e = NARROW["widths"]
    h, norm, pool = NARROW["hidden"], t.LocalResponseNorm(5, 5e-4, 0.75, 2.0), t.MaxPool2d(3, 2)
    return t.Sequential(
        *(t.Conv2d(3, a, 11, 4), t.ReLU(), norm, pool),
        *(t.Conv2d(a, b, 5, padding=2, groups=2), t.ReLU(), norm, pool),
        *(t.Conv2d(b, c, 3, padding=1), t.ReLU()),
        *(t.Conv2d(c, d, 3, padding=1, groups=2), t.ReLU()),
        *(t.Conv2d(d, e, 3, padding=1, groups=2), t.ReLU(), pool, t.Flatten()),
        *(t.Linear(e * 36, h), t.ReLU(), t.Dropout(0.5)),
        *(t.Linear(h, h), t.ReLU(), t.Dropout(0.5), t.Linear(h, 10)),
    )


def assert_close(received, expected):
    expected = expected.detach().numpy()
    atol = 1e-11 * np.abs(expected).max()
    np.testing.assert_allclose(received.numpy(), expected, rtol=1e-9, atol=atol)


def assert_twins(ours, theirs):
    """Give both the same weights, large enough that every layer counts, and compare gradients."""
    torch = pytest.importorskip("torch")
    theirs, rng = theirs.double().eval(), np.random.default_rng(2)
    pairs = list(zip(ours.astype("float64").eval().parameters(), theirs.parameters(), strict=True))
    for p, q in pairs:
        p.data = rng.standard_normal(p.shape) * (2 / np.prod(p.shape[1:])) ** 0.5
        q.data = torch.tensor(p.numpy())
    x, targets = noise(ours), np.array([3, 4])
    y, expected = ours(x), theirs(torch.tensor(x.numpy()))
    assert_close(y, expected)
    ours.loss(y, targets).backward()
    torch.nn.functional.cross_entropy(expected, torch.tensor(targets)).backward()
    for p, q in pairs:
        assert_close(p.grad, q.grad)


@on_every_backend
def test_alexnet_is_pytorchs():
    assert_twins(build(), alexnet_in_pytorch(pytest.importorskip("torch").nn))


@on_every_backend
@pytest.mark.parametrize("lrn", [True, False], ids=["LRN", "no LRN"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_alexnet_cifar_is_pytorchs(load, lrn, activation):
    pytest.importorskip("torch")
    settings = dict(lrn=lrn, activation=activation)
    theirs = load("torch_models").build("alexnet_cifar", **settings)
    assert_twins(build("alexnet_cifar", **settings), theirs)


# ---- its parts ----


def test_lrn_is_the_papers_formula():
    """Section 3.3: alpha = 1e-4 times the sum over n = 5 channels, not their mean."""
    a = np.random.default_rng(0).uniform(0, 100, (1, 9, 2, 2))
    b = np.empty_like(a)
    for i in range(9):
        near = a[:, max(0, i - 2) : min(8, i + 2) + 1]
        b[:, i] = a[:, i] / (2 + 1e-4 * (near**2).sum(1)) ** 0.75
    norm = build().features[2]
    np.testing.assert_allclose(norm(tg.Tensor(a)).numpy(), b, rtol=1e-12)


def test_groups_see_half_of_the_channels():
    """Section 3.2: the second, fourth and fifth convolutions stay on their own GPU."""
    convolutions = [m for m in build().features if isinstance(m, nn.Conv2d)]
    assert [conv.settings["groups"] for conv in convolutions] == [1, 2, 1, 2, 2]
    x = tg.zeros(1, 6, 5, 5).numpy().copy()
    x[:, 3:] = 1  # the second GPU's channels
    y = convolutions[1](tg.Tensor(x)).numpy() - 1  # less the bias
    assert not y[:, :4].any()
    assert y[:, 4:].all()


def test_dropout_acts_on_two_layers_and_only_in_training():
    model, zeros = build(), []
    for layer in model.classifier:
        if isinstance(layer, nn.Dropout):
            layer.register_forward_hook(lambda m, args, y: zeros.append((y.numpy() == 0).mean()))
    x = noise(model, 8, dtype="float32")
    with use_generator(np.random.default_rng(3)):
        first, second = model(x).numpy(), model(x).numpy()
    assert (first != second).any()
    assert zeros == pytest.approx([0.5] * 4, abs=0.2)  # biases of 1: no ReLU is off by itself
    zeros.clear()
    model.eval()
    np.testing.assert_array_equal(model(x).numpy(), model(x).numpy())
    assert zeros == [0] * 4


@pytest.mark.parametrize("settings", [dict(), dict(lrn=False), dict(activation="tanh")])
def test_the_small_net_has_four_layers(settings):
    model = build("alexnet_cifar", **settings)
    kinds = [type(m).__name__ for m in model.modules()]
    assert [p.ndim for p in model.parameters() if p.ndim > 1] == [4, 4, 4, 2]
    assert kinds.count("LocalResponseNorm") == 2 * settings.get("lrn", True)
    assert kinds.count("Tanh" if "activation" in settings else "ReLU") == 3
    assert model.num_parameters() == 85_098


def test_settings_keep_the_weights():
    """So that LRN on and off, ReLU and tanh begin alike."""
    plain = build("alexnet_cifar").state_dict()
    other = build("alexnet_cifar", lrn=False, activation="tanh").state_dict()
    assert list(plain) == list(other)
    for name, a in plain.items():
        np.testing.assert_array_equal(a, other[name])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: build("alexnet_cifar", activation="gelu"),
            "alexnet_cifar: activation is 'gelu'; expected 'relu', 'tanh'",
        ),
        (lambda: build(widths=(6, 7, 8, 8, 8)), "Conv2d: groups=2 must divide in_channels=6 and"),
        (lambda: build(widths=(8, 8)), "alexnet: widths is (8, 8); expected 5, one for each conv"),
        (lambda: build()(tg.ones(1, 3, 224, 224)), "linear: x is (1, 200), w is (16, 288)"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_it_learns():
    """One image's label, in three steps of the paper's recipe."""
    model = build("alexnet_cifar", activation="tanh")
    sgd = tg.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    x, losses = noise(model, 1, dtype="float32"), []
    for _ in range(3):
        loss = F.cross_entropy(model(x), [3])
        loss.backward()
        sgd.step()
        model.zero_grad()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
