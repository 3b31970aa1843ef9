"""What several test folders need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import tinygrad_cnn as tg

# chosen by HYPOTHESIS_PROFILE; ci draws the same examples every time
settings.register_profile("dev", max_examples=20, deadline=None)
settings.register_profile("ci", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if "CI" in os.environ else "dev")
)

BACKENDS = [name for name, why_not in tg.available_backends().items() if why_not is None]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "cifar10"


@pytest.fixture(scope="session")
def real_cifar10(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder that CIFAR-10 lies in, unpacked once (20 s) into pytest's cache."""
    if folder := os.environ.get("TINYGRAD_CNN_DATA"):
        return Path(folder)
    if not (SHARED / "unpack.py").is_file():
        pytest.skip("no CIFAR-10: TINYGRAD_CNN_DATA does not name its folder")
    pytest.importorskip("PIL", reason="unpacking CIFAR-10 needs pillow")
    cache = getattr(pytestconfig, "cache", None)  # absent with -p no:cacheprovider
    home = cache.mkdir("cifar10") if cache else tmp_path_factory.mktemp("cifar10")
    if not (home / "whole").exists():
        part = Path(tempfile.mkdtemp(dir=home))
        subprocess.run([sys.executable, SHARED / "unpack.py", part], check=True)
        try:
            part.rename(home / "whole")  # in one step, so that nobody sees half of it
        except OSError:  # another worker was first
            shutil.rmtree(part)
    return home / "whole"


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a module's tests on every backend that can run here."""
    with tg.use_backend(request.param):
        yield request.param
