"""The commands summary, compare and diagnose: what they print, piped and in a terminal."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import cli, data, models
from tinygrad_cnn.cli.table import print_table
from tinygrad_cnn.data import Dataset


@pytest.fixture(autouse=True)
def _on_numpy(monkeypatch):
    few = data.shapes(60)
    small = Dataset(few.images[:, :, ::2, ::2].copy(), few.labels, few.classes, "shapes")
    opened = {"shapes": few, "small": small}
    monkeypatch.setattr(cli.diagnose, "open_data", lambda name, folder: (opened[name], few))
    with tg.use_backend("numpy"):
        yield


@pytest.fixture
def show(run):
    """Run a command that succeeds; give its lines."""

    def show(*args):
        status, out, err = run(*args)
        assert (status, err) == (0, "")
        return out.splitlines()

    return show


# ---- tables ----


def test_a_piped_table_is_plain(capsys):
    print_table(["name", "n"], [["a", "1"], ["long name", "1,000"]])
    assert capsys.readouterr().out == "name           n\na              1\nlong name  1,000\n"


def test_a_table_in_a_terminal_is_drawn(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(["name", "n"], [["[red]", "1"]])
    out = capsys.readouterr().out
    assert "─" in out
    assert "[red]" in out  # text, not markup


# ---- summary ----


def test_summary_of_lenet5(show):
    headers, first, *_, total = show("summary", "lenet5", "--batch-size", "10")
    assert headers.split() == "layer type output parameters MACs made (B) kept (B)".split()
    assert first.split() == ["features.0", "Conv2d", "6x28x28", "156", "117,600", "18,816", "4,096"]
    assert total == (
        "61,706 parameters, 246.8 kB; 416.5 k MACs an image; "
        "activations of 10: 600.1 kB made, 380.1 kB kept for backward"
    )


def test_summary_of_another_size(show):
    lines = show("summary", "resnet8", "--input", "3,64,64", "--classes", "5")
    assert "16x64x64" in lines[1]
    assert lines[-1].startswith(f"{models.build('resnet8', 5).num_parameters():,} parameters")


@pytest.mark.parametrize("size", ["3,32", "3,32,x", "3,32,32,1", "", "3,-1,2"])
def test_a_wrong_size_is_a_usage_error(run, size):
    status, out, err = run("summary", "resnet8", "--input", size)
    assert (status, out) == (2, "")
    assert "expected C,H,W such as 3,32,32" in err


# ---- compare ----


def write_run(folder, lr=0.1, accuracy=0.8, finished=True):
    folder.mkdir()
    recipe = {"model": "resnet8", "optimizer": {"name": "sgd", "lr": lr}}
    config = {"recipe": recipe, "recipe_name": "quick", "data": "shapes", "seed": 0}
    (folder / "config.json").write_text(json.dumps(config))
    record = {"train_accuracy": 0.7, "validation_accuracy": 0.6}
    history = [{"epoch": e, "train_loss": 1 / e, **record} for e in (1, 2)]
    (folder / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in history))
    if finished:
        result = {"test_accuracy": accuracy, "parameters": 75_290, "images_per_second": 1234.4}
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_compare_two_runs(show, tmp_path):
    runs = write_run(tmp_path / "slow", 0.01), write_run(tmp_path / "quick", 0.1, 0.925)
    headers, slow, quick, _, title, names, setting, _, drawn = show(
        "compare", *runs, "--out", tmp_path / "compare.png"
    )
    assert headers.split()[:4] == ["run", "model", "recipe", "data"]
    assert slow.split() == (
        ["slow", "resnet8", "quick", "shapes", "-", "0", "2", "75,290", "60.00%", "80.00%", "1,234"]
    )
    assert quick.split()[-2] == "92.50%"
    assert (title, names.split()) == ("what differs:", ["setting", "slow", "quick"])
    assert setting.split() == ["recipe.optimizer.lr", "0.01", "0.1"]
    assert drawn == f"the curves are in {tmp_path / 'compare.png'}"
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_compare_names_what_is_missing(show, tmp_path):
    runs = write_run(tmp_path / "a"), write_run(tmp_path / "b", finished=False), tmp_path / "c"
    lines = show("compare", *runs)
    assert lines[-2:] == [
        f"{runs[1]}: no result.json: unfinished",
        f"{runs[2]}: there is no such folder",
    ]
    assert [line.split()[0] for line in lines[1:4]] == ["a", "b", "c"]
    assert lines[3].split() == ["c", *["-"] * 10]


def test_compare_without_any_run(run, tmp_path):
    status, out, err = run("compare", tmp_path / "none")
    assert (status, out) == (1, f"{tmp_path / 'none'}: there is no such folder\n")
    assert err == ("tinygrad-cnn: none of these is a run's folder; see what train wrote to --out\n")


# ---- diagnose ----


def test_the_initial_loss_of_the_svm(show):
    (line,) = show("diagnose", "initial-loss", "svm")
    assert re.fullmatch(
        r"the loss is \d+\.\d{3}; with all scores equal it is 9\.000: as it should be", line
    )


def test_twenty_images_by_heart(show):
    headers, first, *_, verdict = show("diagnose", "overfit", "softmax")
    assert headers.split() == ["step", "loss", "accuracy"]
    assert first.split()[0] == "1"
    assert re.fullmatch(r"learned by heart in \d+ steps \(loss 0\.0\d\d\)", verdict)


def test_the_range_of_learning_rates(show, tmp_path):
    picture = tmp_path / "lr.png"
    *_, verdict = show(
        "diagnose", "lr-range", "softmax", "--batch-size", 20, "--steps", 60, "--out", picture
    )
    assert re.search(r"begin with a tenth: [\d.e-]+$", verdict)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_dead_relus_after_a_training_that_kills(show):
    at = ("diagnose", "dead-relus", "convnet", "--batch-size", 20, "--batches", 2)
    counts = []
    for args in (at, (*at, "--train", 6, "--lr", 0.1)):
        lines = show(*args)
        dead, total = re.search(r"(\d+) of (\d+) channels are 0 for all 40", lines[-1]).groups()
        assert total == "112"
        counts.append(int(dead))
    assert counts[0] < 20 < counts[1]


def test_ratios_of_updates(show):
    at = ("diagnose", "update-ratios", "convnet", "--batch-size", 20, "--steps", 2)
    low, high = (show(*at, "--lr", lr) for lr in (1e-9, 1.0))
    assert [line.split()[0] for line in low[1:]] == [
        "features.0.weight", "features.3.weight", "features.6.weight", "fc.weight"
    ]  # fmt: skip
    assert all(line.endswith("hardly moves: raise the learning rate") for line in low[1:])
    assert high[-1].endswith("moves too far: lower the learning rate")


def test_responses_of_two_networks(show, tmp_path):
    picture = tmp_path / "responses.png"
    lines = show(
        "diagnose", "responses", "resnet8", "convnet", "--train", 2, "--batch-size", 10,
        "--out", picture,
    )  # fmt: skip
    assert [line.split()[0] for line in lines if line.endswith("std")] == ["resnet8", "convnet"]
    assert sum(line.startswith("mean ") for line in lines) == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_trained_network_is_examined_as_it_is(show, tmp_path):
    """A checkpoint's weights are taken, and not trained further."""
    from tinygrad_cnn.train import checkpoint

    model = models.build("softmax", rng=np.random.default_rng(0))
    arrays = {f"model.{name}": a * 100 for name, a in model.state_dict().items()}
    arrays |= {"normalization.mean": np.zeros((3, 1, 1)), "normalization.std": np.ones((3, 1, 1))}
    recipe = {"model": "softmax", "dtype": "float32"}
    facts = {"config": {"recipe": recipe}, "classes": list(data.shapes(1).classes)}
    checkpoint.save(tmp_path / "model.safetensors", arrays, facts)
    (line,) = show("diagnose", "initial-loss", tmp_path / "model.safetensors")
    assert "make the last layer's initial weights smaller" in line
