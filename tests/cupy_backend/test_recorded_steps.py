"""Training steps as CUDA graphs: on an emulated GPU that has them, and on a real one."""

import math
import re
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from cupy_backend.recording import RECORDER, RecordingBackend
from cupy_backend.small_net import SmallNet

import tinygrad_cnn as tg
from tinygrad_cnn import data, nn, optim, random, report, train
from tinygrad_cnn.backends.cupy_backend import graph
from tinygrad_cnn.train import recorded as recorded_module
from tinygrad_cnn.train import trainer as trainer_module
from tinygrad_cnn.train.recorded import WARM_UP

RNG = np.random.default_rng(0)
IMAGES = data.Dataset(
    RNG.integers(0, 256, (30, 3, 8, 8), np.uint8), RNG.integers(0, 4, 30), tuple("abcd"), "noise"
)
STATISTICS = data.channel_statistics(IMAGES.images)
HAS_GPU = tg.available_backends()["cupy"] is None
EPOCH, WHOLE = 4, 3  # batches of 8, the last of 6


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("recording", marks=pytest.mark.emulated),
        *([pytest.param("cupy", marks=pytest.mark.device)] if HAS_GPU else []),
    ],
)
def gpu(request):
    """Give a backend that has CUDA graphs."""
    recording = request.param == "recording"
    return request.getfixturevalue("recording") if recording else tg.backends.get("cupy")


class Net(SmallNet):
    """With dropout: all that changes from step to step."""

    def __init__(self, seed=0):
        super().__init__(seed, dropout=0.3)


def groups(params, lr):
    """Make an optimiser of two groups, whose rates keep their proportion."""
    several = [{"params": params[:3]}, {"params": params[3:], "lr": lr / 3, "weight_decay": 0.1}]
    return optim.SGD(several, lr=lr, momentum=0.5, nesterov=True)


def schedule(step):
    return 0.1 / (1 + step)


def make(
    backend, *callbacks, steps=3 * EPOCH, model=None, optimizer=optim.SGD, drop_last=False,
    resident=True, validate=False, **settings,
):  # fmt: skip
    """Make a trainer; with cuda_graphs unless told otherwise."""
    with tg.use_backend(backend):
        model = (model or Net()).to(backend)
        crops = data.RandomCropAndFlip(padding=2)
        at = dict(seed=1, normalize=STATISTICS, augment=crops, drop_last=drop_last)
        more = dict(backend=backend) if resident else {}
        loader = (data.ResidentLoader if resident else data.Loader)(IMAGES, 8, **at, **more)
        kept = dict(momentum=0.9) if optimizer is optim.SGD else {}
        settings = dict(cuda_graphs=True, label_smoothing=0.1, schedule=schedule) | settings
        held_out = data.Loader(IMAGES, 10, seed=1, normalize=STATISTICS) if validate else None
        return train.Trainer(
            model, optimizer(model.parameters(), lr=0.1, **kept), loader, steps=steps,
            callbacks=callbacks, validation=held_out, **settings,
        )  # fmt: skip


def finish(trainer):
    """Train; give the trainer, and all that the training has come to."""
    with tg.use_backend(trainer.model.parameters()[0].backend):
        trainer.run()
    return trainer, trainer.state_dict()


def assert_same(one, other):
    assert one["facts"] == other["facts"]
    assert one["arrays"].keys() == other["arrays"].keys()
    for name, a in one["arrays"].items():
        np.testing.assert_array_equal(a, other["arrays"][name], err_msg=name)


class Counts(train.Callback):
    """Count the steps that were replayed."""

    def __init__(self):
        self.replayed = []

    def on_start(self, trainer):
        then = trainer.recorded._replay

        def replay():
            self.replayed.append(trainer.step)
            then()

        trainer.recorded._replay = replay


def replayed(trainer):
    """Train; give the numbers of the steps that were replayed."""
    counts = Counts()
    trainer.callbacks.append(counts)
    finish(trainer)
    return counts.replayed


