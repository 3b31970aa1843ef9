"""The benchmarks: each runs, and refuses to time what computes something else."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import backends, data, models, train
from tinygrad_cnn.train import recipe
from tinygrad_cnn.train import run as runs

FOLDER = Path(__file__).parents[1] / "benchmarks"
PROGRAMS = (
    *("backends", "layers", "memory_passes", "steps", "scaling", "inference"),
    *("speedrun", "checkpointing", "gpu", "gpu_parts"),
)


@pytest.fixture
def run(run_benchmark):
    """Run a program in this process; give its exit status, stdout and stderr."""
    return run_benchmark


def rows(out, title):
    """Give the cells of the Markdown table under a title."""
    table = out.partition(f"### {title}")[2].partition("\n\n")[2].partition("\n\n")[0]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]
    assert cells, out
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def check_files(folder, name):
    """Expect a table and a picture, and nothing half-written beside them."""
    assert (folder / f"{name}.md").read_text(encoding="utf-8").startswith("### ")
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob(".*"))


# ---- every program ----


@pytest.mark.parametrize("name", PROGRAMS)
def test_docstring_tells_how_to_run_it(load, name):
    module = load(name)
    assert f"\n    python benchmarks/{name}.py" in module.__doc__
    options = set(re.findall(r"--[\w-]+", module.__doc__)) - {"--help"}
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    for option in options - {"--quick", "--avx2"}:
        assert f'"{option}"' in source or f"    {option[2:].replace('-', '_')}: " in source


def test_backends(run, tmp_path):
    pytest.importorskip("matplotlib")
    status, out, _ = run("backends", "--batch-size", 2, "--rounds", 1, "--out", tmp_path)
    found = rows(out, "Kernels, batch 2")
    assert status == 0
    assert {row["kernel"] for row in found} == sys.modules["backends"].kernels()
    assert [r["path"] for r in found if r["kernel"] == "conv2d"] == ["winograd"] * 3
    assert all(float(row["times numpy's speed"]) >= 0 for row in found)
    check_files(tmp_path, "backends")


@pytest.mark.usefixtures("_torch")
def test_layers(run, tmp_path):
    pytest.importorskip("matplotlib")
    options = ["--batch-size", 2, "--rounds", 1, "--only", "ResNet-20", "--out", tmp_path]
    status, out, _ = run("layers", *options)
    found = rows(out, "Convolutions")
    assert status == 0
    assert len(found) == 6
    for row in found:
        errors = [float(e) for e in row["error forward, dX, dW"].split(",")]
        assert max(errors) < 5e-5  # so the table shows them
        assert all(re.fullmatch(r"[\d.]+ \([\d.]+x\)", row[f"{p}, ms"]) for p in ("dX", "dW"))
    assert re.search(r"^3x3: forward [\d.]+, dX [\d.]+, dW [\d.]+; all passes", out, re.MULTILINE)
    check_files(tmp_path, "layers")


@pytest.mark.usefixtures("_torch")
def test_every_kind_of_layer_agrees_with_pytorch(load):
    """Also the large ones, by one image in a small picture."""
    layers, rng = load("layers"), np.random.default_rng(0)
    for layer in layers.LAYERS:
        small = layer._replace(N=1, size=min(layer.size, 4 * layer.kernel), C=min(layer.C, 64))
        small = small if layer.groups == 1 else small._replace(C=layer.C)
        for work in layers.convolution(small, backends.get("numba"), rng).values():
            exact = work.exact().numpy()
            assert layers.check_equal(work.ours(), exact, tolerance=1e-4, what=layer.name) > 0


@pytest.mark.usefixtures("_torch")
def test_memory_passes(run):
    status, out, _ = run("memory_passes", "--batch-size", 1, "--rounds", 1)
    assert status == 0
    assert len(rows(out, "Pools and norms")) == len(sys.modules["memory_passes"].OPS)
    assert re.search(r"^norms: forward [\d.]+, backward [\d.]+; all passes", out, re.MULTILINE)


@pytest.mark.usefixtures("_torch")
def test_steps(run, tmp_path):
    pytest.importorskip("matplotlib")
    options = ["--models", "resnet8,resnet9000", "--quick", "--peers", "channels_last"]
    status, out, err = run("steps", *options, "--rounds", 1, "--out", tmp_path)
    assert (status, err) == (0, "")
    assert "resnet9000: skipped, there is no such network" in out
    found = rows(out, "Training steps")
    assert [row["figure"] for row in found] == ["fresh", "alternating"]
    for row in found:
        assert row["PyTorch NCHW, ms"] == "-"
        assert re.fullmatch(r"[\d.]+ \([\d.]+x\)", row["PyTorch channels_last, ms"])
    check_files(tmp_path, "steps")


@pytest.mark.usefixtures("_torch")
def test_bfloat16_is_near_enough(run):
    options = ["--models", "resnet8", "--figure", "alternating", "--peers", "bf16"]
    status, out, _ = run("steps", "--quick", "--rounds", 1, *options)
    assert status == 0
    (row,) = rows(out, "Training steps")
    assert re.fullmatch(r"[\d.]+ \([\d.]+x\)", row["PyTorch bf16, ms"])
    assert row["best float32 PyTorch / ours"] == "-"


def test_a_side_that_fails_in_its_process_is_named(load, tmp_path):
    steps = load("steps")
    steps.write(tmp_path, [], [(np.zeros((2, 3, 32, 32), "float32"), np.zeros(2, int))])
    with pytest.raises(RuntimeError, match=r"^ours, resnet8: its process failed: steps: zip\(\)"):
        steps.in_own_process(steps.OURS, steps.Case("resnet8", 2), tmp_path, 0.1, "numpy")


@pytest.mark.usefixtures("_torch")
def test_where_nothing_can_be_compiled_that_side_is_left_out(load, monkeypatch, capsys):
    steps, peers = load("steps"), load("torch_models")
    weights, some = steps.fresh_weights("resnet8"), steps.batches(None, 2)

    def compile(model):
        raise RuntimeError("no C++ compiler\n...")

    monkeypatch.setattr(peers.torch, "compile", lambda model: compile)
    with tg.use_backend("numpy"):
        found = steps.usable([steps.OURS, "compile", "NCHW"], "resnet8", weights, some)
    assert [*found] == [steps.OURS, "NCHW"]
    assert capsys.readouterr().err == "torch.compile is left out: no C++ compiler\n"


def test_checkpointing(run, tmp_path):
    pytest.importorskip("matplotlib")
    sizes = ["--model", "resnet8", "--batch-size", 4, "--small", 2, "--timed", "resnet8"]
    options = [*sizes, "--rounds", 1, "--backend", "numpy", "--out", tmp_path]
    status, out, err = run("checkpointing", *options)
    assert (status, err) == (0, "")
    found = rows(out, "Memory of a step, resnet8")
    assert [(row["batch"], row["activations"]) for row in found] == [
        ("2", "all kept"), ("2", "checkpointed"), ("4", "checkpointed")
    ]  # fmt: skip
    for row in found:
        assert float(row["process, MB"]) >= float(row["peak, MB"]) > 0
        difference = float(row["peak, MB"]) - float(row["loaded, MB"])
        assert float(row["growth, MB"]) == pytest.approx(difference, abs=1.1)
    assert len(rows(out, "Time of a step, resnet8, batch 2")) == 2
    assert re.search(r"^checkpointed / all kept: \d+\.\d\d", out, re.MULTILINE)
    check_files(tmp_path, "checkpointing")
    check_files(tmp_path, "recomputation")


def test_gradients_that_differ_with_checkpoints_are_not_compared(load, monkeypatch):
    checkpointing = load("checkpointing")
    sums = iter("abc")

    def measure(*case):
        return checkpointing.Measured(1, 2, 3, 0.1, next(sums))

    monkeypatch.setattr(checkpointing, "measure", measure)
    with pytest.raises(checkpointing.Unequal, match=r"^resnet8, batch 2: the gradients differ"):
        checkpointing.memory("resnet8", 4, 2, "numpy", None)


def test_scaling(run, load, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    small = dict(depths=(8, 20, 32), batch=2, batches=(2, 4))
    monkeypatch.setattr(load("scaling"), "QUICK", small)
    options = ["--quick", "--rounds", 1, "--backend", "numpy", "--out", tmp_path]
    status, out, err = run("scaling", *options)
    assert (status, err) == (0, "")
    assert [r["network"] for r in rows(out, "Depth")] == ["resnet8", "resnet20", "resnet32"]
    assert re.search(r"resnet20 is [+-][\d.]+% off the line .* t\(32\)/t\(8\) = [\d.]+", out)
    assert [r["batch"] for r in rows(out, "Batch size")] == ["2", "4"]
    assert rows(out, "Threads")[0]["speed-up"] == "1.00"
    started = {row["what"]: float(row["seconds"]) for row in rows(out, "Start-up")}
    assert 0 < started["import tinygrad_cnn"] < started["first step, warm"] + 10
    for row in rows(out, "Memory"):
        assert float(row["growth, MB"]) == pytest.approx(
            float(row["peak, MB"]) - float(row["loaded, MB"]), abs=1.1
        )
    for name in ("depth", "batch", "threads", "start_up", "memory"):
        check_files(tmp_path, name)


@pytest.mark.usefixtures("_torch")
def test_inference(run, load, monkeypatch):
    def unavailable(model, weights, x):
        raise ImportError("No module named 'onnxruntime'")

    monkeypatch.setitem(load("inference").SIDES, "onnxruntime", unavailable)
    options = ["--models", "resnet8", "--batch-sizes", "3", "--rounds", 1]
    status, out, _ = run("inference", *options, "--peers", "channels_last,onnxruntime")
    assert status == 0
    assert "onnxruntime is left out for resnet8: No module named 'onnxruntime'" in out
    (row,) = rows(out, "Inference")
    assert row["onnxruntime, ms"] == row["compile, ms"] == "-"
    assert re.fullmatch(r"[\d.]+ \([\d.]+x\)", row["eager, ms"])


WHOLE = dict(  # a recipe with all that a peer must do as well, for the whole of an epoch and more
    model="resnet9", model_settings={"width": 4}, steps=9, batch_size=16, dtype="float64",
    label_smoothing=0.1, ema=0.9, test_flip=True, schedule={"name": "one_cycle"},
    optimizer={"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    augment={"pad": 4, "flip": True, "cutout": 8, "colour_jitter": 0.1},
)  # fmt: skip


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize("changes", [{}, {"ema": 0.0, "test_flip": False, "augment": {}}])
def test_a_recipe_is_followed_as_ours(load, changes):
    """What is tested in the end is the same network: its weights and its running statistics."""
    peers = load("torch_training")
    recipe = train.Recipe.from_dict(WHOLE | changes)
    with tg.use_backend("numpy"):
        trainer = runs.build(train.Config(recipe, backend="numpy"), data.shapes(70))
        theirs = peers.fit(recipe, trainer, peers.peer(recipe, trainer))
        first = trainer.model.parameters()[0].numpy().copy()
        trainer.run()
    ours = trainer.eval_model
    parameters = [p.detach().numpy() for p in theirs.parameters()]
    assert not np.allclose(parameters[0], first, rtol=1e-2)
    for p, q in zip(ours.parameters(), parameters, strict=True):
        np.testing.assert_allclose(p.numpy(), q, rtol=1e-7, atol=1e-10)
    buffers = [q.numpy() for q in theirs.buffers() if q.ndim]  # a count of batches has no axes
    for (_, p), q in zip(ours.named_buffers(), buffers, strict=True):
        np.testing.assert_allclose(p.numpy(), q, rtol=1e-7, atol=1e-10)


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize("flip", [False, True])
def test_both_sides_test_alike(load, flip):
    """A network that has learned nothing is right where it is right by chance, here and there."""
    peers, accuracy = load("torch_training"), load("accuracy")
    images = data.shapes(70), data.shapes(50, train=False)
    recipe = train.Recipe.from_dict(WHOLE | {"test_flip": flip, "ema": 0.0})
    with tg.use_backend("numpy"):
        ours, _ = accuracy.ours(recipe, images, 3)
    found, seconds = peers.train(recipe.override({"steps": 9}), *images, 3)
    assert found == ours
    assert 0 < seconds < 1000


@pytest.mark.usefixtures("_torch")
def test_a_peer_cuts_no_batches(load):
    recipe = train.Recipe.from_dict(WHOLE | {"accumulate": 2})
    images = data.shapes(70), data.shapes(50, train=False)
    with pytest.raises(ValueError, match="accumulate is 2; the peer takes whole batches only"):
        load("torch_training").train(recipe, *images, 0)


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize("side", ["ours", "torch"])
def test_speedrun(run, load, monkeypatch, tmp_path, side):
    monkeypatch.setattr(load("speedrun"), "MORE", 6)
    own, results = tmp_path / "own.toml", tmp_path / "found.jsonl"
    own.write_text('model = "resnet9"\nmodel_settings = {width = 2}\nepochs = 1\nbatch_size = 5\n')
    options = ["--recipe", own, "--minutes", 0.005, "--images", 50, "--results", results]
    for _ in range(2):
        status, out, err = run("speedrun", *options, "--side", side, "--backend", "numpy")
        assert (status, err) == (0, "")
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["side"] for line in lines] == [side, side]
    given = 0.005 * (1.8 if side == "torch" else 1)
    for line in lines:
        assert line["asked for, minutes"] == pytest.approx(given)
        assert line["epochs"] == pytest.approx(line["steps"] / 10)
        assert 0 <= line["accuracy"] <= 1
    (row,) = rows(out, "Accuracy by the clock")
    assert (row["side"], row["accuracy"]) == (side, f"{lines[1]['accuracy']:.2%}")


@pytest.mark.parametrize(("few", "more", "steps"), [(5, 25, 60), (1, 21, 60), (30, 24, 100)])
def test_a_speedrun_s_length_bears_noise(load, monkeypatch, few, more, steps):
    speedrun, taken = load("speedrun"), {1: 90.0, 4: few, 24: more}
    recipe = train.Recipe.from_dict(WHOLE)
    images = data.shapes(5), data.shapes(5, train=False)
    monkeypatch.setitem(speedrun.SIDES, "ours", lambda recipe, *rest: (0.5, taken[recipe.steps]))
    assert speedrun.steps_in(60, "ours", recipe, images) == steps


def test_accuracy_has_two_sides(run, tmp_path):
    status, _, err = run("accuracy", "--results", tmp_path / "a.jsonl", "--side", "jax")
    assert status == 2
    assert "--side is 'jax'; expected ours, torch or both" in err


def test_speedrun_has_two_sides(run, monkeypatch):
    asked = []

    def run_again(command, check):
        asked.append(command[-2:])
        return SimpleNamespace(returncode=len(asked) - 1)

    monkeypatch.setattr(subprocess, "run", run_again)
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    status, _, err = run("speedrun")
    assert asked == [["--side", "ours"], ["--side", "torch"]]
    assert (status, err) == (
        1,
        "speedrun: the run of side torch failed; what it said stands above\n",
    )
    status, _, err = run("speedrun", "--side", "jax")
    assert status == 2
    assert "--side is 'jax'; expected ours, torch or both" in err


@pytest.mark.parametrize("name", ["layers", "memory_passes", "steps", "inference", "speedrun"])
def test_without_pytorch_there_is_a_sentence(run, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch", None)
    status, _, err = run(name)
    assert status == 1
    assert err == (
        f"{name}: {name}.py compares with PyTorch, which isn't installed; pip install torch\n"
    )


# ---- a wrong result ----


@pytest.fixture
def spoil(load, monkeypatch):
    """Make a kernel's result too large, and count instead of timing."""
    timed = []

    def spoil(kernel, program, *, factor=1.01):
        numba = type(backends.get("numba"))
        right = getattr(numba, kernel)

        def wrong(self, *arrays, **settings):
            result = right(self, *arrays, **settings)
            several = isinstance(result, tuple)
            return (factor * result[0], *result[1:]) if several else factor * result

        monkeypatch.setattr(numba, kernel, wrong)
        monkeypatch.setattr(load(program), "interleave", count)
        return timed

    def count(sides, **settings):
        timed.append(sides)
        return {side: sys.modules["harness"].Timing([1.0]) for side in sides}

    return spoil


