"""Each check finds its planted fault, and finds nothing in the healthy twin."""

from __future__ import annotations

import math
from itertools import repeat
from types import SimpleNamespace

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import data, diagnose, functional, models, nn, optim, train
from tinygrad_cnn.diagnose import updates


@pytest.fixture(autouse=True)
def _on_numpy():
    with tg.use_backend("numpy"):
        yield


SHAPES = data.shapes(120)
X = data.normalize(SHAPES.images, *data.channel_statistics(SHAPES.images))
Y = SHAPES.labels
SMALL = X[:, :, ::2, ::2]  # for the networks that take any size


def build(name, seed=0):
    return models.build(name, rng=np.random.default_rng(seed))


def sgd(model, lr=0.01):
    return optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def batches(size=20, epochs=20, images=X):
    for _ in range(epochs):
        yield from ((images[i : i + size], Y[i : i + size]) for i in range(0, len(images), size))


def scaled(model, name, factor):
    """Multiply a parameter."""
    p = dict(model.named_parameters())[name]
    p.data = p.data * factor
    return model


# ---- the first loss ----


@pytest.mark.parametrize(
    ("name", "chance"), [("softmax", math.log(10)), ("svm", 9), ("convnet", math.log(10))]
)
def test_a_new_model_starts_at_chance(name, chance):
    found = diagnose.initial_loss(build(name), X, Y)
    assert found.chance == pytest.approx(chance, rel=1e-6)
    assert found.loss == pytest.approx(chance, rel=0.4)
    assert found.verdict.endswith("as it should be")


def test_small_weights_give_exactly_chance():
    assert diagnose.initial_loss(scaled(build("svm"), "fc.weight", 1e-6), X, Y).loss == (
        pytest.approx(9, abs=1e-4)
    )


def test_weights_that_are_too_large_are_found():
    found = diagnose.initial_loss(scaled(build("convnet"), "fc.weight", 30), X, Y)
    assert found.loss > 5 * found.chance
    assert "make the last layer's initial weights smaller" in found.verdict


def test_images_that_are_not_normalised_are_found():
    found = diagnose.initial_loss(build("convnet"), SHAPES.images.astype("f"), Y)
    assert "normalise the images" in found.verdict


def test_a_model_that_knows_the_answer_is_found():
    model = build("convnet")
    optimizer = optim.Adam(model.parameters())
    for _ in range(15):
        train.train_step(model, optimizer, X[:20], Y[:20])
    assert "too good to be new" in diagnose.initial_loss(model, X[:20], Y[:20]).verdict


def test_a_loss_that_is_no_number_is_found():
    verdict = diagnose.initial_loss(scaled(build("softmax"), "fc.weight", np.nan), X, Y).verdict
    assert verdict.startswith("the loss is nan")
    assert "not a number" in verdict


# ---- twenty images by heart ----


@pytest.mark.parametrize(
    ("name", "images"), [("softmax", X), ("svm", X), ("convnet", X), ("resnet8", SMALL)]
)
def test_twenty_images_are_learned_by_heart(name, images):
    found = diagnose.overfit(build(name), images[:20], Y[:20], steps=200)
    assert found.learned
    assert (found.accuracies[-1], found.losses[-1] < 0.05) == (1, True)
    assert found.verdict.startswith(f"learned by heart in {len(found.losses)} steps")


class ShuffledLabels(models.Classifier):
    """A ConvNet whose every step sees other labels."""

    def __init__(self):
        self.net, self.random = build("convnet"), np.random.default_rng(0)

    def forward(self, x):
        return self.net(x)

    def loss(self, scores, targets):
        return functional.cross_entropy(scores, self.random.permutation(targets))


class NoGradient(models.Classifier):
    """A linear classifier whose first layer never hears of the loss."""

    def __init__(self):
        self.hidden = nn.Linear(3072, 4, rng=np.random.default_rng(0))
        self.fc = nn.Linear(4, 10, rng=np.random.default_rng(0))

    def forward(self, x):
        return self.fc(self.hidden(x.flatten(1)).detach().relu())


@pytest.mark.parametrize("model", [ShuffledLabels, NoGradient])
def test_what_can_not_learn_is_found(model):
    found = diagnose.overfit(model(), X[:20], Y[:20], steps=60)
    assert not found.learned
    assert found.verdict.startswith("not learned in 60 steps")
    assert "check the labels" in found.verdict


