"""Every block of README.md and CONTRIBUTING.md runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import backends, models
from tinygrad_cnn.autograd import OPS

ROOT = Path(__file__).parents[1]


def blocks(document, language):
    """Give the fenced blocks of a document, in order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def _registries():
    """Take out what the documents add to the registries."""
    kept = [(r, dict(r)) for r in (OPS, backends._factories, models.registry._builders)]
    chosen = backends._chosen
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)
    backends._chosen = chosen


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
@pytest.mark.usefixtures("_registries")
def test_python_blocks_run(document):
    tg.manual_seed(0)
    exec("\n".join(blocks(document, "python")), {"__name__": document})


def scripts():
    """Give the README's shell commands; make is what runs these tests.

    A block about a run is one script: its commands use what those before them left.
    """
    for block in blocks("README.md", "sh"):
        if "runs/" in block:
            yield block
        elif not block.startswith("make"):
            yield from block.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the blocks are for a POSIX shell")
@pytest.mark.parametrize("script", list(scripts()), ids=lambda script: script.split("\n")[0])
def test_shell_blocks_run(script, tmp_path):
    """Each runs in an empty folder, beside the examples."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    subprocess.run(["sh", "-ec", script], check=True, cwd=tmp_path, env=environment)


def test_make_targets_exist():
    targets = re.findall(r"^make (\w+)", "".join(blocks("README.md", "sh")), flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"train", "test"} <= set(targets)
    assert all(re.search(rf"^{t}:", makefile, flags=re.MULTILINE) for t in targets)


# ---- figures ----

NETWORKS = {
    "ResNet-20": "resnet20", "ResNet-56": "resnet56", "ResNet-110": "resnet110",
    "ResNet-9": "resnet9", "Pre-activation ResNet-164": "preact_resnet164",
    "ResNet-20, AVX2 on both sides": "resnet20",
}  # fmt: skip


def rows(document, begin):
    """Give the cells of a document's table rows, from those on whose heading begins so."""
    text = (ROOT / document).read_text(encoding="utf-8")
    lines = text[text.index(begin) :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def measured():
    """Give (network, ours in ms, the best of PyTorch / ours) of each fresh row of steps."""
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    found = re.findall(
        r"^\| (\w+) \| 128 \| fresh \| ([\d.]+) .*?\*\*([\d.]+)\*\*", text, re.MULTILINE
    )
    return {(network, ours, best) for network, ours, best in found}


def test_the_steps_of_the_readme_are_those_measured():
    found = rows("README.md", "| a training step, 128 images")
    assert {row[0] for row in found} == set(NETWORKS)
    for name, ours, theirs in found:
        best = re.search(r": ([\d.]+)", theirs)[1]
        assert (NETWORKS[name], ours.removesuffix(" ms"), best) in measured()


def test_the_layers_of_the_readme_are_those_measured():
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for name, *means in rows("README.md", "| times PyTorch's speed"):
        group = {"3x3 c": "3x3", "3x3 o": "stride 2", "1x1, ": "1x1"}[name[:5]]
        assert "\n{}: forward {}, dX {}, dW {}; all".format(group, *means) in text


def test_the_inference_of_the_readme_is_that_measured():
    """The README sums up 32 images and more: from the least to the most times."""
    columns = {"PyTorch's": 3, "torch.compile": 5, "ONNX Runtime's": 6}
    table = rows("benchmarks/README.md", "| network | batch | ours, ms | eager, ms")
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    for side, column in columns.items():
        times = [float(re.search(r"\(([\d.]+)x\)", r[column])[1]) for r in table if r[1] != "1"]
        low, high = (f"{value:.1f}" for value in (min(times), max(times)))
        assert re.search(rf"{low} to {high} times as [^;]*?{re.escape(side)}", text), (
            side,
            low,
            high,
        )


def test_single_images_are_as_slow_as_the_readme_says():
    table = rows("benchmarks/README.md", "| network | batch | ours, ms | eager, ms")
    (eager, compiled, onnx) = (
        [float(re.search(r"\(([\d.]+)x\)", row[n])[1]) for row in table if row[1] == "1"]
        for n in (3, 5, 6)
    )
    said = (
        f"image by image it is {eager[0]:.1f} and {eager[1]:.1f} times as fast as PyTorch's, while "
        f"torch.compile is up to {1 / min(compiled):.1f} and ONNX Runtime up to "
        f"{1 / min(onnx):.1f} times as fast as ours."
    )
    assert said in (ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " ")


def test_the_degradation_of_the_readme_is_that_measured():
    table = {row[0]: row[3:] for row in rows("benchmarks/README.md", "| variant |")}
    errors, tested = (
        {name: round(float(row[n]), 1) for name, row in table.items()} for n in (0, 1)
    )
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    said = (
        f"56 layers is at {errors['plain-56']} % training error, where one of 20 layers is at "
        f"{errors['plain-20']} %: deeper is worse. With shortcuts the 56 layers are at "
        f"{errors['ResNet-56']} %, and 20 at {errors['ResNet-20']} %: deeper is better, in test "
        f"error, too ({tested['ResNet-56']} against {tested['ResNet-20']} %)"
    )
    assert said in text


@pytest.mark.parametrize("accuracy", ["84.87%", "82.82%", "87.70%", "89.66%", "84.17%"])
def test_accuracies_of_the_readme_are_those_measured(accuracy):
    rounded = f"{float(accuracy.removesuffix('%')):.1f} %"
    assert rounded in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"| {accuracy} |" in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
