"""The experiments: what they compare is what the papers do, and their engine loses no run."""

from __future__ import annotations

import ast
import doctest
import json
import os
import re
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from tinygrad_cnn import models, report, train
from tinygrad_cnn.models.preact import TABLE_1, UNITS
from tinygrad_cnn.train import recipe

FOLDER = Path(__file__).parents[1] / "examples" / "experiments"
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem != "experiment")
every_experiment = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
CHOICES = dict(size={"epochs": 2}, data="shapes", images=50, backend="numpy")


@pytest.fixture
def load(monkeypatch):
    """Import a file of examples/experiments, which import the engine by its plain name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for path in FOLDER.glob("*.py"):
        monkeypatch.setitem(sys.modules, path.stem, None)  # afterwards nothing of them is left
        del sys.modules[path.stem]
    return import_module


@pytest.fixture
def engine(load, monkeypatch):
    """Give the engine, drawing nothing: half a second a picture."""
    for picture in ("curves", "confusion", "mistakes", "comparison"):
        monkeypatch.setattr(report, f"plot_{picture}", lambda *args: args[-1].write_bytes(b"PNG"))
    return load("experiment")


@pytest.fixture
def small(engine):
    """Give an experiment of two linear classifiers, done in a moment."""
    variants = [engine.Variant(name, name, paper=9.9) for name in ("softmax", "svm")]
    return engine.Experiment("small", lambda: variants)


def investigate(engine, experiment, out, *, seeds=1, only=(), **changes):
    engine.investigate(experiment, CHOICES | changes, seeds, [], only, out)


# ---- the experiments ----


def test_they_are_all_there():
    assert {path.stem for path in FILES} == {
        "batch_norm", "degradation", "depth", "lrn", "preactivation", "projections", "relu_tanh",
        "shortcuts",
    }  # fmt: skip


@every_experiment
def test_it_is_short_and_tells_its_commands(load, path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    docstring = ast.get_docstring(ast.parse(text))
    commands = re.findall(rf"python examples/experiments/{path.stem}\.py(.*)", docstring)
    assert len(commands) >= 2
    known = (
        "data data-dir images epochs steps seeds depths only out backend threads batch-size".split()
    )
    assert set(re.findall(r"--([\w-]+)", docstring)) <= set(known)
    assert load(path.stem).EXPERIMENT.name == path.stem


@every_experiment
def test_every_variant_can_be_trained(load, path):
    """Built with its settings where it is not deep, and its recipe is one."""
    experiment = load(path.stem).EXPERIMENT
    assert all(v.model in models.names() for v in experiment.rows())
    rows = experiment.rows([20, 32] if experiment.depths else [])
    assert len({v.folder for v in rows}) == len(rows) >= 2
    for variant in rows:
        config = experiment.configure(variant, {"steps": 1}, seed=3)
        assert (config.recipe.steps, config.seed) == (1, 3)
        assert config.recipe.build_model(10, np.random.default_rng(0)).num_parameters() > 1e4


def test_only_deep_networks_have_the_figures_of_deep_ones(load):
    shortcuts, deep = load("shortcuts").EXPERIMENT, load("degradation").EXPERIMENT
    assert {v.paper for v in shortcuts.rows([20])} == {""}
    assert all(v.changes for v in deep.rows([110]))  # 6.43 % is that of a run with a warm-up


def test_every_row_of_table_1_is_there(load):
    rows = load("shortcuts").EXPERIMENT.rows()
    assert {v.model for v in rows} == {"preact_resnet110"}
    assert {v.name.removesuffix(", 110 layers"): v.settings for v in rows} == {
        row: {"unit": "original", **settings} for row, settings in TABLE_1.items()
    }


def test_every_row_of_table_2_is_there(load):
    rows = load("preactivation").EXPERIMENT.rows()
    assert [(v.model, v.settings["unit"]) for v in rows] == [
        (f"preact_resnet{depth}", unit) for depth in (110, 164) for unit in UNITS
    ]
    assert [v.paper for v in rows[::5]] == [6.61, 5.93]


@pytest.mark.parametrize(
    ("name", "as_in"),
    [
        ("degradation", "paper"), ("depth", "paper"), ("projections", "paper"),
        ("shortcuts", "paper-preact"), ("preactivation", "paper-preact"),
    ],
)  # fmt: skip
def test_at_64_000_steps_the_recipe_is_the_papers(load, name, as_in):
    experiment = load(name).EXPERIMENT
    ours = experiment.configure(experiment.rows()[0], {}, data="cifar10").recipe
    paper = recipe.load(as_in)
    schedules = [r.build_schedule(r.steps) for r in (ours, paper)]
    at = range(0, 64_000, 100), (399, 31_999, 47_999)
    assert len({tuple(schedule(s) for part in at for s in part) for schedule in schedules}) == 1
    same = ("steps", "batch_size", "optimizer", "augment", "per_pixel_mean")
    assert [getattr(ours, n) for n in same] == [getattr(paper, n) for n in same]


def test_110_layers_warm_up(load):
    deep = load("depth").EXPERIMENT
    (variant,) = deep.rows([110])
    schedule = deep.configure(variant, {}).recipe.build_schedule(64_000)
    assert [schedule(step) for step in (0, 399, 400)] == [0.01, 0.01, 0.1]


def test_networks_of_figure_1_are_not_regularised(load):
    experiment = load("relu_tanh").EXPERIMENT
    told = [experiment.configure(v, {"epochs": 1}).recipe for v in experiment.rows()]
    assert {r.optimizer["weight_decay"] for r in told} == {0.0}
    assert {r.build_schedule(100)(99) for r in told} == {0.005, 0.02, 0.08}
    assert not any(r.build_augment(None, None) for r in told)


# ---- the engine ----


def test_an_experiment_leaves_runs_a_table_and_curves(engine, small, tmp_path, capsys):
    investigate(engine, small, tmp_path, seeds=2)
    for variant in ("softmax", "svm"):
        for seed in (0, 1):
            config = json.loads((tmp_path / variant / f"seed{seed}" / "config.json").read_text())
            assert (config["recipe"]["model"], config["seed"]) == (variant, seed)
    table = (tmp_path / "table.md").read_text()
    assert table.startswith(
        "# small: 2 epochs, batches of 128, on 50 images of shapes; median (mean ± standard"
    )
    assert "| softmax | 30,730 | 2 | " in table
    assert (tmp_path / "curves.png").exists()
    assert re.search(r"^svm +30,730 +2 .* 9\.9$", capsys.readouterr().out, re.MULTILINE)


def test_what_is_finished_is_not_done_again(engine, small, tmp_path, monkeypatch, capsys):
    investigate(engine, small, tmp_path)
    table = capsys.readouterr().out.splitlines()[-5:]
    monkeypatch.setattr(train.run, "train", lambda *args, **settings: pytest.fail("trained"))
    investigate(engine, small, tmp_path)
    assert capsys.readouterr().out.splitlines()[-5:] == table


def test_more_seeds_are_added(engine, small, tmp_path):
    investigate(engine, small, tmp_path, only=["svm"])
    before = (tmp_path / "svm" / "seed0" / "last.safetensors").stat().st_mtime_ns
    investigate(engine, small, tmp_path, seeds=2, only=["svm"])
    assert (tmp_path / "svm" / "seed0" / "last.safetensors").stat().st_mtime_ns == before
    assert (tmp_path / "svm" / "seed1" / "result.json").exists()
    assert not (tmp_path / "softmax").exists()
    assert "softmax" not in (tmp_path / "table.md").read_text()


KILLABLE = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(FOLDER)!r})
import experiment as engine
from tinygrad_cnn import report
for picture in ("curves", "confusion", "mistakes", "comparison"):
    setattr(report, "plot_" + picture, lambda *args: args[-1].write_bytes(b"PNG"))
variants = [engine.Variant(name, name) for name in ("svm", "softmax")]
small = engine.Experiment("small", lambda: variants)
choices = {CHOICES | dict(size={"epochs": 40})!r}
engine.investigate(small, choices, 1, [], [], Path(sys.argv[1]))
"""