def test_a_wrong_kernel_is_not_timed(run, spoil):
    timed = spoil("relu", "backends")
    status, _, err = run("backends", "--batch-size", 2, "--only", "relu")
    assert (status, timed) == (1, [])
    assert re.search(r"relu 16@32x32 on numba: results differ by 1.0e-02 of the largest", err)


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize(
    ("kernel", "program", "only", "message", "before"),
    [
        ("conv2d", "layers", "64@8", "64@8 forward, ours: results differ by 1.0e-02", 0),
        ("conv2d_weight_grad", "layers", "64@8", "64@8 dW, ours: results differ by", 2),
        ("max_pool2d", "memory_passes", "max pool 2x2", "32@32 forward, ours: results differ", 0),
        ("batch_norm_grad", "memory_passes", "64@8", "64@8 backward, ours: results differ", 1),
    ],
)
def test_a_wrong_kernel_is_not_compared(run, spoil, kernel, program, only, message, before):
    timed = spoil(kernel, "layers")  # where both programs' timing is
    status, _, err = run(program, "--quick", "--only", only)
    assert (status, len(timed)) == (1, before)  # the passes before it were right
    assert message in err
    assert "is not timed" in err


@pytest.mark.usefixtures("_torch")
def test_wrong_scores_are_not_timed(run, spoil):
    timed = spoil("conv2d", "inference")
    options = ["--models", "resnet8", "--batch-sizes", "2", "--peers", "eager"]
    status, _, err = run("inference", *options)
    assert (status, timed) == (1, [])
    assert "resnet8, batch 2, ours against PyTorch eager: results differ by" in err


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("batch_norm", "steps: ours: the first two steps' losses are"),
        ("conv2d_weight_grad", "of 23 moved in the first step by"),
    ],
)
def test_a_wrong_step_is_not_timed(run, spoil, kernel, message):
    timed = spoil(kernel, "steps", factor=1.1)
    options = ["--models", "resnet8", "--figure", "alternating", "--peers", "channels_last"]
    status, _, err = run("steps", "--quick", *options)
    assert (status, timed) == (1, [])
    assert message in err


