"""The trainer: its moments, accumulation, averaging, where it stops and how it goes on."""

from __future__ import annotations

import json
import signal
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_run import make_loader, small

import tinygrad_cnn as tg
from tinygrad_cnn import data, models, optim, train
from tinygrad_cnn.train import signals


@pytest.fixture(autouse=True)
def _numpy():
    with tg.use_backend("numpy"):
        yield


def make(*callbacks, steps=6, model=None, lr=0.05, loader=None, **settings):
    model = model or small()
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    loader = loader or make_loader(augment=data.random_crop_and_flip)
    return train.Trainer(model, optimizer, loader, steps=steps, callbacks=callbacks, **settings)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# ---- moments ----


class Witness:
    """Write down what is told, and where the trainer was."""

    def __init__(self):
        self.seen = []

    def on_start(self, trainer):
        self.seen.append(("start", trainer.step))

    def on_before_update(self, trainer):
        assert all(p.grad is not None for p in trainer.model.parameters())
        self.seen.append(("before", trainer.step))

    def on_step(self, trainer):
        assert all(p.grad is not None for p in trainer.model.parameters())
        self.seen.append(("step", trainer.step, trainer.epoch, trainer.batch))

    def on_epoch(self, trainer, record):
        assert record is trainer.history[-1]
        self.seen.append(("epoch", record["epoch"], record["step"]))

    def on_end(self, trainer):
        self.seen.append(("end", trainer.step))


def test_callbacks_are_told_everything_in_order():
    witness = Witness()
    make(witness, object(), train.Callback(), steps=5).run()  # three steps are an epoch
    assert witness.seen == [
        ("start", 0),
        *[("before", 0), ("step", 1, 0, 1), ("before", 1), ("step", 2, 0, 2)],
        *[("before", 2), ("step", 3, 0, 3), ("epoch", 1, 3)],
        *[("before", 3), ("step", 4, 1, 1), ("before", 4), ("step", 5, 1, 2), ("epoch", 2, 5)],
        ("end", 5),
    ]


def test_the_end_is_told_after_an_error():
    class Fails(Witness):
        def on_step(self, trainer):
            raise OSError("disk full")

    witness = Fails()
    with pytest.raises(OSError, match="disk full"):
        make(witness).run()
    assert witness.seen[-1] == ("end", 1)


def test_history_is_json_and_timings_stand_beside_it():
    trainer = make(validation=make_loader(30, 10, shuffle=False))
    history = trainer.run()
    assert history is trainer.history
    assert json.loads(json.dumps(history)) == history
    assert [record["lr"] for record in history] == [0.05, 0.05]
    assert [t["epoch"] for t in trainer.timings] == [1, 2]
    assert all(t["seconds"] > 0 and t["images_per_second"] > 0 for t in trainer.timings)
    assert all(0 < t["loader_share"] < 1 for t in trainer.timings)
    assert not {*trainer.timings[0]} - {"epoch"} & {*history[0]}


def test_training_metrics_are_of_the_images_seen():
    class Mean(train.Callback):
        def __init__(self):
            self.losses = []

        def on_step(self, trainer):
            self.losses.append(trainer.last_loss)

    (record,) = make(seen := Mean(), steps=3).run()
    assert record["train_loss"] == pytest.approx(np.mean(seen.losses), rel=1e-12)


# ---- accumulation ----


def gradients(x, targets, **settings):
    model = small()
    model.drop.p, model.bn.training = 0, False  # a part's own dropout and statistics differ
    loss, scores = train.compute_gradients(model, x, targets, **settings)
    return loss, scores, {n: p.grad.numpy() for n, p in model.named_parameters()}


@given(st.integers(1, 9), st.integers(1, 12), st.sampled_from([0.0, 0.1]))
def test_gradients_in_parts_are_those_of_the_whole(n, parts, label_smoothing):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, 3, 32, 32)).astype(np.float32)
    targets = rng.integers(0, 10, n)
    loss, scores, whole = gradients(x, targets, label_smoothing=label_smoothing)
    in_parts = gradients(x, targets, parts=parts, label_smoothing=label_smoothing)
    assert in_parts[0] == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(in_parts[1], scores, rtol=1e-4, atol=1e-5)
    for name, g in whole.items():
        np.testing.assert_allclose(in_parts[2][name], g, rtol=1e-4, atol=1e-6, err_msg=name)


def test_parts_are_what_goes_through_the_model():
    sizes, model = [], small()
    model.conv.register_forward_hook(lambda module, args, y: sizes.append(len(y)))
    make(model=model, steps=1, parts=3).run()
    assert sizes == [7, 7, 6]


# ---- averaging ----


