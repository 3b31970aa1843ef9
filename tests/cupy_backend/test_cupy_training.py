"""Training on the GPU's kernels: batches of a resident data set, and steps beside NumPy's."""

import numpy as np
import pytest
from cupy_backend.rounding import rounded
from cupy_backend.small_net import SmallNet

import tinygrad_cnn as tg
from tinygrad_cnn import data, optim, train
from tinygrad_cnn.backends.base import nhwc
from tinygrad_cnn.backends.numpy_backend import NumpyBackend
from tinygrad_cnn.train import recipe, run

pytestmark = pytest.mark.emulated

NUMPY = tg.backends.get("numpy")
RNG = np.random.default_rng(0)
IMAGES = data.Dataset(
    RNG.integers(0, 256, (22, 3, 8, 8), np.uint8), RNG.integers(0, 4, 22), tuple("abcd"), "noise"
)
AT = dict(seed=1, normalize=data.channel_statistics(IMAGES.images))


@pytest.mark.parametrize("augment", [None, data.random_crop_and_flip])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("per_pixel_mean", [False, True])
def test_a_resident_loader_gives_the_batches_of_a_loader(
    emulated, augment, shuffle, per_pixel_mean
):
    statistics = data.channel_statistics(IMAGES.images, per_pixel_mean=per_pixel_mean)
    at = AT | dict(normalize=statistics, augment=augment, shuffle=shuffle)
    ours, theirs = (
        data.ResidentLoader(IMAGES, 8, backend=emulated, **at),
        data.Loader(IMAGES, 8, **at),
    )
    assert len(ours) == len(theirs) == 3
    for epoch in 0, 1:
        for (x, y), (x_there, y_there) in zip(ours.epoch(epoch), theirs.epoch(epoch), strict=True):
            np.testing.assert_allclose(x, x_there, atol=2e-6)
            np.testing.assert_array_equal(y, y_there, strict=True)
            assert nhwc(x).flags.c_contiguous
            assert x.dtype == np.float32


def test_a_resident_loader_serves_where_it_can(emulated):
    crops, numpy = data.RandomCropAndFlip(padding=2), tg.backends.get("numpy")
    for augment in None, [], crops, [crops]:
        assert data.ResidentLoader.serves(emulated, augment)
        assert not data.ResidentLoader.serves(numpy, augment)
    for augment in normalised, [crops, normalised]:
        assert not data.ResidentLoader.serves(emulated, augment)
    message = "^ResidentLoader: numpy can't make batches with augment=None; take data.Loader$"
    with pytest.raises(ValueError, match=message):
        data.ResidentLoader(IMAGES, 8, backend=numpy, **AT)


def normalised(x, rng):
    return x


def test_a_run_keeps_its_images_where_it_trains(emulated):
    config = train.Config(recipe.load("shapes").override({"model": "svm"}))
    for backend, loader in (emulated, data.ResidentLoader), (tg.backends.get("numpy"), data.Loader):
        with tg.use_backend(backend):
            assert type(run.build(config, data.shapes(20)).loader) is loader


def losses(backend, loader, precision="fp32"):
    with tg.use_backend(backend), tg.use_precision(precision, backend):
        net, seen = SmallNet(), []
        net.to(backend)
        sgd = optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)

        class Watch(train.Callback):
            def on_step(self, trainer):
                seen.append(trainer.last_loss)

        train.Trainer(net, sgd, loader, steps=4, label_smoothing=0.1, callbacks=[Watch()]).run()
        kept = [*net.state_dict().values(), *sgd.state_dict()["state"].values()]
        assert {a.dtype for a in kept if a.ndim} == {np.dtype("float32")}
        return seen


def test_training_is_that_of_numpy(emulated):
    """Four steps, the third batch of which is not whole."""
    at = AT | dict(augment=data.random_crop_and_flip)
    ours = losses(emulated, data.ResidentLoader(IMAGES, 8, backend=emulated, **at))
    theirs = losses(tg.backends.get("numpy"), data.Loader(IMAGES, 8, **at))
    assert len(ours) == 4
    np.testing.assert_allclose(ours, theirs, rtol=2e-4)


class RoundingBackend(NumpyBackend):
    """The reference, which multiplies what bf16 can hold: what tensor cores must come to."""

    name = "rounding"

    def conv2d(self, x, w, *added, **at):
        return super().conv2d(rounded(x, "bf16"), rounded(w, "bf16"), *added, **at)

    def conv2d_input_grad(self, g, w, **at):
        return super().conv2d_input_grad(rounded(g, "bf16"), rounded(w, "bf16"), **at)

    def conv2d_weight_grad(self, g, x, **at):
        return super().conv2d_weight_grad(rounded(g, "bf16"), rounded(x, "bf16"), **at)

    def matmul(self, x, y):
        return super().matmul(rounded(x, "bf16"), rounded(y, "bf16"))


def test_training_in_bf16_rounds_what_is_multiplied_and_nothing_else(emulated):
    """Where sums differ in their last bit, now and then a value is rounded to its other side."""
    at = AT | dict(augment=data.random_crop_and_flip)
    batches = data.Loader(IMAGES, 8, **at)
    ours = losses(emulated, data.ResidentLoader(IMAGES, 8, backend=emulated, **at), "bf16")
    theirs, exact = (losses(backend, batches) for backend in (RoundingBackend(), NUMPY))
    near, far = (np.abs(np.subtract(other, theirs)).max() for other in (ours, exact))
    assert near < 0.1 * far
