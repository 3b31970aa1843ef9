"""The registry and its networks: sizes, shapes, first losses, and PyTorch's on the same weights."""

from __future__ import annotations

import importlib
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import models
from tinygrad_cnn.models.resnet import build_resnet, shortcut_a
from tinygrad_cnn.models.resnet_imagenet import DEPTHS

pytestmark = pytest.mark.usefixtures("backend")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NARROW = {"alexnet": dict(widths=(4, 4, 6, 4, 4), hidden=8)}  # test_alexnet.py has the whole of it
LARGE = {"resnet1202", "preact_resnet1001", *(f"resnet{depth}" for depth in DEPTHS)}
every_name = pytest.mark.parametrize("name", [n for n in models.names() if n not in LARGE])


@pytest.fixture
def peer(monkeypatch):
    """Give benchmarks/torch_models.py's build."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("torch_models").build


def build(name, **settings):
    settings = NARROW.get(name, {}) | dict(rng=np.random.default_rng(0)) | settings
    return models.build(name, **settings)


def noise(model, n=2, *, dtype="float32", scale=1.0):
    """Draw n images that a model takes, and labels for them."""
    rng = np.random.default_rng(1)
    x = scale * rng.standard_normal((n, *model.image_shape))
    return tg.Tensor(x, dtype=dtype), rng.integers(0, 10, n)


# ---- the registry ----


@every_name
def test_every_model_gives_scores_and_a_loss(name):
    model = build(name)
    x, targets = noise(model)
    scores = model(x)
    assert scores.shape == (2, 10)
    assert scores.dtype == np.float32
    loss = model.loss(scores, targets)
    assert loss.shape == ()
    assert math.isfinite(loss.item())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())  # none lies idle


@every_name
def test_classes_is_the_number_of_scores(name):
    model = build(name, classes=7)
    assert model.eval()(noise(model, 1)[0]).shape == (1, 7)


@every_name
def test_weights_belong_to_the_generator(name):
    same = build(name, rng=tg.manual_seed(0) and None)
    state = build(name).state_dict()
    for key, a in same.state_dict().items():
        np.testing.assert_array_equal(a, state[key])
    other = build(name, rng=np.random.default_rng(1)).state_dict()
    weights = [key for key, a in state.items() if a.ndim > 1]
    assert all((other[key] != state[key]).all() for key in weights)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.build("resent20"), "no model 'resent20'; did you mean 'resnet20'"),
        (lambda: models.build("plain"), "no model 'plain'; did you mean 'plain"),
        (lambda: models.build("xyz"), "no model 'xyz'. There are: softmax, svm, mlp, convnet, len"),
        (lambda: models.build("mlp", classes=0), "build: classes is 0; expected at least 1"),
        (lambda: build_resnet(depth=21), "resnet: depth is 21; expected 6n + 2: 8, 14, 20, 26, 32"),
        (lambda: build_resnet(depth=23), "resnet: depth is 23; expected 6n + 2"),
        (lambda: build_resnet(depth=2), "resnet: depth is 2; expected 6n + 2"),
        (lambda: build("resnet8", shortcut="a"), "resnet: shortcut is 'a'; expected 'A', 'B', 'C'"),
        (lambda: models.build("convnet", size=4), "convnet: size is 4, and 3 pools leave nothing"),
        (lambda: models.build("convnet", widths=()), "convnet: widths is (); expected the sizes"),
        (
            lambda: models.build("mlp", hidden=5),
            "mlp: hidden is 5; expected the sizes of its",
        ),
        (lambda: models.build("mlp")(tg.ones(1, 3, 16, 16)), "linear: x is (1, 768)"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_a_registered_model_is_built(monkeypatch):
    monkeypatch.setattr(models.registry, "_builders", dict(models.registry._builders))
    models.register("own", lambda classes, rng=None: models.classic.MLP(classes, hidden=(3,)))
    assert models.names()[-1] == "own"
    assert models.build("own", classes=2).layers[1].weight.shape == (2, 3)


# ---- sizes: He et al., arXiv 1512.03385, section 4.2, exactly ----

PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}


@pytest.mark.parametrize("shortcut", ["A", None], ids=["resnet", "plain"])
@pytest.mark.parametrize("depth", PARAMETERS)
def test_resnet_parameters(depth, shortcut):
    """Option A's shortcuts have none, so the plain nets have as many."""
    assert build_resnet(depth=depth, shortcut=shortcut).num_parameters() == PARAMETERS[depth]


@pytest.mark.parametrize(("shortcut", "parameters"), [("B", 272_474), ("C", 283_962)])
def test_resnet20_parameters_with_projections(shortcut, parameters):
    assert build("resnet20", shortcut=shortcut).num_parameters() == parameters


# softmax: 3072 * 10 + 10; mlp and convnet: by hand from their widths.
OTHERS = {"softmax": 30_730, "svm": 30_730, "mlp": 820_874, "convnet": 33_834, "lenet5": 61_706}


@pytest.mark.parametrize("name", OTHERS)
def test_other_parameters(name):
    assert build(name).num_parameters() == OTHERS[name]


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_depth_counts_the_layers_with_weights(depth):
    weights = [p for p in build_resnet(depth=depth).parameters() if p.ndim > 1]
    assert len(weights) == depth


# ---- first losses: chance ----


@pytest.mark.parametrize(
    ("name", "chance"), [("softmax", math.log(10)), ("svm", 9.0)], ids=["softmax", "svm"]
)
def test_first_loss_is_chance(name, chance):
    """Images of contrast 0.1 and weights of 0.01 give scores near 0."""
    model = build(name)
    x, targets = noise(model, 200, scale=0.1)
    assert model.loss(model(x), targets).item() == pytest.approx(chance, rel=0.01)


