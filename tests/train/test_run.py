"""Runs: what they leave, and that stopping them, in whatever way, changes nothing."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from killable import RECIPE
from PIL import Image
from small_run import Small

import tinygrad_cnn as tg
from tinygrad_cnn import data, models, nn, report, train
from tinygrad_cnn import functional as F
from tinygrad_cnn.train import checkpoint, run, trained
from tinygrad_cnn.train.config import check_resumable, read_config
from tinygrad_cnn.train.folder import RunFolder
from tinygrad_cnn.train.recipe import Recipe, RecipeError
from tinygrad_cnn.train.run import open_data  # before tests replace it

HERE = Path(__file__).parent
posix = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
SAME = ("last.safetensors", "previous.safetensors", "best.safetensors", "history.jsonl")


@pytest.fixture(autouse=True)
def _small_images(monkeypatch):
    """Let runs in this process train on a few shapes."""
    monkeypatch.setitem(models.registry._builders, "small", Small)
    few = data.shapes(250), data.shapes(50, train=False)
    monkeypatch.setattr(run, "open_data", lambda config: few)
    for picture in ("curves", "confusion", "mistakes"):  # slow, and not what is tested here
        monkeypatch.setattr(report, f"plot_{picture}", lambda *args: args[-1].write_bytes(b"PNG"))


def config(*, validation=50, **changes):
    recipe = Recipe.from_dict(RECIPE).override({"epochs": 2, **changes})
    return train.Config(recipe, validation=validation, backend="numpy")


def stop_at(step):
    class Stop(train.Callback):
        def on_step(self, trainer):
            if trainer.step == step:
                trainer.interrupt = signal.SIGTERM

    return Stop()


def contents(folder):
    return {name: (folder / name).read_bytes() for name in SAME}


def contents_of_all(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- what a run leaves ----


def test_what_a_run_leaves(tmp_path):
    result = run.start(tmp_path / "run", config())
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        *SAME, "config.json", "result.json", "timings.jsonl",
        "curves.png", "confusion.png", "mistakes.png",
    }  # fmt: skip
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert {k: result[k] for k in ("epochs", "backend", "seed", "data", "model", "recipe")} == dict(
        epochs=2, backend="numpy", seed=0, data="shapes", model="small", recipe="quick"
    )
    assert result["parameters"] == models.build("small").num_parameters()
    history = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in history] == [13, 26]
    told = json.loads((tmp_path / "run" / "config.json").read_text())
    assert train.Config.from_dict(told) == config()


def test_the_test_images_are_looked_at_once(tmp_path, monkeypatch):
    """At the end; validation images come from the training set, and nothing else is measured."""
    measured, evaluate = [], train.Trained.evaluate
    test_set = run.open_data(None)[1]

    def watched(self, dataset):
        measured.append(dataset)
        return evaluate(self, dataset)

    monkeypatch.setattr(train.Trained, "evaluate", watched)
    seen, loaded = [], data.Loader.epoch

    def watch(self, *args, **settings):
        seen.append(self.dataset)
        return loaded(self, *args, **settings)

    monkeypatch.setattr(data.Loader, "epoch", watch)
    run.start(tmp_path / "run", config())
    assert measured == [test_set]
    assert [dataset is test_set for dataset in seen] == [False] * 4 + [True]


def test_the_best_epoch_on_held_out_images_is_kept(tmp_path):
    result = run.start(tmp_path / "run", config(epochs=6))
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    accuracies = [json.loads(line)["validation_accuracy"] for line in lines]
    _, facts = checkpoint.load(tmp_path / "run" / "best.safetensors")
    assert facts["epoch"] == 1 + int(np.argmax(accuracies))
    with tg.use_backend("numpy"):
        best = train.Trained.load(tmp_path / "run" / "best.safetensors")
        metrics, _ = best.evaluate(run.open_data(None)[1])
    assert result["test_accuracy"] == metrics.accuracy


def test_of_equally_good_epochs_the_first_is_kept(tmp_path):
    """A model that never learns: all its epochs are equally good."""
    still = config(epochs=3, model="softmax", optimizer={"lr": 0.0})
    run.start(tmp_path / "run", still)
    _, facts = checkpoint.load(tmp_path / "run" / "best.safetensors")
    assert facts["epoch"] == 1
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert len({json.loads(line)["validation_accuracy"] for line in lines}) == 1


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    with pytest.raises(train.Stopped):
        run.start(tmp_path / "run", config(), callbacks=[stop_at(1)])
    before = contents_of_all(tmp_path / "run")
    said = "^another process trains in .*run; let it end, or stop it$"
    with RunFolder(tmp_path / "run").held(), pytest.raises(train.RecipeError, match=said):
        run.resume(tmp_path / "run")
    assert contents_of_all(tmp_path / "run") == before
    run.resume(tmp_path / "run")


def test_a_process_that_dies_lets_go(tmp_path):
    """Of its lock; the file stays and means nothing."""
    program = f"""
