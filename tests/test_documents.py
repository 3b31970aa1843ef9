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
@pytest.mark.parametrize("script", [*scripts()], ids=lambda script: script.split("\n")[0])
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
