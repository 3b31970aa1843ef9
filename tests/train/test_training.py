"""Training: twenty steps beside PyTorch's, the loop, memory, and what a net has learned."""

from __future__ import annotations

import gc
import importlib.util
import math
import re
import tracemalloc
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_run import make_loader, small

import tinygrad_cnn as tg
from tinygrad_cnn import data, models, optim, train
from tinygrad_cnn.autograd import Node
from tinygrad_cnn.data import rng_at
from tinygrad_cnn.random import generator
from tinygrad_cnn.train import progress
from tinygrad_cnn.train.loop import judge

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
on_every_backend = pytest.mark.usefixtures("backend")
on_numpy = pytest.mark.usefixtures("_numpy")


@pytest.fixture
def _numpy():
    with tg.use_backend("numpy"):
        yield


def sgd(model, lr=0.05, **settings):
    return optim.SGD(model.parameters(), lr=lr, momentum=0.9, **settings)


# ---- beside PyTorch ----

RECIPE = dict(lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4)


def batches(steps, dtype):
    """Draw the batches of 8 images that both sides see."""
    rng = np.random.default_rng(3)
    for _ in range(steps):
        yield rng.standard_normal((8, 3, 32, 32)).astype(dtype), rng.integers(0, 10, 8)


def our_losses(model, *run):
    optimizer = optim.SGD(model.parameters(), **RECIPE)
    return [train.train_step(model, optimizer, x, y)[0] for x, y in batches(*run)]