import os, pathlib
from tinygrad_cnn.train.folder import RunFolder
with RunFolder(pathlib.Path({str(tmp_path)!r})).held():
    os._exit(0)"""
    subprocess.run([sys.executable, "-c", program], check=True)
    with RunFolder(tmp_path).held():
        pass


def test_without_validation_the_last_is_used(tmp_path):
    result = run.start(tmp_path / "run", config(validation=0))
    assert not (tmp_path / "run" / "best.safetensors").exists()
    with tg.use_backend("numpy"):
        last = train.Trained.load(tmp_path / "run" / "last.safetensors")
        metrics, probabilities = last.evaluate(run.open_data(None)[1])
    assert result["test_loss"] == metrics.loss
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_a_models_settings_lie_in_the_checkpoint(tmp_path):
    changes = {"model": "convnet", "model_settings": {"widths": [4, 8], "batch_norm": True}}
    run.start(tmp_path / "run", config(epochs=1, **changes))
    with tg.use_backend("numpy"):
        model = train.Trained.load(tmp_path / "run").model
    assert model.fc.weight.shape == (10, 8 * 8 * 8)


def test_settings_that_a_model_refuses_are_told_before_anything_is_written(tmp_path):
    refused = config(model="resnet20", model_settings={"shortcut": "D"})
    with pytest.raises(ValueError, match="resnet: shortcut is 'D'; expected 'A', 'B', 'C' or None"):
        run.start(tmp_path / "run", refused)
    assert not (tmp_path / "run").exists()


def test_pictures_are_read_in_the_size_that_is_set(tmp_path):
    for name in "01", "02", "11", "12":
        (tmp_path / name[0]).mkdir(exist_ok=True)
        Image.new("RGB", (50, 60)).save(tmp_path / name[0] / f"{name}.png")
    sized = config(model="resnet18", model_settings={"size": 40})
    train_set, _ = open_data(replace(sized, data=f"folder:{tmp_path}"))
    assert train_set.images.shape == (2, 3, 40, 40)


def test_images_of_another_size_are_refused(tmp_path):
    refusals = {
        "lenet5": r"takes images \(1, 32, 32\), but those of shapes.* are \(3, .*another model$",
        "resnet18": r"\(3, 224, 224\), .*; take another model, or --set model_settings.size=32$",
    }
    for model, message in refusals.items():
        with pytest.raises(ValueError, match=message):
            run.start(tmp_path / "run", config(model=model))


def test_what_is_evaluated_is_the_average(tmp_path):
    run.start(tmp_path / "run", config())
    arrays, facts = checkpoint.load(tmp_path / "run" / "last.safetensors")
    images = run.open_data(None)[1].images
    with tg.use_backend("numpy"):
        whole = train.Trained(arrays, facts).probabilities(images)
        weights = {n: a for n, a in arrays.items() if not n.startswith("average.")}
        assert np.abs(train.Trained(weights, facts).probabilities(images) - whole).max() > 1e-4
        averaged = {n.replace("average.", "model."): a for n, a in arrays.items()
                    if not n.startswith("model.")}  # fmt: skip
        np.testing.assert_array_equal(train.Trained(averaged, facts).probabilities(images), whole)


@pytest.mark.parametrize("flip", [False, True])
def test_the_checkpoint_knows_whether_to_flip(tmp_path, flip):
    """So evaluate and predict judge as the run's own test did."""
    result = run.start(tmp_path / "run", config(test_flip=flip, epochs=1))
    test_set = run.open_data(None)[1]
    with tg.use_backend("numpy"):
        trained = train.Trained.load(tmp_path / "run")
        metrics, probabilities = trained.evaluate(test_set)
        views = [trained.probabilities(test_set.images[..., ::way]) for way in (1, -1)]
    assert metrics.loss == result["test_loss"]
    np.testing.assert_allclose(views[0], probabilities, rtol=1e-4, atol=1e-7)
    assert np.allclose(views[1], probabilities, rtol=1e-4, atol=1e-7) == flip