# ---- what comes of it ----


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(parts=2),
        dict(ema=0.9, validate=True),
        dict(label_smoothing=0.0, schedule=None),
        dict(resident=False),
        dict(optimizer=groups),
    ],
    ids=["plain", "parts", "average", "neither", "batches of the host", "groups"],
)
def test_recorded_steps_are_the_usual_ones(gpu, settings):
    """To the last bit: dropout, statistics, rates, the batch that is smaller, what is measured."""
    recorded, usual = (
        finish(make(gpu, cuda_graphs=graphs, **settings)) for graphs in (True, False)
    )
    assert recorded[0].recorded.graph is not None
    assert_same(recorded[1], usual[1])
    assert math.isfinite(usual[0].history[-1]["train_loss"])


def test_the_first_steps_and_smaller_batches_are_done_as_usual(gpu):
    steps = [step for step in range(WARM_UP, 3 * EPOCH) if step % EPOCH < WHOLE]
    assert replayed(make(gpu)) == steps


def test_recording_does_nothing(gpu):
    """Neither to the parameters nor to what stands beside them; the replay then does it."""
    trainer = make(gpu, steps=WARM_UP)
    finish(trainer)
    own, before = trainer.recorded, trainer.state_dict()["arrays"]
    x, targets = next(iter(trainer.loader.epoch(0)))
    own.x, own.targets[:] = x, targets
    done = RECORDER.done
    with tg.use_backend(gpu):
        assert own._record()
    assert RECORDER.done == done
    after = trainer.state_dict()["arrays"]
    for name, a in before.items():
        np.testing.assert_array_equal(after[name], a, err_msg=name)
    own._replay()
    assert RECORDER.done > done + 50 or not isinstance(gpu, RecordingBackend)
    assert (trainer.state_dict()["arrays"]["model.fc.weight"] != before["model.fc.weight"]).any()


def test_gradients_are_there_after_a_step(gpu):
    class Look(train.Callback):
        def __init__(self):
            self.norms = []

        def on_step(self, trainer):
            grads = [p.grad.numpy() for p in trainer.model.parameters()]
            self.norms.append([float(np.linalg.norm(g)) for g in grads])

    recorded, usual = Look(), Look()
    finish(make(gpu, recorded))
    finish(make(gpu, usual, cuda_graphs=False))
    assert recorded.norms == usual.norms


def test_a_replay_is_a_change_of_the_parameters(gpu):
    """So that a graph which needs the old ones isn't walked."""
    trainer = make(gpu, steps=WARM_UP + 3)
    kept = []

    class Keep(train.Callback):
        def on_step(self, trainer):
            if trainer.step == WARM_UP + 2:
                kept.append((trainer.model.fc.weight * trainer.model.fc.weight).sum())

    trainer.callbacks.append(Keep())
    assert replayed(trainer) == [WARM_UP + 1, WARM_UP + 2]
    with pytest.raises(tg.SavedTensorChanged):
        kept[0].backward()


# ---- when it isn't done ----


def test_a_say_within_steps_forces_usual_ones(gpu):
    class Clip(train.Callback):
        def on_before_update(self, trainer):
            self.called = True

    class Only:
        def on_before_update(self, trainer):
            pass

    assert not replayed(make(gpu, Clip()))
    assert not replayed(make(gpu, Only()))
    assert replayed(make(gpu, train.Callback(), train.StopAtNaN(), object()))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_force_usual_steps_while_they_are_there(gpu, register):
    seen = []

    class Hooks(train.Callback):
        def on_step(self, trainer):
            if trainer.step == 5:
                self.remove = getattr(trainer.model.fc, register)(lambda *a: seen.append(a))
            if trainer.step == 8:
                self.remove()

    assert replayed(make(gpu, Hooks())) == [4, 8, 9, 10]
    assert len(seen) == 3


def test_hooks_of_ops_force_usual_steps(gpu):
    with tg.autograd.forward_hook(lambda *a: None):
        assert not replayed(make(gpu))


def half(scores, targets, label_smoothing):
    return tg.functional.cross_entropy(scores, targets, label_smoothing) * 0.5