def test_the_svm_has_its_own_loss():
    svm, softmax = build("svm"), build("softmax")
    x, targets = noise(svm)
    np.testing.assert_array_equal(svm(x).numpy(), softmax(x).numpy())
    assert svm.loss(svm(x), targets).item() > 2 * softmax.loss(softmax(x), targets).item()


# ---- the same networks in PyTorch ----


def layered(name):
    """Build a classic network of PyTorch's layers, in the same order."""
    t = importlib.import_module("torch").nn
    convnet = [(t.Conv2d(c, o, 3, padding=1), t.ReLU(), t.MaxPool2d(2)) for c, o in CHANNELS]
    c1, c2, pool = t.Conv2d(1, 6, 5), t.Conv2d(6, 16, 5), t.MaxPool2d(2)
    linear = [t.Linear(400, 120), t.ReLU(), t.Linear(120, 84), t.ReLU(), t.Linear(84, 10)]
    hidden = [t.Linear(3072, 256), t.ReLU(), t.Linear(256, 128), t.ReLU()]
    return t.Sequential(*{
        "softmax": [t.Flatten(), t.Linear(3072, 10)],
        "mlp": [t.Flatten(), *hidden, t.Linear(128, 10)],
        "convnet": [*itertools.chain(*convnet), t.Flatten(), t.Linear(1024, 10)],
        "lenet5": [c1, t.ReLU(), pool, c2, t.ReLU(), pool, t.Flatten(), *linear],
    }[name]).double()  # fmt: skip


CHANNELS = [(3, 16), (16, 32), (32, 64)]


@pytest.mark.parametrize("name", ["softmax", "mlp", "convnet", "lenet5"])
def test_classic_network_is_pytorchs(name):
    torch = pytest.importorskip("torch")
    ours, theirs = build(name).astype("float64"), layered(name)
    with torch.no_grad():
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.copy_(torch.tensor(p.numpy()))
    x, _ = noise(ours, dtype="float64")
    assert_close(ours(x), theirs(torch.tensor(x.numpy())))


def assert_close(received, expected):
    expected = expected.detach().numpy()
    atol = 1e-11 * np.abs(expected).max()
    np.testing.assert_allclose(received.numpy(), expected, rtol=1e-9, atol=atol)


# ---- residual networks ----


def test_shortcut_a_puts_zero_channels_after():
    x, _ = noise(build("resnet8"))
    y = shortcut_a(x, channels=7, stride=2).numpy()
    assert y.shape == (2, 7, 16, 16)
    np.testing.assert_array_equal(y[:, :3], x.numpy()[:, :, ::2, ::2])
    assert not y[:, 3:].any()
    assert shortcut_a(x, channels=3, stride=1) is x


def test_a_block_without_weights_is_its_shortcut():
    """With the branch's last scale at 0 a residual block passes relu(x) on, a plain one nothing."""
    x, _ = noise(build("resnet8"))
    block, plain = build("resnet8").layer1[0], build_resnet(depth=8, shortcut=None).layer1[0]
    h = tg.concatenate([x] * 6, axis=1)[:, :16]
    for each in (block, plain):
        each.bn2.weight.data = np.zeros(16, np.float32)
    np.testing.assert_array_equal(block(h).numpy(), h.relu().numpy())
    assert not plain(h).numpy().any()


@pytest.mark.parametrize(
    ("option", "blocks"),
    [
        ("A", set()),
        ("B", {"layer2.0", "layer3.0"}),
        ("C", {f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1)}),
    ],
)
def test_options_project_where_section_4_1_says(option, blocks):
    state = build_resnet(depth=14, shortcut=option).state_dict()
    assert {key[: len("layer1.0")] for key in state if "shortcut" in key} == blocks


@pytest.mark.parametrize("option", ["B", "C"])
def test_a_projecting_block_is_its_equation(option):
    """Figure 2: relu(F(x) + W x), both normalised."""
    block = build_resnet(depth=8, shortcut=option).layer2[0].astype("float64")
    x = tg.randn(3, 16, 6, 6, dtype="float64", rng=np.random.default_rng(0))
    conv, bn = block.shortcut
    branch = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    assert_close(block(x), (branch + bn(conv(x))).relu())


def twins(peer, name):
    """Make a model here and in PyTorch, with the same weights and statistics, in float64."""
    torch = importlib.import_module("torch")
    ours, theirs = build(name).astype("float64"), peer(name).double()
    state = {key: torch.tensor(a) for key, a in ours.state_dict().items()}
    misfits = theirs.load_state_dict(state, strict=False)
    assert not misfits.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in misfits.missing_keys)
    return torch, ours, theirs


@pytest.mark.parametrize("name", ["resnet20", "plain20"])
def test_resnet_is_pytorchs(peer, name):
    torch, ours, theirs = twins(peer, name)
    x, targets = noise(ours, 3, dtype="float64")
    logits, expected = ours(x), theirs(torch.tensor(x.numpy()))
    assert_close(logits, expected)
    ours.loss(logits, targets).backward()
    torch.nn.functional.cross_entropy(expected, torch.tensor(targets)).backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters()}
    assert list(gradients) == [key for key, _ in ours.named_parameters()]
    for key, p in ours.named_parameters():
        assert_close(p.grad, gradients[key])
    assert_close(ours.eval()(x), theirs.eval()(torch.tensor(x.numpy())))
