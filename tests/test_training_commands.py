"""train, evaluate, predict, recipes: from the first step to a picture's name."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tinygrad_cnn as tg
from tinygrad_cnn import cli, data, models, train
from tinygrad_cnn.cli import options
from tinygrad_cnn.train import recipe
from tinygrad_cnn.train.config import read_config

posix = pytest.mark.skipif(os.name != "posix", reason="signals and terminals as POSIX has them")


@pytest.fixture(autouse=True)
def _on_numpy():
    with tg.use_backend("numpy"):
        yield


@pytest.fixture
def few(monkeypatch):
    """Let the name shapes mean a few images only."""
    sets = data.shapes(250), data.shapes(50, train=False)
    monkeypatch.setattr(data, "open_data", lambda name, data_dir=None, images=None: sets)
    return sets


@pytest.fixture
def run(run, monkeypatch, tmp_path):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return run


TINY = ("train", "--model", "softmax", "--epochs", "1", "--backend", "numpy")


def start(*args, columns=100, **settings):
    """Start a command in a process of its own."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "COLUMNS": str(columns)}
    command = [sys.executable, "-W", "error", "-m", "tinygrad_cnn", *args]
    return subprocess.Popen(command, env=environment, **settings)


# ---- from the first step to a picture's name ----


@pytest.mark.usefixtures("few")
def test_train_evaluate_predict(run, tmp_path, few):
    status, out, err = run(*TINY, "--validation", 50)
    assert (status, err) == (0, "")
    opening, epoch, accuracy, where, following = out.splitlines()
    assert opening == (
        "softmax (30,730 parameters) on 200 images of shapes: 7 steps of 32, on numpy, "
        "into runs/softmax-shapes"
    )
    assert epoch.startswith("epoch 1/1: loss ")
    result = json.loads((tmp_path / "runs/softmax-shapes/result.json").read_text())
    told = f"test accuracy {result['test_accuracy']:.2%}, loss {result['test_loss']:.3f}"
    assert accuracy == told
    assert where.startswith("the run is in runs/softmax-shapes: ")
    assert following == "next: tinygrad-cnn predict runs/softmax-shapes IMAGE.png"

    status, out, err = run("evaluate", "runs/softmax-shapes", "--backend", "numpy")
    assert (status, err) == (0, "")
    assert out == f"softmax on 50 test images of shapes:\n{told}\n"

    from PIL import Image

    image = few[1].images[7]
    Image.fromarray(image.transpose(1, 2, 0)).save("one.png")
    Image.new("L", (90, 40), 128).save("grey.jpg")
    status, out, err = run("predict", "runs/softmax-shapes/last.safetensors", "one.png", "grey.jpg")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert (len(lines), lines[0], lines[6]) == (12, "one.png", "grey.jpg")
    (p,) = train.Trained.load(tmp_path / "runs/softmax-shapes").probabilities(image[None])
    best = np.argsort(p)[::-1][:5]
    assert lines[1:6] == [f"  {p[k]:7.2%}  {few[1].classes[k]}" for k in best]


@pytest.mark.usefixtures("few")
def test_each_run_has_a_folder_of_its_own(run, tmp_path):
    for _ in range(2):
        assert run(*TINY)[0] == 0
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"softmax-shapes", "softmax-shapes-2"}


@pytest.mark.usefixtures("few")
def test_options_change_the_recipe(run, tmp_path):
    assert run(
        *TINY, "--batch-size", 50, "--lr", 0.5, "--seed", 3, "--set", "ema=0.9", "--set",
        "schedule.name=constant", "--threads", 1, "--out", "here", "--recipe", "paper",
    )[0] == 0  # fmt: skip
    config = read_config(tmp_path / "here")
    expected = recipe.load("paper").override(
        {"model": "softmax", "epochs": 1, "batch_size": 50, "ema": 0.9,
         "optimizer": {"lr": 0.5}, "schedule": {"name": "constant"}}
    )  # fmt: skip
    assert (config.recipe, config.recipe_name, config.seed) == (expected, "paper", 3)