PUT = {
    "a layer": lambda model: setattr(model, "drop", nn.Identity()),
    "a buffer": lambda model: setattr(model.bn1, "running_mean", tg.ones(8)),
    "a loss": lambda model: setattr(model, "loss", half),
    "a stride": lambda model: model.conv2.settings.update(stride=(1, 1)),
    "dropout": lambda model: setattr(model.drop, "p", 0.6),
    "a mode": lambda model: setattr(model.bn1, "training", False),
    "a frozen layer": lambda model: setattr(model.conv1.weight, "requires_grad", False),
    "an activation": lambda model: setattr(model, "kept", tg.functional.gelu),
    "weights": lambda model: model.load_state_dict(Net(seed=1).state_dict()),
}
WITHIN = {"unfused": tg.unfused, "rule": lambda: tg.relu_rule("guided")}


@pytest.mark.parametrize("what", [*PUT, *WITHIN, "momentum", "precision"])
def test_what_has_changed_is_recorded_anew(gpu, what):
    """After as many usual steps as in the beginning. An epoch begins with all modes set."""

    class Change(train.Callback):
        def on_step(self, trainer):
            if trainer.step != 5:
                return
            if what in PUT:
                PUT[what](trainer.model)
            elif what in WITHIN:
                self.within = WITHIN[what]()
                self.within.__enter__()
            elif what == "precision":
                tg.set_precision("bf16", gpu)
            else:
                trainer.optimizer.param_groups[0]["momentum"] = 0.5

        def on_end(self, trainer):
            if what in WITHIN:
                self.within.__exit__(None, None, None)

    recorded, usual = (make(gpu, Change(), cuda_graphs=graphs) for graphs in (True, False))
    with tg.use_precision("fp32", gpu):
        assert replayed(recorded) == ([4] if what == "a mode" else [4, 9, 10])
    with tg.use_precision("fp32", gpu):
        finish(usual)
    assert_same(recorded.state_dict(), usual.state_dict())


def test_images_of_another_shape_or_type(gpu):
    """As in a training that begins with small ones."""
    shapes = [(8, 3, 8, 8)] * 5 + [(8, 3, 6, 6)] * 5
    ends = []
    for graphs in True, False:
        trainer = make(gpu, cuda_graphs=graphs, schedule=None)
        with tg.use_backend(gpu):
            for n, shape in enumerate(shapes):
                x = np.random.default_rng(n).standard_normal(shape).astype(np.float32)
                trainer._do_step(x, np.arange(8) % 4)
            ends.append(trainer.state_dict())
            if graphs:
                assert trainer.recorded.graph is not None
                with pytest.raises(TypeError, match="float64"):
                    trainer.recorded(x.astype(np.float64), np.arange(8) % 4)
                with pytest.raises(ValueError, match="channels"):
                    trainer.recorded(x[:, :1], np.arange(8) % 4)
    assert_same(*ends)


def reads(self, x):
    y = Net.forward(self, x)
    float(y.sum().item())  # by then the statistics have moved
    return y


def uploads(self, x):
    return Net.forward(self, x * np.ones(x.shape, x.dtype))


def looks_up(self, x):
    return Net.forward(self, x[np.arange(len(x))])


def chances(self, x):
    return Net.forward(self, x * float(random.generator().random() < 0.5))


def checkpoints(self, x):
    return nn.checkpoint(lambda x: Net.forward(self, x), x)


def multiplies(self, x):
    rows = x.reshape(1, len(x), -1)  # matrices in a stack are left to cuBLAS
    y = rows @ rows.transpose(1, 2)
    return Net.forward(self, x + 0 * y.sum())


def computes_targets(self, x):
    """Have a loss that does."""
    return Net.forward(self, x)


def counts(self, x):
    self.calls = getattr(self, "calls", 0) + 1
    return Net.forward(self, x)


def keeps(self, x):
    y = Net.forward(self, x)
    self.kept = x, y
    return y


def other_targets(scores, targets, label_smoothing=0.0):
    return tg.functional.cross_entropy(scores, (targets + 1) % 4, label_smoothing)


