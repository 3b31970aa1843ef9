"""What is said where CuPy can't run: a fake CuPy fails in every way that the real one does."""

import sys
import types

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import backends, cli
from tinygrad_cnn.backends import BackendUnavailable
from tinygrad_cnn.backends.cupy_backend import detect


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Start with no backend made."""
    monkeypatch.setattr(backends, "_made", {})
    monkeypatch.setattr(backends, "_chosen", None)


def fails(error):
    def call(*args):
        raise error

    return call


class Cuda(types.SimpleNamespace):
    """cupy.cuda; what is an exception is raised when it is asked for, as CuPy loads libraries."""

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        if isinstance(value, Exception):
            raise value
        return value


def fake_cupy(*, version="14.2.0", cublas=None, nvrtc=lambda: (12, 9), **runtime):
    """Imitate CuPy for CUDA 12 and one GPU with NumPy's arrays, but for what is given."""
    works = dict(
        driverGetVersion=lambda: 13000, runtimeGetVersion=lambda: 12090,
        getDeviceCount=lambda: 1, memGetInfo=lambda: (1, 2),
    )  # fmt: skip
    fake = types.ModuleType("cupy")
    fake.waited = []
    stream = types.SimpleNamespace(synchronize=lambda: fake.waited.append(True))
    fake.cuda = Cuda(
        runtime=types.SimpleNamespace(**works | runtime),
        nvrtc=types.SimpleNamespace(getVersion=nvrtc),
        cublas=cublas,
        get_current_stream=lambda: stream,
    )
    fake.__version__, fake.asnumpy, fake.asarray = version, np.array, np.asarray
    fake.RawModule = None  # no kernel is compiled before one is launched
    return fake


def a_folder(path):
    """Imitate what Python makes of a folder that has no modules."""
    module = types.ModuleType("cupy")
    module.__path__ = [path]
    return module


NO_DRIVER = dict(driverGetVersion=lambda: 0)
NO_NVRTC = RuntimeError('Failure finding "libnvrtc.so.12": No such file: libnvrtc.so.12\n')
FRAMED = ImportError(
    "\n=====\nFailed to import.\n\nOriginal error:\n  ImportError: libc.so.9: no such file\n====\n"
)
WAYS = {
    "no CuPy": ([], None, "CuPy is not installed (import of cupy halted; None in sys.modules)",
        "pip install 'tinygrad_cnn[cuda12]'"),
    "two packages": (["cupy-cuda12x", "cupy-cuda13x"], fake_cupy(),
        "cupy-cuda12x and cupy-cuda13x are installed, and each overwrites the other's files",
        "pip uninstall -y cupy-cuda12x cupy-cuda13x; pip install 'tinygrad_cnn[cuda12]'"),
    "a broken CuPy": (["cupy-cuda12x"], FRAMED,
        "cupy-cuda12x is installed but can't be imported (ImportError: libc.so.9: no such file)",
        "pip install --force-reinstall cupy-cuda12x"),
    "a folder": ([], a_folder("/home/me/cupy"), "the folder /home/me/cupy is in CuPy's place",
        "another name for it"),
    "an old CuPy": (["cupy-cuda12x"], fake_cupy(version="13.6.0"),
        "CuPy 13.6.0 is installed, and to kernels it passes no null pointers; expected 14 or newer",
        "pip install --upgrade cupy-cuda12x"),
    "no driver": (["cupy-cuda12x"], fake_cupy(**NO_DRIVER), "CuPy 14.2.0 finds no NVIDIA driver",
        "nvidia-smi; where it is missing, install the driver from https://www.nvidia.com/drivers"),
    "an old driver": (["cupy-cuda12x"], fake_cupy(driverGetVersion=lambda: 11080),
        "the driver knows CUDA 11, and CuPy 14.2.0 wants 12 or newer",
        "a newer driver from https://www.nvidia.com/drivers"),
    "the wrong wheel": (["cupy-cuda13x"],
        fake_cupy(driverGetVersion=lambda: 12040, runtimeGetVersion=lambda: 13000),
        "CuPy 14.2.0 is made for CUDA 13, and the driver knows CUDA 12",
        "pip uninstall -y cupy-cuda13x; pip install 'tinygrad_cnn[cuda12]'"),
    "no GPU": (["cupy-cuda12x"],
        fake_cupy(getDeviceCount=fails(RuntimeError("cudaErrorNoDevice: no device is detected"))),
        "the NVIDIA driver finds no GPU (cudaErrorNoDevice: no device is detected)",
        "nvidia-smi -L, which lists them; CUDA_VISIBLE_DEVICES may hide them"),
    "hidden GPUs": (["cupy-cuda12x"], fake_cupy(getDeviceCount=lambda: 0),
        "the NVIDIA driver finds no GPU (it counts 0)",
        "nvidia-smi -L, which lists them; CUDA_VISIBLE_DEVICES may hide them"),
    "no NVRTC": (["cupy-cuda12x"], fake_cupy(nvrtc=fails(NO_NVRTC)),
        "CUDA's library NVRTC can't be loaded (Failure finding \"libnvrtc.so.12\": No such file: "
        "libnvrtc.so.12)", "pip install 'tinygrad_cnn[cuda12]'"),
    "no cuBLAS": (["cupy-cuda13x"],
        fake_cupy(cublas=ImportError("no libcublas"), runtimeGetVersion=lambda: 13000),
        "CUDA's library cuBLAS can't be loaded (no libcublas)",
        "pip install 'tinygrad_cnn[cuda13]'"),
    "a full GPU": (["cupy-cuda12x"],
        fake_cupy(memGetInfo=fails(RuntimeError("cudaErrorMemoryAllocation: out of memory"))),
        "the GPU takes no work (cudaErrorMemoryAllocation: out of memory)",
        "nvidia-smi, which lists the programs that hold it or its memory"),
}  # fmt: skip