def test_what_is_right_is_told_from_what_rounds_coarsely(load):
    """Ours is held to float64's step; of a peer it is known how coarsely it computes."""
    steps = load("steps")
    exact, coarse = steps.Start([2.3, 2.2], [1.0, 0.1]), steps.Start([2.3, 2.2], [1.0, 0.12])
    steps.check_starts({"channels_last": coarse, "bf16": coarse}, exact)
    for side in (steps.OURS, "NCHW", "compile"):
        said = f"{side}: parameter 1 of 2 moved in the first step by 0.12, in float64 by 0.1, "
        with pytest.raises(steps.Unequal, match=rf"^{said}expected to differ by 0.05 at most"):
            steps.check_starts({side: coarse}, exact)
    with pytest.raises(steps.Unequal, match="first two steps' losses are"):
        steps.check_starts({"channels_last": exact._replace(losses=[2.3, 2.3])}, exact)


# ---- the harness ----


def test_difference(load):
    difference = load("harness").difference
    assert difference([1.0, 2.0], [1.0, 4.0]) == 0.5
    assert difference([], []) == 0
    assert difference([0.0], [0.0]) == 0
    assert difference([1.0], [1.0, 1.0]) == math.inf
    assert math.isnan(difference([math.nan], [1.0]))


@pytest.mark.parametrize("wrong", [1.1, math.nan, math.inf])
def test_check_equal(load, wrong):
    harness = load("harness")
    assert harness.check_equal([1.0], [1.01], tolerance=0.1, what="it") == pytest.approx(
        0.0099, 1e-2
    )
    with pytest.raises(harness.Unequal, match=r"^it: results differ by .* more than 1e-02"):
        harness.check_equal([wrong], [1.0], tolerance=0.01, what="it")