def leaves_out(self, x):
    """Drop of the images in every other step."""
    return Net.forward(self, tg.functional.dropout(x, 0.1, self.seen[-1] % 2 == 1))


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (reads, r"the host read an array \(\) in the midst of it"),
        (uploads, r"an array \(8, 3, 8, 8\) of the host came into it, of which each replay would"),
        (looks_up, r"the current stream is capturing, so H2D transfers are disallowed"),
        (chances, r"it draws random numbers for more than dropout, or computes activations again"),
        (checkpoints, r"it draws random numbers for more than dropout, or computes activations"),
        (multiplies, r".*cuBLAS API .*is currently unsupported"),
        (computes_targets, r"its loss computes with the targets; do that before, in the data"),
        (counts, r"it has another Odd.calls \(0\) each time"),
        (keeps, r"it has another Odd.kept \(0\) each time"),
        (leaves_out, r"it is not the same from step to step: other arrays go into it"),
    ],
)
def test_what_cannot_be_recorded_is_done_as_usual_and_said_once(gpu, forward, why):
    def odd():
        model = type("Odd", (Net,), dict(forward=forward))()
        model.seen = [0]
        if forward is computes_targets:
            model.loss = other_targets
        return model

    note = SimpleNamespace(on_step=lambda trainer: trainer.model.seen.append(trainer.step))
    at = dict(label_smoothing=0.0, steps=5 * EPOCH)
    recorded, usual = (make(gpu, note, model=odd(), cuda_graphs=g, **at) for g in (True, False))
    with pytest.warns(RuntimeWarning, match=f"not recorded as a CUDA graph, .*: {why}") as told:
        assert not replayed(recorded)
    assert len(told) == 1
    with tg.use_backend(gpu):
        assert not recorded.recorded(*next(iter(recorded.loader.epoch(0))))
    finish(usual)
    assert_same(recorded.state_dict(), usual.state_dict())


def test_a_step_that_wants_more_than_in_rehearsals():
    inputs, backend = recorded_module._Inputs(), tg.backends.get("numpy")
    for n in 0, 1:
        inputs.begin()
        assert inputs.filled(backend, lambda n=n: np.full(2, n)) is inputs.arrays[0]
    inputs.begin()
    assert inputs.reserved(backend, lambda: np.full(2, 5)) is inputs.arrays[0]
    inputs.check()
    assert inputs.arrays[0].tolist() == [1, 1]
    inputs.fill(backend)
    assert inputs.arrays[0].tolist() == [5, 5]
    with pytest.raises(ValueError, match="it is not the same from step to step"):
        inputs.reserved(backend, lambda: np.full(2, 6))


def test_a_parameter_that_the_optimiser_lacks(gpu):
    """Its gradients add up, from step to step."""
    recorded, usual = (make(gpu, cuda_graphs=graphs) for graphs in (True, False))
    for trainer in recorded, usual:
        params = trainer.model.parameters()
        trainer.optimizer = optim.SGD(params[1:], lr=0.1)
    recorded.recorded = train.RecordedStep(
        recorded.model, recorded.optimizer, batch_size=8, label_smoothing=0.1
    )
    told = (
        r"the optimiser lacks a parameter of shape \(8, 3, 3, 3\); give it to both, or freeze it$"
    )
    with pytest.warns(RuntimeWarning, match=told):
        assert not replayed(recorded)
    finish(usual)
    assert_same(recorded.state_dict(), usual.state_dict())
    sums = [t.model.conv1.weight.grad.numpy() for t in (recorded, usual)]
    np.testing.assert_array_equal(*sums)
    recorded.model.conv1.weight.requires_grad = False
    recorded.steps += EPOCH * 2
    assert replayed(recorded)


def test_weights_of_a_frozen_layer_that_are_replaced(gpu):
    """The graph would read the old ones, where there may be anything by then."""

    class Replace(train.Callback):
        def on_start(self, trainer):
            trainer.model.conv1.weight.requires_grad = False

        def on_step(self, trainer):
            if trainer.step == 5:
                trainer.model.conv1.weight.data = 2 * trainer.model.conv1.weight.data

    recorded, usual = (make(gpu, Replace(), cuda_graphs=graphs) for graphs in (True, False))
    assert replayed(recorded) == [4, 9, 10]
    finish(usual)
    assert_same(recorded.state_dict(), usual.state_dict())