def test_checkpoints_of_before_test_flip_are_read(tmp_path):
    run.start(tmp_path / "run", config(test_flip=False, epochs=1))
    arrays, facts = checkpoint.load(tmp_path / "run" / "last.safetensors")
    for setting in ("test_flip", "model_settings"):
        del facts["config"]["recipe"][setting]
    assert train.Config.from_dict(facts["config"]) == config(test_flip=False, epochs=1)
    images = run.open_data(None)[1].images
    with tg.use_backend("numpy"):
        now = train.Trained.load(tmp_path / "run").probabilities(images)
        np.testing.assert_array_equal(train.Trained(arrays, facts).probabilities(images), now)


class NormFirst(models.Classifier):
    """List its convolution before the norm, and use it after."""

    def __init__(self, classes=10, *, rng=None):
        self.conv, self.norm = nn.Conv2d(3, 3, 3, rng=rng), nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, classes, rng=rng)

    def forward(self, x):
        return self.fc(F.global_avg_pool2d(self.conv(self.norm(x).relu())))


class Wider(NormFirst):
    """Norm what has not the channels that the convolution takes."""

    def __init__(self, classes=10, *, rng=None):
        self.first, self.conv = nn.Conv2d(3, 8, 3, rng=rng), nn.Conv2d(8, 8, 3, rng=rng)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, classes, rng=rng)

    def forward(self, x):
        return super().forward(self.first(x))


class ReadsWeights(NormFirst):
    """Look into its convolution."""

    def forward(self, x):
        return self.fc(F.global_avg_pool2d(self.norm(F.conv2d(x, self.conv.weight))))


@pytest.mark.parametrize("network", [NormFirst, Wider, ReadsWeights])
def test_a_network_that_can_not_be_folded_is_left_as_it_is(network):
    model = network(rng=np.random.default_rng(0))
    model.norm.running_var.data = np.arange(1, model.norm.weight.size + 1, dtype="float32") ** 2
    now = trained.for_inference(model)
    assert now is model


def test_an_ordinary_network_is_folded():
    ordinary = trained.for_inference(models.build("resnet8", rng=np.random.default_rng(0)))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ordinary.modules())


def test_a_models_settings_lie_with_the_weights(tmp_path):
    narrow = {"model": "resnet9", "model_settings": {"width": 2}, "epochs": 1}
    result = run.start(tmp_path / "run", config(**narrow))
    assert result["parameters"] == models.build("resnet9", width=2).num_parameters()
    with tg.use_backend("numpy"):
        metrics, _ = train.Trained.load(tmp_path / "run").evaluate(run.open_data(None)[1])
    assert metrics.loss == result["test_loss"]


def test_normalisation_lies_with_the_weights(tmp_path):
    run.start(tmp_path / "run", config(per_pixel_mean=True, dtype="float64"))
    arrays, _ = checkpoint.load(tmp_path / "run" / "last.safetensors")
    train_set, _ = data.split(run.open_data(None)[0], 50, seed=0)
    mean, std = data.channel_statistics(train_set.images, per_pixel_mean=True)
    np.testing.assert_array_equal(arrays["normalization.mean"], mean)
    np.testing.assert_array_equal(arrays["normalization.std"], std)
    assert mean.shape == (3, 32, 32)
    assert arrays["model.fc.weight"].dtype == np.float64


def test_a_folder_with_a_run_is_refused(tmp_path):
    run.start(tmp_path / "run", config())
    with pytest.raises(RecipeError, match=r"already has a run; go on with it \(--resume .*--out"):
        run.start(tmp_path / "run", config())


def test_wrong_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"lenet5 takes images \(1, 32, 32\), but those of shapes"):
        run.start(tmp_path / "run", config(model="lenet5"))
    assert not (tmp_path / "run").exists()


# ---- going on ----


@pytest.mark.parametrize("step", [1, 12, 13, 20, 25])
def test_stopped_and_resumed_is_as_never_stopped(tmp_path, step):
    """In the middle of an epoch, at its end; by another process's state of mind."""
    run.start(tmp_path / "whole", config())
    with pytest.raises(train.Stopped) as stopped:
        run.start(tmp_path / "run", config(), callbacks=[stop_at(step)])
    assert str(stopped.value) == (
        f"interrupted after step {step} of 26 by SIGTERM; "
        f"to go on: tinygrad-cnn train --resume {tmp_path / 'run'}"
    )
    assert stopped.value.exit_status == 143
    run.resume(tmp_path / "run")
    whole, again = contents(tmp_path / "whole"), contents(tmp_path / "run")
    for name in ("last.safetensors", "best.safetensors", "history.jsonl"):
        assert whole[name] == again[name], name