def test_interleave(load, monkeypatch):
    harness, calls = load("harness"), []
    monkeypatch.setattr(harness, "PAUSE", 0)
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = harness.interleave(sides, rounds=2, calls=2)
    assert "".join(calls) == "aaabbbaaabbb"  # the first of each block isn't counted
    assert [len(t.seconds) for t in timings.values()] == [4, 4]


def test_timing(load):
    timing = load("harness").Timing([0.001, 0.002, 0.003, 0.004, 0.1])
    assert timing.median == 0.003
    assert timing.spread == pytest.approx(1 / 3)
    assert str(timing) == "3.00 ±33%"


def test_table(load, capsys):
    table = load("harness").Table("Title", ["a", "b"], notes=["a note"])
    table.add(1, "two")
    table.show()
    assert capsys.readouterr().out == (
        "### Title\n\n| a | b |\n| --- | --- |\n| 1 | two |\n\na note  \n\n"
    )


def test_table_in_a_terminal(load, capsys, monkeypatch):
    table = load("harness").Table("Title", ["a", "b"], notes=["[note]"])
    table.add(1, "[bold]two")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    table.show()
    out = capsys.readouterr().out
    assert "[note]" in out
    assert "[bold]two" in out


def test_the_machine_is_described(load):
    hardware, software = load("harness").machine()
    assert re.search(r"\d+ cores, (AVX-512|AVX|NEON|SSE); threads: \d+ \(Numba\)", hardware)
    assert f"NumPy {np.__version__}" in software


