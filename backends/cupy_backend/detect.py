"""Whether CuPy can run here, and if not, the one command that mends it.

Runs when the backend is first asked for, so the GPU is not touched at import.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import distributions
from typing import Any

from ..base import BackendUnavailable

PACKAGES = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")
CUPY = 14  # its oldest version that will do
OLDEST, NEWEST = 12, 13  # the CUDA versions that it is made for


def usable_cupy() -> Any:
    """Import CuPy and find a GPU that it can use, or raise BackendUnavailable."""
    cupy = _import()
    _check_driver(cupy)
    _check_gpu(cupy)
    _check_libraries(cupy)
    _check_memory(cupy)
    return cupy


def _unavailable(reason: str, remedy: str) -> BackendUnavailable:
    return BackendUnavailable("cupy", reason, remedy)


def _install(version: int) -> str:
    """Write the command that installs CuPy for a CUDA version, or for the nearest that it knows."""
    return f"pip install 'tinygrad_cnn[cuda{min(max(version, OLDEST), NEWEST)}]'"


def _installed() -> list[str]:
    """List the packages that bring a `cupy`."""
    return [name for name in PACKAGES if any(distributions(name=name))]


def _import() -> Any:
    packages = _installed()
    if len(packages) > 1:  # CuPy itself only warns
        raise _unavailable(
            f"{' and '.join(packages)} are installed, and each overwrites the other's files",
            f"pip uninstall -y {' '.join(packages)}; {_install(OLDEST)}",
        )
    try:
        import cupy
    except ImportError as error:
        if packages:
            raise _unavailable(
                f"{packages[0]} is installed but can't be imported ({_last_line(error)})",
                f"pip install --force-reinstall {packages[0]}",
            ) from error
        raise _unavailable(f"CuPy is not installed ({error})", _install(OLDEST)) from None
    if not hasattr(cupy, "__version__"):  # any folder of that name can be imported
        folder = next(iter(cupy.__path__))
        raise _unavailable(f"the folder {folder} is in CuPy's place", "another name for it")
    if int(cupy.__version__.split(".")[0]) < CUPY:
        raise _unavailable(
            f"CuPy {cupy.__version__} is installed, and to kernels it passes no null pointers; "
            f"expected {CUPY} or newer",
            f"pip install --upgrade {' '.join(packages) or 'cupy'}",
        )
    return cupy


def _last_line(error: Exception) -> str:
    """Give what an error says in the end; CuPy frames it and begins with advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" =")]
    return lines[-1] if lines else type(error).__name__


def _check_driver(cupy: Any) -> None:
    driver, wheel = (
        version() // 1000
        for version in (cupy.cuda.runtime.driverGetVersion, cupy.cuda.runtime.runtimeGetVersion)
    )
    if not driver:
        raise _unavailable(
            f"CuPy {cupy.__version__} finds no NVIDIA driver",
            "nvidia-smi; where it is missing, install the driver from https://www.nvidia.com/drivers",
        )
    if driver < OLDEST:
        raise _unavailable(
            f"the driver knows CUDA {driver}, and CuPy {cupy.__version__} wants {OLDEST} or newer",
            "a newer driver from https://www.nvidia.com/drivers",
        )
    if driver < wheel:
        raise _unavailable(
            f"CuPy {cupy.__version__} is made for CUDA {wheel}, and the driver knows CUDA {driver}",
            f"pip uninstall -y {' '.join(_installed())}; {_install(driver)}",
        )


def _check_gpu(cupy: Any) -> None:
    try:
        count, why = cupy.cuda.runtime.getDeviceCount(), "it counts 0"
    except RuntimeError as error:
        count, why = 0, _last_line(error)
    if not count:
        raise _unavailable(
            f"the NVIDIA driver finds no GPU ({why})",
            "nvidia-smi -L, which lists them; CUDA_VISIBLE_DEVICES may hide them",
        )


def _check_libraries(cupy: Any) -> None:
    """Load NVRTC, which compiles the kernels, and cuBLAS, which multiplies matrices."""
    libraries: dict[str, Callable[[], Any]] = {
        "NVRTC": lambda: cupy.cuda.nvrtc.getVersion(),
        "cuBLAS": lambda: cupy.cuda.cublas,
    }
    for name, load in libraries.items():
        try:
            load()
        except (ImportError, RuntimeError) as error:
            raise _unavailable(
                f"CUDA's library {name} can't be loaded ({_last_line(error)})",
                _install(cupy.cuda.runtime.runtimeGetVersion() // 1000),
            ) from None


def _check_memory(cupy: Any) -> None:
    """Ask the GPU how much memory is free; that alone takes some."""
    try:
        cupy.cuda.runtime.memGetInfo()
    except RuntimeError as error:
        raise _unavailable(
            f"the GPU takes no work ({_last_line(error)})",
            "nvidia-smi, which lists the programs that hold it or its memory",
        ) from None