def test_a_parameter_that_the_model_lacks(gpu):
    trainer = make(gpu)
    with tg.use_backend(gpu):
        more = tg.zeros(3, 5)
    more.requires_grad = True
    params = [*trainer.model.parameters(), more]
    trainer.optimizer = optim.SGD(params, lr=0.1)
    trainer.recorded = train.RecordedStep(
        trainer.model, trainer.optimizer, batch_size=8, label_smoothing=0.1
    )
    told = r"the model lacks a parameter of shape \(3, 5\); give it to both, or freeze it$"
    with pytest.warns(RuntimeWarning, match=told):
        assert not replayed(trainer)


def test_another_optimizer_is_not_what_was_recorded(gpu):
    class Another(train.Callback):
        def on_step(self, trainer):
            if trainer.step == 5:
                trainer.optimizer = optim.SGD(trainer.model.parameters(), lr=0.1)

    assert replayed(make(gpu, Another())) == [4]


def test_targets_that_are_no_class_numbers(gpu):
    """Are for the usual step to refuse."""
    own = make(gpu).recorded
    x = np.zeros((8, 3, 8, 8), np.float32)
    for targets in np.zeros(8), np.zeros((8, 4), int), [0] * 8, tg.zeros(8):
        assert not own(x, targets)


def test_an_interrupt_while_recording(gpu):
    """Ctrl-C leaves all as it was, and the next step is recorded."""
    trainer = make(gpu, steps=WARM_UP)
    finish(trainer)
    own, before = trainer.recorded, trainer.state_dict()
    grads = [p.grad for p in trainer.model.parameters()]
    batch = next(iter(trainer.loader.epoch(0)))
    with tg.use_backend(gpu):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer.optimizer, "step", interrupt)  # by then the statistics have moved
            with pytest.raises(KeyboardInterrupt):
                own(*batch)
        assert_same(trainer.state_dict(), before)
        assert all(p.grad is g for p, g in zip(trainer.model.parameters(), grads, strict=True))
        assert own(*batch)
    assert own.graph is not None


def interrupt():
    raise KeyboardInterrupt


def test_who_has_no_graphs_says_so(gpu):
    with pytest.raises(
        ValueError, match=r"^cuda_graphs: the backend 'numpy' has none; take 'cupy'"
    ):
        train.RecordedStep(Net().to("numpy"), None, batch_size=8)

    class Own(optim.SGD):
        """Which may do anything with lr."""

    for optimizer in optim.Adam, Own:
        told = f"^cuda_graphs: the step of {optimizer.__name__} has numbers that would be repeated "
        with pytest.raises(ValueError, match=told):
            make(gpu, optimizer=optimizer)


# ---- reading ----


def test_losses_are_read_when_somebody_asks(gpu, monkeypatch):
    reads = []
    take = train.RecordedStep.take
    monkeypatch.setattr(
        train.RecordedStep,
        "take",
        lambda self: reads.append(self.pending) or take(self),
    )
    finish(make(gpu))
    assert [n for n in reads if n] == [3, 3, 3]  # before an epoch's last batch, which is smaller