def test_ceilings_are_positive(load):
    harness = load("harness")
    assert harness.sgemm_peak(64) > 0
    assert harness.copy_bandwidth(1) > 0


def test_restart_with(load, monkeypatch, capfd):
    harness = load("harness")
    script = "import os; print(os.environ['COLOUR'])"
    monkeypatch.setattr(sys, "argv", ["-c", script])
    with pytest.raises(SystemExit, match="0"):
        harness.restart_with({"COLOUR": "blue"})
    assert capfd.readouterr().out == "blue\n"
    monkeypatch.setenv("COLOUR", "blue")
    harness.restart_with({"COLOUR": "blue"})  # goes on in this process


def test_off_the_line(load):
    scaling = load("scaling")
    assert scaling.off_the_line((20, 56, 110), (1.0, 2.2, 4.0)) == pytest.approx(0.0)
    assert scaling.off_the_line((0, 1, 2), (1.0, 2.2, 3.0)) == pytest.approx(0.1)


@pytest.mark.usefixtures("_torch")
def test_peers_have_the_papers_parameters(load):
    build = load("torch_models").build
    counts = dict(resnet20=269722, resnet110=1727962, preact_resnet164=1703258, resnet9=6573120)
    found = {name: sum(p.numel() for p in build(name).parameters()) for name in counts}
    assert found == counts


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize(
    "name", ["resnet20", "plain20", "preact_resnet164", "resnet9", "alexnet_cifar"]
)
def test_peers_compute_what_our_networks_do(load, name):
    """With the same parameters in the same order."""
    import torch

    net = models.build(name, rng=np.random.default_rng(0)).eval().to("numpy")
    peer = load("torch_models").with_weights(name, [p.numpy() for p in net.parameters()]).eval()
    x = np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32)
    with tg.no_grad():
        ours = net(tg.Tensor(x, backend="numpy")).numpy()
    theirs = peer(torch.from_numpy(x)).detach().numpy()
    assert abs(ours - theirs).max() < 1e-4 * abs(theirs).max()


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize("name", ["resnet18", "preact_resnet110", "resnet", "mlp"])
def test_what_has_no_peer_is_refused(load, name):
    with pytest.raises(ValueError, match=f"no PyTorch peer of '{name}'; there are resnet20, "):
        load("torch_models").build(name)


