"""ResNet-9: its size, and the same network written out in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import models, nn
from tinygrad_cnn.summary import summarize

pytestmark = pytest.mark.usefixtures("backend")


def build(**settings):
    return models.build("resnet9", rng=np.random.default_rng(0), **settings)


def images(dtype="float64"):
    return tg.Tensor(np.random.default_rng(1).standard_normal((2, 3, 32, 32)), dtype=dtype)


def test_size():
    found = summarize(build())
    assert found.parameters == 6_573_120
    assert round(found.macs / 1e6) == 379
    outputs = {row.path: row.output for row in found.rows}
    assert outputs["prep.conv"] == (64, 32, 32)
    assert outputs["layer1.1"] == (128, 16, 16)
    assert outputs["layer2.1"] == (256, 8, 8)
    assert outputs["layer3.1"] == (512, 4, 4)


def test_nothing_but_batch_norm_has_a_bias():
    biases = {key for key, _ in build().named_parameters() if key.endswith("bias")}
    assert biases == {key for key, _ in build().named_parameters() if key.endswith("bn.bias")}
    assert len(biases) == 8


def test_scores_are_scaled():
    x = images("float32")
    np.testing.assert_array_equal(8 * build()(x).numpy(), build(scale=1.0)(x).numpy())


def in_pytorch():
    """Write dawn.py's network out, its layers in our order."""
    t = pytest.importorskip("torch").nn

    class Residual(t.Module):
        def __init__(self, channels):
            super().__init__()
            self.blocks = t.Sequential(block(channels, channels), block(channels, channels))

        def forward(self, x):
            return x + self.blocks(x)

    def block(c, o):
        return t.Sequential(t.Conv2d(c, o, 3, padding=1, bias=False), t.BatchNorm2d(o), t.ReLU())

    half = t.MaxPool2d(2)
    return t.Sequential(
        block(3, 64),
        *(block(64, 128), half, Residual(128)),
        *(block(128, 256), half),
        *(block(256, 512), half, Residual(512)),
        *(t.MaxPool2d(4), t.Flatten(), t.Linear(512, 10, bias=False)),
    ).double()


def assert_close(received, expected):
    expected = expected.detach().numpy()
    atol = 1e-11 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(received.numpy(), expected, rtol=1e-9, atol=atol)


def test_it_is_pytorchs():
    torch = pytest.importorskip("torch")
    ours, theirs = build().astype("float64"), in_pytorch()
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    with torch.no_grad():
        for p, q in pairs:
            q.copy_(torch.tensor(p.numpy()))
    x, targets = images(), np.array([3, 4])
    y, expected = ours(x), 0.125 * theirs(torch.tensor(x.numpy()))
    assert_close(y, expected)
    ours.loss(y, targets).backward()
    torch.nn.functional.cross_entropy(expected, torch.tensor(targets)).backward()
    for p, q in pairs:
        assert_close(p.grad, q.grad)
    assert_close(ours.eval()(x), 0.125 * theirs.eval()(torch.tensor(x.numpy())))


def test_folding_changes_nothing():
    model = build().astype("float64")
    model(images())  # moves the running statistics
    folded = nn.fold_batch_norm(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    np.testing.assert_allclose(folded(images()).numpy(), model.eval()(images()).numpy(), rtol=1e-9)
