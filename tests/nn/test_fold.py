"""Folding batch norm into convolutions: the same function, fewer passes, the original untouched."""

from __future__ import annotations

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import models, nn
from tinygrad_cnn.nn.fold import FoldedConv2d

pytestmark = pytest.mark.usefixtures("backend")


def pattern(**conv):
    """[conv - batch norm - relu] twice, then a classifier."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, **conv), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 6, 3, **conv), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.GlobalAvgPool2d(), nn.Linear(6, 4)),
    )


MODELS = {
    "no bias": (lambda: pattern(bias=False), 2),
    "bias and padding": (lambda: pattern(padding=1), 2),
    "bare": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.BatchNorm2d(3, eps=0.1)), 1),
    "resnet8": (lambda: models.build("resnet8"), 7),
    "resnet20": (lambda: models.build("resnet20"), 19),
    "plain20": (lambda: models.build("plain20"), 19),
}
every_model = pytest.mark.parametrize(("make", "folds"), MODELS.values(), ids=MODELS)


def images(dtype="float64", n=2):
    return tg.Tensor(np.random.default_rng(0).standard_normal((n, 3, 12, 10)), dtype=dtype)


def lived_in(make, dtype="float64"):
    """Make a model whose parameters and statistics are all different from those it began with."""
    rng = np.random.default_rng(1)
    model = make().astype(dtype)
    for name, t in model._named_tensors():
        factor = t.ndim == 1 and name.endswith(("running_var", "weight"))  # of batch norm
        fan_in = t.size / t.shape[0] if t.ndim > 1 else 1
        values = rng.uniform(0.5 if factor else -1, 2 if factor else 1, t.shape) / fan_in**0.5
        t.data = values.astype(dtype)
    return model


@every_model
def test_folded_equals_evaluation(make, folds):
    model = lived_in(make)
    folded = nn.fold_batch_norm(model)
    expected = model.eval()(images()).numpy()
    assert expected.std() > 1e-3  # or all of this would be about nothing
    np.testing.assert_allclose(folded(images()).numpy(), expected, rtol=1e-9, atol=1e-12)
    assert sum(isinstance(module, FoldedConv2d) for module in folded.modules()) == folds
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


@every_model
def test_the_original_is_unchanged(make, folds):
    model = lived_in(make)
    model(images()).sum().backward()
    state = {name: a.tolist() for name, a in model.state_dict().items()}
    gradients = [p.grad for p in model.parameters()]
    nn.fold_batch_norm(model)(images())
    assert {name: a.tolist() for name, a in model.state_dict().items()} == state
    assert [p.grad for p in model.parameters()] == gradients  # the same objects
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_the_copy_is_for_inference_only():
    folded = nn.fold_batch_norm(lived_in(MODELS["resnet8"][0]))
    assert not any(module.training for module in folded.modules())
    assert not any(p.requires_grad or p.grad for p in folded.parameters())
    assert not folded(images()).requires_grad


def test_float32_stays_float32():
    folded = nn.fold_batch_norm(lived_in(MODELS["bias and padding"][0], "float32"))
    assert {p.dtype.name for p in folded.parameters()} == {"float32"}
    assert folded(images("float32")).dtype == np.float32


LEFT_ALONE = {
    "relu between": lambda: [nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)],
    "norm first": lambda: [nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)],
    "elsewhere": lambda: [nn.Sequential(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)],
}


@pytest.mark.parametrize("layers", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_does_not_follow_a_convolution_is_kept(layers):
    model = lived_in(lambda: nn.Sequential(*layers()))
    folded = nn.fold_batch_norm(model)
    assert any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    np.testing.assert_allclose(
        folded(images()).numpy(), model.eval()(images()).numpy(), rtol=1e-12, atol=1e-14
    )


def test_a_norm_of_another_width_is_kept():
    block = nn.Module()
    block.conv, block.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(3)  # a pre-activation block's order
    assert isinstance(nn.fold_batch_norm(block).norm, nn.BatchNorm2d)


def test_a_block_that_is_used_twice_is_folded_once():
    def make():
        block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        return nn.Sequential(block, block)

    model = lived_in(make)
    folded = nn.fold_batch_norm(model)(images()).numpy()
    np.testing.assert_allclose(folded, model.eval()(images()).numpy(), rtol=1e-9, atol=1e-12)
