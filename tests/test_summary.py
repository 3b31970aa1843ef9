"""Volumes, parameters, multiplications and memory of each layer, against the papers' figures."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import functional as F
from tinygrad_cnn import models, nn
from tinygrad_cnn.summary import Row, summarize


@pytest.fixture(autouse=True)
def _on_numpy():
    with tg.use_backend("numpy"):
        yield


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet20", 40.55), ("resnet32", 68.86), ("resnet110", 252.89)]
)
def test_macs_are_the_papers(name, millions):
    assert round(summarize(models.build(name)).macs / 1e6, 2) == millions


@pytest.mark.parametrize("name", ["softmax", "svm", "mlp", "convnet", "lenet5", "resnet8"])
def test_every_parameter_is_counted_once(name):
    model = models.build(name, classes=7)
    assert summarize(model).parameters == model.num_parameters()


def test_lenet5_layer_by_layer():
    rows = summarize(models.build("lenet5")).rows
    assert [(row.path, row.kind, row.output, row.parameters, row.macs) for row in rows] == [
        ("features.0", "Conv2d", (6, 28, 28), 156, 117_600),
        ("features.1", "ReLU", (6, 28, 28), 0, 0),
        ("features.2", "MaxPool2d", (6, 14, 14), 0, 0),
        ("features.3", "Conv2d", (16, 10, 10), 2416, 240_000),
        ("features.4", "ReLU", (16, 10, 10), 0, 0),
        ("features.5", "MaxPool2d", (16, 5, 5), 0, 0),
        ("", "reshape", (400,), 0, 0),
        ("classifier.0", "Linear", (120,), 48_120, 48_000),
        ("classifier.1", "ReLU", (120,), 0, 0),
        ("classifier.2", "Linear", (84,), 10_164, 10_080),
        ("classifier.3", "ReLU", (84,), 0, 0),
        ("classifier.4", "Linear", (10,), 850, 840),
    ]


def test_volumes_of_alexnet_are_those_of_cs231n():
    """Its case study: 55x55x96 = 290,400 neurons, 34,944 parameters, 27x27x96 after pooling."""
    rows = summarize(models.build("alexnet", widths=(96, 256, 4, 4, 4), hidden=8)).rows
    conv1, pool1, conv2 = rows[0], rows[3], rows[4]
    assert (conv1.output, conv1.parameters) == ((96, 55, 55), 34_944)
    assert conv1.made == 290_400 * 4
    assert conv1.macs == 290_400 * 363
    assert (pool1.output, conv2.output) == ((96, 27, 27), (256, 27, 27))
    assert conv2.macs == 256 * 27 * 27 * 48 * 25  # each filter sees half of the channels


def test_kept_memory_of_a_convolution_and_its_relu():
    """conv1 keeps the image, relu its output; what max pooling keeps is a byte per window."""
    rows = summarize(models.build("convnet")).rows
    conv1, relu, pool, conv2 = rows[:4]
    assert conv1.kept == 3 * 32 * 32 * 4
    assert relu.kept == 16 * 32 * 32 * 4
    assert pool.kept == 16 * 16 * 16
    assert conv2.kept == 16 * 16 * 16 * 4  # its input


def test_a_batch_norm_keeps_what_the_next_convolution_needs_only_once():
    rows = {row.path: row for row in summarize(models.build("resnet8")).rows}
    volume, statistics = 16 * 32 * 32 * 4, 2 * 16 * 8 // 2  # statistics of a batch of two
    assert rows["bn1"].kept == 2 * volume + statistics  # its input and its output
    assert rows["layer1.0.conv1"].kept == 0  # that output again
    assert rows["fc"].kept == 64 * 4


def test_memory_is_in_bytes_of_the_dtype():
    single, double = (
        summarize(models.build("convnet").astype(dtype)) for dtype in ("float32", "float64")
    )
    assert double.made == 2 * single.made


def test_what_is_kept_is_what_a_forward_pass_leaves_alive():
    """The allocator says the same."""
    model = models.build("resnet8").train()
    x = tg.Tensor(np.zeros((8, 3, 32, 32), "f"))
    gc.collect()
    tracemalloc.start()
    scores = model(x)
    measured, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert scores.node is not None
    kept = 8 * (summarize(models.build("resnet8")).kept - 3 * 32 * 32 * 4)  # x was there before
    assert kept == pytest.approx(measured, rel=0.02)


def test_a_layer_used_twice_has_two_rows_and_its_parameters_once():
    class Tied(models.Classifier):
        image_shape = (5,)

        def __init__(self):
            self.fc, self.scale = nn.Linear(5, 5), nn.Parameter(np.ones(5, "f"))

        def forward(self, x):
            return self.fc(self.fc(x)) * self.scale

    first, second, scaled = summarize(Tied()).rows
    assert (first.parameters, second.parameters) == (30, 0)
    assert first.macs == second.macs == 25
    assert (scaled.kind, scaled.parameters) == ("mul", 5)  # a parameter outside of the layers


def test_a_view_makes_no_memory():
    rows = summarize(models.build("softmax")).rows
    assert rows[0] == Row("", "reshape", (3072,))


def test_the_model_is_left_as_it_was():
    model = models.build("resnet8").eval()
    before = model.state_dict()
    summarize(model)
    assert all((model.state_dict()[name] == a).all() for name, a in before.items())
    assert not model.training
    assert F.softmax(model(tg.zeros(1, 3, 32, 32)), axis=1).shape == (1, 10)


def test_another_image_size():
    rows = summarize(models.build("resnet8"), (3, 64, 48)).rows
    assert rows[0].output == (16, 64, 48)
    with pytest.raises(ValueError, match=r"conv2d: x .* has 1 channels, but w .* wants 3"):
        summarize(models.build("resnet8"), (1, 32, 32))