def test_a_diverging_run_ends_early():
    found = diagnose.overfit(build("convnet"), X[:20], Y[:20], steps=60, lr=1e20)
    assert not found.learned
    assert len(found.losses) < 60


def test_dropout_does_not_stand_in_the_way():
    class Dropped(models.Classifier):
        def __init__(self):
            self.drop, self.net = nn.Dropout(0.9), build("softmax")

        def forward(self, x):
            return self.net(self.drop(x))

    model = Dropped()
    assert diagnose.overfit(model, X[:20], Y[:20], steps=100).learned
    assert model.drop.training


# ---- the range of learning rates ----


def test_the_range_test_suggests_a_rate_that_trains():
    model = build("softmax")
    found = diagnose.lr_range(model, sgd(model), batches(), steps=60)
    assert found.lrs[0] == 1e-5
    assert len(found.lrs) < 60  # it ended at the divergence
    assert 1e-4 < found.suggestion < 1e-2
    assert f"begin with a tenth: {found.suggestion:.2g}" in found.verdict
    losses = {}
    for lr in (found.suggestion / 100, found.suggestion, found.lrs[-1]):
        model = build("softmax")
        steps = [train.train_step(model, sgd_, x, y)[0] for sgd_ in [sgd(model, lr)]
                 for x, y in batches(epochs=4)]  # fmt: skip
        losses[lr] = np.mean(steps[-6:])
    assert min(losses, key=losses.get) == found.suggestion


def test_a_range_that_is_too_high_is_found():
    model = build("softmax")
    found = diagnose.lr_range(model, sgd(model), batches(), low=1.0, high=100, steps=30)
    assert found.suggestion is None
    assert "the loss never fell" in found.verdict


def test_a_range_that_is_too_low_is_found():
    model = build("softmax")
    found = diagnose.lr_range(model, sgd(model), repeat((X, Y)), low=1e-9, high=1e-8, steps=10)
    assert found.suggestion is None
    assert len(found.lrs) == 10


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 1), (0.1, 0.01)])
def test_a_wrong_range_is_refused(low, high):
    model = build("softmax")
    with pytest.raises(ValueError, match=f"low is {low}, high is {high}; expected 0 < low < high"):
        diagnose.lr_range(model, sgd(model), batches(), low=low, high=high)


# ---- ReLUs ----


def test_a_dead_layer_is_found():
    model, dead = build("convnet"), build("convnet")
    dict(dead.named_parameters())["features.3.bias"].data = np.full(32, -100, "f")
    shares = {r.path: r.dead for r in diagnose.dead_relus(dead, [X[:50], X[50:100]])}
    assert shares["features.4"] == 1
    assert shares["features.1"] < 0.2
    assert max(r.dead for r in diagnose.dead_relus(model, [X])) < 0.2


def test_one_dead_channel_of_a_fused_batch_norm():
    model = build("resnet8")
    bias = model.bn1.bias.numpy().copy()
    bias[3] = -100
    model.bn1.bias.data = bias
    found = diagnose.dead_relus(model, [X])
    assert [r.path for r in found] == [
        "bn1", *(f"layer{i}.0.bn{j}" for i in (1, 2, 3) for j in (1, 2))
    ]  # fmt: skip
    assert np.flatnonzero(found[0].silent).tolist() == [3]
    assert found[0].dead == 1 / 16
    assert 1 / 16 < found[0].zeros < 1


def test_a_unit_that_fires_once_is_not_dead():
    class Single(models.Classifier):
        def forward(self, x):
            return x.flatten(1).relu()

    x = -np.ones((4, 2, 1, 1), "f")
    x[3, 1] = 1
    (found,) = diagnose.dead_relus(Single(), [x[:2], x[2:]])
    assert found.silent.tolist() == [True, False]
    assert found.zeros == 7 / 8


# ---- updates ----