def test_history_is_cut_back_to_the_checkpoint(tmp_path):
    with pytest.raises(train.Stopped):
        run.start(tmp_path / "run", config(), callbacks=[stop_at(20)])
    history = tmp_path / "run" / "history.jsonl"
    history.write_text(history.read_text() + '{"epoch": 2, "step": 26, "train_loss": 0}\n')
    with pytest.raises(train.Stopped):
        run.resume(tmp_path / "run", callbacks=[stop_at(21)])
    assert [json.loads(line)["epoch"] for line in history.read_text().splitlines()] == [1]


@pytest.mark.parametrize("name", ["numba", "numpy"])
def test_without_a_choice_the_current_backend_trains(tmp_path, name):
    with tg.use_backend(name):
        run.start(tmp_path / "run", replace(config(epochs=1), backend=None))
    assert read_config(tmp_path / "run").backend == name


def test_killed_before_the_first_checkpoint_it_starts_anew(tmp_path):
    class Die(train.Callback):
        def on_step(self, trainer):
            raise MemoryError

    run.start(tmp_path / "whole", config())
    with pytest.raises(MemoryError):
        run.start(tmp_path / "run", config(), callbacks=[Die()])
    run.resume(tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_damaged_checkpoint_costs_an_epoch_and_nothing_else(tmp_path, capsys):
    run.start(tmp_path / "whole", config())
    with pytest.raises(train.Stopped):
        run.start(tmp_path / "run", config(), callbacks=[stop_at(20)])
    last = tmp_path / "run" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    run.resume(tmp_path / "run")
    assert f"{last} is damaged" in capsys.readouterr().err
    assert last.with_suffix(".damaged").exists()
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_finished_run_says_so(tmp_path, capsys):
    result = run.start(tmp_path / "run", config())
    before = contents(tmp_path / "run")
    capsys.readouterr()
    assert run.resume(tmp_path / "run") == result
    assert capsys.readouterr().out == f"the run in {tmp_path / 'run'} is finished\n"
    assert contents(tmp_path / "run") == before


def test_a_run_that_was_stopped_after_its_last_step_is_finished(tmp_path):
    whole = run.start(tmp_path / "whole", config())
    with pytest.raises(train.Stopped):
        run.start(tmp_path / "run", config(), callbacks=[stop_at(26)])
    result = run.resume(tmp_path / "run")
    assert result["test_loss"] == whole["test_loss"]


def test_runs_begun_at_the_same_time_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with run.new_folder(config()) as first, run.new_folder(config()) as second:
        assert first != second
        (second / "config.json").touch()

    def begin():
        with run.new_folder(config()) as folder:
            run.start(folder, config(validation=1000))

    with pytest.raises(ValueError, match="cannot hold out"):
        begin()
    assert {*Path("runs").iterdir()} == {first, second}  # what stayed empty is gone
    first.rmdir()
    (second / "config.json").unlink()
    second.rmdir()
    with pytest.raises(ValueError, match="cannot hold out"):
        begin()
    assert not Path("runs").exists()


def test_there_must_be_a_run_to_go_on_with(tmp_path):
    with pytest.raises(RecipeError, match=r"has no run \(there is no config\.json\)"):
        run.resume(tmp_path / "nothing")
    (tmp_path / "config.json").write_text('{"recipe": ')
    with pytest.raises(RecipeError, match=r"config\.json is damaged"):
        run.resume(tmp_path)


@pytest.mark.parametrize(
    ("choices", "overrides", "message"),
    [
        ({"data": "cifar10"}, {}, "--data cifar10 contradicts the run in .*, which has shapes; "),
        ({"seed": 1}, {}, "--seed 1 contradicts .* has 0"),
        ({"recipe_name": "paper"}, {}, "--recipe paper contradicts .* has quick"),
        ({}, {"--lr 0.2": {"optimizer": {"lr": 0.2}}}, "--lr 0.2 contradicts .* has 0.05"),
        (
            {},
            {"--epochs 3": {"epochs": 3}},
            "--epochs 3 contradicts .* has 2; leave the option out",
        ),
        (
            {},
            {"--set optimizer={...}": {"optimizer": {"lr": 0.2, "momentum": 0.0}}},
            r"contradicts .* has \{'name': 'sgd', 'lr': 0.05, ",
        ),
        ({}, {"--set ema=0": {"ema": 0}}, "--set ema=0 contradicts .* which has 0.99"),
    ],
)
def test_options_that_contradict_are_named(tmp_path, choices, overrides, message):
    with pytest.raises(train.Stopped):
        run.start(tmp_path, config(), callbacks=[stop_at(1)])
    with pytest.raises(RecipeError, match=message):
        check_resumable(tmp_path, choices, overrides)
    same = {"data": "shapes", "seed": 0, "recipe_name": "quick", "validation": 50}
    check_resumable(tmp_path, same, {"--lr 0.05": {"optimizer": {"lr": 0.05}}})


def test_a_changed_configuration_is_noticed(tmp_path):
    with pytest.raises(train.Stopped):
        run.start(tmp_path, config(), callbacks=[stop_at(1)])
    (tmp_path / "config.json").write_text(json.dumps(replace(config(), seed=5).to_dict()))
    with pytest.raises(RecipeError, match=r"config\.json has been changed since the checkpoint"):
        run.resume(tmp_path)


def test_other_images_are_noticed(tmp_path, monkeypatch):
    with pytest.raises(train.Stopped):
        run.start(tmp_path, config(), callbacks=[stop_at(1)])
    more = data.shapes(300), data.shapes(50, train=False)
    monkeypatch.setattr(run, "open_data", lambda config: more)
    with pytest.raises(RecipeError, match="began with images 200, but now it is 250; put back"):
        run.resume(tmp_path)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    checkpoint.save(tmp_path / "x.safetensors", {"a": np.zeros(3)}, {"step": 1})
    with pytest.raises(
        train.CheckpointError, match=r"x\.safetensors lacks 'classes'; was it saved"
    ):
        train.Trained.load(tmp_path / "x.safetensors")


def test_threads_are_remembered(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(run, "set_threads", lambda n, backend: used.append(n))
    with pytest.raises(train.Stopped):
        run.start(tmp_path, replace(config(), threads=2), callbacks=[stop_at(1)])
    with pytest.raises(train.Stopped):
        run.resume(tmp_path, callbacks=[stop_at(2)])
    run.resume(tmp_path, threads=1)
    assert used == [2, 2, 1]


class Chain(models.Classifier):
    def __init__(self, classes=10, *, rng=None):
        conv, drop = nn.Conv2d(3, 8, 5, stride=4, rng=rng), nn.Dropout(0.25)
        self.body = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), drop)
        self.fc = nn.Linear(8, classes, rng=rng)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


