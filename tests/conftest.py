"""What several test folders need."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cupy_backend.emulation import COMPILER, EmulatedBackend
from cupy_backend.on_device import DeviceBackend
from cupy_backend.recording import RecordingBackend
from hypothesis import settings

import tinygrad_cnn as tg
from tinygrad_cnn import backends, cli
from tinygrad_cnn.backends import Backend

# chosen by HYPOTHESIS_PROFILE; ci draws the same examples every time
settings.register_profile("dev", max_examples=20, deadline=None)
settings.register_profile("ci", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if "CI" in os.environ else "dev")
)

collect_ignore = ["mutants.py"]  # --doctest-modules would import it, and it sets a backend
STARTED_WITH = os.environ.get(backends.VARIABLE)

BACKENDS = [name for name, why_not in tg.available_backends().items() if why_not is None]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "cifar10"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the tests of the emulated GPU be run on a real one."""
    parser.addoption("--on-device", action="store_true", help="run emulated tests on the GPU")


@pytest.fixture
def started_with() -> str | None:
    """Give what TINYGRAD_CNN_BACKEND was before any test was collected."""
    return STARTED_WITH


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command; give exit status, stdout and stderr."""

    def run(*args: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["tinygrad-cnn", *map(str, args)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return exit.value.code, *capsys.readouterr()

    return run


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load a file of benchmarks/, whose programs import each other by their plain names."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(tg.backends, "_chosen", tg.backends._chosen)
    for path in BENCHMARKS.glob("*.py"):
        monkeypatch.setitem(sys.modules, path.stem, None)  # afterwards nothing of them is left
        del sys.modules[path.stem]

    def load(name: str) -> Any:
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def run_benchmark(
    load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run a program of benchmarks/ in this process; give its exit status, stdout and stderr."""

    def run(name: str, *args: object) -> tuple[Any, str, str]:
        module = load(name)
        arguments = [str(BENCHMARKS / f"{name}.py"), *map(str, args)]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as exit:
            cli.run(module.main)
        return exit.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def _torch() -> None:
    pytest.importorskip("torch")


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


@pytest.fixture(scope="session")
def emulated(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    """Give the GPU's backend with its kernels compiled for this CPU, in pytest's cache.

    With --on-device they are compiled for the GPU, and run there.
    """
    if pytestconfig.getoption("--on-device"):
        return DeviceBackend()
    if COMPILER is None:
        pytest.skip("emulating a GPU needs Linux and a C++ compiler: g++, or what CXX names")
    cache = getattr(pytestconfig, "cache", None)  # absent with -p no:cacheprovider
    return EmulatedBackend(cache.mkdir("kernels") if cache else tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def recording(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    """Give an emulated GPU that has CUDA graphs, known by its name while a module is tested."""
    if COMPILER is None or pytestconfig.getoption("--on-device"):
        pytest.skip("an emulated GPU needs Linux and a C++ compiler, and is none")
    cache = getattr(pytestconfig, "cache", None)
    folder = cache.mkdir("kernels") if cache else tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends._factories, "recording", lambda: RecordingBackend(folder))
        yield backends.get("recording")
        patch.delitem(backends._made, "recording")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses `backend` on all that can run here, the kernelwise on the emulated GPU too."""
    if "backend" in metafunc.fixturenames:
        kernelwise = metafunc.definition.get_closest_marker("kernelwise") is not None
        more = [pytest.param("emulated", marks=pytest.mark.emulated)] * kernelwise
        metafunc.parametrize("backend", [*BACKENDS, *more], indirect=True, scope="module")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs on the GPU of this machine."""
    for item in items:
        params = getattr(item, "callspec", None) and item.callspec.params
        if params and "cupy" in (params.get("backend"), params.get("fast")):
            item.add_marker("device")


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[str | Backend]:
    """Make new tensors on a backend, named or itself."""
    own = request.getfixturevalue("emulated") if request.param == "emulated" else request.param
    with tg.use_backend(own):
        yield own