@pytest.mark.parametrize(
    ("change", "counted"),
    [
        ({"schedule": {"milestones": [32_000, 48_000]}}, r"milestones \[32000, 48000\]"),
        ({"schedule": {"name": "step", "every": 1000}}, r"every \[1000\]"),
        ({"warm_up": {"steps": 400}}, r"warm-up's steps \[400\]"),
    ],
)
def test_a_race_wants_a_schedule_that_stretches(load, change, counted):
    speedrun, paper = load("speedrun"), recipe.load("paper")
    speedrun.check_stretches("paper", paper)
    with pytest.raises(ValueError, match=f"its {counted} are steps"):
        speedrun.check_stretches("paper", paper.override(change))


class Axes:
    """Keep the labels."""

    def plot(self, *args, **settings): ...

    set_ylabel = plot

    def set_xticks(self, at, labels):
        self.labels = labels


def test_every_setup_has_its_columns(load):
    """Two lengths of one network are two setups."""
    accuracy, axes = load("accuracy"), Axes()
    setups = [
        dict(recipe=recipe.load("paper").override({"epochs": n}).to_dict(), data="shapes", images=9)
        for n in (1, 2)
    ]
    found = {json.dumps(setup): dict(ours=[50.0], torch=[49.0]) for setup in setups}
    accuracy.plot(axes, found)
    assert len(axes.labels) == len(set(axes.labels)) == 4


def test_convolutions_are_counted(load):
    """FACTS: 40.55 M multiplications an image; three passes, without the first layer's dX."""
    first = 2 * 3 * 9 * 16 * 32 * 32 / 1e9
    assert load("steps").gflop("resnet20") == pytest.approx(3 * 2 * 40.55e-3 - first, rel=1e-3)


