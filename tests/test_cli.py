"""The command line: what it prints, the exit status, and one line for an error."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import models, selftest
from tinygrad_cnn.autograd import OPS, op
from tinygrad_cnn.nn import Conv2d


@pytest.fixture(autouse=True)
def _on_numpy():
    with tg.use_backend("numpy"):
        yield


def start(*args, **environment):
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "tinygrad_cnn", *args],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_module_runs():
    result = start("--help", COLUMNS="200")
    assert (result.returncode, result.stderr) == (0, "")
    for command in ("selftest", "models", "backends", "--debug"):
        assert command in result.stdout


def test_models_are_listed(run):
    status, out, err = run("models")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows] == models.names()
    assert ["resnet20", "269,722", "parameters"] in rows


# ---- backends ----


@pytest.fixture
def _broken(monkeypatch):
    """Register a backend that can't run here."""

    def factory():
        raise tg.BackendUnavailable("broken", "it has no legs", "a chair")

    monkeypatch.setitem(tg.backends._factories, "broken", factory)


@pytest.mark.usefixtures("_broken")
def test_backends_are_listed_with_reasons(run):
    status, out, err = run("backends")
    assert (status, err) == (0, "")
    assert re.search(r"^numpy +ready$", out, re.MULTILINE)
    assert re.search(r"^broken +it has no legs; try: a chair$", out, re.MULTILINE)
    *listed, _, last = out.splitlines()
    assert [line.split()[0] for line in listed] == sorted(tg.available_backends())
    assert last == "new tensors are made on numpy"


def test_each_convolution_is_explained(run):
    status, out, err = run("backends", "--explain", "resnet8", "--backend", "numpy")
    assert (status, err) == (0, "")
    modules = models.build("resnet8").named_modules()
    assert [line.split()[0] for line in out.splitlines()] == [
        name for name, module in modules if isinstance(module, Conv2d)
    ]
    first = "conv1 (1, 3, 32, 32) (16, 3, 3, 3) reference"
    assert " ".join(out.splitlines()[0].split()) == first


# ---- errors ----

MISTAKES = {
    "model": (
        ["backends", "--explain", "resnet21"],
        "no model 'resnet21'; did you mean 'resnet20'?",
    ),
    "backend": (["selftest", "--backend", "cuda"], "no backend 'cuda'; did you mean 'cupy'?"),
    "selftest": (["selftest", "--backend", "nunpy"], "no backend 'nunpy'; did you mean 'numpy'?"),
    "unavailable": (["selftest", "--backend", "broken"], "can't run here: it has no legs"),
}


@pytest.mark.parametrize(("args", "message"), MISTAKES.values(), ids=MISTAKES)
@pytest.mark.usefixtures("_broken")
def test_an_error_is_one_line(run, args, message):
    status, out, err = run(*args)
    assert (status, out) == (1, "")
    assert err.startswith("tinygrad-cnn: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_wrong_variable_is_one_line():
    result = start("backends", TINYGRAD_CNN_BACKEND="nunpy")
    assert result.returncode == 1
    assert re.search(r"^numpy +ready$", result.stdout, re.MULTILINE)  # the list helps all the same
    assert result.stderr.startswith("tinygrad-cnn: no backend 'nunpy'; did you mean 'numpy'?")
    assert result.stderr.endswith("(the environment variable TINYGRAD_CNN_BACKEND is 'nunpy')\n")
    assert result.stderr.count("\n") == 1


def test_debug_shows_the_traceback():
    result = start("--debug", "backends", "--backend", "nunpy")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback (most recent call last)")
    assert "ValueError: no backend 'nunpy'" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["bakends"], "No such command 'bakends'"),
        (["models", "--depth"], "No such option: --depth"),
        (["selftest", "numpy"], "unexpected extra argument"),
        (["backends", "--backend"], "requires an argument"),
    ],
    ids=["command", "option", "argument", "value"],
)
def test_usage_errors_exit_with_2(run, args, message):
    status, out, err = run(*args)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


# ---- selftest ----


def test_selftest_passes_on_numpy(run):
    status, out, err = run("selftest", "--backend", "numpy")
    assert (status, err) == (0, "")
    first, *rows, last = out.splitlines()
    assert (first, last) == ("backend numpy", "all ops passed")
    assert sorted(row.split()[0] for row in rows) == sorted({case.op for case in selftest.CASES})
    assert all(row.endswith("  ok") for row in rows)


def test_selftest_names_a_failure(run, monkeypatch):
    cases = [selftest.Case(name, (2, 3)) for name in ("tanh", "exp")]
    monkeypatch.setattr(selftest, "CASES", cases)
    monkeypatch.setitem(OPS, "tanh", OPS["tanh"])  # so that the right one comes back

    @op
    def tanh(x):  # 1 % wrong in its gradient
        return x.backend.map(x.backend.xp.tanh, x.data), (lambda g, y: 1.01 * g * (1.0 - y * y),)

    status, out, err = run("selftest")
    assert (status, err) == (1, "")
    _, failed, passed, last = out.splitlines()
    assert re.match(r"tanh +1 checks .* FAILED: check_gradients\(tanh 2x3\): ", failed)
    assert re.match(r"exp +\d checks .*  ok$", passed)
    assert last == "1 ops failed"