def torch_losses(torch, model, *run):
    optimizer, losses = torch.optim.SGD(model.parameters(), **RECIPE), []
    for x, y in batches(*run):
        loss = torch.nn.functional.cross_entropy(model(torch.tensor(x)), torch.tensor(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# In float32, where the fast kernels run, rounding alone drives the two apart: ten times as far with
# every step, once a ReLU lets through here what it stops there.
@on_every_backend
@pytest.mark.parametrize(("dtype", "steps", "rtol"), [("float64", 20, 1e-9), ("float32", 3, 1e-3)])
def test_steps_of_resnet20_are_pytorchs(monkeypatch, dtype, steps, rtol):
    """Losses, and in the end all weights and running statistics."""
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(BENCHMARKS)
    ours = models.build("resnet20", rng=np.random.default_rng(0)).astype(dtype)
    theirs = importlib.import_module("torch_models").build("resnet20").to(getattr(torch, dtype))
    state = {name: torch.tensor(a) for name, a in ours.state_dict().items()}
    theirs.load_state_dict(state, strict=False)
    losses = our_losses(ours, steps, dtype)
    assert len(set(losses)) == steps  # it moves
    np.testing.assert_allclose(losses, torch_losses(torch, theirs, steps, dtype), rtol=rtol)
    trained = {name: t.numpy() for name, t in theirs.state_dict().items()}
    for name, a in ours.state_dict().items():
        atol = rtol * max(1, np.abs(a).max())
        np.testing.assert_allclose(a, trained[name], rtol=0, atol=atol, err_msg=name)


# ---- the loop ----


def fitted(seed=0, *, epochs=2, validation=None):
    """Train a small model; give the results and the final state."""
    tg.manual_seed(seed + 17)  # the default generator's past must not matter
    loader = make_loader(seed=seed, augment=data.random_crop_and_flip)
    model = small()
    results = train.fit(model, sgd(model), loader, epochs=epochs, validation=validation)
    return results, model.state_dict()


def same(a, b):
    return all((a[name] == b[name]).all() for name in a)


@on_every_backend
def test_fit_is_reproducible_bit_for_bit():
    first, state = fitted()
    tg.manual_seed(99)
    again, same_state = fitted()
    assert same(state, same_state)
    assert first == again
    assert not same(state, fitted(seed=1)[1])  # same weights to begin with: the order differs


def trained(steps, *, state=None):
    """Train a small model to some step, from the beginning or from a state; give the new state."""
    model = small()
    loader = make_loader(augment=data.random_crop_and_flip)
    trainer = train.Trainer(model, sgd(model, nesterov=True), loader, steps=steps, ema=0.9)
    if state:
        trainer.load_state_dict(state)
    trainer.run()
    return trainer.state_dict()


@on_every_backend
def test_going_on_is_bit_for_bit():
    half, whole = trained(3), trained(6)
    again = trained(6, state=half)
    assert same(again["arrays"], whole["arrays"])
    assert again["facts"] == whole["facts"]
    assert not same(half["arrays"], whole["arrays"])


@on_numpy
def test_measuring_changes_nothing():
    held_out = make_loader(30, 10, shuffle=False)
    assert same(fitted()[1], fitted(validation=held_out)[1])


@on_numpy
def test_results_are_those_of_the_epochs():
    results, _ = fitted(epochs=3, validation=make_loader(30, 10, shuffle=False))
    assert [r["epoch"] for r in results] == [1, 2, 3]
    assert [r["step"] for r in results] == [3, 6, 9]
    assert all(0 <= r[f"{part}_accuracy"] <= 1 for r in results for part in ("train", "validation"))
    assert all(1 < r[f"{part}_loss"] < 4 for r in results for part in ("train", "validation"))
    for key in ("validation_loss", "validation_accuracy"):
        assert [r[key] for r in fitted()[0]] == [None, None]


@on_numpy
def test_the_schedule_is_asked_at_every_step():
    asked, used, model = [], [], small()
    optimizer = sgd(model)
    model.register_forward_hook(lambda *_: used.append(optimizer.lr))

    def schedule(step):
        asked.append(step)
        return 0.1 / (step + 1)

    train.fit(model, optimizer, make_loader(), epochs=2, schedule=schedule)
    assert asked == [0, 1, 2, 3, 4, 5]
    assert used == [0.1 / (step + 1) for step in asked]


@on_numpy
def test_dropout_is_a_function_of_position():
    """A batch's mask is the one that seed, epoch and number give, whatever was drawn before."""
    model, kept, seen = small(), [], []
    model.drop.register_forward_hook(lambda module, args, y: kept.append((args[0], y)))
    model.register_forward_hook(lambda *_: seen.append(tg.randn(7)))  # disturbs the generator
    own = tg.manual_seed(0)
    train.fit(model, sgd(model), make_loader(seed=5), epochs=2)
    assert generator() is own  # the user's generator is back in its place
    positions = [(epoch, batch) for epoch in range(2) for batch in range(3)]
    for (epoch, batch), (x, y) in zip(positions, kept, strict=True):
        drawn = rng_at(5, "dropout", epoch, batch).random(x.shape) >= 0.25
        np.testing.assert_allclose(y.numpy(), x.numpy() * drawn / 0.75, rtol=1e-6)


@on_numpy
def test_fit_trains_a_model_that_came_in_evaluation_mode():
    model = small().eval()
    train.fit(model, sgd(model), make_loader(), epochs=1)
    assert model.bn.running_mean.numpy().all()  # zeros to begin with


@on_numpy
def test_metrics_are_weighted_by_images():
    metrics = train.Metrics()
    assert (metrics.loss, metrics.accuracy) == (0, 0)
    metrics.add(1.0, np.eye(3), np.array([0, 1, 0]))
    metrics.add(5.0, np.eye(3)[:1], np.array([0]))
    assert (metrics.images, metrics.loss, metrics.accuracy) == (4, 2, 0.75)
    assert str(metrics) == "loss 2.000, accuracy 75.0%"


# ---- evaluation ----


@on_numpy
def test_evaluate_restores_every_mode():
    model = small()
    model.bn.eval()  # frozen, as in transfer learning
    train.evaluate(model, make_loader().epoch(0))
    assert [m.training for m in (model, model.conv, model.bn, model.drop)] == [1, 1, 0, 1]
    with pytest.raises(ValueError, match="conv2d"):
        train.evaluate(model, [(np.zeros((2, 5)), np.zeros(2, int))])
    assert [m.training for m in (model, model.conv, model.bn, model.drop)] == [1, 1, 0, 1]


@on_numpy
def test_evaluate_records_nothing_and_changes_nothing():
    model, recorded = small(), []
    model.register_forward_hook(lambda module, args, y: recorded.append(y.requires_grad))
    before = model.state_dict()
    metrics = train.evaluate(model, make_loader().epoch(0))
    assert recorded == [False] * 3
    assert same(before, model.state_dict())
    assert all(p.grad is None for p in model.parameters())
    assert metrics.images == 60


@on_numpy
def test_evaluate_uses_the_running_statistics():
    """So an image's score doesn't depend on its batch, and statistics that are off show."""
    model, loader = small(), make_loader(shuffle=False)
    whole = train.evaluate(model, make_loader(60, 60, shuffle=False).epoch(0))
    assert train.evaluate(model, loader.epoch(0)).loss == pytest.approx(whole.loss, rel=1e-5)
    model.bn.running_mean.data = np.full(8, 3, np.float32)
    assert train.evaluate(model, loader.epoch(0)).loss != pytest.approx(whole.loss, rel=1e-3)


@on_every_backend
@pytest.mark.parametrize("name", ["convnet", "resnet8"])
def test_with_flip_the_scores_are_the_mean_of_two_views(name):
    model = models.build(name, rng=np.random.default_rng(0)).eval()
    x = np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32)
    images, mirrored = model(tg.Tensor(x)).numpy(), model(tg.Tensor(x[..., ::-1].copy())).numpy()
    np.testing.assert_array_equal(judge(model, x).numpy(), images)
    flipped = judge(model, x, flip=True).numpy()
    np.testing.assert_allclose(flipped, (images + mirrored) / 2, rtol=1e-6)
    assert np.abs(flipped - images).max() > 1e-3
    np.testing.assert_array_equal(judge(model, x[..., ::-1], flip=True).numpy(), flipped)
    symmetric = np.concatenate([x[..., :16], x[..., 15::-1]], axis=3)
    np.testing.assert_array_equal(
        judge(model, symmetric, flip=True).numpy(), judge(model, symmetric).numpy()
    )


@on_numpy
def test_evaluate_with_flip_measures_the_mean():
    model, loader, seen = small(), make_loader(shuffle=False), []
    metrics = train.evaluate(model, loader.epoch(0), flip=True, watch=seen.append)
    ((x, targets),) = make_loader(60, 60, shuffle=False).epoch(0)
    scores = judge(model.eval(), x, flip=True)
    np.testing.assert_allclose(np.concatenate(seen), scores.numpy(), rtol=1e-4, atol=1e-6)
    assert metrics.loss == pytest.approx(model.loss(scores, targets).item(), rel=1e-5)
    assert metrics.accuracy == (scores.numpy().argmax(axis=1) == targets).mean()
    assert metrics.loss != pytest.approx(train.evaluate(model, loader.epoch(0)).loss, rel=1e-4)


@on_numpy
def test_outside_a_terminal_an_epoch_is_one_plain_line(capsys):
    fitted(validation=make_loader(30, 10, shuffle=False))
    lines = capsys.readouterr().out.splitlines()
    number = r"\d+\.\d+"
    measured = rf"loss {number}, accuracy {number}%"
    assert len(lines) == 2
    for epoch, line in enumerate(lines, 1):
        pattern = (
            rf"epoch {epoch}/2: {measured}; held out: {measured}; \d+ images/s, loader {number}%"
        )
        assert re.fullmatch(pattern, line), line


@pytest.mark.parametrize("widgets", [False, True])
def test_a_notebook_gets_a_live_line_if_it_can(monkeypatch, widgets):
    """It needs ipywidgets, without which rich warns at every line; then the lines are plain."""
    found = importlib.util.find_spec("json") if widgets else None
    monkeypatch.setattr(progress, "find_spec", {"ipywidgets": found}.get)
    assert progress._is_live(SimpleNamespace(is_jupyter=True)) == widgets
    assert not progress._is_live(SimpleNamespace(is_jupyter=False))


# ---- memory ----


@pytest.fixture
def _no_gc():
    """Switch the cycle collector off: what is dead must be freed by its last reference."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def watch(model):
    """Follow the outputs of all modules, and their arrays."""
    alive = []

    def follow(module, args, y):
        alive.extend([weakref.ref(y), weakref.ref(y.data)])

    for module in model.modules():
        module.register_forward_hook(follow)
    return alive


@pytest.mark.usefixtures("backend", "_no_gc")
@pytest.mark.parametrize("name", ["convnet", "lenet5", "resnet8"])
def test_nothing_of_the_graph_is_alive_after_backward(name):
    model = models.build(name, rng=np.random.default_rng(0))
    outputs = watch(model)
    scores = model(tg.ones(2, *model.image_shape))
    loss = model.loss(scores, np.array([1, 2]))
    assert sum(ref() is not None for ref in outputs) > 2  # the graph holds what backward needs
    loss.backward()
    held = [ref() for ref in outputs if ref() is not None]
    assert {id(a) for a in held} == {id(scores), id(scores.data)}  # what the user holds
    del held, scores, loss
    assert not any(ref() is not None for ref in outputs)


@pytest.mark.usefixtures("backend", "_no_gc")
def test_without_backward_the_graph_dies_with_its_result():
    model = models.build("resnet8", rng=np.random.default_rng(0))
    outputs = watch(model)
    scores = model(tg.ones(2, 3, 32, 32))
    del scores
    assert not any(ref() is not None for ref in outputs)


def memory_after(steps, model, optimizer, rng):
    """Take steps on tiny images; give the bytes in use and the number of tensors and nodes."""
    for _ in range(steps):
        x, targets = rng.random((4, 3, 16, 16), np.float32), rng.integers(0, 10, 4)
        train.train_step(model, optimizer, x, targets)
    # type(o), as isinstance asks the object itself, which in PyTorch warns
    objects = sum(issubclass(type(o), tg.Tensor | Node) for o in gc.get_objects())
    return tracemalloc.get_traced_memory()[0], objects


@pytest.mark.usefixtures("_numpy", "_no_gc")
def test_memory_does_not_grow():
    """The smallest activation, 64 x 4 x 4 of 4 images, kept at each of 20 steps, is 328 KB."""
    model, rng = models.build("resnet8", rng=np.random.default_rng(0)), np.random.default_rng(0)
    optimizer = sgd(model)
    tracemalloc.start()
    try:
        before, objects = memory_after(10, model, optimizer, rng)
        after, same_objects = memory_after(20, model, optimizer, rng)
    finally:
        tracemalloc.stop()
    assert same_objects == objects
    assert after - before < 200_000  # CPython keeps freed tuples for the next ones: 80 KB here


# ---- learning ----


def half_size(dataset):
    """Average 2x2 pixels: a quarter of the work."""
    images = dataset.images.reshape(-1, 3, 16, 2, 16, 2).mean((3, 5)).astype(np.uint8)
    return replace(dataset, images=images)


@pytest.mark.slow
@on_numpy
def test_a_resnet_learns_the_shapes():
    """Chance is 10 %; four epochs came to 53 and 68 %, for two seeds."""
    train_set, test_set = (half_size(d) for d in data.load(images=4000))
    loader = make_loader(batch_size=32, dataset=train_set)
    held_out = make_loader(batch_size=100, dataset=test_set, shuffle=False)
    model = models.build("resnet8", rng=np.random.default_rng(0))
    optimizer = sgd(model, nesterov=True, weight_decay=1e-4)
    schedule = optim.cosine(0.05, 4 * len(loader))
    results = train.fit(model, optimizer, loader, epochs=4, schedule=schedule, validation=held_out)
    assert results[-1]["validation_accuracy"] > 0.4


@pytest.mark.slow
@on_numpy
def test_a_resnet_learns_real_images(real_cifar10):
    """Forty steps on CIFAR-10; chance is ln 10 = 2.303, and three seeds came to 1.87 to 1.91."""
    train_set, _ = data.load(real_cifar10, images=2560)
    loader = make_loader(batch_size=64, dataset=train_set)
    model = models.build("resnet8", rng=np.random.default_rng(0))
    optimizer = sgd(model, nesterov=True, weight_decay=1e-4)
    losses = [train.train_step(model, optimizer, x, y)[0] for x, y in loader.epoch(0)]
    assert len(losses) == 40
    assert np.mean(losses[-10:]) < math.log(10) - 0.3