@pytest.mark.usefixtures("few")
def test_cuda_graphs_are_for_who_has_them(run, tmp_path):
    status, out, err = run("train", "--cuda-graphs", "--backend", "numpy")
    assert (status, out) == (1, "")
    assert err == (
        "tinygrad-cnn: cuda_graphs: the backend 'numpy' has none; take 'cupy', or leave them out\n"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("few")
def test_activations_are_checkpointed(run, tmp_path):
    """And a model that has none to forget says so, before there is anything of the run."""
    short = ("train", "--set", "steps=2", "--backend", "numpy")
    flag, losses = "--checkpoint-activations", []
    for name, flags in ("plain", []), ("again", [flag]):
        assert run(*short, "--model", "resnet8", "--out", name, *flags)[0] == 0
        assert read_config(tmp_path / name).checkpoint_activations == bool(flags)
        losses.append(json.loads((tmp_path / name / "result.json").read_text())["test_loss"])
    assert losses[0] == losses[1]
    status, out, err = run(*short, "--model", "mlp", flag)
    assert (status, out) == (1, "")
    assert err.startswith("tinygrad-cnn: checkpoint_activations: MLP has no Sequential")
    assert not (tmp_path / "runs").exists()


# ---- stopping and going on ----


@posix
@pytest.mark.slow
def test_ctrl_c_and_resume(run, tmp_path):
    """The run ends with a sentence that says how to go on, which works."""
    out = tmp_path / "run"
    with start(
        "train", "--images", "400", "--epochs", "3", "--backend", "numpy", "--out", out,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    told = rf"tinygrad-cnn: interrupted after step \d+ of 39 by SIGINT; to go on: (.*{out})\n"
    (command,) = re.fullmatch(told, err).groups()
    status, text, err = run(*command.split()[1:])
    assert (status, err) == (0, "")
    assert re.search(r"39 steps of 32, from step \d+ on, on numpy, into ", text)
    assert "test accuracy" in text
    status, text, _ = run(*command.split()[1:])
    assert status == 0
    assert text.startswith(f"the run in {out} is finished\ntest accuracy ")


# ---- what is shown ----


@pytest.mark.slow
def test_a_pipe_gets_plain_lines(tmp_path):
    with start(
        *TINY, "--images", "100", "--out", tmp_path / "run",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        out, _ = process.communicate()
    assert process.returncode == 0
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", out)
    assert len(out.splitlines()) == 5


@posix
@pytest.mark.slow
def test_a_terminal_of_80_columns_gets_a_live_line(tmp_path):
    import pty

    control, terminal = pty.openpty()
    with start(
        *TINY,
        "--epochs",
        "2",
        "--images",
        "200",
        "--out",
        tmp_path / "run",
        stdout=terminal,
        columns=80,
    ) as process:
        os.close(terminal)
        out = b""
        try:
            while part := os.read(control, 4096):
                out += part
        except OSError:  # how Linux says that the other side is closed
            pass
    os.close(control)
    assert process.returncode == 0
    assert b"\x1b[" in out  # redrawn
    plain = re.sub(rb"\x1b\[[0-9;?]*\w", b"", out).decode()
    numbers = r"loss \d\.\d{3}, accuracy +\d+\.\d%, \d+ images/s"
    assert re.search(rf"epoch 2/2 +\d+/14 +{numbers} +\d:\d\d:\d\d", plain)
    assert re.search(r"epoch 2/2: loss .*; \d+ images/s, loader \d+\.\d%", plain)


# ---- weights to start from ----


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("kind", ["run", "bare"])
def test_training_starts_from_weights(run, tmp_path, kind):
    """With a rate of 0 they stay what they were."""
    assert run(*TINY, "--out", "first")[0] == 0
    path = "first/last.safetensors"
    learned = train.Trained.load(Path(path)).model.state_dict()
    if kind == "bare":
        save_file(learned, path := "bare.safetensors")
    assert run(*TINY, "--out", "next", "--weights", path, "--lr", 0, "--seed", 1)[0] == 0
    kept = train.Trained.load(Path("next")).model.state_dict()
    for name, a in learned.items():
        np.testing.assert_array_equal(kept[name], a)
    assert read_config(Path("next")).weights == str(tmp_path / path)


@pytest.mark.usefixtures("few")
def test_a_run_goes_on_without_the_weights_it_started_from(run, tmp_path):
    save_file(models.build("softmax").state_dict(), "w.safetensors")
    assert run(*TINY, "--out", "r", "--weights", "w.safetensors")[0] == 0
    Path("w.safetensors").unlink()
    Path("r/result.json").unlink()
    assert run("train", "--resume", "r")[0] == 0
    status, _, err = run("train", "--resume", "r", "--weights", "other.safetensors")
    assert (status, err) == (
        2,
        f"tinygrad-cnn: --weights {tmp_path / 'other.safetensors'} contradicts the run in r, which "
        f"has {tmp_path / 'w.safetensors'}; leave the option out to go on, or start a new run with "
        "--out\n",
    )


@pytest.mark.usefixtures("few")
def test_other_networks_weights_leave_no_run(run, tmp_path):
    save_file(models.build("mlp").state_dict(), "w.safetensors")
    said = f"tinygrad-cnn: {tmp_path / 'w.safetensors'} as softmax: load_state_dict: the state "
    status, _, err = run(*TINY, "--weights", "w.safetensors")
    assert status == 1
    assert err.startswith(f"{said}doesn't fit this ")
    assert "layers.0.weight is unknown" in err
    assert run(*TINY, "--weights", "none.safetensors")[2].startswith(
        f"tinygrad-cnn: {tmp_path / 'none.safetensors'}: there is no such file; expected a PyTorch"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


# ---- recipes ----


def test_recipes_are_listed(run):
    status, out, err = run("recipes")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == recipe.names()
    assert "resnet20, 64,000 steps of batches of 128: sgd, lr 0.1, multistep" in out


def test_a_recipe_that_is_shown_is_a_start_for_ones_own(run, tmp_path):
    status, out, err = run("recipes", "paper")
    assert (status, err) == (0, "")
    (tmp_path / "own.toml").write_text(out)
    assert recipe.load("own.toml") == recipe.load("paper")
    assert run("recipes", "own.toml") == (0, out, "")


# ---- help and completion ----


def test_help_teaches(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    status, out, _ = run("train", "--help")
    assert status == 0
    for said in ("Data", "Recipe", "Run", "Machine", "Examples:", "--recipe paper", "Ctrl-C ends"):
        assert said in out, said


def test_examples_in_the_help_parse():
    """Each begins with a command that exists and has only options that it has."""
    texts = [
        cli.training.TRAIN_EXAMPLES,
        cli.training.EVALUATE_EXAMPLES,
        cli.training.PREDICT_EXAMPLES,
    ]
    for example in re.findall(r"`(.*?)`", "".join(texts)):
        program, command, *rest = example.split()
        function = getattr(cli.training, command)
        names = {n.replace("settings", "set").replace("_", "-") for n in function.__annotations__}
        assert program == "tinygrad-cnn"
        assert {word[2:] for word in rest if word.startswith("--")} <= names


@pytest.mark.parametrize(
    ("complete", "typed", "found"),
    [
        (options.complete_model, "resnet4", ["resnet44"]),
        (options.complete_recipe, "q", ["quick"]),
        (options.complete_recipe, "m", ["mine.toml"]),
        (options.complete_backend, "nu", ["numba", "numpy"]),
        (options.complete_data, "cifar", ["cifar10", "cifar100"]),
    ],
)
def test_names_are_completed(monkeypatch, tmp_path, complete, typed, found):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("")
    assert complete(typed) == found


@posix
def test_the_shell_completes():
    result = subprocess.run(
        [Path(sys.executable).with_name("tinygrad-cnn")],
        env={
            **os.environ, "_TINYGRAD_CNN_COMPLETE": "complete_bash",
            "COMP_WORDS": "tinygrad-cnn train --model resnet4", "COMP_CWORD": "3",
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout.split() == ["resnet44"]


def test_the_command_line_is_light():
    """What --help needs is quick to import."""
    probe = (
        "import sys, tinygrad_cnn.cli; print(*sys.modules.keys() & "
        "{'PIL', 'matplotlib', 'numba', 'pooch', 'requests', 'safetensors', 'tinygrad_cnn.train'})"
    )
    command = [sys.executable, "-c", probe]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"


# ---- mistakes ----

MISTAKES = {
    "recipe": (["train", "--recipe", "papr"], 2, "no recipe 'papr'; did you mean 'paper'?"),
    "model": (["train", "--model", "resnet21"], 2, "no model 'resnet21'; did you mean 'resnet20'?"),
    "set": (["train", "--set", "emma=1"], 2, "no setting emma; did you mean 'ema'?"),
    "no value": (["train", "--set", "ema"], 2, "'ema' is no setting; expected KEY=VALUE, such as"),
    "epochs": (["train", "--epochs", "0"], 2, "epochs is 0; expected a whole number, at least 1"),
    "lr": (["train", "--lr", "-1"], 2, "optimizer.lr is -1.0; expected a number from 0 on"),
    "no run": (["train", "--resume", "none"], 2, "none has no run (there is no config.json)"),
    "show": (["recipes", "quikc"], 2, "no recipe 'quikc'; did you mean 'quick'?"),
    "evaluate": (["evaluate", "none"], 1, "none: there is no such file"),
    "backend": (["train", "--backend", "cuda"], 1, "no backend 'cuda'; did you mean 'cupy'?"),
    "validation": (["train", "--validation", "250"], 1, "cannot hold out 250 of 250 images"),
}


@pytest.mark.parametrize(("args", "status", "message"), MISTAKES.values(), ids=MISTAKES)
@pytest.mark.usefixtures("few")
def test_a_mistake_is_one_line(run, tmp_path, args, status, message):
    code, out, err = run(*args)
    assert (code, out) == (status, "")
    assert err.startswith("tinygrad-cnn: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())  # nothing half-begun


@pytest.mark.usefixtures("few")
def test_mistakes_with_a_run(run, tmp_path):
    run(*TINY, "--out", "run")
    (tmp_path / "no.png").write_text("no picture")
    last = tmp_path / "run" / "last.safetensors"
    for args, status, message in [
        ([*TINY, "--out", "run"], 2, "run already has a run; go on with it (--resume run) or"),
        (["train", "--resume", "run", "--lr", "1"], 2, "--lr 1.0 contradicts the run in run"),
        (["predict", "run", "no.png"], 1, "no.png"),
        (["predict", "run", "none.png"], 1, "none.png"),
        (["predict", "no.png", "no.png"], 1, "no.png is damaged or no checkpoint"),
    ]:
        code, _, err = run(*args)
        assert code == status
        assert message in err
        assert err.count("\n") == 1
    last.write_bytes(last.read_bytes()[:-3])
    code, _, err = run("evaluate", "run")
    assert (code, err.count("\n")) == (1, 1)
    assert f"{last.relative_to(tmp_path)} is damaged" in err


@pytest.mark.usefixtures("few")
def test_other_classes_are_refused(run, monkeypatch):
    run(*TINY, "--out", "run")
    two = data.Dataset(np.zeros((4, 3, 32, 32), np.uint8), np.array([0, 1] * 2), ("a", "b"), "two")
    monkeypatch.setattr(data, "open_data", lambda *args, **settings: (two, two))
    code, _, err = run("evaluate", "run", "--data", "two")
    assert (code, "two has 2 classes, but the model was trained on 10" in err) == (1, True)


def test_models_are_all_there():
    assert options.complete_model("") == models.names()