def test_ratios_follow_the_learning_rate():
    model = build("softmax")
    first = [diagnose.update_ratios(model, sgd(model, lr), [(X, Y)]) for lr in (1e-3, 2e-3)]
    (once,), (twice,) = first
    assert once.keys() == {"fc.weight"}  # the bias is no weight
    assert twice["fc.weight"] == pytest.approx(2 * once["fc.weight"], rel=1e-3)
    x, w = X.reshape(len(X), -1), model.fc.weight.numpy()
    p = functional.softmax(model(tg.Tensor(X)), axis=1).numpy() - np.eye(10)[Y]
    expected = 1e-3 * np.linalg.norm(p.T @ x / len(X)) / np.linalg.norm(w)
    assert once["fc.weight"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (1e-5, "hardly moves: raise the learning rate"),
        (1e-3, "fine"),
        (5e-2, "moves too far: lower the learning rate"),
        (math.nan, "not a number"),
    ],
)
def test_a_ratio_is_judged(ratio, verdict):
    assert updates.verdict(ratio) == verdict


def test_a_rate_that_is_too_large_or_small_is_found():
    for lr, word in (1e-7, "hardly"), (1e-3, "fine"), (1.0, "too far"):
        model = build("convnet")
        (found,) = diagnose.update_ratios(model, sgd(model, lr), [(X, Y)])
        assert word in updates.verdict(float(np.median(list(found.values()))))


def test_the_callback_measures_every_second_step():
    """The trainer of this test calls it where the real one does."""
    callback, model = diagnose.UpdateRatios(every=2), build("softmax")
    trainer, optimizer = SimpleNamespace(model=model, step=0), sgd(model)
    for x, y in list(batches())[:5]:
        loss = model.loss(model(tg.Tensor(x)), y)
        optimizer.zero_grad()
        loss.backward()
        callback.on_before_update(trainer)
        optimizer.step()
        trainer.step += 1
        callback.on_step(trainer)
    assert [step for step, _ in callback.history] == [1, 3, 5]
    other = build("softmax")
    every = diagnose.update_ratios(other, sgd(other), list(batches())[:5])
    assert [found for _, found in callback.history] == every[::2]
    with pytest.raises(ValueError, match="every is 0; expected at least 1 step"):
        diagnose.UpdateRatios(every=0)


# ---- responses ----


def test_responses_are_those_of_each_convolution_after_its_norm():
    model = build("resnet8")
    seen = []
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = module.weight.data * (2 if name == "bn1" else 1)
    model.bn1.register_forward_hook(lambda module, args, y: seen.append(args[0]))
    found = diagnose.layer_responses(model, X)
    assert [r.path for r in found] == [
        "bn1", *(f"layer{i}.0.bn{j}" for i in (1, 2, 3) for j in (1, 2))
    ]  # fmt: skip
    eps = 1e-5  # a new model's running statistics are 0 and 1
    assert found[0].std == pytest.approx(2 * seen[0].numpy().std() / math.sqrt(1 + eps), rel=1e-4)


def test_responses_of_a_model_without_batch_norm_are_its_convolutions():
    model = build("convnet")
    found = diagnose.layer_responses(model, X)
    assert [r.path for r in found] == ["features.0", "features.3", "features.6"]
    y = model.features[0](tg.Tensor(X)).numpy()
    assert found[0].std == pytest.approx(y.std(), rel=1e-6)  # its bias included


def test_a_residual_net_responds_less_than_its_plain_twin():
    """The paper's figure 7, in small: after training, with the same steps and batches."""
    means = {}
    for name in ("resnet20", "plain20"):
        model = build(name)
        optimizer = sgd(model, 0.05)
        for x, y in batches(epochs=2, images=SMALL):
            train.train_step(model.train(), optimizer, x, y)
        means[name] = np.mean([r.std for r in diagnose.layer_responses(model, SMALL)])
    assert means["resnet20"] < means["plain20"]


# ---- all of them ----


@pytest.mark.parametrize(
    "check",
    [
        lambda m: diagnose.initial_loss(m, X, Y),
        lambda m: diagnose.overfit(m, X[:8], Y[:8], steps=2),
        lambda m: diagnose.lr_range(m, sgd(m), batches(8), steps=2),
        lambda m: diagnose.dead_relus(m, [X[:8]]),
        lambda m: diagnose.update_ratios(m, sgd(m), [(X[:8], Y[:8])]),
        lambda m: diagnose.layer_responses(m, X[:8]),
    ],
    ids=["initial_loss", "overfit", "lr_range", "dead_relus", "update_ratios", "responses"],
)
def test_a_check_leaves_the_model_as_it_was(check):
    model = build("resnet8")
    before = model.state_dict()
    check(model)
    assert all((model.state_dict()[name] == a).all() for name, a in before.items())
    assert all(p.grad is None for p in model.parameters())
