"""ImageNet's ResNets: table 1 of the paper, torchvision's names, and PyTorch's logits."""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import models, nn
from tinygrad_cnn.models.resnet_imagenet import DEPTHS, ImageNetResNet
from tinygrad_cnn.summary import summarize

pytestmark = pytest.mark.usefixtures("backend")
PARAMETERS = {
    18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808,
}  # fmt: skip
every_depth = pytest.mark.parametrize("depth", DEPTHS)


def images(H=32, W=32, n=2, dtype="float32"):
    return tg.Tensor(np.random.default_rng(1).standard_normal((n, 3, H, W)), dtype=dtype)


def build(depth, classes=10, **settings):
    return models.build(f"resnet{depth}", classes, rng=np.random.default_rng(0), **settings)


def empty(depth, classes=10):
    with nn.init.skipped():
        return models.build(f"resnet{depth}", classes)


@pytest.fixture
def peers():
    """Give the networks in PyTorch."""
    pytest.importorskip("torch")
    return importlib.import_module("torch_resnets")


# ---- table 1 ----


@every_depth
def test_parameters(depth):
    assert empty(depth, 1000).num_parameters() == PARAMETERS[depth]


@every_depth
def test_depth_counts_the_layers_with_weights(depth):
    weights = [n for n, p in empty(depth).named_parameters() if p.ndim > 1]
    assert len([name for name in weights if "downsample" not in name]) == depth


def test_maps_and_multiplications():
    """The paper has 1.8e9; for ResNet-50, whose stride it has elsewhere, 3.8e9."""
    with nn.init.skipped():
        found = [summarize(models.build(f"resnet{d}", 1000)) for d in (18, 50)]
    assert [round(each.macs / 1e9, 2) for each in found] == [1.81, 4.09]
    for summary, e in zip(found, (1, 4), strict=True):
        outputs = {row.path: row.output for row in summary.rows}
        assert outputs["conv1"] == (64, 112, 112)
        ends = [outputs[f"layer{i}.1.bn{3 if e == 4 else 2}"] for i in (1, 2, 3, 4)]
        assert ends == [(64 * e, 56, 56), (128 * e, 28, 28), (256 * e, 14, 14), (512 * e, 7, 7)]


def test_only_changes_of_shape_are_projected():
    projected = {
        depth: {n.partition(".downsample")[0] for n in empty(depth).state_dict() if "down" in n}
        for depth in (34, 101)
    }
    later = {"layer2.0", "layer3.0", "layer4.0"}
    assert projected == {34: later, 101: {"layer1.0", *later}}


# ---- it trains, on images of any size ----


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("size", [(32, 32), (65, 50)])
def test_any_size_gives_scores_and_gradients(depth, size):
    model = build(depth, classes=7)
    x = images(*size, n=3)
    loss = model.loss(model(x), [0, 6, 3])
    assert np.isfinite(loss.item())
    loss.backward()
    assert all(np.isfinite(p.grad.numpy()).all() for p in model.parameters())


def test_the_size_is_a_setting():
    assert build(18).image_shape == (3, 224, 224)
    assert build(18, size=64).image_shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ImageNetResNet(20), "resnet: depth is 20; expected one of [18, 34, 50, 101, 152]"),
        (lambda: build(18, size=31), "resnet18: size is 31; expected at least 32"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_folding_changes_nothing():
    model = build(18).astype("float64")
    x = images(dtype="float64")
    model(x)  # moves the running statistics
    folded = nn.fold_batch_norm(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    np.testing.assert_allclose(folded(x).numpy(), model.eval()(x).numpy(), rtol=1e-9)


# ---- PyTorch's ----


@every_depth
def test_names_and_shapes_are_torchvisions(peers, depth):
    theirs = peers.torchvision_resnet(depth)
    shapes = {name: tuple(a.shape) for name, a in theirs.state_dict().items()}
    counts = {name for name in shapes if name.endswith("num_batches_tracked")}
    ours = empty(depth, 1000)
    state = {n: t.shape for n, t in [*ours.named_parameters(), *ours.named_buffers()]}
    assert state == {name: shapes[name] for name in shapes.keys() - counts}
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


def torchvisions(depth):
    """Give torchvision's own network if it is installed."""
    return getattr(importlib.import_module("torchvision.models"), f"resnet{depth}")()


@pytest.mark.parametrize("depth", [18, 50])
def test_the_twin_is_torchvisions(peers, depth):
    pytest.importorskip("torchvision", exc_type=Exception)
    twin = peers.shaken(peers.torchvision_resnet(depth))
    theirs = torchvisions(depth)
    theirs.load_state_dict(twin.state_dict())
    x = peers.torch.randn(2, 3, 64, 64)
    with peers.torch.no_grad():
        difference = (theirs.eval()(x) - twin(x)).abs().max()
    assert difference < 1e-4


@pytest.mark.parametrize("depth", [18, 50])
def test_logits_are_pytorchs(peers, depth):
    theirs = peers.shaken(peers.torchvision_resnet(depth))
    ours = empty(depth, 1000).eval()
    ours.load_state_dict(theirs.state_dict())  # strictly, PyTorch's tensors as they are
    x = images(64, 64)
    with tg.no_grad(), peers.torch.no_grad():
        logits, expected = ours(x).numpy(), theirs(peers.torch.tensor(x.numpy())).numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_gradients_are_pytorchs(peers):
    theirs = peers.shaken(peers.torchvision_resnet(50, 10)).double().train()
    ours = empty(50).astype("float64")
    ours.load_state_dict(theirs.state_dict())
    x, targets = images(dtype="float64", n=3), [1, 2, 3]
    ours.loss(ours(x), targets).backward()
    logits = theirs(peers.torch.tensor(x.numpy()))
    peers.F.cross_entropy(logits, peers.torch.tensor(targets)).backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        expected = q.grad.numpy()
        atol = 1e-9 * np.abs(expected).max()
        np.testing.assert_allclose(p.grad.numpy(), expected, 1e-7, atol, err_msg=name)