def test_checkpointed_activations_change_no_result_and_are_remembered(tmp_path, monkeypatch):
    class See(train.Callback):
        def on_start(self, trainer):
            segments.append(trainer.model.body.segment)

    segments, see = [], See()
    monkeypatch.setitem(models.registry._builders, "chain", Chain)
    chain = config(model="chain")
    run.start(tmp_path / "plain", chain, callbacks=[see])
    chain, folder = replace(chain, checkpoint_activations=True), tmp_path / "run"
    with pytest.raises(train.Stopped):
        run.start(folder, chain, callbacks=[stop_at(8), see])
    with pytest.raises(train.Stopped):
        run.resume(folder, callbacks=[stop_at(17), see])
    run.resume(folder, checkpoint_activations=False, callbacks=[see])
    assert segments == [0, 2, 2, 0]
    plain, _ = checkpoint.load(tmp_path / "plain" / "last.safetensors")
    arrays, _ = checkpoint.load(folder / "last.safetensors")
    assert plain.keys() == arrays.keys()
    for name, array in plain.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    assert report.differences(map(report.read_run, (folder, tmp_path / "plain"))) == {}


# ---- killed ----


def start(folder, every=1):
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    return subprocess.Popen(
        [sys.executable, HERE / "killable.py", folder, str(every)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    return out


@posix
@pytest.mark.slow
def test_killed_at_ten_random_moments(tmp_path):
    """SIGKILL, and the same bytes in the end as if nothing had happened."""
    finish(start(tmp_path / "whole"))
    rng, kills = random.Random(0), 0
    while kills < 10:
        with start(tmp_path / "run") as process:
            process.stdout.readline()  # it trains
            time.sleep(rng.uniform(0, 0.12))
            process.kill()
        assert process.returncode == -signal.SIGKILL, "the run ended before ten kills"
        kills += 1
    finish(start(tmp_path / "run"))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@posix
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_at_a_checkpoint(tmp_path, number):
    with start(tmp_path / "run", every=1000) as process:
        process.stdout.readline()
        time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate()
    # killable.py is no command line: the error that carries the exit status is seen as it is
    told = re.search(r"Stopped: interrupted after step (\d+) of 156 by (SIG\w+); to go on: ", err)
    assert told, err
    assert told[2] == signal.Signals(number).name
    _, facts = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert facts["step"] == int(told[1])