def test_weights_are_the_same_on_both_sides(load):
    steps = load("steps")
    weights = steps.fresh_weights("resnet8")
    with tg.use_backend("numpy"):
        net = steps.our_network("resnet8", weights)
    for p, w in zip(net.parameters(), weights, strict=True):
        np.testing.assert_array_equal(p.numpy(), w)
        assert not np.shares_memory(p.data, w)


# ---- accuracy ----


def accuracy_options(results, *more):
    return ["--results", results, "--images", 40, "--set", "epochs=1", "--backend", "numpy", *more]


@pytest.mark.usefixtures("_torch")
def test_a_run_of_each_side_leaves_a_line(run, tmp_path):
    results = tmp_path / "new" / "results.jsonl"
    for side, seed in ("ours", 0), ("torch", 1000):
        options = accuracy_options(results, "--side", side, "--seed", seed)
        assert run("accuracy", *options, "--set", "model=resnet8")[0] == 0
    ours, theirs = sys.modules["accuracy"].read(results)
    assert [(r["side"], r["seed"]) for r in (ours, theirs)] == [("ours", 0), ("torch", 1000)]
    assert ours["setup"] == theirs["setup"]
    assert ours["setup"]["recipe"]["model"] == "resnet8"
    assert all(0 <= r["accuracy"] <= 1 for r in (ours, theirs))


def test_accuracy_runs_what_is_missing_in_turn(run, load, tmp_path, monkeypatch):
    accuracy, started = load("accuracy"), []

    def pretend(side, seed, threads):
        started.append((side, seed))
        record = dict(side=side, seed=seed, accuracy=0.5 + seed % 7 / 100, setup=setup)
        accuracy.append(tmp_path / "results", record)

    setup = dict(
        recipe=accuracy.recipes.load("paper").override({"epochs": 1}).to_dict(), data="shapes",
        images=40,
    )  # fmt: skip
    monkeypatch.setattr(accuracy, "in_own_process", pretend)
    run("accuracy", *accuracy_options(tmp_path / "results", "--seeds", 1))
    assert started == [("ours", 0), ("torch", 1000)]
    pytest.importorskip("scipy")
    status, out, _ = run("accuracy", *accuracy_options(tmp_path / "results", "--seeds", 2))
    assert (status, started[2:]) == (0, [("ours", 1), ("torch", 1001)])
    (row,) = rows(out, "Accuracy by the same recipe")
    assert row["ours, %"] == "50.50 ± 0.71 (n = 2)"
    run("accuracy", *accuracy_options(tmp_path / "results", "--seeds", 2))
    assert len(started) == 4


def test_accuracy_tests_as_welch(load):
    """Against figures worked out by hand: t = 0.1 / sqrt(2 * 0.0025 / 3), 4 degrees of freedom."""
    pytest.importorskip("scipy")
    accuracy = load("accuracy")
    a, b = [90.0, 90.05, 90.1], [89.9, 89.95, 90.0]
    assert accuracy.compared(a, b) == ("+0.10 (-0.01 to +0.21)", "0.07")
    assert accuracy.compared(a, [90.0]) == ("-", "-")


def test_accuracy_keeps_different_recipes_apart(run, load, tmp_path):
    accuracy = load("accuracy")
    for epochs in (1, 2):
        told = accuracy.recipes.load("paper").override({"epochs": epochs}).to_dict()
        setup = dict(recipe=told, data="cifar10", images=None)
        accuracy.append(tmp_path / "r", dict(side="ours", seed=0, accuracy=0.5, setup=setup))
    status, out, _ = run("accuracy", "--results", tmp_path / "r", "--report", "--out", tmp_path)
    found = rows(out, "Accuracy by the same recipe")
    assert (status, [row["length"] for row in found]) == (0, ["1 epochs", "2 epochs"])
    assert {row["p"] for row in found} == {"-"}
    check_files(tmp_path, "accuracy")


def test_a_failed_run_of_accuracy_ends_it(run, tmp_path):
    options = accuracy_options(tmp_path / "r", "--side", "ours", "--set", "optimizer.lr=1e30")
    status, _, err = run("accuracy", *options, "--set", "epochs=20", "--set", "model=svm")
    assert status == 1
    assert "accuracy: the run of seed 0 (ours) failed; what it said stands above" in err