def test_a_killed_experiment_goes_on(tmp_path):
    """To the same weights, bit for bit, as one that was left alone."""
    command = [sys.executable, "-c", KILLABLE]
    with subprocess.Popen([*command, tmp_path / "killed"], stdout=subprocess.DEVNULL) as process:
        checkpoint = tmp_path / "killed" / "softmax" / "seed0" / "last.safetensors"
        deadline = time.monotonic() + 300
        while not checkpoint.exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
    assert not (checkpoint.parent / "result.json").exists()  # else nothing is shown
    first = (tmp_path / "killed" / "svm" / "seed0" / "result.json").stat().st_mtime_ns
    for folder in ("killed", "whole"):
        subprocess.run([*command, tmp_path / folder], check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "killed" / "svm" / "seed0" / "result.json").stat().st_mtime_ns == first
    whole = tmp_path / "whole" / "softmax" / "seed0"
    assert checkpoint.read_bytes() == (whole / "last.safetensors").read_bytes()
    tables = [(tmp_path / folder / "table.md").read_text() for folder in ("killed", "whole")]
    assert tables[0] == tables[1]


def test_a_run_that_diverges_is_a_row(engine, tmp_path, capsys, monkeypatch):
    wild = engine.Variant("wild", "svm", changes={"optimizer": {"lr": 1e30}}, paper="fail")
    experiment = engine.Experiment("small", lambda: [wild])
    investigate(engine, experiment, tmp_path, size={"steps": 20})
    assert "the loss is nan at step" in (tmp_path / "wild" / "seed0" / "diverged.txt").read_text()
    assert re.search(r"^wild +- +0 \+ 1 diverged +- +- +fail$", capsys.readouterr().out, re.M)
    monkeypatch.setattr(train.run, "train", lambda *args, **settings: pytest.fail("trained"))
    investigate(engine, experiment, tmp_path, size={"steps": 20})


