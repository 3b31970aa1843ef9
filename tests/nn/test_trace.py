"""Seeing the ops of each layer, and taking a trial back."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import functional as F
from tinygrad_cnn import models, nn, optim, train
from tinygrad_cnn.random import generator


@pytest.fixture(autouse=True)
def _on_numpy():
    with tg.use_backend("numpy"):
        yield


def traced(model, x):
    """Give what `trace` shows of a forward pass, and the calls it shows them with."""
    seen, calls = [], []

    def see(call, op, inputs, y):
        seen.append((call.path, op, y.shape))
        calls.append(call)

    with nn.trace(model, see):
        F.softmax(model(x), axis=1)  # after the model, so not seen
    return seen, calls


def test_an_op_is_seen_with_its_innermost_module():
    seen, calls = traced(models.build("mlp"), tg.zeros(2, 3, 32, 32))
    assert seen[:5] == [
        ("", "reshape", (2, 3072)),
        ("layers.0", "permute", (3072, 256)),
        ("layers.0", "matmul", (2, 256)),
        ("layers.0", "add", (2, 256)),
        ("", "relu", (2, 256)),
    ]
    assert [call.is_layer for call in calls[:5]] == [False, True, True, True, False]
    assert calls[1] is calls[3]  # one call of one layer


def test_a_layer_called_twice_makes_two_calls():
    class Twice(nn.Module):
        def __init__(self):
            self.fc = nn.Linear(3, 3, bias=False)

        def forward(self, x):
            return self.fc(self.fc(x))

    seen, calls = traced(Twice(), tg.zeros(1, 3))
    assert [path for path, *_ in seen] == ["fc"] * len(seen)
    assert len({id(call) for call in calls}) == 2


@pytest.mark.parametrize(("size", "ops"), [(32, 4), (31, 1)], ids=["fits", "fails"])
def test_no_hook_is_left(size, ops):
    model, seen = models.build("softmax"), []
    with suppress(ValueError), nn.trace(model, lambda *args: seen.append(args)):
        model(tg.zeros(1, 3, size, size))
    count = len(seen)
    assert count == ops
    model(tg.zeros(1, 3, 32, 32))
    assert len(seen) == count
    assert not any(vars(m)[kind] for m in model.modules() for kind in vars(m) if "hooks" in kind)


def test_a_rehearsal_is_taken_back():
    model = models.build("resnet8", rng=np.random.default_rng(0))
    model.fc.eval()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    x, targets = np.ones((4, 3, 32, 32), "f"), np.arange(4)
    train.train_step(model, optimizer, x, targets)
    before, gradient = model.state_dict(), model.fc.weight.grad
    tg.manual_seed(3)
    with nn.rehearsal(model):
        model.train()
        drawn = generator().random()
        train.train_step(model, optimizer, x, targets)
        changed = [name for name, a in model.state_dict().items() if (a != before[name]).any()]
    assert "fc.weight" in changed
    assert "bn1.running_mean" in changed
    after = model.state_dict()
    assert all((after[name] == a).all() for name, a in before.items())
    assert model.fc.weight.grad is gradient
    assert (model.training, model.fc.training) == (True, False)
    assert generator().random() == np.random.default_rng(3).random() != drawn


def test_a_rehearsal_that_fails_is_taken_back():
    model = models.build("softmax")
    before = model.state_dict()["fc.weight"]
    with suppress(RuntimeError), nn.rehearsal(model):
        model.fc.weight.data = model.fc.weight.data + 1
        raise RuntimeError
    assert (model.state_dict()["fc.weight"] == before).all()