def test_an_epoch_is_over_when_the_device_is_done(gpu, monkeypatch):
    """The time of its last step has that of all which it had asked for."""
    trainer, waiting = make(gpu, drop_last=True, steps=2 * WHOLE), []
    monkeypatch.setattr(
        trainer_module.Pace, "add", lambda *args: waiting.append(trainer.recorded.pending)
    )
    finish(trainer)
    assert waiting == [1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("often", [False, True])
def test_the_device_s_time_is_counted_whoever_waits_for_it(gpu, monkeypatch, often):
    """Five seconds for each wait of this clock, and none for anything else."""
    now, take = [0.0], train.RecordedStep.take

    def wait(self):
        now[0] += 5 * (self.pending > 0)
        return take(self)

    monkeypatch.setattr(train.RecordedStep, "take", wait)
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    ask = SimpleNamespace(on_step=lambda trainer: trainer.metrics) if often else object()
    trainer, _ = finish(make(gpu, ask))
    assert [t["seconds"] for t in trainer.timings] == [5.0 * (WHOLE if often else 1)] * 3


def test_the_device_s_time_is_counted_when_a_state_is_saved(gpu, monkeypatch):
    """Copying the arrays waits for all steps; so their results are read before."""
    order = []
    trainer = make(gpu, steps=WARM_UP)
    monkeypatch.setattr(trainer, "_catch_up", lambda: order.append("read"))
    copy = trainer.optimizer.state_dict
    monkeypatch.setattr(trainer.optimizer, "state_dict", lambda: order.append("copy") or copy())
    trainer.state_dict()
    assert order[:2] == ["read", "copy"]


def test_what_was_found_before_a_state_is_loaded_counts_no_more(gpu):
    trainer = make(gpu, steps=WARM_UP)
    state = trainer.state_dict()
    batch = next(iter(trainer.loader.epoch(0)))
    with tg.use_backend(gpu):
        assert trainer.recorded(*batch)
    trainer.load_state_dict(state)
    assert trainer.metrics.images == 0
    assert math.isnan(trainer.last_loss)


def test_a_loss_can_be_asked_for_at_each_step(gpu):
    class Ask(train.Callback):
        def __init__(self):
            self.losses, self.told = [], []

        def on_step(self, trainer):
            self.losses.append(trainer.last_loss)

        def on_loss(self, trainer, step, loss):
            self.told.append((step, loss))

    recorded, usual, late = Ask(), Ask(), Ask()
    late.on_step = lambda trainer: None
    finish(make(gpu, recorded))
    finish(make(gpu, usual, cuda_graphs=False))
    finish(make(gpu, late))
    assert recorded.losses == usual.losses
    assert recorded.told == usual.told == late.told == [*enumerate(usual.losses, 1)]


def test_more_steps_than_there_are_rows(gpu, monkeypatch):
    """They are read when the last row is full."""
    usual = finish(make(gpu, cuda_graphs=False, drop_last=True))
    monkeypatch.setattr(recorded_module, "ROWS", 2)
    own = make(gpu, drop_last=True)
    assert own.recorded.losses.shape == (2,)
    assert_same(finish(own)[1], usual[1])


class Poison(train.Callback):
    """Let the training diverge in a step."""

    def __init__(self, step):
        self.at = step

    def on_step(self, trainer):
        if trainer.step == self.at - 1:
            trainer.model.fc.bias.data[...] = np.inf


def test_a_bad_step_is_noticed_when_the_rows_are_full(gpu, monkeypatch):
    """Even if nobody asks: here before the sixth step, after which the epoch ends."""
    monkeypatch.setattr(recorded_module, "ROWS", 2)
    trainer = make(gpu, Poison(4), train.StopAtNaN(), drop_last=True)
    with pytest.raises(train.Diverged, match="is nan at step 4 "):
        finish(trainer)
    assert trainer.step == 5


@pytest.mark.parametrize("read", [False, True])
def test_the_first_bad_step_is_named_whenever_it_is_read(gpu, read):
    ask = SimpleNamespace(on_step=lambda trainer: trainer.metrics) if read else object()
    trainer = make(gpu, Poison(6), train.StopAtNaN(), ask)
    told = re.escape("is nan at step 6 (epoch 2, learning rate 0.0166667)")
    with pytest.raises(train.Diverged, match=told):
        finish(trainer)
    assert trainer.step == (6 if read else 7)
    assert trainer.recorded.graph is not None


def test_no_checkpoint_is_written_of_what_has_diverged(gpu, tmp_path):
    folder = train.folder.RunFolder(tmp_path)
    keeper = train.Checkpoints(folder, about={}, arrays={}, every=1)
    with pytest.raises(train.Diverged, match="at step 6 "):
        finish(make(gpu, Poison(6), train.StopAtNaN(), keeper))
    _, facts = folder.recover()
    assert facts["step"] == 5


# ---- runs ----


def stop_at(step):
    def on_step(trainer):
        if trainer.step == step:
            trainer.interrupt = signal.SIGTERM

    return SimpleNamespace(on_step=on_step)


def test_a_run_goes_on_with_graphs_or_without(gpu, monkeypatch, tmp_path):
    """In the end it has the weights of one that had none and was never stopped."""
    few = data.shapes(100), data.shapes(20, train=False)
    monkeypatch.setattr(train.run, "open_data", lambda config: few)
    told = {"model": "softmax", "epochs": 3, "batch_size": 32}
    recipe = train.Recipe.from_dict(train.recipe.load("shapes").override(told).to_dict())
    usual = train.Config(recipe, backend=gpu.name)
    recorded, graphs = replace(usual, cuda_graphs=True), []
    see = SimpleNamespace(on_end=lambda trainer: graphs.append(trainer.recorded is not None))
    train.start(tmp_path / "usual", usual, callbacks=[see])
    with pytest.raises(train.Stopped):
        train.start(tmp_path / "run", recorded, callbacks=[stop_at(6), see])
    with pytest.raises(train.Stopped):
        train.resume(tmp_path / "run", cuda_graphs=False, callbacks=[stop_at(7), see])
    train.resume(tmp_path / "run", callbacks=[see])
    assert graphs == [False, True, False, True]
    (wanted, _), (found, _) = (
        train.checkpoint.load(tmp_path / name / "last.safetensors") for name in ("usual", "run")
    )
    assert wanted.keys() == found.keys()
    for name, a in wanted.items():
        np.testing.assert_array_equal(found[name], a, err_msg=name)
    assert report.differences(map(report.read_run, (tmp_path / "usual", tmp_path / "run"))) == {}


# ---- between it and CuPy ----


class Context:
    """Note when a `with` block begins and ends."""

    def __init__(self, asked, name):
        self.asked, self.name = asked, name

    def __enter__(self):
        self.asked.append(f"enter {self.name}")

    def __exit__(self, *error):
        self.asked.append(f"leave {self.name}")


def fake_cupy(asked):
    """Imitate what graph.py needs of CuPy, and write down what it is asked."""

    class Stream(Context):
        def __init__(self, *, non_blocking):
            super().__init__(asked, "stream")
            assert non_blocking

        def begin_capture(self):
            asked.append("begin")

        def end_capture(self):
            asked.append("end")
            return SimpleNamespace(launch=lambda: asked.append("launch"))

    cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(id=3),
        Memory=lambda size: Block(size, asked),
        MemoryPointer=lambda memory, offset: memory,
        UnownedMemory=Unowned,
        Stream=Stream,
        using_allocator=lambda allocate: Context(asked, "memory"),
    )
    pool = SimpleNamespace(free_all_blocks=lambda: asked.append("free"))
    return SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: pool)


