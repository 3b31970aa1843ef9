"""Choosing a precision: in a program, on the command line, and where it is not to be had."""

from __future__ import annotations

import contextlib
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from cupy_backend.emulation import EmulatedBackend

import tinygrad_cnn as tg
from tinygrad_cnn import backends, models, nn, train
from tinygrad_cnn.backends.cupy_backend import CupyBackend
from tinygrad_cnn.backends.precision import PRECISIONS, check_precision, precision, use_precision
from tinygrad_cnn.train import config, recipe
from tinygrad_cnn.train.trained import for_inference


@pytest.fixture
def gpu(monkeypatch):
    """Give a backend like cupy's for a GPU of some compute capability; nothing is compiled."""

    def gpu(capability):
        monkeypatch.setattr(EmulatedBackend, "capability", capability)
        return EmulatedBackend()

    return gpu


# ---- in a program ----


@pytest.mark.parametrize(
    ("capability", "here"),
    [(70, ["fp32"]), (75, ["fp32", "fp16"]), (80, [*PRECISIONS]), (120, [*PRECISIONS])],
)
def test_the_card_decides(gpu, capability, here):
    backend, taken = gpu(capability), []
    for name in PRECISIONS:
        try:
            tg.set_precision(name, backend)
        except tg.PrecisionUnavailable:
            continue
        taken.append(name)
        assert precision(backend) == name
    assert taken == here


@pytest.mark.parametrize(
    ("capability", "name", "says"),
    [
        (75, "bf16", "precision 'bf16' needs a GPU of compute capability 8.0, and this one has "
         "7.5; take fp32 or fp16"),
        (61, "fp16", "precision 'fp16' needs a GPU of compute capability 7.5, and this one has "
         "6.1; take fp32"),
    ],
)  # fmt: skip
def test_an_old_card_is_told(gpu, capability, name, says):
    backend = gpu(capability)
    with pytest.raises(tg.PrecisionUnavailable, match=f"^{re.escape(says)}$"):
        tg.set_precision(name, backend)
    assert precision(backend) == "fp32"


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_a_backend_without_tensor_cores_is_told(name):
    backend = backends.get(name)
    tg.set_precision("fp32", backend)
    says = (
        f"precision 'tf32' needs the tensor cores of a GPU, and backend {name!r} has none; "
        "take fp32, or the backend cupy"
    )
    with tg.use_backend(backend), pytest.raises(tg.PrecisionUnavailable, match=f"^{says}$"):
        tg.set_precision("tf32")
    assert precision(backend) == "fp32"


def test_an_unknown_precision_is_told(gpu):
    says = "no precision 'float16'; there are: fp32, tf32, bf16, fp16"
    for backend in gpu(90), backends.get("numpy"):
        with pytest.raises(ValueError, match=f"^{says}$"):
            check_precision("float16", backend)


def test_a_precision_for_a_while(gpu):
    backend = gpu(90)
    with tg.use_backend(backend):
        tg.set_precision("tf32")
        within = []
        with contextlib.suppress(ZeroDivisionError), tg.use_precision("bf16"):
            within.append(precision(backend))
            raise ZeroDivisionError
        assert (within, precision(backend)) == (["bf16"], "tf32")


def test_cupy_is_asked_for_the_capability():
    device = SimpleNamespace(compute_capability="75")
    backend = CupyBackend(
        SimpleNamespace(cuda=SimpleNamespace(Device=lambda: device), RawModule=None)
    )
    assert backend.compute_capability() == 75


# ---- a run ----


@pytest.mark.parametrize("command", [
    ("train", "--model", "softmax", "--out", "run"),
    ("evaluate", "run"),
    ("predict", "run", "a.png"),
    ("backends", "--explain", "resnet20"),
], ids=lambda command: command[0])  # fmt: skip
def test_commands_tell_what_is_not_there(run, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    for name, says in (
        ("bf16", "precision 'bf16' needs the tensor cores of a GPU, and backend 'numpy' has none; "
         "take fp32, or the backend cupy"),
        ("half", "no precision 'half'; there are: fp32, tf32, bf16, fp16"),
    ):  # fmt: skip
        status, out, error = run(*command, "--backend", "numpy", "--precision", name)
        assert (status, out, error) == (1, "", f"tinygrad-cnn: {says}\n")
    assert not [*tmp_path.iterdir()]


def test_float64_is_not_rounded():
    double = {"--set dtype=float64": {"dtype": "float64"}}
    config.configure("shapes", double, precision="fp32")
    says = "precision bf16 rounds float32, but the recipe has dtype float64; leave one of them out"
    with pytest.raises(recipe.RecipeError, match=says):
        config.configure("shapes", double, precision="bf16")


def test_a_configuration_of_earlier_days_has_fp32():
    table = train.Config(recipe.load("shapes")).to_dict()
    del table["precision"]
    assert train.Config.from_dict(table).precision == "fp32"


@pytest.mark.emulated
def test_networks_are_folded_in_any_precision(emulated, monkeypatch):
    monkeypatch.setitem(backends._factories, emulated.name, lambda: emulated)
    monkeypatch.setattr(backends, "_made", {})
    rng = np.random.default_rng(0)
    with tg.use_backend(emulated), use_precision("bf16"):
        model = models.build("resnet8", rng=rng)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data = rng.uniform(0.5, 2, module.weight.shape).astype("f")
        folded = for_inference(model)
        assert precision(emulated) == "bf16"
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


@pytest.mark.emulated
def test_a_run_in_bf16(emulated, run, monkeypatch, tmp_path):
    """From the first step to a picture's name; afterwards the backend is as it was."""
    monkeypatch.chdir(tmp_path)
    name = emulated.name  # of the GPU's kernels, it may be another
    monkeypatch.setitem(backends._factories, name, lambda: emulated)
    monkeypatch.setattr(backends, "_made", {})
    begin = ("train", "--model", "softmax", "--images", "10", "--epochs", "1")
    here = ("--backend", name)
    losses = {}
    for chosen in "fp32", "bf16":
        status, out, error = run(*begin, *here, "--precision", chosen, "--out", chosen)
        assert (status, error) == (0, "")
        assert (f"on {name} in bf16, into bf16" in out) == (chosen == "bf16")
        result = json.loads((tmp_path / chosen / "result.json").read_text())
        assert (result["backend"], result["precision"]) == (name, chosen)
        losses[chosen] = result["test_loss"]
        assert precision(emulated) == "fp32"
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)

    status, _, error = run("train", "--resume", "bf16", "--precision", "fp32")
    assert status == 2
    assert "--precision fp32 contradicts the run in bf16, which has bf16" in error

    status, out, _ = run("backends", "--explain", "lenet5", *here, "--precision", "fp16")
    assert status == 0
    assert out.count("implicit_gemm_fp16\n") == 2
