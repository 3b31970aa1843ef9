"""Fully connected layers as convolutions: a map of scores against the scores of the crops."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import models, nn

on_every_backend = pytest.mark.usefixtures("backend")
NARROW = dict(widths=(6, 8, 10, 12, 8), hidden=16)


def rng(seed=0):
    return np.random.default_rng(seed)


def unpadded(name, size, **settings):
    """Build a model whose convolutions pad nothing, with a head for its other map."""
    model = models.build(name, rng=rng(), **settings)
    model.image_shape = (3, size, size)
    for layer in model.features:
        if isinstance(layer, nn.Conv2d):
            layer.settings["padding"] = 0
    _, C, H, W = model.features(tg.zeros(1, *model.image_shape)).shape
    head = "classifier" if hasattr(model, "classifier") else "fc"
    hidden = [nn.Linear(C * H * W, 9, rng=rng(1)), nn.Tanh(), nn.Dropout(), nn.Linear(9, 10)]
    setattr(model, head, nn.Sequential(nn.Flatten(), *hidden))
    for p in model.parameters():  # AlexNet's own are so small that narrow layers drown the image
        if p.ndim > 1:
            p.data = nn.init.kaiming_normal(p.shape, rng(2))
    return model


# a model and its stride: the product of its convolutions' and pools'
WITHOUT_PADDING = {
    "lenet5": (lambda: models.build("lenet5", rng=rng()), 4),
    "alexnet": (lambda: unpadded("alexnet", 227, widths=(4, 4, 4, 4, 4), hidden=1), 32),
    "alexnet_cifar": (lambda: unpadded("alexnet_cifar", 56), 8),
    "convnet": (lambda: unpadded("convnet", 38), 8),
}
WITH_PADDING = {
    "alexnet": (lambda: models.build("alexnet", rng=rng(), **NARROW), 32),
    "alexnet_cifar": (lambda: models.build("alexnet_cifar", rng=rng()), 8),
    "convnet": (lambda: models.build("convnet", rng=rng()), 8),
}


def scores_of_both(model, stride):
    """Score an image one stride higher and two wider, as a map and crop by crop: (6, K) each."""
    C, H, W = model.image_shape
    x = (
        rng(1)
        .standard_normal((1, C, H + stride, W + 2 * stride))
        .astype(model.parameters()[0].dtype)
    )
    places = [(i * stride, j * stride) for i in range(2) for j in range(3)]
    crops = np.concatenate([x[:, :, i : i + H, j : j + W] for i, j in places])
    with tg.no_grad():
        scores = models.to_convolutional(model.eval())(tg.Tensor(x)).numpy()
        assert scores.shape == (1, 10, 2, 3)
        return scores[0].reshape(10, 6).T, model(tg.Tensor(crops)).numpy()


def difference(received, expected):
    return np.linalg.norm(received - expected) / np.linalg.norm(expected)


@on_every_backend
@pytest.mark.parametrize(("make", "stride"), WITHOUT_PADDING.values(), ids=WITHOUT_PADDING)
def test_without_padding_the_scores_are_the_crops(make, stride):
    received, expected = scores_of_both(make().astype("float64"), stride)
    assert expected.std(axis=0).min() > 1e-3  # else any place would do
    np.testing.assert_allclose(received, expected, rtol=1e-9, atol=1e-12 * abs(expected).max())


@pytest.mark.parametrize(
    ("make", "stride", "measured"),
    [
        (lambda: models.build("alexnet", classes=10, rng=rng()), 32, 0.10),
        (lambda: models.build("alexnet_cifar", rng=rng()), 8, 0.35),
    ],
    ids=["alexnet", "alexnet_cifar"],
)
def test_with_padding_they_differ_as_the_docstring_says(make, stride, measured):
    assert f"{measured:.0%}".replace("%", " %") in models.to_convolutional.__doc__
    assert difference(*scores_of_both(make(), stride)) == pytest.approx(measured, abs=0.005)


@on_every_backend
@pytest.mark.parametrize(("make", "stride"), WITH_PADDING.values(), ids=WITH_PADDING)
def test_an_image_of_its_own_size_has_one_score(make, stride):
    model = make().astype("float64").eval()
    x = tg.Tensor(rng(1).standard_normal((2, *model.image_shape)))
    scores = models.to_convolutional(model)(x)
    assert scores.shape == (2, 10, 1, 1)
    np.testing.assert_allclose(scores.numpy()[:, :, 0, 0], model(x).numpy(), rtol=1e-9, atol=1e-12)


def test_the_model_stays_as_it_was_and_the_copy_can_be_trained():
    model = models.build("alexnet", rng=rng(), **NARROW)
    model.features[0].weight.requires_grad = False
    before = model.state_dict()
    copied = models.to_convolutional(model)
    assert all(m.training for m in (*model.modules(), *copied.modules()))
    x = tg.Tensor(rng(1).standard_normal((1, 3, 259, 227)).astype("f"))
    copied(x).sum().backward()
    assert [p.grad is None for p in copied.parameters()] == [True] + [False] * 15
    for p in copied.parameters():
        p.data = p.data + 1
    assert all(p.grad is None for p in model.parameters())
    for name, a in model.state_dict().items():
        np.testing.assert_array_equal(a, before[name])
    assert not any(m.training for m in models.to_convolutional(model.eval()).modules())


def test_layers_without_bias_stay_without():
    model = models.build("convnet", rng=rng())
    model.fc = nn.Linear(1024, 10, bias=False, rng=rng())
    assert models.to_convolutional(model)[1].bias is None


class Scaled(models.classic.ConvNet):
    """A network whose forward does what no layer shows."""

    def forward(self, x):
        return 0.125 * super().forward(x)


def with_head(*layers):
    model = models.build("convnet", rng=rng())
    model.fc = nn.Sequential(*layers)
    return model


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            lambda: models.build("resnet8"),
            TypeError,
            "to_convolutional: CifarResNet has no layers called `features`; expected them, then "
            "fully connected layers. A network with a global pool takes larger images as it is",
        ),
        (
            lambda: with_head(nn.BatchNorm2d(64), nn.Linear(1024, 10)),
            TypeError,
            "to_convolutional: BatchNorm2d follows the features; expected Linear and, between "
            "them, ReLU, Tanh, Dropout",
        ),
        (lambda: Scaled(rng=rng()), ValueError, "to_convolutional: Scaled's scores differ by "),
    ],
    ids=["no features", "another layer", "another forward"],
)
def test_what_cannot_be_converted_is_named(model, error, message):
    with pytest.raises(error, match=re.escape(message)):
        models.to_convolutional(model())
