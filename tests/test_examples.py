"""The examples: short, documented, and running to their end without a warning."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
every_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def run(path, *args):
    """Run an example on the NumPy backend, with warnings as errors; give what it prints."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-W", "error", path, *args],
        env={
            **os.environ,
            "TINYGRAD_CNN_BACKEND": "numpy",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "COLUMNS": "100",
        },
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def docstring(path):
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_examples_are_found():
    assert len(EXAMPLES) >= 5


@every_example
def test_it_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80


@every_example
def test_it_tells_its_command(path):
    assert f"\n    python examples/{path.name}" in docstring(path)


def options(path):
    """List the options that an example takes: its main's arguments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (main,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main")
    return {f"--{a.arg.replace('_', '-')}" for a in main.args.args}


@every_example
def test_the_options_in_its_docstring_exist(path):
    assert set(re.findall(r"--[\w-]+", docstring(path))) <= options(path)
    assert {"--data-dir", "--images", "--epochs", "--seed"} <= options(path)


@pytest.mark.slow
@every_example
def test_it_runs(path):
    out = run(path, "--images", "300", "--epochs", "1")
    assert re.search(r"epoch 1(/1)?: loss \d+\.\d+", out)
    assert "nan" not in out


@pytest.mark.slow
@every_example
def test_it_runs_on_real_images(path, real_cifar10):
    out = run(path, "--images", "300", "--epochs", "1", "--data-dir", str(real_cifar10))
    assert re.search(r"epoch 1(/1)?: loss \d+\.\d+", out)


@pytest.mark.slow
def test_the_resnet_prints_the_accuracy():
    path = ROOT / "examples" / "05_resnet_cifar10.py"
    out = run(path, "--images", "300", "--epochs", "1", "--model", "resnet8")
    assert "resnet8: 75,290 parameters, 10 steps" in out
    assert re.search(r"^accuracy on 60 held-out images: \d+\.\d%$", out, re.MULTILINE)


@pytest.mark.slow
def test_alexnet_slides_over_a_scene_and_draws_it(tmp_path):
    path, picture = ROOT / "examples" / "06_alexnet.py", tmp_path / "scores.png"
    out = run(path, "--images", "100", "--epochs", "1", "--out", str(picture))
    *_, scene, saved, differs = out.splitlines()
    rows = [line for line in out.splitlines() if len(line.split()) == 13]  # (128 - 32) / 8 + 1
    assert len(rows) == 13
    assert re.fullmatch(r"the scene's images: \d+ of 16 right", scene)
    assert saved == "one pass multiplies 9.5 times less than 169 crops"
    assert re.fullmatch(r"and finds another class at \d+% of the places", differs)
    assert picture.read_bytes().startswith(b"\x89PNG")