def test_one_that_diverged_is_refused_with_other_settings(engine, tmp_path):
    wild = engine.Variant("wild", "svm", changes={"optimizer": {"lr": 1e30}})
    experiment = engine.Experiment("small", lambda: [wild])
    investigate(engine, experiment, tmp_path, size={"steps": 20})
    with pytest.raises(ValueError, match="has a run of other settings"):
        investigate(engine, experiment, tmp_path, size={"steps": 21})


def test_other_settings_are_refused(engine, small, tmp_path):
    investigate(engine, small, tmp_path, only=["svm"])
    with pytest.raises(ValueError, match=r"svm.seed0 has a run of other settings .* another --out"):
        investigate(engine, small, tmp_path, only=["svm"], size={"epochs": 3})
    with pytest.raises(ValueError, match=r"svm.seed0 has a run of other settings"):
        investigate(engine, small, tmp_path, only=["svm"], size={"epochs": 2, "batch_size": 10})


def test_runs_of_another_length_say_so_in_the_table(engine, small, tmp_path):
    investigate(engine, small, tmp_path, only=["svm"], size={"epochs": 1})
    investigate(engine, small, tmp_path, only=["softmax"], size={"epochs": 2})
    told = f"batches of 128, on {CHOICES['images']} images of shapes"
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0].startswith(f"# small: 2 epochs, {told}; ")
    assert [line.split(" | ")[0] for line in lines[4:]] == [
        "| softmax", f"| svm (1 epochs, {told})",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(only=["sofmax"]), "no variant 'sofmax'; did you mean 'softmax'? There are: softmax"),
        (dict(size={"epochs": 1, "steps": 2}), "epochs is 1 and steps is 2; expected exactly"),
        (dict(data="cifar"), "no data set 'cifar'"),
    ],
)
def test_mistakes_are_named(engine, small, tmp_path, how, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        investigate(engine, small, tmp_path, **how)


def test_depths(engine, small):
    with pytest.raises(ValueError, match="small has no depths to choose from; leave --depths out"):
        small.rows([20])
    with pytest.raises(ValueError, match="'20;56' is no list of numbers; expected such as 20,56"):
        engine.numbers("20;56")
    assert engine.numbers("20,56") == [20, 56]


# ---- the table ----


def made_up(folder, *, test=None, train=(), diverged=False):
    """Write a run of these test and training accuracies."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    records = [{"epoch": i, "train_loss": 1, "train_accuracy": a} for i, a in enumerate(train, 1)]
    (folder / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if test is not None:
        (folder / "result.json").write_text(json.dumps({"test_accuracy": test, "parameters": 1234}))
    if diverged:
        (folder / "diverged.txt").write_text("the loss is nan")


def test_the_table_of_made_up_runs(engine, tmp_path):
    """Medians, means, deviations, what counts as a run, and how long 25 % error took."""
    for seed, accuracy in enumerate((0.90, 0.92, 0.91)):
        made_up(tmp_path / "a" / f"seed{seed}", test=accuracy, train=(0.5, 0.7, 0.8))
    made_up(tmp_path / "b_c" / "seed0", test=0.8, train=(0.5, 0.7))
    made_up(tmp_path / "b_c" / "seed1", train=(0.5,), diverged=True)
    made_up(tmp_path / "b_c" / "seed2", train=(0.9,))
    variants = [engine.Variant(n, "svm", paper=p) for n, p in (("a", 6.61), ("b c", ""), ("d", 1))]
    experiment = engine.Experiment(
        "x", lambda: variants, measures={"epochs to 25 %": engine.epochs_until(0.25)}
    )
    assert engine.table(experiment, variants, tmp_path) == [
        ["variant", "parameters", "runs", "training error, %", "test error, %", "epochs to 25 %",
         "paper: test error, %"],
        ["a", "1,234", "3", "20.00 (20.00 ± 0.00)", "9.00 (9.00 ± 1.00)", "2.50 (2.50 ± 0.00)",
         "6.61"],
        ["b c", "1,234", "1 + 1 diverged", "30.00", "20.00", "-", ""],
    ]  # fmt: skip
    written = engine.markdown([["x", "y"], ["1", "2"]])
    assert written == "| x | y |\n| --- | --- |\n| 1 | 2 |\n"


def test_the_engines_doctests(engine):
    """Doctests are looked for in tinygrad_cnn and tests only."""
    found = doctest.testmod(engine)
    assert (found.attempted, found.failed) == (2, 0)


def test_the_curves_are_means_of_finished_runs(engine, tmp_path):
    made_up(tmp_path / "a" / "seed0", test=0.9, train=(0.2, 0.4))
    made_up(tmp_path / "a" / "seed1", test=0.9, train=(0.4, 0.8))
    made_up(tmp_path / "a" / "seed2", train=(0.9,))
    variant = engine.Variant("a", "svm")
    mean = engine.mean_run(variant, engine.runs_of(variant, tmp_path))
    assert [r["train_accuracy"] for r in mean.history] == pytest.approx([0.3, 0.6])
    assert (str(mean.path), [r["epoch"] for r in mean.history]) == ("a", [1, 2])


# ---- as a user has them ----


@pytest.mark.slow
def test_the_program_runs(tmp_path):
    environment = {**os.environ, "TINYGRAD_CNN_BACKEND": "numpy"}
    done = subprocess.run(
        [sys.executable, "-W", "error", FOLDER / "batch_norm.py", "--images", "50", "--epochs", "1",
         "--only", "with batch norm, lr 0.1", "--out", tmp_path],
        env=environment, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "batch_norm: with batch norm, lr 0.1, seed 0" in done.stdout
    assert "on 50 images of shapes: 1 steps of 128, on numpy" in done.stdout
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "epochs to 50 % training error |\n" in (tmp_path / "table.md").read_text()