class Block:
    """Memory of the device, which tells when it is given back."""

    def __init__(self, size, asked):
        self.size, self.ptr, self.asked = size, 1000 + size, asked

    def __del__(self):
        self.asked.append(self.size)


class Unowned:
    """Memory that is somebody else's."""

    def __init__(self, ptr, size, owner, device):
        self.ptr, self.size, self.owner, self.device = ptr, size, owner, device


AROUND = (
    ["free", "enter memory", "enter stream", "begin"],
    ["end", "leave stream", "leave memory"],
)


def test_what_is_asked_of_cupy_around_a_recording():
    """The stream and the allocator are left as they were found, whatever happens."""
    asked = []
    replay = graph.record(fake_cupy(asked), lambda: asked.append("work"))
    recorded = [*AROUND[0], "work", *AROUND[1]]
    assert asked == recorded
    replay()
    replay()
    assert asked == [*recorded, "launch", "launch"]
    del asked[:]
    with pytest.raises(KeyboardInterrupt):
        graph.record(fake_cupy(asked), lambda: interrupt())
    assert asked == [*AROUND[0], *AROUND[1]]


def test_memory_of_a_graph_stays_where_it_is():
    """It is used again, and given back when neither the graph nor an array needs it."""
    given_back = []
    memory = graph.OwnMemory(fake_cupy(given_back))
    one, two = memory.allocate(100), memory.allocate(30)
    assert (one.ptr, one.size, one.device) == (1100, 100, 3)
    del one
    again, another = memory.allocate(60), memory.allocate(49)
    assert (again.ptr, again.size) == (1100, 60)
    assert another.ptr == 1049
    del again
    assert memory.allocate(50).ptr == 1100  # but for 49 bytes it would be a waste
    assert not given_back
    del another, memory
    assert sorted(given_back) == [49, 100]
    del two
    assert sorted(given_back) == [30, 49, 100]