@pytest.fixture
def pretend(monkeypatch):
    """Pretend that packages are installed and that `import cupy` gives a module or an error."""

    def pretend(packages, cupy):
        installed = lambda name: [name] * (name in packages)  # noqa: E731
        monkeypatch.setattr(detect, "distributions", installed)
        if isinstance(cupy, ImportError):
            find = lambda name, *_: fails(cupy)() if name == "cupy" else None  # noqa: E731
            finder = types.SimpleNamespace(find_spec=find)
            monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
            monkeypatch.delitem(sys.modules, "cupy", raising=False)
        else:
            monkeypatch.setitem(sys.modules, "cupy", cupy)

    return pretend


@pytest.mark.parametrize("way", WAYS)
def test_cupy_says_why_it_can_not_run(pretend, way):
    packages, cupy, reason, remedy = WAYS[way]
    pretend(packages, cupy)
    with pytest.raises(BackendUnavailable) as error:
        tg.ones(2, backend="cupy")
    assert (error.value.reason, error.value.remedy) == (reason, remedy)
    assert str(error.value) == f"backend 'cupy' can't run here: {reason}; try: {remedy}"
    assert isinstance(tg.available_backends()["cupy"], BackendUnavailable)
    assert backends.get("auto").name == "numba"


def test_cupy_moves_arrays_to_the_device_and_back(pretend):
    fake = fake_cupy()
    pretend(["cupy-cuda12x"], fake)
    backend = backends.get("cupy")
    assert (backend.name, backend.xp) == ("cupy", fake)
    there = backend.asarray([1, 2], "float32")
    np.testing.assert_array_equal(backend.to_numpy(there), np.array([1, 2], "f"), strict=True)
    backend.synchronize()
    assert fake.waited == [True]


def test_memory_that_runs_out_in_mid_training(monkeypatch, capsys):
    """CuPy's OutOfMemoryError is a MemoryError."""
    monkeypatch.setattr(sys, "argv", ["tinygrad-cnn"])
    with pytest.raises(SystemExit, match="1"):
        cli.run(lambda: fails(MemoryError("Out of memory allocating 512 bytes"))())
    assert capsys.readouterr().err == (
        "tinygrad-cnn: Out of memory allocating 512 bytes Out of memory: a smaller --batch-size "
        "needs less\n"
    )