def test_the_average_is_the_one_computed_by_hand():
    model = small()
    average, expected = train.WeightAverage(model, 0.9), model.state_dict()
    rng = np.random.default_rng(0)
    for step in range(1, 120):
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            p.data = rng.standard_normal(p.shape).astype(np.float32)
            decay = min(0.9, (1 + step) / (10 + step))
            expected[name] = decay * expected[name] + (1 - decay) * p.data
        average.update(model, step)
    assert decay == 0.9
    for name, a in average.model.state_dict().items():
        np.testing.assert_allclose(a, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_average_is_what_is_measured():
    held_out = make_loader(30, 10, shuffle=False)
    trainer = make(ema=0.99, validation=held_out)
    *_, last = trainer.run()
    assert trainer.eval_model is trainer.average.model
    assert last["validation_loss"] == train.evaluate(trainer.average.model, held_out.epoch(0)).loss
    assert last["validation_loss"] != train.evaluate(trainer.model, held_out.epoch(0)).loss


def test_held_out_images_are_judged_as_the_test_will():
    held_out = make_loader(30, 10, shuffle=False)
    trainer = make(validation=held_out, test_flip=True)
    *_, last = trainer.run()
    flipped, plain = (
        train.evaluate(trainer.model, held_out.epoch(0), flip=flip).loss for flip in (True, False)
    )
    assert last["validation_loss"] == flipped != plain


def test_averaging_changes_nothing_else():
    averaged, plain = make(ema=0.9), make()
    averaged.run()
    plain.run()
    assert_same(averaged.model.state_dict(), plain.model.state_dict())


@pytest.mark.parametrize("decay", [0, 1, -0.5])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay is {decay}; expected a number between 0 and 1"):
        train.WeightAverage(small(), decay)


# ---- where numbers go wrong ----


def test_nan_is_named_and_the_weights_kept():
    class Poison(train.Callback):
        def on_step(self, trainer):
            if trainer.step == 4:
                trainer.model.fc.bias.data = np.full(10, np.nan, np.float32)
                self.before = trainer.model.state_dict()

    trainer = make(poison := Poison(), train.StopAtNaN())
    with pytest.raises(train.Diverged) as error:
        trainer.run()
    assert str(error.value) == (
        "the loss is nan at step 5 (epoch 2, learning rate 0.05); "
        "lower the learning rate, or let it warm up over more steps"
    )
    trained = {n for n, _ in trainer.model.named_parameters()}
    after = trainer.model.state_dict()
    assert_same({n: after[n] for n in trained}, {n: poison.before[n] for n in trained})


def test_a_rate_too_high_is_noticed():
    trainer = make(train.StopAtNaN(), model=models.build("mlp"), lr=1e30, steps=30)
    told = pytest.raises(train.Diverged, match=r"the loss is (nan|inf) at step \d+ .*rate 1e\+30")
    with told:  # and a warning of NumPy's would be an error here
        trainer.run()


# ---- stopping and going on ----


class StopAt(train.Callback):
    """Interrupt after a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        if trainer.step == self.step:
            trainer.interrupt = signal.SIGINT


@pytest.mark.parametrize("step", range(1, 9))
def test_going_on_is_as_never_stopped(step):
    """From every step of an epoch and its end, with momentum, averages, dropout, statistics."""
    settings = dict(
        steps=8, ema=0.9, parts=2, label_smoothing=0.1, schedule=optim.cosine(0.05, 8),
    )  # fmt: skip
    whole = make(**settings, validation=make_loader(30, 10, shuffle=False))
    whole.run()
    first = make(StopAt(step), **settings, validation=make_loader(30, 10, shuffle=False))
    with pytest.raises(train.Interrupted, match=f"interrupted after step {step} of 8"):
        first.run()
    state = first.state_dict()
    state["facts"] = json.loads(json.dumps(state["facts"]))
    second = make(**settings, model=small(1), validation=make_loader(30, 10, shuffle=False))
    second.load_state_dict(state)
    tg.manual_seed(99)
    second.run()
    assert second.history == whole.history
    assert_same(second.state_dict()["arrays"], whole.state_dict()["arrays"])
    assert second.state_dict()["facts"] == whole.state_dict()["facts"]


def test_validation_can_be_interrupted():
    """The epoch isn't over then, and is measured when the run goes on."""
    held_out = make_loader(30, 10, shuffle=False)
    trainer, measured = make(steps=3, validation=held_out), []

    def stop(module, args, y):
        if not module.training:
            measured.append(len(y))
            trainer.interrupt = signal.SIGINT

    remove = trainer.model.register_forward_hook(stop)
    with pytest.raises(train.Interrupted):
        trainer.run()
    assert (measured, trainer.step, trainer.epoch, trainer.history) == ([10], 3, 0, [])
    remove()
    trainer.interrupt = None
    (record,) = trainer.run()
    assert (record["step"], record["validation_loss"] is None) == (3, False)


def test_a_state_is_a_copy():
    trainer = make()
    state = trainer.state_dict()
    kept = {name: a.copy() for name, a in state["arrays"].items()}
    trainer.run()
    assert_same(state["arrays"], kept)
    assert state["facts"]["history"] == []


@pytest.mark.parametrize("number", signals.HEEDED)
def test_a_signal_is_heeded_after_the_step(number):
    """Once; the second does what it did before."""

    class Kill(train.Callback):
        def on_before_update(self, trainer):
            signal.raise_signal(number)

    trainer, before = make(Kill()), signal.getsignal(number)
    with pytest.raises(train.Interrupted), signals.heeded(trainer):
        trainer.run()
    assert (trainer.step, trainer.interrupt) == (1, number)
    assert signal.getsignal(number) is before
    with signals.heeded(trainer):
        signal.raise_signal(number)
        assert signal.getsignal(number) is before


def test_only_the_main_thread_heeds_signals():
    """In another one, Python allows no handler; the run goes on without."""
    handlers = []

    def work():
        with tg.use_backend("numpy"), signals.heeded(make()):
            handlers.append(signal.getsignal(signal.SIGINT))

    before, thread = signal.getsignal(signal.SIGINT), threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]
